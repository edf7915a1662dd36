"""Library functions that accept the options of a dataclass as keyword arguments."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from slimdeploy.toolchain.declared import Declaration, declarations, user_fields
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.argument_types import annotated, bound, check_types
from slimdeploy.toolchain.library.isolation import isolated

R = TypeVar("R")

_SECTION = "Keyword Args:"
_GIVEN = "given"


def takes(
    kind: type, defaults: Mapping[str, Any] | None = None, *, into: str = "options"
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorator: the fields of the keyword-only parameter `into`, an instance of the dataclass `kind`, can
    also be given as keyword arguments. Signature and docstring are extended from the declarations of `kind`.
    `defaults` override those of the fields. A parameter `given` receives the names of the fields that the
    caller gave, all with an object. Arguments of another type than annotated are refused, and options given
    without the one that they need. The call is `isolated`.
    """
    names = [f.name for f in user_fields(kind)]

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        signature = _signature(function, kind, defaults or {}, into)
        tells = _GIVEN in inspect.signature(function).parameters

        @functools.wraps(function)
        def called(*arguments: Any, **keywords: Any) -> R:
            given = bound(function, signature, arguments, keywords)
            check_types({**annotated(function), into: kind | None}, given)
            own = {name: keywords.pop(name) for name in names if name in keywords}
            options = keywords.pop(into, None)
            if options is not None and own:
                raise SlimdeployError(f"give `{into}` or `{next(iter(own))}`, not both")
            if tells:
                keywords[_GIVEN] = frozenset(f.name for f in fields(kind)) if options else frozenset(own)
            options = options or kind(**{**(defaults or {}), **own})
            _check_needs(own, {**given, **vars(options)}, given, declarations(kind))
            keywords[into] = options
            with isolated():
                return function(*arguments, **keywords)

        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__doc__ = _documented(inspect.cleandoc(function.__doc__ or ""), kind, into)
        return called

    return decorate


def _check_needs(
    own: Iterable[str],
    values: Mapping[str, Any],
    arguments: Mapping[str, Any],
    declared: Mapping[str, Declaration],
) -> None:
    """Raises SlimdeployError for the first of the options `own` that was given without the one that it
    needs.
    """
    given = [name for name, value in arguments.items() if value is not None]
    for name in own:
        if name in declared and (missing := declared[name].missing(given, values)):
            raise SlimdeployError(f"`{name}` needs {missing}")


def _signature(
    function: Callable[..., Any], kind: type, defaults: Mapping[str, Any], into: str
) -> inspect.Signature:
    own, keyword = inspect.signature(function), inspect.Parameter.KEYWORD_ONLY
    values = {f.name: defaults.get(f.name, _default(f)) for f in user_fields(kind)}
    hints = typing.get_type_hints(kind)
    parameters = [p for p in own.parameters.values() if p.name not in (into, _GIVEN)]
    parameters += [
        inspect.Parameter(f.name, keyword, annotation=hints[f.name], default=values[f.name])
        for f in user_fields(kind)
    ]
    parameters.append(inspect.Parameter(into, keyword, annotation=f"{kind.__name__} | None", default=None))
    return own.replace(parameters=parameters)


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _documented(doc: str, kind: type, into: str) -> str:
    """The docstring with the options in its last section, which is added if missing."""
    lines = [f"    {name}: {declared.described(str)}" for name, declared in declarations(kind).items()]
    lines.append(f"    {into}: The {len(lines)} options above as one {kind.__name__}, instead of them.")
    return "\n".join([doc, *([] if _SECTION in doc else ["", _SECTION]), *lines])
