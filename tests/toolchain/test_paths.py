"""Path options of every command: inputs and outputs told apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from slimdeploy.toolchain import cli
from slimdeploy.toolchain.cli import COMMANDS
from slimdeploy.toolchain.locks import exclusive
from slimdeploy.toolchain.paths import InputPath, outputs_alone


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_says_whether_it_is_read_or_written(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    for param in command.params:
        if isinstance(param.type, click.Path):
            assert (name, param.name) == ("deploy", "root"), "a path on the device, expanded there"
        if param.name in ("model", "models", "checkpoint", "output", "ranges", "weights", "teacher"):
            assert isinstance(param.type, InputPath)


SAME = [
    ["calibrate", "f.onnx", "-o", "f.onnx"],
    ["calibrate", "f.onnx", "-o", "./folder/../f.onnx"],
    ["calibrate", "f.onnx", "-o", "linked.onnx"],
    ["calibrate", "f.onnx", "-o", "hard.onnx"],
    ["calibrate", "f.onnx", "-o", "f.onnx.json"],
    ["calibrate", "f.onnx", "-o", "z.onnx", "--trt8-cache", "z.onnx"],
    ["calibrate", "f.onnx", "-o", "z.onnx", "--trt8-cache", "z.onnx.json"],
    ["calibrate", "f.onnx", "-o", "z.onnx", "--ranges", "f.onnx"],
    ["calibrate", "f.onnx", "-o", "z.onnx", "--ranges", "r.json", "--trt8-cache", "r.json"],
    ["export", "f.safetensors", "-o", "f.safetensors"],
    ["export", "f.onnx", "--trt", "-o", "f.onnx"],
    ["prune", "f.safetensors", "--ratio", "0.5", "-o", "f.safetensors"],
    ["prune", "f.safetensors", "--latency-ms", "1", "--latency-table", "t.json", "-o", "t.json"],
    ["finetune", "f.safetensors", "-o", "f.safetensors"],
    ["finetune", "f.safetensors", "-o", "z.safetensors", "--teacher", "z.safetensors"],
    ["train", "--data", "digits", "--weights", "f.safetensors", "-o", "f.safetensors"],
    ["package", "f.onnx", "-o", "f.onnx"],
    ["package", "f.onnx", "--sign", "key", "-o", "key"],
    ["package", "f.onnx", "g.onnx", "--noise", "-o", "g.onnx"],
    ["bench", "f.onnx", "g.onnx", "-o", "g.onnx"],
    ["bench", "f.onnx", "-o", "f.onnx.json"],
]


@pytest.mark.parametrize("arguments", SAME, ids=" ".join)
def test_no_output_is_an_input_or_another_output(
    slimdeploy_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("f.onnx", "f.onnx.json", "g.onnx", "f.safetensors", "t.json", "key"):
        (tmp_path / name).write_text(name)
    (tmp_path / "linked.onnx").symlink_to("f.onnx")
    os.link("f.onnx", "hard.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    force = [] if arguments[-2] == "--force" else ["--force"]
    ran = slimdeploy_command(*arguments, *force)
    assert ran.exit_code == 2
    assert "are the same file" in ran.error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_model_may_be_measured_against_itself(slimdeploy_command: Callable, tmp_path: Path) -> None:
    """Two inputs may be one file."""
    model = tmp_path / "f.onnx"
    model.write_bytes(b"x")
    assert "same file" not in slimdeploy_command("bench", model, model).error


def test_home_is_expanded_wherever_a_path_stands(
    slimdeploy_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = slimdeploy_command("evaluate", "~/none.onnx")
    assert ran.error == f"no model at {tmp_path}/none.onnx"
    (tmp_path / "f.onnx").touch()
    ran = slimdeploy_command("calibrate", tmp_path / "f.onnx", "--output=~/f.onnx")
    assert "are the same file" in ran.error
    ran = slimdeploy_command("train", "--data", "folder:~/images", "-o", tmp_path / "x")
    assert ran.error.startswith(f"no folder {tmp_path}/images/train: ")


def test_a_name_that_is_not_utf8_is_refused(slimdeploy_command: Callable, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.onnx")
    ran = slimdeploy_command("evaluate", name)
    assert ran.exit_code == 2
    assert "caf\\xe9.onnx' cannot be read as a UTF-8 name: rename it" in ran.error


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["prune", "f.safetensors", "-o", "z", "--params", "nan"], "--params"),
        (["prune", "f.safetensors", "-o", "z", "--macs", "inf"], "--macs"),
        (["prune", "f.safetensors", "-o", "z", "--ratio", "nan"], "--ratio"),
        (["prune", "f.safetensors", "-o", "z", "--ratio", "0.5", "--step-lr", "nan"], "--step-lr"),
        (["train", "--data", "digits", "-o", "z", "--sparsity", "nan"], "--sparsity"),
        (["train", "--data", "digits", "-o", "z", "--lr", "-inf"], "--lr"),
        (["train", "--data", "digits", "-o", "z", "--mean", "0.1", "nan", "0.2"], "--mean"),
        (["calibrate", "f.onnx", "-o", "z", "--max-drop", "nan"], "--max-drop"),
        (["deploy", "x.slim.tar", "--seconds", "nan"], "--seconds"),
        (["serve", "--latency-ms", "inf"], "--latency-ms"),
    ],
)
def test_no_option_is_nan_or_infinite(
    slimdeploy_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], option: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ran = slimdeploy_command(*arguments)
    assert ran.exit_code == 2
    assert f"Invalid value for '{option}'" in ran.error
    assert "not a finite number" in ran.error
    assert not list(tmp_path.iterdir())


def test_two_commands_that_write_one_file_do_not_run_at_once(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "folder" / "net.safetensors"
    train = ["train", "--arch", "tiny", "--data", f"folder:{image_folder}", "--epochs", 0, "-o", output]
    output.parent.mkdir(parents=True)
    with exclusive(output, "it"):
        ran = slimdeploy_command(*train)
    assert (ran.exit_code, ran.error) == (
        2,
        f"{output} is in use by process {os.getpid()}: wait for it to end",
    )
    assert not output.exists()
    assert slimdeploy_command(*train).exit_code == 0
    assert not list(tmp_path.rglob("*.lock"))


def test_two_sweeps_may_start_at_once_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """As workers on machines that share it; the trials in it have locks of their own."""
    command = cli.cli.get_command(click.Context(cli.cli), "sweep")
    assert command is not None
    output = tmp_path / "new" / "sweep"
    arguments = ["digits", "--ratio", "0.5", "-o", str(output)]
    first, second = (command.make_context("sweep", [*arguments]) for _ in range(2))
    with outputs_alone(first), outputs_alone(second):
        assert output.parent.is_dir(), "it can be written"
    assert not list(tmp_path.iterdir())


def test_a_refused_command_leaves_no_folder_behind(slimdeploy_command: Callable, tmp_path: Path) -> None:
    ran = slimdeploy_command("prune", tmp_path / "x", "--ratio", 0.5, "-o", tmp_path / "new" / "folder" / "y")
    assert (ran.exit_code, ran.error) == (2, f"no checkpoint at {tmp_path / 'x'}")
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    slimdeploy_command: Callable, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for folder, said in (
        (tmp_path / "file", "is a file, not a folder"),
        (Path("/proc"), "cannot write /proc/"),
    ):
        ran = slimdeploy_command("prune", tmp_path / "missing", "--ratio", 0.5, "-o", folder / "y")
        assert ran.exit_code == 2
        assert said in ran.error
    ran = slimdeploy_command(
        "prune", tmp_path / "missing", "--ratio", 0.5, "-o", tmp_path / "file" / "x" / "y"
    )
    assert (ran.exit_code, "Not a directory" in ran.error) == (2, True)
