"""Which images are computed together, and that each gets its own answer."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from slimdeploy.tests.toolchain.deploy.slow_batches import Slow, image, run, until
from slimdeploy.toolchain.deploy.batching import Batcher, BatchOptions, ClosedError, ModelError


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


def test_computation_that_fails_fails_its_own_images_only():
    calls = []

    def compute(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        rows = images[:, 0, 0, :1].astype(np.float32)
        return np.concatenate([rows, rows]) if len(calls) == 2 else rows

    async def scenario(batcher, ask):
        with pytest.raises(ModelError, match=r"^RuntimeError\('out of memory'\)$"):
            await ask(1)
        with pytest.raises(ModelError, match="2 rows for 1 images"):
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
