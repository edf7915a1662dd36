"""The sdist builds, the wheel made of it installs, and what is installed works outside the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import slimdeploy

ROOT = Path(slimdeploy.__file__).parent
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
THERE = "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
COMMAND = THERE + "from slimdeploy.toolchain.cli import main; main()"
LOAD = f"""{THERE}
import slimdeploy
from slimdeploy.toolchain.pipeline.recipe import find_recipe, load_recipe
print(slimdeploy.__file__, load_recipe(find_recipe("digits")).name)
"""


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the files that git knows, so that nothing is written into the checkout."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    files = _run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    _run([sys.executable, "-c", BUILD, "build_sdist", str(output)], source)
    return next(output.glob("slimdeploy-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, output = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(source)
    (unpacked,) = source.iterdir()
    _run([sys.executable, "-c", BUILD, "build_wheel", str(output)], unpacked)
    return next(output.glob("slimdeploy-*.whl"))


def test_the_wheel_holds_what_is_needed_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = _run(["git", "ls-files"], ROOT).splitlines()
    endings = (".cu", ".h", ".toml", ".html", ".json")
    folders = ("kernels/", "toolchain/")
    needed = {f"slimdeploy/{name}" for name in tracked if name.startswith(folders) and name.endswith(endings)}
    assert len(needed) > 15
    assert needed <= names
    assert "slimdeploy/py.typed" in names
    assert not [name for name in names if name.startswith("slimdeploy/tests")]


def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    _run([*install, "--target", str(target), str(wheel)], tmp_path)
    for arguments in (["--help"], ["run", "digits", "--help"], ["summary", "--arch", "resnet18"]):
        _run([sys.executable, "-c", COMMAND, str(target), *arguments], tmp_path)
    where, recipe = _run([sys.executable, "-c", LOAD, str(target)], tmp_path).split()
    assert Path(where).is_relative_to(target)
    assert recipe == "digits"
    assert (target / "bin" / "slimdeploy").exists()
