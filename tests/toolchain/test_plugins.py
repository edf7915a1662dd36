"""A package that is installed adds to the tables: the one of docs/architecture.md is, with pip."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from processes import process_environment

import slimdeploy
from slimdeploy.toolchain import registry
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pruning.criterion import CRITERIA

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "nuclear-criterion"
version = "1.0"

{entry_points}
"criterion.broken" = "nuclear_criterion_broken:missing"
"criterion.no-criterion" = "nuclear_criterion:np"
"criterion.gamma" = "nuclear_criterion:nuclear"
"kriterion.x" = "nuclear_criterion:nuclear"

[tool.setuptools]
py-modules = ["nuclear_criterion", "nuclear_criterion_broken"]
"""


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of the page, and some mistakes beside it, are installed."""
    source, target = tmp_path_factory.mktemp("nuclear"), tmp_path_factory.mktemp("installed")
    page = (Path(slimdeploy.__file__).parent / "docs" / "architecture.md").read_text().split("## Plugins")[1]
    (entry_points,) = re.findall(r"```toml\n(.*?)\n```", page, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (source / "pyproject.toml").write_text(PROJECT.format(entry_points=entry_points))
    (source / "nuclear_criterion.py").write_text(code)
    (source / "nuclear_criterion_broken.py").write_text("import no_such_library\n")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*install, "--no-deps", "--target", str(target), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is on the path of this process alone."""
    monkeypatch.syspath_prepend(str(plugin))
    _forget()
    known = dict(CRITERIA._entries)
    yield
    _forget()
    monkeypatch.setattr(CRITERIA, "_entries", known)


def _forget() -> None:
    importlib.invalidate_caches()
    registry._plugins.cache_clear()
    registry._entry_points.cache_clear()


def test_the_help_of_prune_lists_its_criterion(plugin: Path) -> None:
    """In a process that can't import torch: the name is known without importing anything."""
    code = "import blocking; blocking.block('torch')\nfrom slimdeploy.toolchain.cli import main\nmain()"
    environment = process_environment()
    environment["PYTHONPATH"] += os.pathsep + str(plugin)
    own = [part for part in environment["PYTHONPATH"].split(os.pathsep) if not part.endswith("subprocesses")]
    setup = f"import sys; sys.path.append({str(Path(__file__).parents[1] / 'subprocesses')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + code, "prune", "--help"], capture_output=True, text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(own)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"--criterion .*gamma.*\bnuclear\b", " ".join(done.stdout.split()))


@pytest.mark.usefixtures("installed")
def test_prune_uses_it(slimdeploy_command: Callable, tmp_path: Path) -> None:
    checkpoint, output = tiny.write_checkpoint(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    ran = slimdeploy_command(
        "prune", checkpoint, "--criterion", "nuclear", "--ratio", 0.4, "--align", 1, "-o", output, "--json"
    )
    assert ran.exit_code == 0, ran.err
    assert ran.json["params"]["after"] < ran.json["params"]["before"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"the package nuclear-criterion can't be loaded \(ModuleNotFoundError: .*no_such_library"),
        ("no-criterion", r"can't be loaded \(TypeError: nuclear_criterion:np is a module, not a Criterion\)"),
    ],
)
def test_one_that_cannot_be_loaded_is_one_line_and_names_the_package(name: str, message: str) -> None:
    with pytest.raises(SlimdeployError, match=message):
        CRITERIA.find(name)


@pytest.mark.usefixtures("installed")
def test_others_are_not_disturbed(capfd: pytest.CaptureFixture[str]) -> None:
    assert CRITERIA.find("gamma").needs_gamma, "slimdeploy's own goes before a plugin's of the same name"
    usable = CRITERIA.usable()
    assert "nuclear" in usable
    assert not {"broken", "no-criterion"} & set(usable)
    said = capfd.readouterr().err
    assert said.count("\n! the criterion") == 2
    assert "the package nuclear-criterion brings 'kriterion.x'; plugins are named KIND.NAME" in said
