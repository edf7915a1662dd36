"""slimdeploy: train a sparse network, prune it, and put a measured engine on the edge.

The names below are imported when they are first used: `import slimdeploy` itself needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from slimdeploy.toolchain.errors import CheckFailed as CheckFailed
    from slimdeploy.toolchain.errors import SlimdeployError as SlimdeployError
    from slimdeploy.toolchain.library import sparsity as sparsity
    from slimdeploy.toolchain.library.from_module import from_module as from_module
    from slimdeploy.toolchain.library.prune import prune as prune
    from slimdeploy.toolchain.library.prune_result import PruneResult as PruneResult
    from slimdeploy.toolchain.models.checkpoint import Checkpoint as Checkpoint
    from slimdeploy.toolchain.pruning.options import PruneOptions as PruneOptions

_T = "slimdeploy.toolchain."
_MODULES = {
    _T + "errors": ("CheckFailed", "SlimdeployError"),
    _T + "library": ("sparsity",),
    _T + "library.from_module": ("from_module",),
    _T + "library.prune": ("prune",),
    _T + "library.prune_result": ("PruneResult",),
    _T + "models.checkpoint": ("Checkpoint",),
    _T + "pruning.options": ("PruneOptions",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'slimdeploy' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return (
        getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{_WHERE[name]}.{name}")
    )


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
