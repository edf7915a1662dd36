"""`import torchvision` that also works beside a CPU-only torch.

torchvision's wheel on PyPI is linked against CUDA. Beside a CPU-only torch its operator library can't be
loaded, and the import then fails where torchvision registers shape functions for `torchvision::nms` and
`torchvision::qnms`, which don't exist. Declaring the schemas of these two first makes the import work; the
operators themselves (box filtering for detectors) stay unavailable, and nothing here needs them.
"""

from __future__ import annotations

import types

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = None  # keeps the declaration alive: torch drops it with its Library object


def import_torchvision() -> types.ModuleType:
    """Return the torchvision module, with or without CUDA. Raises ModuleNotFoundError where it isn't
    installed.
    """
    global _declared
    import torch

    if torch.version.cuda is None and _declared is None and not hasattr(torch.ops.torchvision, "nms"):
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _declared.define(operator + _SCHEMA)
    import torchvision

    return torchvision
