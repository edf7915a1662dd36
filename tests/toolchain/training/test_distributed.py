"""Training in several processes: the same numbers as in one, written once, and what happens when one dies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Forked, ranks, until
from processes import process_environment

from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.training.history import history_path, read_history, tensorboard_path
from slimdeploy.toolchain.training.options import EpochRecord
from slimdeploy.toolchain.training.state import state_path

pytestmark = pytest.mark.xdist_group("forked")  # one worker starts what they are forked off
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "lr", "zero_share")


def _train(folder: Path, output: Path, *more: object, epochs: int = 3) -> list[object]:
    return ["train", "--arch", "tiny", "--stem", "cifar", "--data", f"folder:{folder}", "--epochs", epochs,
            "--batch-size", 16, "--lr", 0.05, "--sparsity", 0.05, "--precision", "fp32", "--device", "cpu",
            "-o", output, *more]  # fmt: skip


def _assert_close(found: list[EpochRecord], expected: list[EpochRecord], tolerance: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for name in CURVES:
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), abs=tolerance), name


def _finish(processes: list[Forked]) -> None:
    for process in processes:
        assert process.wait() == 0, process.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """The output of one process on its own."""
    folder = tmp_path_factory.mktemp("whole")
    alone = Forked(_train(image_folder, folder / "net.safetensors"), folder / "printed", {})
    assert alone.wait() == 0, alone.err
    return folder / "net.safetensors"


# 16 images a batch: 5, 5 and 6 of them for three processes. 6 validation images: 2, 2, 2; 1 or 2 for four.
@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_processes_changes_nothing(
    image_folder: Path, whole: Path, tmp_path: Path, count: int
) -> None:
    output = tmp_path / "net.safetensors"
    with ranks(count, _train(image_folder, output, "--json"), tmp_path / "printed") as processes:
        _finish(processes)
    _assert_close(read_history(output), read_history(whole))
    expected, found = (
        load_checkpoint(whole).network.state_dict(),
        load_checkpoint(output).network.state_dict(),
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_nor_does_it_with_other_options(image_folder: Path, tmp_path: Path) -> None:
    options = ["--ema", 0.9, "--cutout", 5, "--flip-mode", "alternating", "--recalibration-images", 40,
               "--sparsity", "auto:0.3", "--sparse-align", 1, "--mixup", 0.4, "--cutmix", 1]  # fmt: skip
    alone = Forked(_train(image_folder, tmp_path / "one", *options, "--json"), tmp_path / "printed-one", {})
    assert alone.wait() == 0, alone.err
    with ranks(
        2, _train(image_folder, tmp_path / "two", *options, "--json"), tmp_path / "two-p"
    ) as processes:
        _finish(processes)
    _assert_close(read_history(tmp_path / "two"), read_history(tmp_path / "one"))
    mine, theirs = json.loads(processes[0].out), json.loads(alone.out)
    assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4), "recalibrated"
    assert mine["zero_share"] == theirs["zero_share"]


def test_only_the_first_process_writes_and_prints(image_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    with ranks(2, _train(image_folder, output, "--json", epochs=1), tmp_path / "printed") as processes:
        _finish(processes)
    first, second = processes
    assert json.loads(first.out)["epochs"] == 1
    assert first.err.count("epoch 1/1") == 1
    assert (second.out, second.err) == ("", "")
    assert len(list(tensorboard_path(output).iterdir())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "printed", output.name, history_path(output).name, tensorboard_path(output).name}  # fmt: skip


def test_finetune_too(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    def finetune(output: Path) -> list[object]:
        return ["finetune", whole, "--epochs", 1, "--batch-size", 16, "--precision", "fp32",
                "--device", "cpu", "-o", output]  # fmt: skip

    alone = Forked(finetune(tmp_path / "one"), tmp_path / "printed-one", {})
    assert alone.wait() == 0, alone.err
    with ranks(2, finetune(tmp_path / "two"), tmp_path / "printed") as processes:
        _finish(processes)
    _assert_close(read_history(tmp_path / "two"), read_history(tmp_path / "one"))


KILLED_EPOCHS = 6


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> list[EpochRecord]:
    """The history of one process that isn't killed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    output = folder / "net.safetensors"
    alone = Forked(_train(image_folder, output, epochs=KILLED_EPOCHS), folder / "printed", {})
    assert alone.wait() == 0, alone.err
    return read_history(output)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_with_one_line_and_another_number_goes_on(
    image_folder: Path, uninterrupted: list[EpochRecord], tmp_path: Path, killed: int
) -> None:
    epochs, output = KILLED_EPOCHS, tmp_path / "net.safetensors"
    with ranks(2, _train(image_folder, output, epochs=epochs), tmp_path / "printed") as processes:
        until(history_path(output).exists, processes[0])
        processes[killed].kill()
        assert processes[1 - killed].wait() == 1
    lines = [
        line
        for line in processes[1 - killed].err.splitlines()
        if not line.startswith(("epoch ", "preprocessing: ", "warning: "))
    ]
    assert lines == [
        "slimdeploy: another process of the run ended, or torchrun was stopped: the same command with "
        "--resume continues after the last complete epoch"
    ]
    assert state_path(output).exists()
    assert not output.exists()
    with ranks(3, _train(image_folder, output, "--resume", epochs=epochs), tmp_path / "again") as processes:
        _finish(processes)
    assert re.search(rf"resuming after epoch \d+ of {epochs}", processes[0].err)
    _assert_close(read_history(output), uninterrupted, 1e-3)


