"""Command-line flags derived from declared options."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any

import click
from click.core import ParameterSource

from slimdeploy.toolchain.declared import Declaration, Form, declarations
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.help_groups import GroupedOption
from slimdeploy.toolchain.paths import InputPath
from slimdeploy.toolchain.registry import Registry


def flags(
    kind: type,
    *,
    but: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    shown: Mapping[str, str] | None = None,
    into: str = "options",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: add a flag for each declared option of the dataclass `kind`, except those in `but`.

    The function receives them as one argument `into`, an instance of `kind`. `defaults` override those of the
    fields; `shown` replaces the displayed default of a field by a text.
    """
    own = {f.name: f.default for f in fields(kind)} | dict(defaults or {})
    hints = typing.get_type_hints(kind)
    headings = _headings(kind)
    chosen = {name: declared for name, declared in declarations(kind).items() if name not in but}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(**arguments: Any) -> Any:
            _check_needs(chosen)
            values = {name: arguments.pop(name) for name in chosen}
            return function(**{into: kind(**{**(defaults or {}), **values})}, **arguments)

        wrapped.__doc__ = function.__doc__
        wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        decorated: Callable[..., Any] = wrapped
        for name, declared in reversed(chosen.items()):
            told = (shown or {}).get(name, "")
            decorated = _flag(name, hints[name], own[name], declared, told, headings[name])(decorated)
        return decorated

    return decorate


def _headings(kind: type) -> dict[str, str]:
    """Option -> the heading of its group in `--help`."""
    found, heading = {}, ""
    for name, declared in declarations(kind).items():
        heading = declared.heading or heading
        found[name] = heading
    return found


def given(kind: type) -> frozenset[str]:
    """The fields of `kind` whose flags were given on the command line."""
    return frozenset(f.name for f in fields(kind) if is_given(f.name))


def is_given(name: str) -> bool:
    """Whether the parameter `name` of the running command was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)


def refuse(names: Iterable[str], why: str) -> None:
    """Raises SlimdeployError for the first of these parameters that was given: it would be ignored."""
    for name in names:
        if is_given(name):
            raise SlimdeployError(f"`{name}` {why}")


def _check_needs(options: Mapping[str, Declaration]) -> None:
    """Raises SlimdeployError for the first flag that was given without the one that it needs."""
    values = click.get_current_context().params
    given = [name for name in values if is_given(name)]
    for name, declared in options.items():
        if name in given and (missing := declared.missing(given, values)):
            flag = f"--no-{name.replace('_', '-')}" if values[name] is False else f"`{name}`"
            raise SlimdeployError(f"{flag} needs {missing}")


def _flag(
    name: str, hint: Any, default: Any, declared: Declaration, told: str, heading: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = declared.flag or "--" + name.replace("_", "-")
    kind, several = _type(hint)
    if declared.form and default is not None:
        default = declared.form.write(default)
    if kind is bool and default:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    told = told or (declared.unset if default is None or default == "" else "")
    about = declared.described(lambda needed: "--" + needed.replace("_", "-"))
    if isinstance(declared.choices, Registry):
        about += f" One of {', '.join([*declared.also, *declared.choices])}."
    return click.option(
        flag,
        name,
        cls=GroupedOption,
        heading=heading,
        type=None if kind is bool else _converter(kind, declared),
        metavar=declared.metavar or None,
        default=default,
        is_flag=kind is bool,
        multiple=several and not declared.form,
        show_default=not (default is None or default is False or default == () or told),
        help=about + (f" [default: {told}]" if told else ""),
    )


def _type(hint: Any) -> tuple[type, bool]:
    """The type of one value, and whether the option takes several."""
    if isinstance(hint, UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not NoneType)
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _converter(kind: type, declared: Declaration) -> click.ParamType:
    if declared.form:
        return Written(declared.form)
    if declared.path:
        return InputPath(text=True)
    if declared.choices is not None and not isinstance(declared.choices, Registry):
        return click.Choice(list(declared.choices))
    types: dict[type, click.ParamType] = {int: click.INT, float: click.FLOAT}
    return types.get(kind, click.STRING)


class Written(click.ParamType):
    """An option whose value is parsed by a Form."""

    def __init__(self, form: Form) -> None:
        self.name, self._form = form.metavar.lower(), form

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self._form.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._form.parse(str(value))
        except ValueError:
            return self.fail(f"{value!r} is not {self._form.expected}", param, ctx)
