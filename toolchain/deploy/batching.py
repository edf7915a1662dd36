"""Dynamic batching: single images that arrive at any time are computed together, within a latency limit.

The queue is limited in two ways. More than `queue` images at a time are refused at once. An image that can't
be answered within `latency_ms` is refused as soon as that is known, if possible before it is decoded. An
overloaded server thus continues to answer the images that it can answer in time (load shedding by deadline).

The duration of a batch is predicted from a moving mean plus four mean deviations of earlier batches, like
TCP timeouts (Jacobson, Congestion Avoidance and Control, 1988): a mean alone is exceeded half the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError

Compute = Callable[[np.ndarray], np.ndarray]
"""(N, size, size, 3) uint8 → (N, classes) logits. Called in one thread only."""

SMOOTHING = 0.125
"""Weight of the latest batch in the moving mean of the duration."""
DEVIATION_SMOOTHING = 0.25
"""Weight of the latest batch in the moving mean deviation."""
DEVIATIONS = 4
"""Number of mean deviations that are added to the mean."""


_IDLE_STEP_S = 0.01
_REMEMBERED = 16


class OverloadedError(Exception):
    """The image can't be answered in time."""


class ClosedError(Exception):
    """The batcher accepts no more images."""


@dataclass(frozen=True)
class BatchOptions:
    """`batch`: maximum batch size. `wait_ms`: maximum wait of the first image for others while nothing is
    computed. `latency_ms`: maximum time from the arrival of an accepted image to its answer.
    """

    batch: int = 8
    wait_ms: float = 2.0
    latency_ms: float = 100.0
    queue: int = 32


@dataclass(frozen=True)
class Answer:
    """The logits of one image, the size of its batch, and the duration of the batch."""

    logits: np.ndarray
    batch: int
    compute_ms: float


@dataclass(eq=False)
class _Waiting:
    image: np.ndarray
    arrived: float
    answer: asyncio.Future[Answer]


