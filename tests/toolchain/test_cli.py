"""The command line: one JSON object or one line of error, and an exit code that says which."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from processes import process_environment
from tiny import write_checkpoint

from slimdeploy.toolchain import cli
from slimdeploy.toolchain.cli import COMMANDS, CommandTable, Output
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_common_options(slimdeploy_command: Callable, name: str) -> None:
    ran = slimdeploy_command(name, "--help")
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: slimdeploy {name}")
    assert "--json" in ran.out
    assert "--debug" in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    """And defaults are told in one form: after a full stop, in brackets."""
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[-1]}"
            assert option.help.endswith((".", "]")), option.help
            assert not isinstance(option.show_default, str), option.help


@pytest.mark.parametrize(
    ("name", "headings"),
    [
        ("train", ["Network", "Data", "Optimiser", "Sparsity", "Validation and averaging", "Distillation",
                   "Augmentation", "Machine", "Output"]),
        ("finetune", ["Data", "Optimiser", "Validation and averaging", "Distillation", "Augmentation",
                      "Machine", "Output"]),
        ("report", ["Options"]),
    ],
)  # fmt: skip
def test_many_options_are_shown_under_headings(
    slimdeploy_command: Callable, name: str, headings: list[str]
) -> None:
    text = slimdeploy_command(name, "--help").out
    assert re.findall(r"^(\w.*):$", text, re.MULTILINE) == headings
    after = text.split("Augmentation:")[-1].split("Machine:")[0]
    assert ("--mixup" in after) == (name != "report")


def test_help_lists_every_command(slimdeploy_command: Callable) -> None:
    ran = slimdeploy_command("--help")
    assert ran.exit_code == 0
    for name, line in COMMANDS.items():
        assert name in ran.out
        assert line.split(".")[0][:40] in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin"], "no such command 'tarin'. Did you mean 'train'? (slimdeploy --help)"),
        (["xyzzy"], "no such command 'xyzzy'. (slimdeploy --help)"),
        (["summary", "--arhc", "resnet50"], "No such option '--arhc'"),
        (["summary", "--size", "4"], "Invalid value for '--size': 4 is not in the range 8<=x<=4096."),
        (["summary", "--size", "big"], "Invalid value for '--size': 'big' is not a valid int"),
        (["train"], "Missing option '--data'."),
        (["prune"], "Missing argument 'CHECKPOINT'."),
        (["summary", "--arch", "resnet5"], "unknown arch 'resnet5'; known: "),
        (["run", "digit"], "no recipe 'digit'; there are "),
        (["evaluate", "setup.cfg", "--size", "32"], "--size needs --data"),
        (["evaluate", "setup.cfg", "--data-dir", "data"], "--data-dir needs --data"),
        (["train", "--data", "digits", "-o", "x", "--distill", "0.5"], "--distill needs --teacher"),
        (["finetune", "setup.cfg", "-o", "x", "--temperature", "2"], "--temperature needs --teacher"),
        (["train", "--data", "digits", "-o", "x", "--no-shrink"], "--no-shrink needs --sparsity"),
        (
            ["train", "--data", "digits", "-o", "x", "--schedule", "cosine", "--step-epochs", "3"],
            "--step-epochs needs --schedule step",
        ),
        (
            ["prune", "setup.cfg", "-o", "x", "--ratio", ".5", "--no-compensate"],
            "--no-compensate needs --data",
        ),
        (
            ["prune", "setup.cfg", "-o", "x", "--ratio", ".5", "--no-measure"],
            "--no-measure needs --latency-ms",
        ),
        (["prune", "setup.cfg", "-o", "x", "--ratio", ".5", "--step-lr", ".1"], "--step-lr needs --steps"),
        (["export", "setup.cfg", "-o", "x", "--target", "cpu"], "--target needs --precision int8"),
        (["summary", "setup.cfg", "--arch", "resnet18"], "--arch has no effect with a checkpoint"),
        (["summary", "setup.cfg", "--classes", "7"], "--classes has no effect with a checkpoint"),
        (["lut", "setup.cfg", "-o", "x", "--arg", "width=2"], "--arg has no effect with a checkpoint"),
        (["run", "digits", "--copy", "x", "--set", "seed=1"], "--set has no effect with --copy"),
        (["classify", "setup.cfg", "--pixels", "bgr"], "--pixels needs --frames"),
        (["classify", "a.jpg", "--model", "m", "--root", "."], "--root has no effect with --model"),
        (["package", "setup.cfg", "-o", "x", "--noise", "--data", "digits"], "give --noise or --data, not"),
        (["summary", "--arg", "width=2"], "--arg is for imported networks; resnet50 is built in"),
        (["summary", "--arch", ""], "unknown arch ''; known: resnet18"),
        (["lut", "-o", "x", "--threads", "1000"], "--threads 1000: this machine has "),
        (["calibrate", "x", "-o", "y", "--method", "z"], "unknown method 'z'; known: auto, "),
        (["export", "setup.cfg", "-o", "x.engine"], "--output x.engine is the ONNX file: end it in .onnx"),
        (["deploy", "--rollback", "--root", ""], "Invalid value for '--root': an empty path"),
        (["run", "digits", "-o", ""], "Invalid value for '-o' / '--output': an empty path"),
    ],
)
def test_wrong_calls_are_one_line_and_exit_2(
    slimdeploy_command: Callable, arguments: list[str], message: str
) -> None:
    ran = slimdeploy_command(*arguments)
    assert ran.exit_code == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err
    assert ran.error.startswith(message)


def test_an_unknown_option_suggests_the_nearest(slimdeploy_command: Callable) -> None:
    assert "--arch" in slimdeploy_command("summary", "--arhc", "x").error


def test_no_command_shows_the_help(slimdeploy_command: Callable) -> None:
    ran = slimdeploy_command()
    assert ran.exit_code == 2
    assert "Commands:" in ran.err
    assert "Traceback" not in ran.err


def _with_command(monkeypatch: pytest.MonkeyPatch, body: Callable[[], Output]) -> None:
    """`slimdeploy fake` runs `body`."""
    monkeypatch.setitem(COMMANDS, "fake", "Does what the test says.")
    fake = cli.command("fake")(body)
    get = CommandTable.get_command

    def get_command(self: CommandTable, ctx: click.Context, name: str) -> click.Command | None:
        return fake if name == "fake" else get(self, ctx, name)

    monkeypatch.setattr(CommandTable, "get_command", get_command)


def test_json_is_all_there_is_on_standard_output(
    slimdeploy_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_command(monkeypatch, lambda: Output({"a": 1}, "a table"))
    ran = slimdeploy_command("fake", "--json")
    assert (ran.exit_code, ran.json, ran.err) == (0, {"a": 1}, "")
    assert slimdeploy_command("fake").out.strip() == "a table"


def _print_like_a_library() -> Output:
    """In every way that a library prints, and nothing flushed."""
    libc = ctypes.CDLL(None)
    print("printed")
    os.write(1, b"written\n")
    libc.printf(b"formatted\n")
    subprocess.run(["echo", "child"], check=True)
    return Output({"a": 1}, "a table")


@pytest.mark.parametrize(("arguments", "result"), [((), "a table"), (("--json",), '{\n "a": 1\n}')])
def test_what_libraries_print_goes_to_standard_error(
    slimdeploy_command: Callable, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str], result: str
) -> None:
    _with_command(monkeypatch, _print_like_a_library)
    ran = slimdeploy_command("fake", *arguments)
    assert ran.out.strip() == result
    assert set(ran.err.split()) == {"printed", "written", "formatted", "child"}


NOISY = """
import atexit, ctypes
from slimdeploy.toolchain import cli
from slimdeploy.toolchain.commands import summary
def noisy(*args, **kwargs):
    ctypes.CDLL(None).puts(b"noise")
    print("noise")
    atexit.register(print, "noise at the end")
    return cli.Output({"a": 1}, "a table")
