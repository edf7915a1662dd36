"""The targets on a GPU, and whether a check reached them."""

from __future__ import annotations

from typing import Any

LATENCY_OVER_LAYERS = 1.5
OF_BANDWIDTH = 0.7
REALISED = 0.8

Row = dict[str, Any]


def judge(
    rows: list[Row], comparisons: list[Row], kernels: list[Row], layers_ms: float | None
) -> list[dict[str, Any]]:
    """Each measured target: description, value, limit, and whether it is reached."""
    found = []
    for row in rows:
        if (row["contest"], row["model"], row["batch"]) == ("tensorrt fp16", "pruned", 1) and layers_ms:
            what = "latency ÷ sum of the layers' GPU times, TensorRT FP16 pruned, batch 1, CUDA graph"
            value = row["latency_ms"]["p50"] / layers_ms
            found.append(_target(what, value, at_most=LATENCY_OVER_LAYERS))
    for kernel in kernels:
        if kernel["batch"] == 64 and kernel["kernel"].startswith("preprocess nv12 1920×1080"):
            what = f"share of memory bandwidth, {kernel['kernel']}, batch 64"
            found.append(_target(what, kernel["of_copy"], at_least=OF_BANDWIDTH))
    for one in comparisons:
        if one["contest"].startswith("tensorrt ") and one["batch"] == 256 and one["realised"] is not None:
            what = f"realised (speed-up ÷ MAC ratio), {one['contest']}, batch 256"
            found.append(_target(what, one["realised"], at_least=REALISED))
    return found


def _target(
    what: str, value: float, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    reached = value >= at_least if at_least is not None else at_most is not None and value <= at_most
    return {"what": what, "value": value, "at_least": at_least, "at_most": at_most, "reached": reached}
