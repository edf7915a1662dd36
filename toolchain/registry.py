"""Tables of objects that options refer to by name, one per kind. Other packages can extend them.

A package adds an entry through the entry-point group `slimdeploy.plugins`. The entry point is called
KIND.NAME and refers to the object:

    [project.entry-points."slimdeploy.plugins"]
    "criterion.nuclear" = "my_package:nuclear"

Its name can be listed without importing anything; the object is imported on access.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

from slimdeploy.toolchain.errors import SlimdeployError, shorten, unknown

T = TypeVar("T")

GROUP = "slimdeploy.plugins"
KINDS = ("arch", "aten", "backend", "criterion", "data", "method", "operator")
"""The tables that plugins can extend, by the first word of the entry points."""


@dataclass(frozen=True)
class Reference:
    """`module:attribute`, and the installed package that contains it; "" for slimdeploy itself."""

    target: str
    package: str = ""

    def load(self) -> Any:
        """Import the object. Raises any error of the import, and AttributeError."""
        module, _, attribute = self.target.partition(":")
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


class Registry(MutableMapping[str, T]):
    """Name -> object of one kind: first those of slimdeploy, then those of plugins.

    `a` is the required class of the objects. `references` are imported on access. To add an object:
    `registry[name] = object`, or `@registry.register(name)`.
    """

    def __init__(self, kind: str, a: Any, references: Mapping[str, str] | None = None) -> None:
        assert kind in KINDS
        self.kind, self._a = kind, a
        self._entries: dict[str, Any] = {name: Reference(to) for name, to in (references or {}).items()}

    def find(self, name: str) -> T:
        """The object called `name`. Raises SlimdeployError like `check`, and for a plugin that can't be
        loaded.
        """
        self.check(name)
        return self[name]

    def check(self, name: str) -> None:
        """Raises SlimdeployError for an unknown name, with the nearest known one; imports nothing."""
        if name not in self:
            raise unknown(self.kind, name, self)

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: register an object as `name`."""

        def add(entry: T) -> T:
            self[name] = entry
            return entry

        return add

    def usable(self) -> list[str]:
        """All names except those of plugins that can't be loaded; each of these is logged."""
        from slimdeploy.toolchain.progress import log

        found = []
        for name in self:
            try:
                self[name]
            except SlimdeployError as error:
                log(f"! {error}")
            else:
                found.append(name)
        return found

    def __getitem__(self, name: str) -> T:
        entry = self._entries[name] if name in self._entries else _plugins(self.kind)[name]
        if isinstance(entry, Reference):
            entry = self._entries[name] = self._loaded(name, entry)
        found: T = entry
        return found

    def __setitem__(self, name: str, entry: T) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._entries, *_plugins(self.kind)]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in _plugins(self.kind)

    def _loaded(self, name: str, reference: Reference) -> Any:
        if not reference.package:
            return reference.load()
        try:
            entry = reference.load()
            if not isinstance(entry, self._a):
                raise TypeError(f"{reference.target} is a {type(entry).__name__}, not a {self._a.__name__}")
        except Exception as error:  # importing another package may raise any error
            raise SlimdeployError(
                f"the {self.kind} {name!r} of the package {reference.package} can't be loaded "
                f"({type(error).__name__}: {shorten(error)}): fix or uninstall {reference.package}"
            ) from error
        return entry


@functools.cache
def _plugins(kind: str) -> dict[str, Reference]:
    """Name -> reference, for the entries of `kind` in installed packages, sorted by package."""
    return {name: reference for (own, name), reference in _entry_points().items() if own == kind}


@functools.cache
def _entry_points() -> dict[tuple[str, str], Reference]:
    """(Kind, name) -> reference, for all plugins. An entry of an unknown kind is logged and ignored."""
    from importlib.metadata import entry_points

    from slimdeploy.toolchain.progress import log

    found: dict[tuple[str, str], Reference] = {}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.value
        kind, dot, name = point.name.partition(".")
        if kind not in KINDS or not dot or not name:
            log(f"! ignored {point.name!r} of the package {package}: plugins are named KIND.NAME, the "
                f"kinds are {', '.join(KINDS)}")  # fmt: skip
            continue
        first = found.setdefault((kind, name), Reference(point.value, package))
        if first.package != package:
            log(f"! the {kind} {name!r} of {package} is ignored: {first.package} has one too")
    return found
