"""Library functions that take the options of a dataclass as keywords of their own."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from slimdeploy.toolchain.declared import declarations
from slimdeploy.toolchain.errors import SlimdeployError

R = TypeVar("R")


def takes(
    kind: type, defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorator: the function's keyword-only parameter `options`, an instance of the dataclass `kind`, can
    also be given field by field. Signature and docstring say so, from the declarations of `kind`. `defaults`
    go before those of the fields.
    """
    names = [f.name for f in fields(kind)]

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        signature = _signature(function, kind, defaults or {})

        @functools.wraps(function)
        def called(*arguments: Any, **keywords: Any) -> R:
            signature.bind(*arguments, **keywords)  # TypeError names what is missing or unknown
            own = {name: keywords.pop(name) for name in names if name in keywords}
            options = keywords.pop("options", None)
            if options is not None and own:
                raise SlimdeployError(f"give `options` or `{next(iter(own))}`, not both")
            return function(*arguments, **keywords, options=options or kind(**{**(defaults or {}), **own}))

        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_listed(kind)}"
        return called

    return decorate


def _signature(function: Callable[..., Any], kind: type, defaults: Mapping[str, Any]) -> inspect.Signature:
    own, keyword = inspect.signature(function), inspect.Parameter.KEYWORD_ONLY
    values = {f.name: defaults.get(f.name, _default(f)) for f in fields(kind)}
    hints = typing.get_type_hints(kind)
    parameters = [p for p in own.parameters.values() if p.name != "options"]
    parameters += [
        inspect.Parameter(f.name, keyword, annotation=hints[f.name], default=values[f.name])
        for f in fields(kind)
    ]
    parameters.append(
        inspect.Parameter("options", keyword, annotation=f"{kind.__name__} | None", default=None)
    )
    return own.replace(parameters=parameters)


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _listed(kind: type) -> str:
    """The options as a section of a docstring."""
    lines = [f"    {name}: {declared.help}" for name, declared in declarations(kind).items()]
    return "\n".join(
        ["Keyword Args:", *lines, f"    options: All of these as one {kind.__name__}, instead of them."]
    )
