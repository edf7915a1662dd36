"""Latency of a single image in an open session."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.runtime.session import Session


@dataclass(frozen=True)
class Latency:
    """Milliseconds for a single image, including the copies to and from the device."""

    p50: float
    p99: float
    runs: int


def time_single_images(session: Session, seconds: float) -> Latency:
    """Time single images for about `seconds`, after a warm-up: one run, which allocates memory, and more for
    a quarter of that time.
    """
    image = np.zeros((1, *session.input_shape), np.float32)
    session.run(image)
    times: list[float] = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < 1.25 * seconds:
        before = time.perf_counter()
        session.run(image)
        if before - start >= 0.25 * seconds:
            times.append(1e3 * (time.perf_counter() - before))
    p50, p99 = np.percentile(times, [50, 99])
    return Latency(round(float(p50), 4), round(float(p99), 4), len(times))
