"""`import torchvision` that also works with a CPU-only torch.

torchvision's wheel on PyPI is linked to CUDA. With a CPU-only torch its operator library can't be loaded, and
the import fails when torchvision registers shape functions for `torchvision::nms` and `torchvision::qnms`,
which don't exist. Declaring the schemas of these two makes the import work; the operators (box filtering for
detectors) are not available, and not needed here.

This is done only after the import has failed: if torchvision's library loads, it declares them itself, and
torch ends the process if an operator is declared twice.
"""

from __future__ import annotations

import types

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = None  # keeps the declaration alive: torch drops it with its Library object


def import_torchvision() -> types.ModuleType:
    """Return the torchvision module, with or without CUDA. Raises ModuleNotFoundError if it isn't
    installed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
        import torchvision
    return torchvision


def _declare_operators() -> None:
    global _declared
    import torch

    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        _declared.define(operator + _SCHEMA)
