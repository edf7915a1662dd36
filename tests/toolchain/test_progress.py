"""What is shown to a person who waits, with a terminal and without."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from slimdeploy.toolchain import progress
from slimdeploy.toolchain.errors import parameters_shown
from slimdeploy.toolchain.progress import progress_bar, working

Screen = Callable[..., io.StringIO]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Makes what is shown a text, at such intervals that a test can wait for it."""

    def make(*, terminal: bool, delay: float = 0.0) -> io.StringIO:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal, width=120)
        for name, value in {"console": console, "DELAY_S": delay, "LINE_S": 0.05, "REDRAW_S": 0.05}.items():
            monkeypatch.setattr(progress, name, value)
        return shown

    return make


def test_a_line_names_parameters_as_the_command_line_does(screen: Screen) -> None:
    shown = screen(terminal=False)
    progress.log("few steps (`lr` 0.1)")
    with parameters_shown(lambda parameter: f"--{parameter}"):
        progress.log("few steps (`lr` 0.1)")
    progress.log("few steps (`lr` 0.1)")
    assert shown.getvalue().splitlines() == [f"few steps ({name} 0.1)" for name in ("lr", "--lr", "lr")]


def _until(shown: io.StringIO, text: str) -> None:
    end = time.monotonic() + 60
    while text not in shown.getvalue():
        assert time.monotonic() < end, shown.getvalue()
        time.sleep(0.01)


def test_without_a_terminal_a_line_comes_now_and_then(screen: Screen) -> None:
    shown = screen(terminal=False)
    with progress_bar("epoch 1/2", total=10) as advance:
        advance(4)
        _until(shown, "epoch 1/2: 4 of 10, 0 s so far and about 0 s left\n")
        advance(1, "slow")
        _until(shown, "epoch 1/2: 5 of 10, 0 s so far and about 0 s left (slow)\n")
    with working("pruning"):
        _until(shown, "pruning: 0 s so far\n")
    assert "\x1b" not in shown.getvalue()


def test_a_terminal_gets_a_bar(screen: Screen) -> None:
    shown = screen(terminal=True)
    with progress_bar("[a]", total=7) as advance:
        advance(3)
        _until(shown, "3/7")
    assert "[a]" in shown.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_quick_shows_nothing(screen: Screen, terminal: bool) -> None:
    shown = screen(terminal=terminal, delay=60)
    progress.LINE_S = 60
    with working("prune"), progress_bar("evaluating", total=2) as advance:
        advance(2)
    assert shown.getvalue() == ""


def test_of_what_is_nested_the_innermost_is_shown_and_no_bar_within_a_bar(screen: Screen) -> None:
    shown = screen(terminal=False)
    with working("prune"):
        _until(shown, "prune: ")
        with progress_bar("evaluating", total=2) as advance:
            before = shown.getvalue().count("prune: ")
            with progress_bar("reading", total=3) as read:
                read(1)
                advance(1)
                _until(shown, "evaluating: 1 of 2")
            assert shown.getvalue().count("prune: ") == before
        shown.truncate(0)
        _until(shown, "prune: ")
    assert "reading" not in shown.getvalue()


def test_a_first_epoch_is_no_silence(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.001)
    train = ["train", "--arch", "tiny", "--stem", "cifar", "--data", f"folder:{image_folder}", "--epochs", 1]
    ran = slimdeploy_command(*train, "--batch-size", 2, "-o", tmp_path / "net.safetensors", "--json")
    assert ran.json["epochs"] == 1
    assert re.search(r"^epoch 1/1: \d+ of 27, \d+ s so far", ran.err, re.MULTILINE)
