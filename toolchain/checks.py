"""Range checks shared by options: each error names the parameter, the range and the value."""

from __future__ import annotations

import math
from numbers import Real

from slimdeploy.toolchain.errors import SlimdeployError

MAX_SEED = 2**63 - 1
MAX_IMAGE_SIZE = 4096
"""Side of the network's input in pixels."""
MAX_BATCH = (1 << 16) - 1
"""CUDA's limit for the blocks of a grid along z, where the preprocessing kernel has its images."""
MAX_THREADS = 1024
"""Beyond these limits the libraries crash instead of raising an error."""
MAX_RATE = 1e4
"""Maximum of learning rate, temperature, weight decay and λ: beyond it float32 overflows within a few
steps.
"""


def check_range(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raises SlimdeployError if `value` is given and not a number, below `least` or above `most`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise SlimdeployError(f"`{name}` must be a number, not {value!r}")
    if value is None or least <= value <= most:
        return
    if value < least:
        raise SlimdeployError(f"`{name}` must be at least {least:g}, not {value:g}")
    raise SlimdeployError(f"`{name}` must be at most {most:g}, not {value:g}")
