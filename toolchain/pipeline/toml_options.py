"""Read a dataclass of options from a TOML table; each key is checked, and errors name it."""

from __future__ import annotations

import os
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.declared import Declaration, declarations, typed, user_fields
from slimdeploy.toolchain.errors import SlimdeployError, nearest

NONE = "none"
"""The value in TOML for an option without a value, for which TOML has no notation."""


RENAMED = {
    "bench.batches": "bench.batch",
    "network.arguments": "network.arg",
    "data.crop": "data.size",
}
"""Keys of older recipes, and alternative names of the command line."""


def build(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    """A dataclass of type `kind` from a TOML table. `prefix` is put before keys in errors. Keys are named
    like the options of the command line.

    Raises SlimdeployError with the key for anything unknown, missing or of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    known, declared = keys(kind), declarations(kind)
    built = {}
    for key, value in values.items():
        if (newer := RENAMED.get(prefix + key)) is not None:
            raise SlimdeployError(f"{prefix + key!r} is called {newer!r}")
        if key not in known:
            sections = [
                f"{section}.{key}" for section, own_keys in _sections(hints).items() if key in own_keys
            ]
            hint = f" Did you mean {' or '.join(sections)}?" if sections else nearest(key, list(known))
            what = f"section [{prefix}{key}]" if isinstance(value, dict) else f"key {prefix + key!r}"
            raise SlimdeployError(f"unknown {what}.{hint}")
        name = known[key]
        built[name] = _convert(hints[name], value, prefix + key, declared.get(name))
    for f in fields(kind):
        if f.name not in built and f.default is MISSING and f.default_factory is MISSING:
            raise SlimdeployError(f"{prefix + f.name} is missing")
    try:
        return kind(**built)
    except SlimdeployError as error:
        own = {name: key for key, name in known.items()}
        said = error.told(lambda parameter: own.get(parameter, parameter))
        raise SlimdeployError(f"[{prefix.rstrip('.')}] {said}" if prefix else said) from error


def _sections(hints: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Section -> its keys."""
    return {
        name: keys(kind)
        for name, hint in hints.items()
        for kind in (typing.get_args(hint) or (hint,))
        if hasattr(kind, "__dataclass_fields__")
    }


def keys(kind: Any) -> dict[str, str]:
    """Key of a recipe's section -> field of its dataclass: the name of the command line's flag."""
    flags = {
        name: declared.flag.lstrip("-").replace("-", "_") for name, declared in declarations(kind).items()
    }
    return {flags.get(f.name) or f.name: f.name for f in user_fields(kind)}


def _convert(hint: Any, value: Any, key: str, declared: Declaration | None = None) -> Any:
    """`value` as the type `hint`, or SlimdeployError naming `key`."""
    if isinstance(value, str) and "\0" in value:
        raise SlimdeployError(f"{key} must not hold a NUL character")
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value == NONE and types.NoneType in kinds:
        return None
    for kind in kinds:
        if hasattr(kind, "__dataclass_fields__"):
            if isinstance(value, dict):
                return build(kind, value, key + ".")
            if value == NONE:
                raise SlimdeployError(f"[{key}] can't be left out")
            raise SlimdeployError(f"{key} must be a section, [{key}]")
    if isinstance(value, str) and declared and declared.path:
        return os.path.expanduser(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value).expanduser()
    return typed(value, hint, key, declared)
