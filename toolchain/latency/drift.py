"""Drift: how much slower the device is now than when its latency table was measured.

Clocks, power modes and other programs change the speed of a machine for minutes at a time, which a table
can't contain. Some of the table's networks are timed between the networks to be measured: the drift is the
ratio of their times now to those in the table.
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
    """Median ms of each network now, and the drift; 1 means as fast as in the table."""

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
    """Time each of `graphs` for `seconds`, alternating with `anchors` of the table's `samples`; without any
    the drift is 1.
    """
    chosen = _across(samples, anchors)
    ms = backend.whole_ms([*graphs, *(anchor.graph for anchor in chosen)], size, seconds=seconds)
    ms, now = ms[: len(graphs)], ms[len(graphs) :]
    slower = [t / one.total_ms for t, one in zip(now, chosen, strict=True)]
    return Measured(ms, float(np.median(slower)) if slower else 1.0)


def _across(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples, from a fast one to a slow one."""
    ordered = sorted(samples, key=lambda sample: sample.total_ms)
    places = np.linspace(0, len(ordered) - 1, count + 2)[1:-1]  # neither the fastest nor the slowest
    return [ordered[round(place)] for place in places]
