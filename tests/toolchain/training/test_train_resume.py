"""`slimdeploy train --resume`: after Ctrl-C and kill -9, and what it refuses."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import write_image_folder
from tiny_runs import train_arguments

from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.training import loop
from slimdeploy.toolchain.training.history import history_path, read_history
from slimdeploy.toolchain.training.state import state_path


@pytest.fixture
def interrupted(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The output of a run of two epochs that Ctrl-C ended in the second."""
    return _interrupt(slimdeploy_command, image_folder, tmp_path / "net.safetensors", monkeypatch)


def _interrupt(command: Callable, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    epoch = loop._Run.epoch

    def stopping(self: loop._Run, index: int):
        if index == 1:
            raise KeyboardInterrupt
        return epoch(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "epoch", stopping)
        ran = command(*train_arguments(folder, output))
    assert (ran.exit_code, ran.error) == (130, "interrupted")
    assert state_path(output).exists()
    assert not output.exists()
    return output


@pytest.mark.parametrize(("first", "second"), [("net.safetensors", "net"), ("net", "net.safetensors")])
def test_two_outputs_that_would_share_a_history_are_refused(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, first: str, second: str
) -> None:
    (tmp_path / first).write_bytes(b"mine")
    history_path(tmp_path / first).write_text("mine")
    ran = slimdeploy_command(*train_arguments(image_folder, tmp_path / second), "--force")
    message = f"{tmp_path / second} would share {tmp_path}/net.history.jsonl with {tmp_path / first}: "
    assert (ran.exit_code, ran.error) == (2, message + "choose another name")
    assert history_path(tmp_path / first).read_text() == "mine"


def test_an_unfinished_run_is_not_thrown_away_unasked(
    slimdeploy_command: Callable, image_folder: Path, interrupted: Path
) -> None:
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted))
    message = f"an unfinished run is beside {interrupted}: --resume continues it, --force starts again"
    assert (ran.exit_code, ran.error) == (2, message)
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted, "--resume", "--json"))
    assert ran.exit_code == 0, ran.err
    assert "resuming after epoch 1 of 2" in ran.err
    assert ran.json["epochs"] == 2
    assert not state_path(interrupted).exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [(["--weights", "typo"], "no weights at typo"), (["--cutout", 16], "--cutout must be less than")],
)
def test_force_keeps_the_unfinished_run_if_the_new_one_cannot_begin(
    slimdeploy_command: Callable, image_folder: Path, interrupted: Path, changed: list[object], message: str
) -> None:
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted, "--force", *changed))
    assert ran.exit_code == 2
    assert message in ran.error
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted, "--resume"))
    assert ran.exit_code == 0, ran.err
    assert "resuming after epoch 1 of 2" in ran.err


def test_force_starts_again(slimdeploy_command: Callable, image_folder: Path, interrupted: Path) -> None:
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted, "--force", epochs=1))
    assert ran.exit_code == 0, ran.err
    assert "resuming" not in ran.err
    assert len(read_history(interrupted)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lr", 0.5], "lr = 0.05, this one has 0.5"),
        (["--epochs", 3], "epochs = 2, this one has 3"),
        (["--seed", 1], "seed = 0, this one has 1"),
        (["--size", 24], "size = 16, this one has 24"),
    ],
)
def test_resume_with_other_options_names_the_key(
    slimdeploy_command: Callable, image_folder: Path, interrupted: Path, change: list[object], message: str
) -> None:
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted, "--resume", *change))
    assert ran.exit_code == 2
    assert re.fullmatch(
        f".* belongs to a run with {re.escape(message)}: give the same options, .*", ran.error
    )


def _swap(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "red").rename(folder / split / "x")
        (folder / split / "blue").rename(folder / split / "red")
        (folder / split / "x").rename(folder / split / "blue")


def _rename(folder: Path) -> None:
    """The order of the classes stays, and so do all labels."""
    for split in ("train", "test"):
        (folder / split / "red").rename(folder / split / "ruby")


