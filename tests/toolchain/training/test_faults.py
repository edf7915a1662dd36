"""What goes wrong outside of the program: killed processes, full disks, too little memory. Each ends in one
line and in files from which the run goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forked import Forked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import at_step
from torch import Tensor

from slimdeploy.toolchain.library import train as stage
from slimdeploy.toolchain.models.checkpoint import load_checkpoint, read_safetensors
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training import loop
from slimdeploy.toolchain.training.batch_memory import batch_that_fits
from slimdeploy.toolchain.training.history import read_history, tensorboard_path
from slimdeploy.toolchain.training.options import EpochRecord
from slimdeploy.toolchain.training.state import state_path

pytestmark = pytest.mark.xdist_group("forked")  # one worker starts what they are forked off
KILLS = 10


def _train(folder: Path, output: Path, *more: object, epochs: int = 4) -> list[object]:
    return ["train", "--arch", "tiny", "--stem", "cifar", "--data", f"folder:{folder}", "--epochs", epochs,
            "--batch-size", 16, "--lr", 0.05, "--sparsity", 0.05, "--precision", "fp32", "--device", "cpu",
            "-o", output, *more]  # fmt: skip


def _same_result(found: Path, expected: Path) -> None:
    a, b = (load_checkpoint(path) for path in (found, expected))
    assert a.info.metrics == b.info.metrics
    state = b.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in a.network.state_dict().items())


def _same_curves(found: Path, expected: Path, epochs: int) -> None:
    curves = []
    for output in (found, expected):
        events = EventAccumulator(str(tensorboard_path(output)), {"scalars": 0})
        events.Reload()
        curves.append([(event.step, event.value) for event in events.Scalars("train/loss")])
        assert [record.epoch for record in read_history(output)] == list(range(1, epochs + 1))
    assert curves[0] == curves[1]


def _all_readable(output: Path) -> None:
    assert not output.exists()
    if state_path(output).exists():
        read_safetensors(state_path(output))
    read_history(output)


def test_kill_9_at_ten_random_moments(image_folder: Path, tmp_path: Path) -> None:
    epochs = 8

    def start(output: Path) -> Forked:
        run = _train(image_folder, output, "--resume", epochs=epochs)
        return Forked(run, tmp_path / f"printed-{next(number)}", {})

    number = itertools.count()
    _train_to_the_end(start(tmp_path / "warm-up"))  # what they are forked off starts for the first
    expected, started = tmp_path / "whole.safetensors", time.perf_counter()
    _train_to_the_end(start(expected))
    seconds = time.perf_counter() - started
    output, moments = tmp_path / "killed-0.safetensors", []
    while len(moments) < KILLS:
        process = start(output)
        moment = random.SystemRandom().uniform(0, seconds / 2)
        process.join(moment)
        process.kill()
        if process.wait() == -signal.SIGKILL and not output.exists():
            moments.append(moment)
            _all_readable(output)
        else:  # it was done before: the rest of the kills are for another
            _same_result(output, expected)
            output = tmp_path / f"killed-{len(moments)}.safetensors"
    _train_to_the_end(start(output))
    _same_result(output, expected)
    _same_curves(output, expected, epochs)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".tmp", ".state")]


def _train_to_the_end(process: Forked) -> None:
    assert process.wait() == 0, process.err


def test_what_a_killed_process_left_half_written_is_removed(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "net.safetensors"
    for name in (".net.safetensors.abc.tmp", ".net.safetensors.state.x.tmp", ".net.history.jsonl.y_.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".other.safetensors.abc.tmp").write_bytes(b"another's")
    ran = slimdeploy_command(*_train(image_folder, output, epochs=0))
    assert ran.exit_code == 0, ran.err
    assert [path.name for path in tmp_path.glob(".*")] == [".other.safetensors.abc.tmp"]


@contextlib.contextmanager
def _files_up_to(size: Callable[[], int]) -> Iterator[Callable[[], None]]:
    """Yields a function after whose call no file grows beyond `size()` bytes: writing fails as on a full
    disk.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size(), before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("full", ["state", "tensorboard", "checkpoint"])
