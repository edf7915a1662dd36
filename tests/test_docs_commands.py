"""The command blocks of README, CONTRIBUTING and docs/: each says how it is executed, every `slimdeploy …` in
them is one that the command line takes, and one page is executed. `make test-docs` executes all.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import docs_run
import pytest
import warm_command
from docs_blocks import PAGES, ROOT, Block, command_blocks
from docs_given import given

from slimdeploy.toolchain.cli import COMMANDS, cli

BLOCKS = [block for page in PAGES for block in command_blocks(page)]
EXECUTED = ROOT / "docs" / "export.md"
OPEN = ("…", "[")
"""A line with one of them says that something is left out."""


def _calls(block: Block) -> Iterator[list[str]]:
    """The arguments of every call of slimdeploy, as printed."""
    for line in block.text.replace("\\\n", " ").splitlines():
        found = re.match(r"(?:sudo )?(?:\.?/?\S*/)?slimdeploy\s+(.*)", line)
        if found and not any(mark in line for mark in OPEN):
            yield list(itertools.takewhile(lambda word: word[0] not in "|&;<>", _words(found[1])))


def _words(line: str) -> Iterator[str]:
    """As a shell splits the line, its operators apart, without comments."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    return iter(words)


CALLS = [(str(block), arguments) for block in BLOCKS for arguments in _calls(block)]


def test_the_pages_hold_commands() -> None:
    assert len(CALLS) > 60
    assert {arguments[0] for _, arguments in CALLS} >= {*COMMANDS} - {"doctor"}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_it_is_declared_how_it_is_executed(block: Block) -> None:
    assert block.run is not None, "put <!-- run -->, or <!-- not run: why --> above: CONTRIBUTING.md"
    assert block.run or block.note, "why isn't it run?"
    if block.run:
        assert block.script  # the commands that options are added to are there
        assert not any(mark in block.text for mark in OPEN), "a block with something left out can't be run"


@pytest.mark.parametrize(("where", "arguments"), CALLS, ids=lambda value: " ".join(value)[:60])
def test_it_is_one_that_the_command_line_takes(where: str, arguments: list[str]) -> None:
    name, *rest = arguments
    if name.startswith("-"):
        return
    command = cli.get_command(click.Context(cli), name)
    assert command, f"{where}: no command {name}"
    try:
        command.make_context(name, rest)
    except click.exceptions.Exit:  # --help
        pass
    except click.UsageError as error:
        pytest.fail(f"{where}: slimdeploy {shlex.join(arguments)}: {error.format_message()}")


def test_a_page_runs_as_printed(tmp_path: Path) -> None:
    with warm_command.installed(tmp_path / "bin") as environment:
        given(tmp_path / "given", environment)
        for block in filter(lambda block: block.run, command_blocks(EXECUTED)):
            outcome, text = docs_run.run_block(block, tmp_path / "given", environment)
            assert outcome == "ran", text
    assert (tmp_path / "given" / "final.onnx").is_file()
