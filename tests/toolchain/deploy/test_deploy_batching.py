"""Dynamic batching with a computation whose time is known."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from slimdeploy.toolchain.deploy.batching import Answer, Batcher, BatchOptions, ClosedError, OverloadedError
from slimdeploy.toolchain.deploy.lag import LoopLag


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
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def test_everybody_gets_their_own_answer():
    compute = Slow()

    async def scenario(batcher, ask):
        return await asyncio.gather(*(ask(i) for i in range(30)))

    answers = run(compute, BatchOptions(batch=4, latency_ms=10_000), scenario)
    assert [int(a.logits[0]) for a in answers] == list(range(30))
    assert max(compute.batches) == 4
    assert sum(compute.batches) == 30
    assert all(a.batch in compute.batches for a in answers)


def test_what_comes_while_a_batch_is_computed_makes_the_next_one():
    compute = Slow()
    compute.gate.clear()

    async def scenario(batcher, ask):
        first = asyncio.create_task(ask(0))
        await until(compute.started.is_set)  # the first is on its way, alone
        others = [asyncio.create_task(ask(i)) for i in range(1, 7)]
        await until(lambda: batcher.pending == 7)
        compute.gate.set()
        await asyncio.gather(first, *others)

    run(compute, BatchOptions(batch=8, wait_ms=0, latency_ms=10_000), scenario)
    assert compute.batches == [1, 6]


def test_first_waits_for_others_but_not_for_ever():
    compute = Slow()

    async def scenario(batcher, ask):
        started = time.monotonic()
        await ask(1)
        return time.monotonic() - started

    assert run(compute, BatchOptions(batch=8, wait_ms=100, latency_ms=60_000), scenario) >= 0.1
    assert compute.batches == [1]


def test_full_batch_does_not_wait():
    compute = Slow()

    async def scenario(batcher, ask):
        started = time.monotonic()
        await asyncio.gather(ask(1), ask(2))
        return time.monotonic() - started

    assert run(compute, BatchOptions(batch=2, wait_ms=60_000, latency_ms=60_000), scenario) < 60
    assert compute.batches == [2]


def test_full_queue():
    compute = Slow()
    compute.gate.clear()

    async def scenario(batcher, ask):
        waiting = [asyncio.create_task(ask(i)) for i in range(5)]
        await until(lambda: batcher.pending == 5)
        with pytest.raises(OverloadedError):
            await ask(9)
        compute.gate.set()
        assert len(await asyncio.gather(*waiting)) == 5
        assert batcher.pending == 0
        assert int((await ask(7)).logits[0]) == 7

    run(compute, BatchOptions(queue=5, latency_ms=10_000), scenario)


def test_late_images_are_not_computed():
    compute = Slow()
    compute.gate.clear()

    async def scenario(batcher, ask):
        first = asyncio.create_task(ask(0))
        await until(compute.started.is_set)
        late = [asyncio.create_task(ask(i)) for i in range(1, 4)]
        await until(lambda: batcher.pending == 4)
        await asyncio.sleep(0.3)  # now they have waited too long
        fresh = asyncio.create_task(ask(9, ago=-10))  # one with all its time left
        await asyncio.sleep(0)
        compute.gate.set()
        results = await asyncio.gather(first, *late, fresh, return_exceptions=True)
        assert [type(r) for r in results[1:4]] == [OverloadedError] * 3
        assert int(results[4].logits[0]) == 9

    run(compute, BatchOptions(wait_ms=0, latency_ms=200), scenario)
    assert sum(compute.batches) == 2


def test_slower_than_the_limit_still_answers_one_after_the_other():
    """A server that can't reach its limit doesn't refuse everything for ever."""
    compute = Slow(0.05)

    async def scenario(batcher, ask):
        for i in range(3):
            assert int((await ask(i)).logits[0]) == i
        results = await asyncio.gather(*(ask(i) for i in range(6)), return_exceptions=True)
        assert any(isinstance(r, Answer) for r in results)
        assert any(isinstance(r, OverloadedError) for r in results)

    run(compute, BatchOptions(latency_ms=1), scenario)


def test_answer_that_came_late_is_none_where_others_wait():
    """Three batches in 10 ms each teach it; the next takes ten times the limit."""
    compute = Slow(0.01)

    async def scenario(batcher, ask):
        for i in range(3):
            await ask(i)
        compute.gate.clear()
        pair = [asyncio.create_task(ask(i)) for i in (1, 2)]
        await until(lambda: batcher.pending == 2)
        await asyncio.sleep(0.5)
        compute.gate.set()
        results = await asyncio.gather(*pair, return_exceptions=True)
        assert OverloadedError in [type(r) for r in results]

    run(compute, BatchOptions(batch=2, wait_ms=50, latency_ms=300), scenario)


def late_answer_beside_refused_ones(*, batch_s: float, limit_ms: float):
    """What one image gets, half a second late, while others are refused all the time."""
    compute = Slow(batch_s)

    async def scenario(batcher, ask):
        await ask(0)
        compute.gate.clear()
        late = asyncio.create_task(ask(1, ago=limit_ms / 1e3))
        await until(lambda: batcher.pending == 1)
        for _ in range(50):
            with pytest.raises(OverloadedError), batcher.admit(time.monotonic() - 3600):
                pass
            await asyncio.sleep(0.01)
        compute.gate.set()
        return (await asyncio.gather(late, return_exceptions=True))[0]

    return run(compute, BatchOptions(latency_ms=limit_ms), scenario)


def test_late_answer_is_none_where_others_are_refused():
    """Batches are fast enough by themselves: it is the machine that has too much to do."""
    assert isinstance(late_answer_beside_refused_ones(batch_s=0.01, limit_ms=400), OverloadedError)


def test_model_slower_than_the_limit_answers_beside_refused_ones():
    assert isinstance(late_answer_beside_refused_ones(batch_s=0.3, limit_ms=100), Answer)


def test_batches_ahead_and_their_spread_count():
    """25 s a batch, 60 s allowed: who would be in the third batch is refused before anything is done."""
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(Slow(), executor, BatchOptions(batch=2, latency_ms=60_000))
        batcher._learn(25.0)
        now = time.monotonic()
        for pending in (2, 3):
            batcher.pending = pending
            with batcher.admit(now):
                assert batcher.pending == pending + 1
        batcher.pending = 4
        with pytest.raises(OverloadedError), batcher.admit(now):
            pass
        batcher._learn(35.0)  # the mean is 26.25 s then, and the deviation 2.5 s
        assert not batcher.too_late(now)
        assert batcher.too_late(now, 1)


def test_lag_of_the_loop_counts():
    compute = Slow(0.01)

    lag = 0.0
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(compute, executor, BatchOptions(latency_ms=60_000), lag_s=lambda: lag)
        now = time.monotonic()
        assert not batcher.too_late(now)
        lag = 61.0
        assert batcher.too_late(now)


def test_loop_lag_is_seen_and_forgotten():
    async def main():
        lag = LoopLag()
        assert lag.seconds() == 0
        await lag.start()
        time.sleep(0.3)  # the loop does nothing meanwhile
        seen = lag.seconds()
        await asyncio.sleep(0.02)
        kept = lag.seconds()
        await until(lambda: lag.seconds() < 0.1)
        await lag.stop()
        return seen, kept

    seen, kept = asyncio.run(main())
    assert seen >= 0.28
    assert kept > 0.1


def test_computation_that_fails_fails_its_own_images_only():
    calls = []

    def compute(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return images[:, 0, 0, :1].astype(np.float32)

    async def scenario(batcher, ask):
        with pytest.raises(RuntimeError, match="out of memory"):
            await ask(1)
        assert int((await ask(2)).logits[0]) == 2

    run(compute, BatchOptions(latency_ms=10_000), scenario)


def test_caller_that_goes_away():
    compute = Slow()
    compute.gate.clear()

    async def scenario(batcher, ask):
        first = asyncio.create_task(ask(0))
        await until(compute.started.is_set)
        gone, stays = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
        await until(lambda: batcher.pending == 3)
        gone.cancel()
        compute.gate.set()
        assert int((await stays).logits[0]) == 2
        await first
        assert batcher.pending == 0

    run(compute, BatchOptions(wait_ms=0, latency_ms=10_000), scenario)
    assert sum(compute.batches) == 2


def test_closing_answers_what_waits():
    compute = Slow(0.02)

    async def main():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, BatchOptions(batch=2, latency_ms=10_000))
            await batcher.start()
            tasks = [asyncio.create_task(batcher.answer(image(i), time.monotonic())) for i in range(5)]
            await asyncio.sleep(0.01)
            await batcher.stop()
            answers = await asyncio.gather(*tasks)
            with pytest.raises(ClosedError), batcher.admit(time.monotonic()):
                pass
            return answers

    assert [int(a.logits[0]) for a in asyncio.run(main())] == list(range(5))