def test_a_full_disk_keeps_the_last_good_state(
    slimdeploy_command: Callable,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full: str,
) -> None:
    output, expected = tmp_path / "net.safetensors", tmp_path / "whole.safetensors"
    assert slimdeploy_command(*_train(image_folder, expected)).exit_code == 0

    def room() -> int:
        if full == "tensorboard":
            return max(file.stat().st_size for file in tensorboard_path(output).iterdir()) + 3
        return 30_000

    with monkeypatch.context() as patch, _files_up_to(room) as fill:
        if full == "checkpoint":
            evaluate = stage.evaluate_network
            patch.setattr(stage, "evaluate_network", lambda *a, **k: fill() or evaluate(*a, **k))
        else:
            epoch = loop._Run.epoch

            def filling(self: loop._Run, index: int) -> EpochRecord:
                record = epoch(self, index)
                if index == 2:
                    fill()
                return record

            patch.setattr(loop._Run, "epoch", filling)
        ran = slimdeploy_command(*_train(image_folder, output))
    assert ran.exit_code == 2
    notes = ("epoch ", "preprocessing: ", "warning: ")
    said = [line for line in ran.err.splitlines() if not line.startswith(notes)]
    assert said == ["slimdeploy: " + ran.error]
    written = {"state": state_path(output), "tensorboard": tensorboard_path(output), "checkpoint": output}
    advice = "" if full == "checkpoint" else ": --resume continues after epoch 2"
    assert ran.error == f"cannot write {written[full]}: File too large{advice}"
    _all_readable(output)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    again = slimdeploy_command(*_train(image_folder, output, "--resume"))
    assert again.exit_code == 0, again.err
    assert f"resuming after epoch {4 if full == 'checkpoint' else 2} of 4" in again.err
    _same_result(output, expected)
    _same_curves(output, expected, 4)


def _memory_for(images: int, monkeypatch: pytest.MonkeyPatch, error: Exception, *, first: int = 0) -> None:
    """From the `first`-th forward pass on, the network runs out of memory with more than so many images."""
    forward, done = GraphNetwork.forward, [0]

    def limited(self: GraphNetwork, x: Tensor) -> Tensor:
        done[0] += self.training
        if len(x) > images and done[0] > first and (self.training or images < 6):
            raise error
        return forward(self, x)

    monkeypatch.setattr(GraphNetwork, "forward", limited)


GPU_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory"
)


@pytest.mark.parametrize("error", [GPU_ERROR, CPU_ERROR], ids=["gpu", "cpu"])
def test_out_of_memory_says_what_would_fit(
    slimdeploy_command: Callable,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    _memory_for(5, monkeypatch, error)
    ran = slimdeploy_command(*_train(image_folder, tmp_path / "net"))
    assert ran.exit_code == 2
    assert ran.error == "out of memory with a batch of 16; 4 would fit: restart with --batch-size 4"
    assert not state_path(tmp_path / "net").exists()


def test_out_of_memory_later_keeps_the_state(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory_for(12, monkeypatch, GPU_ERROR, first=4)
    ran = slimdeploy_command(*_train(image_folder, tmp_path / "net"))
    advice = "restart with --batch-size 8 and --force"
    assert ran.error == f"out of memory with a batch of 16; 8 would fit: {advice}"
    assert len(read_history(tmp_path / "net")) == 1
    assert state_path(tmp_path / "net").exists()


def test_out_of_memory_with_any_batch(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory_for(1, monkeypatch, GPU_ERROR)
    ran = slimdeploy_command(*_train(image_folder, tmp_path / "net"))
    assert ran.error == "out of memory: not even a batch of 2 fits; use a smaller --size or --arch"


def test_other_errors_of_an_attempt_are_not_hidden() -> None:
    def attempt(batch_size: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        batch_that_fits(8, attempt)


def _kill_a_reader(optimizer: torch.optim.Optimizer) -> None:
    multiprocessing.active_children()[0].kill()
    time.sleep(30)  # the kernel's word of it interrupts this


def test_a_killed_reader_is_one_line_that_says_how_to_go_on(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    killed = "a process that reads images was killed, perhaps by the system for lack of memory"
    output = tmp_path / "net.safetensors"
    with at_step(4, _kill_a_reader):
        ran = slimdeploy_command(*_train(image_folder, output, "--stream"))
    assert (ran.exit_code, ran.error) == (1, f"{killed}: --resume continues after epoch 1")
    with at_step(1, _kill_a_reader):
        ran = slimdeploy_command(*_train(image_folder, tmp_path / "other", "--stream"))
    assert (ran.exit_code, ran.error) == (1, killed)
    assert slimdeploy_command(*_train(image_folder, output, "--stream", "--resume")).exit_code == 0
