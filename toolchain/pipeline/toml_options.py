"""Read a dataclass of options from a TOML table; each key is checked, and errors name it."""

from __future__ import annotations

import math
import os
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.declared import Declaration, Form, declarations, user_fields
from slimdeploy.toolchain.errors import SlimdeployError, nearest, shorten

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
            raise SlimdeployError(f"unknown key {prefix + key!r}.{nearest(key, list(known))}")
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
    if isinstance(hint, types.UnionType):
        kinds = [part for part in typing.get_args(hint) if part is not types.NoneType]
        if value == NONE and types.NoneType in typing.get_args(hint):
            return None
        if isinstance(value, str) and declared and declared.form:
            return _written(value, key, declared.form)
        hint = str if str in kinds and isinstance(value, str) else kinds[0]
    if hasattr(hint, "__dataclass_fields__"):
        if isinstance(value, dict):
            return build(hint, value, key + ".")
        raise SlimdeployError(f"{key} must be a section, [{key}]")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list):
            return tuple(_convert(typing.get_args(hint)[0], item, key) for item in value)
        raise SlimdeployError(f"{key} must be a list, not {shorten(repr(value))}")
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is str and isinstance(value, str) and declared and declared.path:
        return os.path.expanduser(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SlimdeployError(f"{key} must be a 64-bit number, not {shorten(value, 40)}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise SlimdeployError(f"{key} must be a finite number, not {value}")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        raise SlimdeployError(f"{key} must be {names.get(hint, 'a string')}, not {shorten(repr(value))}")
    return value


def _written(value: str, key: str, form: Form) -> Any:
    try:
        return form.parse(value)
    except ValueError:
        raise SlimdeployError(f"{key} must be {form.expected}, not {shorten(repr(value))}") from None
