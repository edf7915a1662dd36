"""How much slower the device is now than when its latency table was measured.

Clocks, power modes and neighbours on a shared machine change its speed for minutes at a time, which a table
can't know. Some of the networks that the table was fitted to are run between those that are to be measured:
what they take now over what they took then is the drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.latency.backend import LutBackend
from slimdeploy.toolchain.latency.fit import Sample
from slimdeploy.toolchain.networks.graph import Graph


@dataclass(frozen=True)
class Measured:
    """Median ms of each network as they are now, and the drift, 1 on a device as fast as it was."""

    ms: list[float]
    drift: float


def measure_with_drift(
    backend: LutBackend,
    graphs: Sequence[Graph],
    samples: Sequence[Sample],
    size: int,
    *,
    anchors: int,
    seconds: float,
) -> Measured:
    """Run each of `graphs` for `seconds`, in turn with so many `anchors` of the table's `samples`; without
    any the device counts as no slower.
    """
    chosen = _across(samples, anchors)
    ms = backend.whole_ms([*graphs, *(anchor.graph for anchor in chosen)], size, seconds=seconds)
    ms, now = ms[: len(graphs)], ms[len(graphs) :]
    slower = [t / one.total_ms for t, one in zip(now, chosen, strict=True)]
    return Measured(ms, float(np.median(slower)) if slower else 1.0)


def _across(samples: Sequence[Sample], count: int) -> list[Sample]:
    """So many of them, from a fast one to a slow one."""
    ordered = sorted(samples, key=lambda sample: sample.total_ms)
    places = np.linspace(0, len(ordered) - 1, count + 2)[1:-1]  # neither the fastest nor the slowest
    return [ordered[round(place)] for place in places]
