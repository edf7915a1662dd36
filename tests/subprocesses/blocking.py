"""Makes libraries look as if they weren't installed: `import blocking; blocking.block("torch")`."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence


class Blocker(importlib.abc.MetaPathFinder):
    """Finds nothing, loudly."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.split(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def block(*names: str) -> None:
    """Let the import of each of `names` fail from now on, as a missing one does."""
    loaded = [name for name in names if name in sys.modules]
    assert not loaded, f"{loaded} are imported already: nothing would be blocked"
    sys.meta_path.insert(0, Blocker(names))
