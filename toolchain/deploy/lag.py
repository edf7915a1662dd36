"""Lag of the event loop: how long requests wait before any of our code runs.

On a busy machine the loop's thread competes with decoding, computing and other programs. A request waits on
its socket until the loop reads it, and its answer waits again before it is sent; a clock that starts in the
handler misses both. The loop therefore schedules regular wake-ups and measures how late they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

INTERVAL_S = 0.01
DECAY = 0.9
"""Decay of the largest measured lag per interval: half of it remains after 70 ms."""


class LoopLag:
    """Measures the running loop's lag between `start` and `stop`."""

    def __init__(self) -> None:
        self._recent = 0.0
        self._due = 0.0
        self._task: asyncio.Task[None] | None = None

    def seconds(self) -> float:
        """The largest recent lag: of the latest wake-ups, or of the one that is overdue now."""
        overdue = time.monotonic() - self._due if self._task else 0.0
        return max(self._recent, overdue)

    async def start(self) -> None:
        self._due = time.monotonic() + INTERVAL_S
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._due - time.monotonic()))
            now = time.monotonic()
            self._recent, self._due = max(now - self._due, DECAY * self._recent), now + INTERVAL_S
