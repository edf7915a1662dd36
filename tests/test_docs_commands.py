"""Every `slimdeploy …` line in a code block of README and docs/ is one that the command line takes: the
command, its options and their values. What the commands do is tested elsewhere.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import slimdeploy
from slimdeploy.toolchain.cli import COMMANDS, cli

ROOT = Path(slimdeploy.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPEN = ("…", "[")
"""A line with one of them says that something is left out."""


def _lines(page: Path) -> Iterator[str]:
    """The lines of code blocks, fenced or indented, continued ones joined."""
    fenced, text = False, page.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def _calls(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of slimdeploy."""
    for line in _lines(page):
        found = re.match(r"(?:sudo )?(?:\.?/?\S*/)?slimdeploy\s+(.*)", line.removeprefix("$ "))
        if found and not any(mark in line for mark in OPEN):
            yield list(itertools.takewhile(lambda word: word[0] not in "|&;<>", _words(found[1])))


def _words(line: str) -> Iterator[str]:
    """As a shell splits the line, its operators apart, without comments."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    return iter(words)


CALLS = [(page.name, arguments) for page in PAGES for arguments in _calls(page)]


def test_the_pages_hold_commands() -> None:
    assert len(CALLS) > 60
    assert {arguments[0] for _, arguments in CALLS} >= {*COMMANDS} - {"doctor"}


@pytest.mark.parametrize(("page", "arguments"), CALLS, ids=lambda value: " ".join(value)[:60])
def test_it_is_one_that_the_command_line_takes(page: str, arguments: list[str]) -> None:
    name, *rest = arguments
    if name.startswith("-"):
        return
    command = cli.get_command(click.Context(cli), name)
    assert command, f"{page}: no command {name}"
    try:
        command.make_context(name, rest)
    except click.exceptions.Exit:  # --help
        pass
    except click.UsageError as error:
        pytest.fail(f"{page}: slimdeploy {shlex.join(arguments)}: {error.format_message()}")
