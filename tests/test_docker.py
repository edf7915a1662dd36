"""The Dockerfiles, as far as they can be checked where no image is built."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

import slimdeploy
from slimdeploy.tests.test_packaging import requirements
from slimdeploy.toolchain.cli import COMMANDS

ROOT = Path(slimdeploy.__file__).parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
INSTRUCTIONS = {"FROM", "RUN", "ENV", "COPY", "VOLUME", "EXPOSE", "ENTRYPOINT", "CMD"}


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile: comments left out, continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_there_is_one_for_each_kind_of_device():
    assert [file.name for file in FILES] == ["jetson.Dockerfile", "x86.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_dockerfile(file: Path):
    found = instructions(file)
    assert found[0][0] == "FROM"
    assert {word for word, _ in found} <= INSTRUCTIONS
    for _, script in (each for each in found if each[0] == "RUN"):
        subprocess.run(["sh", "-n", "-c", script], check=True)
    settings = dict(found)
    assert json.loads(settings["ENTRYPOINT"]) == ["slimdeploy"]
    assert json.loads(settings["CMD"])[0] in COMMANDS
    (extras,) = re.findall(r"pip install .*'/tmp/slimdeploy\[([a-z,]+)\]'", file.read_text())
    assert set(extras.split(",")) <= set(requirements())
    image, _, tag = settings["FROM"].partition(":")
    assert image.startswith(("nvidia/", "nvcr.io/nvidia/"))
    assert re.fullmatch(r"[a-z0-9.-]+", tag)


def test_what_pip_needs_of_the_checkout_is_copied():
    """The build reads the files that setup.cfg names; .dockerignore leaves out none of them."""
    ignored = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")}
    assert ignored.isdisjoint({"README.md", "LICENSE", "setup.cfg", "pyproject.toml", "toolchain", "kernels"})
    assert {"data", "runs", "build", ".*"} <= ignored
