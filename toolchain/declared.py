"""Options declared once, on the fields of a dataclass: default, help, choices, range.

The checks of the dataclass, the flags of a command (`commands/flags.py`), the keys of a recipe and the
keyword arguments of the library (`library/keywords.py`) are derived from it.
"""

from __future__ import annotations

import functools
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from slimdeploy.toolchain.checks import check_range
from slimdeploy.toolchain.errors import SlimdeployError, shorten, unknown
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
    """Whether it is the path of a file."""
    metavar: str = ""
    flag: str = ""
    """Its flag, if it differs from the field's name."""
    unset: str = ""
    """What None means, for the help text."""
    needs: str = ""
    """The option without which this one has no effect: `teacher`, or with its value `schedule step`."""
    heading: str = ""
    """In `--help`, above this option and those after it, up to the next heading."""

    def described(self, naming: Callable[[str], str]) -> str:
        """The help text; `naming` writes the name of the option that this one needs."""
        if not self.needs:
            return self.help
        needed, _, value = self.needs.partition(" ")
        return f"With {naming(needed)} {value}".rstrip() + f": {self.help[0].lower()}{self.help[1:]}"

    def missing(self, given: Collection[str], values: Mapping[str, Any]) -> str:
        """The option that this one needs and that is missing, as errors write it; else an empty text.
        `given`: the options given by the user; `values`: the values of all.
        """
        needed, _, value = self.needs.partition(" ")
        if not needed or ((values.get(needed) == value) if value else needed in given):
            return ""
        return f"`{needed}` {value}".rstrip()


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
    """Converts each declared value of a dataclass to the type of its field, like `typed`.

    Raises SlimdeployError for the first value of another type, not finite, unknown or out of its range.
    """
    hints = _hints(options.__class__)
    for name, declared in declarations(options).items():
        value = typed(getattr(options, name), hints[name], f"`{name}`", declared)
        object.__setattr__(options, name, value)
        if value is None:
            continue
        if isinstance(declared.choices, Registry):
            if value not in declared.also and value not in declared.choices:
                raise unknown(declared.choices.kind, value, [*declared.also, *declared.choices])
        elif declared.choices is not None and value not in declared.choices:
            raise unknown(name.replace("_", " "), value, declared.choices)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_range(name, value, declared.least, declared.most)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of the fields of the dataclass `kind`."""
    return typing.get_type_hints(kind)


_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


def typed(value: Any, hint: Any, label: str, declared: Declaration | None = None) -> Any:
    """`value` in the type `hint`; a text in the option's form is parsed, as on the command line. `label`
    names the value in errors.

    Raises SlimdeployError for a value of another type, for a number that isn't finite, and for a whole number
    of more than 64 bits.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if declared and declared.form and isinstance(value, str):
        return _parsed(value, label, declared.form)
    if declared and declared.path and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if declared and declared.path and value == "":
        raise SlimdeployError(f"{label} must be the path of a file, not an empty text")
    if typing.get_origin(kinds[0]) is tuple:
        if isinstance(value, list | tuple):
            return tuple(typed(item, typing.get_args(kinds[0])[0], label) for item in value)
        if float not in kinds or isinstance(value, bool) or not isinstance(value, Real):
            raise SlimdeployError(f"{label} must be a list, not {shorten(repr(value))}")
    if isinstance(value, Integral) and not isinstance(value, bool):
        if not -(2**63) <= int(value) < 2**63:
            raise SlimdeployError(f"{label} must be a 64-bit number, not {shorten(value, 40)}")
        if int in kinds:
            return int(value)
    if isinstance(value, Real) and not isinstance(value, bool) and float in kinds:
        if not math.isfinite(value):
            raise SlimdeployError(f"{label} must be a finite number, not {value}")
        return float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = _WORDS.get(kinds[0], "a string")
        if declared and declared.form:
            expected = declared.form.expected
        if declared and declared.path:
            expected = "the path of a file"
        raise SlimdeployError(f"{label} must be {expected}, not {shorten(repr(value), 60)}")
    return value


def _parsed(text: str, label: str, form: Form) -> Any:
    try:
        value = form.parse(text)
    except ValueError:
        raise SlimdeployError(f"{label} must be {form.expected}, not {shorten(repr(text))}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise SlimdeployError(f"{label} must be a finite number, not {shorten(text)}")
    return value
