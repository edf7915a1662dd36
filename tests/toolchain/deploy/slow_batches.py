"""A batcher around a computation whose time is known."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from slimdeploy.toolchain.deploy.batching import Answer, Batcher, BatchOptions


class Slow:
    """Gives back each image's first byte, after `seconds`; keeps the sizes of its batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.started.set()
        self.gate.wait(60)
        time.sleep(self.seconds)
        self.batches.append(len(images))
        return images[:, 0, 0, :1].astype(np.float32)


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def run(compute, options: BatchOptions, scenario):
    """Run `scenario(batcher, ask)` with a batcher around `compute`; `ask(value)` answers an image."""

    async def main():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, options)
            await batcher.start()

            async def ask(value: int, *, ago: float = 0.0) -> Answer:
                arrived = time.monotonic() - ago
                with batcher.admit(arrived):
                    return await batcher.answer(image(value), arrived)

            try:
                return await scenario(batcher, ask)
            finally:
                await batcher.stop()

    return asyncio.run(main())


async def until(condition) -> None:
    """Wait for it to be true, for 10 s at most."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")
