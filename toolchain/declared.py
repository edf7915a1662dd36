"""Options declared once, on the fields of a dataclass: default, help, choices, range.

The checks of the dataclass, the flags of a command (`commands/flags.py`), the keys of a recipe and the
keyword arguments of the library (`library/keywords.py`) are derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, field, fields
from typing import Any

from slimdeploy.toolchain.checks import check_range
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.registry import Registry

_KEY = "slimdeploy.option"


@dataclass(frozen=True)
class Form:
    """The text form of a value that isn't a plain number: `parse` raises ValueError for a text that is not
    `expected`.
    """

    parse: Callable[[str], Any]
    expected: str
    metavar: str
    write: Callable[[Any], str] = str
    """A value as it is written."""


@dataclass(frozen=True)
class Declaration:
    """Everything about an option besides its type and default."""

    help: str
    choices: Collection[str] | None = None
    """Allowed values: a fixed list or a registry."""
    also: tuple[str, ...] = ()
    """Allowed values in addition to those of the registry."""
    least: float = -math.inf
    most: float = math.inf
    form: Form | None = None
    path: bool = False
    """Whether it is the path of an existing file."""
    metavar: str = ""
    flag: str = ""
    """Its flag, if it differs from the field's name."""
    unset: str = ""
    """What None means, for the help text."""
    needs: str = ""
    """The option without which this one has no effect: `teacher`, or with its value `schedule step`."""
    heading: str = ""
    """In `--help`, above this option and those after it, up to the next heading."""


def option(default: Any, help: str, **declared: Any) -> Any:
    """A dataclass field with its Declaration."""
    return field(default=default, metadata={_KEY: Declaration(help, **declared)})


def declarations(kind: Any) -> dict[str, Declaration]:
    """Field -> its Declaration, in order; of a dataclass or an instance of one."""
    return {f.name: f.metadata[_KEY] for f in fields(kind) if _KEY in f.metadata}


def user_fields(kind: Any) -> tuple[Field[Any], ...]:
    """The fields that a user sets: the declared ones, or all where none is declared."""
    return tuple(f for f in fields(kind) if _KEY in f.metadata) or fields(kind)


def check_declared(options: Any) -> None:
    """Raises SlimdeployError for the first value that isn't finite, known or within its range."""
    for name, declared in declarations(options).items():
        value = getattr(options, name)
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise SlimdeployError(f"`{name}` must be a finite number, not {value:g}")
        if isinstance(declared.choices, Registry):
            if value not in declared.also:
                declared.choices.check(value)
        elif declared.choices is not None and value not in declared.choices:
            raise unknown(name.replace("_", " "), value, declared.choices)
        if isinstance(value, int | float):
            check_range(name, value, declared.least, declared.most)