def _replace_one(folder: Path) -> None:
    shutil.copy(*sorted((folder / "train/red").iterdir())[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap, "other images, because the data has changed"),
        (_rename, "classes = ['blue', 'green', 'red'], this one has ['blue', 'green', 'ruby']"),
        (_replace_one, "other images, because the data has changed"),
    ],
)
def test_resume_on_changed_data_is_refused(
    slimdeploy_command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    message: str,
) -> None:
    folder = write_image_folder(tmp_path / "images", train=8, test=2)
    output = _interrupt(slimdeploy_command, folder, tmp_path / "net.safetensors", monkeypatch)
    change(folder)
    ran = slimdeploy_command(*train_arguments(folder, output, "--resume"))
    assert ran.exit_code == 2
    assert message in ran.error


def test_resume_without_an_unfinished_run_says_so(
    slimdeploy_command: Callable, image_folder: Path, interrupted: Path
) -> None:
    mistyped = interrupted.with_name("nett.safetensors")
    ran = slimdeploy_command(*train_arguments(image_folder, mistyped, "--resume", epochs=0))
    assert ran.exit_code == 0, ran.err
    said = " ".join(ran.err.split())
    assert (
        f"no unfinished run of {mistyped}: starting a new one; unfinished there: {interrupted.name}" in said
    )


def test_a_finished_run_has_nothing_to_resume(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "net.safetensors"
    assert slimdeploy_command(*train_arguments(image_folder, output, epochs=0)).exit_code == 0
    before = output.read_bytes()
    ran = slimdeploy_command(*train_arguments(image_folder, output, "--resume", epochs=0))
    assert ran.exit_code == 2
    assert ran.error.startswith(f"{output} is finished: nothing to resume (to train it")
    assert output.read_bytes() == before


def test_resume_with_another_network_names_it(
    slimdeploy_command: Callable, image_folder: Path, interrupted: Path
) -> None:
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted, "--resume", "--arch", "tiny-deep"))
    assert ran.exit_code == 2
    assert "belongs to a run with network = {'arch': 'tiny', 'digest': " in ran.error


def test_a_damaged_state_is_one_line(
    slimdeploy_command: Callable, image_folder: Path, interrupted: Path
) -> None:
    state = state_path(interrupted)
    state.write_bytes(state.read_bytes()[:1000])
    ran = slimdeploy_command(*train_arguments(image_folder, interrupted, "--resume"))
    assert ran.exit_code == 2
    assert ran.error.startswith(f"{state} is not a safetensors file, or is damaged")


def test_kill_9_at_a_random_moment_loses_at_most_one_epoch(
    slimdeploy_command: Callable, start_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    epochs = 15
    whole = tmp_path / "whole.safetensors"
    expected = slimdeploy_command(*train_arguments(image_folder, whole, "--json", epochs=epochs)).json
    output = tmp_path / "killed.safetensors"
    process = start_command(*train_arguments(image_folder, output, epochs=epochs))
    history = history_path(output)
    while not history.exists() and process.poll() is None:
        time.sleep(0.01)
    seconds = random.SystemRandom().uniform(0, 0.3)
    time.sleep(seconds)
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended before the kill after {seconds:.3f} s: {err}"
    assert not output.exists()
    finished = len([json.loads(line) for line in history.read_text().splitlines()])
    ran = slimdeploy_command(*train_arguments(image_folder, output, "--resume", "--json", epochs=epochs))
    assert ran.exit_code == 0, f"killed after {seconds:.3f} s: {ran.err}"
    # The state is written before the history, so a kill between the two leaves one line fewer.
    resumed = int(re.search(rf"resuming after epoch (\d+) of {epochs}", ran.err)[1])
    assert resumed in (finished, finished + 1)
    for key in ("accuracy", "loss", "epochs", "zero_share"):
        assert ran.json[key] == expected[key], f"killed after {seconds:.3f} s"
    a, b = load_checkpoint(whole).network.state_dict(), load_checkpoint(output).network.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a), f"killed after {seconds:.3f} s"
