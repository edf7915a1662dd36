"""Latency of single images: the first run, which allocates memory, is not timed."""

from __future__ import annotations

import time

import numpy as np

from slimdeploy.toolchain.runtime.single_image import time_single_images


class SlowAtFirst:
    """Its first run takes 300 ms, the others 5 ms."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        self.runs = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        time.sleep(0.005 if self.runs else 0.3)
        self.runs += 1
        return np.zeros((1, 2), np.float32)


def test_the_first_run_is_not_timed() -> None:
    session = SlowAtFirst()
    found = time_single_images(session, 0.05)  # type: ignore[arg-type]
    assert 1 <= found.runs < session.runs
    assert 5 <= found.p50 <= found.p99 < 300