summary.summary.callback = noisy
cli.main()
"""


@pytest.mark.parametrize(
    ("redirection", "out", "err"),
    [("", "{\n 'a': 1\n}", 3), ("2>&-", "{\n 'a': 1\n}", 0), (">&-", "", 0)],
    ids=["both open", "no standard error", "no standard output"],
)
def test_a_process_keeps_its_standard_output_clean_to_the_end(
    tmp_path: Path, redirection: str, out: str, err: int
) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    ran = subprocess.run(
        f"{sys.executable} {tmp_path}/noisy.py summary --json {redirection}",
        shell=True, capture_output=True, text=True, env=process_environment(), timeout=300,
    )  # fmt: skip
    assert ran.stdout.strip() == out.replace("'", '"')
    assert ran.stderr.count("noise") == err, ran.stderr


def test_a_terminal_that_is_not_utf8_gets_what_it_can_show() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "slimdeploy.toolchain", "summary", "--arch", "resnet18"],
        capture_output=True, env=process_environment() | {"PYTHONIOENCODING": "latin-1"}, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert b"11.17 M" in ran.stdout or b"11,1" in ran.stdout


def test_data_without_a_name_is_an_error(slimdeploy_command: Callable, tmp_path: Path) -> None:
    ran = slimdeploy_command("train", "--data", "", "-o", tmp_path / "x.safetensors")
    assert ran.exit_code == 2
    assert "data" in ran.error


def test_a_failed_check_still_prints_its_result(
    slimdeploy_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_command(monkeypatch, lambda: Output({"a": 1}, "a table", failed="too inaccurate"))
    ran = slimdeploy_command("fake", "--json")
    assert (ran.exit_code, ran.json, ran.error) == (1, {"a": 1}, "too inaccurate")
    ran = slimdeploy_command("fake")
    assert (ran.exit_code, ran.out.strip(), ran.error) == (1, "a table", "too inaccurate")


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (SlimdeployError("x.png: not an image"), 2, "x.png: not an image"),
        (CheckFailed("off by 3"), 1, "off by 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("", name="tensorrt"), 2, "this needs tensorrt, which is not installed: "),
        (ModuleNotFoundError("", name="nunpy"), 1, "internal error, ModuleNotFoundError: "),
        (PermissionError(13, "Permission denied", "/etc/x"), 2, "Permission denied: /etc/x"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (ValueError("two\nlines"), 1, "internal error, ValueError: two lines (--debug shows where)"),
    ],
)  # fmt: skip
def test_every_error_is_one_line_with_its_exit_code(
    slimdeploy_command: Callable,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
    message: str,
) -> None:
    def fail() -> Output:
        raise error

    _with_command(monkeypatch, fail)
    ran = slimdeploy_command("fake", "--json")
    assert ran.exit_code == exit_code
    assert ran.out == ""
    assert ran.error.startswith(message)
    assert len(ran.err.strip().splitlines()) == 1, ran.err


def test_debug_adds_the_traceback(slimdeploy_command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Output:
        raise SlimdeployError("x.png: not an image")

    _with_command(monkeypatch, fail)
    ran = slimdeploy_command("fake", "--debug")
    assert ran.exit_code == 2
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.splitlines()[-1] == "slimdeploy: x.png: not an image"


def test_summary_of_the_reference(slimdeploy_command: Callable) -> None:
    result = slimdeploy_command("summary", "--json").json
    assert result["params"] == 23_513_162
    assert result["module_calls"] == 174
    memory = [round(result["memory_mb"][part], 2) for part in ("input", "activations", "params")]
    assert memory == [0.01, 23.41, 89.70]
    assert len(result["channels"]) == 49
    text = slimdeploy_command("summary").out
    for expected in ("layer4.2.conv3", "512 → 2048", "23,513,162", "325.80 M", "89.70 MB", "113.11 MB"):
        assert expected in text


def test_summary_of_a_checkpoint(slimdeploy_command: Callable, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors")
    result = slimdeploy_command("summary", path, "--json").json
    assert (result["arch"], result["stem"], result["classes"], result["size"]) == ("tiny", "cifar", 3, 16)
    assert slimdeploy_command("summary", path, "--size", 32, "--json").json["macs"] > 3 * result["macs"]


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """`slimdeploy summary | head -1`"""
    command = f"{sys.executable} -m slimdeploy.toolchain summary --json | head -1"
    ran = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=process_environment(), timeout=300
    )
    assert ran.stdout == "{\n"
    assert "Traceback" not in ran.stderr


def test_the_module_is_the_command(tmp_path: Path, start_command: Callable) -> None:
    process = start_command("summary", "--arch", "resnet18", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["arch"] == "resnet18"
