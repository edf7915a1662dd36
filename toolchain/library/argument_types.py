"""Arguments of the library's functions against their annotations, so that a mistake is an error which names
the parameter.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar

from slimdeploy.toolchain.errors import SlimdeployError, nearest, shorten
from slimdeploy.toolchain.library.isolation import isolated

P = ParamSpec("P")
R = TypeVar("R")

MAX_NAME_BYTES = 255
"""Maximum length of a file name on Linux."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: an argument of another type than its annotation raises SlimdeployError, which names it. The
    call is `isolated`.
    """

    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*arguments: P.args, **keywords: P.kwargs) -> R:
        check_types(annotated(function), bound(function, signature, arguments, keywords))
        with isolated():
            return function(*arguments, **keywords)

    return called


def bound(
    function: Callable[..., Any],
    signature: inspect.Signature,
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
) -> dict[str, Any]:
    """Parameter -> argument of a call. Raises TypeError, as Python does, for a missing or unknown one; it
    names the function and the nearest parameter.
    """
    try:
        return signature.bind(*arguments, **keywords).arguments
    except TypeError as error:
        hints = [nearest(name, signature.parameters) for name in keywords if name not in signature.parameters]
        hint = f".{hints[0]}" if hints else ""
        raise TypeError(f"{function.__name__}() {error}{hint}") from None


@functools.cache
def annotated(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> its type, without those whose classes are imported only for type checking."""
    found = {}
    for name, annotation in inspect.get_annotations(function).items():
        with contextlib.suppress(NameError):
            found[name] = eval(annotation, function.__globals__)
    return found


def check_types(hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises SlimdeployError for the first of `arguments` that isn't of its type in `hints`."""
    for name, value in arguments.items():
        if name in hints:
            _check(f"`{name}`", value, hints[name])


def _check(label: str, value: Any, hint: Any) -> None:
    kinds = _kinds(hint)
    kind = next((kind for kind in kinds if _fits(value, kind)), None)
    if kind is None:
        names = [getattr(kind, "__name__", str(kind)) for kind in kinds]
        expected = " or ".join("None" if n == "NoneType" else n for n in dict.fromkeys(names))
        raise SlimdeployError(
            f"{label} must be {expected}, not {type(value).__name__}{_remedy(value, names)}"
        )
    if Path in kinds and isinstance(value, str | Path):
        _check_path(label, str(value))
    if typing.get_origin(kind) is collections.abc.Sequence:
        (kind_of_items,) = typing.get_args(kind)
        for i, item in enumerate(value):
            _check(f"{label}[{i}]", item, kind_of_items)


def _remedy(value: Any, expected: Sequence[str]) -> str:
    if isinstance(value, str | Path) and "Checkpoint" in expected:
        return ": slimdeploy.load reads a file"
    if isinstance(value, str | Path) and "Dataset" in expected:
        return ": slimdeploy.load_data reads images"
    if "Iterable" in expected and hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        return ": wrap it in a torch.utils.data.DataLoader"
    return ""


def _check_path(label: str, text: str) -> None:
    if not text:
        raise SlimdeployError(f"{label} must be a path, not an empty text")
    if "\0" in text or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in Path(text).parts):
        raise SlimdeployError(f"{label} is not a path: {shorten(repr(text), 60)}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union."""
    return typing.get_args(hint) if typing.get_origin(hint) in (UnionType, typing.Union) else (hint,)


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is Any or origin is collections.abc.Callable:
        return origin is Any or callable(value)
    if origin in (int, float) and not isinstance(value, bool):
        return isinstance(value, Integral if origin is int else Real)
    if origin is NoneType:
        return value is None
    if isinstance(value, bool):
        return origin is bool
    if isinstance(value, str) and origin is not str:
        return False  # a sequence of letters isn't a list of names
    return isinstance(value, origin)
