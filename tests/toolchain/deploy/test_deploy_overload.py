"""Which images are refused where there are too many, by a computation whose time is known."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from slimdeploy.tests.toolchain.deploy.slow_batches import Slow, run, until
from slimdeploy.toolchain.deploy.batching import Answer, Batcher, BatchOptions, OverloadedError
from slimdeploy.toolchain.deploy.lag import LoopLag


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