class ModelError(Exception):
    """The model failed to compute a batch; the message is that of the runtime."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error) if isinstance(error, SlimdeployError) else repr(error))


class Batcher:
    """`admit` a request, then `answer` its image inside the block, between `start` and `stop`."""

    def __init__(
        self,
        compute: Compute,
        executor: Executor,
        options: BatchOptions,
        *,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
        lag_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.options = options
        self.pending = 0
        """Images admitted and not answered yet."""
        self._mean_s = self._deviation_s = 0.0
        """Predicted duration of a batch, from its start to its answers."""
        self._compute, self._executor, self._observe, self._lag_s = compute, executor, observe, lag_s
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._computed_s: deque[float] = deque(maxlen=_REMEMBERED)
        """Durations of the latest batches in the compute thread, without delays of the event loop."""
        self._refused = -math.inf
        """Time of the latest refusal, by time.monotonic()."""

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def idle(self) -> None:
        """Wait until all admitted images are answered."""
        while self.pending:
            await asyncio.sleep(_IDLE_STEP_S)

    async def stop(self) -> None:
        """Compute the waiting images, then stop."""
        self._closed = True
        self._queue.put_nowait(None)
        assert self._task is not None
        await self._task

    @contextlib.contextmanager
    def admit(self, arrived: float) -> Iterator[None]:
        """A place in the queue inside the block; `arrived` is time.monotonic() at the arrival of the request.

        Raises OverloadedError if there is no place, or if the answer would be too late, and ClosedError.
        """
        self.check(arrived)
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    def check(self, arrived: float) -> None:
        """Raise the error that `admit` would raise now, so that a request can be refused before it is
        read.
        """
        if self._closed:
            raise ClosedError
        ahead = self.pending // self.options.batch  # full batches before its own
        if self.pending >= self.options.queue or (self.pending and self.too_late(arrived, ahead)):
            raise self._overloaded()

    async def answer(self, image: np.ndarray, arrived: float) -> Answer:
        """The logits of a (size, size, 3) uint8 image; raises OverloadedError if it would be too late, and
        ModelError if the model fails.
        """
        if self._closed:
            raise ClosedError
        waiting = _Waiting(image, arrived, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        answer = await waiting.answer
        late = time.monotonic() > self._due(arrived)  # the batch took longer than predicted
        if late and not self._late_is_better_than_none():
            raise self._overloaded()
        return answer

    def too_late(self, arrived: float, ahead: int = 0) -> bool:
        """Whether an image computed now, after `ahead` other batches, would be too late."""
        own = self._mean_s + DEVIATIONS * self._deviation_s
        answered = time.monotonic() + ahead * self._mean_s + own + self._lag_s()
        return answered > self._due(arrived)

    def _late_is_better_than_none(self) -> bool:
        """Whether to return a late answer anyway: if no other image waits, and either none was refused
        recently, or the model alone is slower than the limit.
        """
        limit = self.options.latency_ms / 1e3
        model_is_slow = min(self._computed_s, default=0.0) > limit
        return self.pending <= 1 and (model_is_slow or time.monotonic() - self._refused > limit)

    def _overloaded(self) -> OverloadedError:
        self._refused = time.monotonic()
        return OverloadedError()

    def _due(self, arrived: float) -> float:
        return arrived + self.options.latency_ms / 1e3

    async def _run(self) -> None:
        last = False
        while not last:
            batch, last = await self._collect()
            wanted = [waiting for waiting in batch if not waiting.answer.done()]  # others have disconnected
            # One is always computed, late or not, to notice when batches become fast again.
            ready = [waiting for waiting in wanted if not self.too_late(waiting.arrived)] or wanted[-1:]
            for waiting in wanted:
                if waiting not in ready:
                    waiting.answer.set_exception(self._overloaded())
            if ready:
                await self._answer(ready)

    async def _collect(self) -> tuple[list[_Waiting], bool]:
        """The next batch: at least one image, and more if they are waiting or arrive within `wait_ms`.

        Also returns True if the batcher should stop after it.
        """
        first = await self._queue.get()
        if first is None:
            return [], True
        batch, until = [first], time.monotonic() + self.options.wait_ms / 1e3
        while len(batch) < self.options.batch:
            try:
                waiting = self._queue.get_nowait()
            except asyncio.QueueEmpty:
                left = until - time.monotonic()
                if left <= 0 or self._closed:
                    break
                try:
                    waiting = await asyncio.wait_for(self._queue.get(), left)
                except asyncio.TimeoutError:
                    break
            if waiting is None:
                return batch, True
            batch.append(waiting)
        return batch, False

    async def _answer(self, ready: list[_Waiting]) -> None:
        started = time.monotonic()
        try:
            images = np.stack([waiting.image for waiting in ready])
            loop = asyncio.get_running_loop()
            logits, computed = await loop.run_in_executor(self._executor, self._timed, images)
            if len(logits) != len(ready):
                raise ValueError(f"the model returned {len(logits)} rows for {len(ready)} images")
        except Exception as error:  # any error of the runtime: these requests fail, the next ones are tried
            for waiting in ready:
                if not waiting.answer.done():
                    waiting.answer.set_exception(ModelError(error))
            return
        self._learn(time.monotonic() - started)
        self._computed_s.append(computed)
        self._observe(len(ready), computed)
        for waiting, row in zip(ready, logits, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(Answer(row, len(ready), 1e3 * computed))

    def _timed(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        """Logits and the duration in seconds; runs in the compute thread."""
        started = time.monotonic()
        logits = self._compute(images)
        return logits, time.monotonic() - started

    def _learn(self, seconds: float) -> None:
        """Update the predicted duration with that of a batch."""
        if not self._mean_s:
            self._mean_s, self._deviation_s = seconds, 0.0
            return
        difference = seconds - self._mean_s
        self._mean_s += SMOOTHING * difference
        self._deviation_s += DEVIATION_SMOOTHING * (abs(difference) - self._deviation_s)
