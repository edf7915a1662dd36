"""Differences between TensorRT versions, all in one table.

A row applies from its version up to the next row. Sources: NVIDIA's migration guides (8.x to 10.x, 10.x to
11.x) and the names in the Python bindings of each version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from slimdeploy.toolchain.errors import SlimdeployError


@dataclass(frozen=True)
class Capabilities:
    """The differences that matter for building and running."""

    explicit_batch_flag: bool
    """Networks must be created with EXPLICIT_BATCH; it is the default later."""
    strongly_typed: bool
    """Types are taken from the ONNX file (STRONGLY_TYPED)."""
    precision_flags: bool
    """BuilderFlag.FP16 and INT8 exist, for weakly typed networks."""
    typing_incomplete: bool
    """Strong typing is incomplete: if such a build fails, flags are tried."""
    builder_levels: bool
    """Has builder optimization levels, version-compatible and hardware-compatible plans."""
    same_capability_plans: bool
    """Has plans for all GPUs of one compute capability."""
    progress: bool
    """IProgressMonitor."""
    sized_device_memory: bool
    """Contexts without own memory are created by a strategy, and receive the memory with its size."""
    highest_opset: int | None
    """Highest ONNX opset of the parser; None if it is above all of ours."""


_V8_5 = Capabilities(
    explicit_batch_flag=True,
    strongly_typed=False,
    precision_flags=True,
    typing_incomplete=False,
    builder_levels=False,
    same_capability_plans=False,
    progress=False,
    sized_device_memory=False,
    highest_opset=17,
)
_V8_6 = replace(_V8_5, builder_levels=True)
_V10_0 = replace(
    _V8_6,
    explicit_batch_flag=False,
    strongly_typed=True,
    typing_incomplete=True,
    progress=True,
    highest_opset=None,
)
_V10_1 = replace(_V10_0, sized_device_memory=True)
_V10_12 = replace(_V10_1, typing_incomplete=False)
_V10_13 = replace(_V10_12, same_capability_plans=True)
_V11_0 = replace(_V10_13, precision_flags=False)

TABLE: dict[tuple[int, int], Capabilities] = {
    (8, 5): _V8_5,
    (8, 6): _V8_6,
    (10, 0): _V10_0,
    (10, 1): _V10_1,
    (10, 12): _V10_12,
    (10, 13): _V10_13,
    (11, 0): _V11_0,
}


def parse_version(version: str) -> tuple[int, ...]:
    """`10.3.0.30` → (10, 3, 0, 30); raises SlimdeployError for anything else."""
    numbers = re.match(r"\d+(\.\d+)+", version)
    if not numbers:
        raise SlimdeployError(f"{version!r} is not a TensorRT version")
    return tuple(int(n) for n in numbers.group().split("."))


def capabilities(version: str) -> Capabilities:
    """The row for a TensorRT version; versions newer than the table get the last row.

    Raises SlimdeployError for a version older than the table.
    """
    wanted = parse_version(version)[:2]
    known = [since for since in TABLE if since <= wanted]
    if not known:
        first = ".".join(map(str, min(TABLE)))
        raise SlimdeployError(f"TensorRT {version} is too old: {first} or newer is needed")
    return TABLE[max(known)]
