"""Calls of the library from threads, and under torch settings of the caller."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

import slimdeploy
from slimdeploy.toolchain.library.isolation import isolated

SIZE = tiny.PREPROCESSING.size
BATCHES = [(torch.rand(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 0]))] * 2


def _module() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip


def _work(module: nn.Module, file: Path) -> dict[str, Tensor]:
    """Prune, train, save and load; returns the weights."""
    pruned = slimdeploy.prune(module, size=SIZE, ratio=0.5, criterion="l2", data=BATCHES)
    trained = slimdeploy.train(pruned.checkpoint, data=BATCHES, epochs=1)
    slimdeploy.save(trained.checkpoint, path=file, force=True)
    return slimdeploy.load(file).network.state_dict()


def _assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_threads_get_what_one_gets(tmp_path: Path) -> None:
    module = _module()
    expected, before = _work(module, tmp_path / "alone"), torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: _work(module, tmp_path / str(i)), range(8)))
    for one in found:
        _assert_same(one, expected)
    _assert_same(module.state_dict(), _module().state_dict())
    assert module.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@contextlib.contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: _default_type(torch.float64),
        lambda: _default_type(torch.bfloat16),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["float64", "bfloat16", "autocast", "meta"],
)
def test_the_callers_settings_of_torch_have_no_effect(
    settings: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    module = _module()
    expected, before = _work(module, tmp_path / "file"), torch.random.get_rng_state()
    with settings():
        here = torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
        found = _work(module, tmp_path / "file")
        assert here == (
            torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
        )  # fmt: skip
    _assert_same(found, expected)
    assert torch.equal(torch.random.get_rng_state(), before)


def _can_call() -> None:
    with isolated():
        pass


def test_a_process_forked_during_a_call_of_another_thread_can_make_its_own() -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with isolated():
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        child = multiprocessing.get_context("fork").Process(target=_can_call)
        child.start()
        child.join(60)
        assert child.exitcode == 0
    finally:
        release.set()
        thread.join()
