"""Every error of the library names parameters, in backquotes; the command line makes flags of them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import slimdeploy
from slimdeploy.toolchain.cli import COMMANDS, cli, name_flags
from slimdeploy.toolchain.errors import SlimdeployError

ROOT = Path(slimdeploy.__file__).parent
ERRORS = {"SlimdeployError", "CheckFailed", "WorkerLost"}
FLAG = re.compile(r"--[a-z][a-z0-9-]+")
COMMAND_LINE = re.compile(r"\b(slimdeploy|pip|torchrun|python3|sudo|apt) .*", re.DOTALL)
"""A line to type: from the program's name to the end."""


def _messages(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each error that the file makes, with … for what is filled in."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS):
            continue
        for argument in node.args[:1]:
            parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
            texts = [p.value if isinstance(p, ast.Constant) else "…" for p in parts]
            yield node.lineno, "".join(map(str, texts))


MESSAGES = [
    (f"{file.relative_to(ROOT)}:{line}", text)
    for folder in ("toolchain", "calibrate", "kernels")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "commands" not in file.parts and file.name not in ("cli.py", "launch.py")
    for line, text in _messages(file)
]


def _options() -> dict[str, str]:
    """Parameter -> flag, of all commands."""
    found = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found.update({p.name: p.opts[0] for p in command.params if isinstance(p, click.Option)})
    return found


def test_no_error_names_a_flag_but_in_a_line_to_type() -> None:
    assert len(MESSAGES) > 500
    wrong = [f"{at}: {text}" for at, text in MESSAGES if FLAG.search(COMMAND_LINE.sub("", text))]
    assert not wrong, "\n".join(wrong)


def test_every_parameter_that_an_error_names_exists() -> None:
    known = set(_options())
    for name in slimdeploy.__all__:
        if callable(entry := getattr(slimdeploy, name)):
            known |= set(inspect.signature(entry).parameters)
    known |= set(inspect.signature(slimdeploy.sparsity.Proximal).parameters)
    named = [(at, name) for at, text in MESSAGES for name in re.findall(r"`(\w+)`", text)]
    assert len(named) > 100
    assert not [f"{at}: {name}" for at, name in named if name not in known]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_says_the_flag(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for option in (p for p in command.params if isinstance(p, click.Option)):
        error = SlimdeployError(f"`{option.name}` and `no_such_parameter`")
        assert str(error) == f"{option.name} and no_such_parameter"
        name_flags(error, command)
        assert str(error).split()[0] in option.opts
        assert str(error).endswith("and no_such_parameter")