def _one_error(processes: list[Forked]) -> str:
    """The one line that all processes together print."""
    codes = {process.wait() for process in processes}
    assert 2 in codes
    assert codes <= {1, 2}, "1 where one of the others ended first"
    lines = "".join(process.err for process in processes).splitlines()
    (line,) = (line for line in lines if not line.startswith(("preprocessing: ", "warning: ")))
    return line.removeprefix("slimdeploy: ")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (["--lr", -1], "--lr must be above 0, not -1"),
        (
            ["--data", "folder:/nowhere"],
            "no folder /nowhere/train: expected /nowhere/train/<class>/… and /nowhe",
        ),
        (["--batch-size", 2], "a batch of 2 is too small for 3 processes"),
    ],
)
def test_an_error_is_one_line_however_many_meet_it(
    image_folder: Path, tmp_path: Path, change: list[object], error: str
) -> None:
    arguments = _train(image_folder, tmp_path / "net", *change)
    with ranks(3, arguments, tmp_path / "printed") as processes:
        assert _one_error(processes).startswith(error)


def test_other_commands_are_not_multiplied(tmp_path: Path) -> None:
    with ranks(2, ["summary", "--arch", "tiny"], tmp_path / "printed") as processes:
        expected = "torchrun starts train and finetune only: run slimdeploy summary without it"
        assert _one_error(processes) == expected


@pytest.mark.slow
def test_torchrun(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m",
               "slimdeploy.toolchain", *map(str, _train(image_folder, output, "--json"))]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, env=process_environment(), timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["epochs"] == 3
    _assert_close(read_history(output), read_history(whole))


def test_synchronised_statistics_are_those_of_the_whole_batch(slimdeploy_command: Callable) -> None:
    """By hand, in one process: the sum over ranks is played by this test."""
    from slimdeploy.toolchain.training.batchnorm import SynchronisedBatchNorm
    from slimdeploy.toolchain.training.distributed import Ranks

    torch.manual_seed(0)
    images = 100 + torch.randn(7, 3, 4, 4)  # far from zero: sums of squares would lose the variance
    parts = images[:4], images[4:]
    means = [part.double().mean((0, 2, 3)) for part in parts]
    variances = [part.double().var((0, 2, 3), correction=0) for part in parts]

    class Played(Ranks):
        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            tensor[1] = torch.stack([means[1], variances[1], torch.full((3,), 3.0 * 16)])
            return tensor

    plain = torch.nn.BatchNorm2d(3)
    layer = SynchronisedBatchNorm(torch.nn.BatchNorm2d(3), Played(0, 2)).train()
    torch.testing.assert_close(layer(parts[0]), plain(images)[:4], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(layer.running_var, plain.running_var, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    assert layer.num_batches_tracked == 1
    torch.testing.assert_close(layer.eval()(images), plain.eval()(images), atol=1e-4, rtol=1e-5)
