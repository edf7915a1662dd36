"""Runs the tests that depend on versions with every Python and torch that this machine can get.

    python tests/versions.py [PYTEST ARGUMENTS…]

For each of PYTHONS that is on the PATH or among pyenv's, and each of TORCHES that pip can install for it: a
virtual environment in `.venv/versions` and the tests named (by default QUICK). At the end one line for each
pair: passed, failed, or why it wasn't tried. The exit code is 1 where tests failed or nothing could be tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHES = {"2.13": ("torch==2.13.*", "torchvision"), "2.15": ("torch==2.15.*", "torchvision")}
QUICK = (
    "tests/test_import_directions.py",
    "tests/test_packaging.py",
    "tests/toolchain/library",
    "tests/toolchain/networks",
    "tests/toolchain/pruning",
)
EXTRAS = "host,cpu,device,report,sweep,test"


def main() -> int:
    outcomes = {
        (python, torch): _outcome(python, torch, sys.argv[1:] or list(QUICK))
        for python in PYTHONS
        for torch in TORCHES
    }
    for (python, torch), outcome in outcomes.items():
        print(f"Python {python}, torch {torch}: {outcome}")
    tried = [outcome for outcome in outcomes.values() if outcome in ("passed", "failed")]
    return 0 if tried and "failed" not in tried else 1


def _outcome(python: str, torch: str, tests: list[str]) -> str:
    found = next((p for p in _interpreters(python) if not _run([p, "-c", "import venv, ensurepip"])), None)
    if not found:
        return f"not tried: no python{python} with venv here"
    home = ROOT / ".venv" / "versions" / f"{python}-{torch}"
    own = home / "bin" / "python"
    if not own.exists() and _run([found, "-m", "venv", str(home)]):
        return "not tried: no virtual environment can be made"
    pip = [str(own), "-m", "pip", "install", "--quiet"]
    if _run([*pip, *TORCHES[torch]]):
        return f"not tried: pip finds no torch {torch} for it"
    if _run([*pip, "--editable", f"{ROOT}[{EXTRAS}]", *TORCHES[torch]]):
        return "not tried: slimdeploy's requirements can't be installed beside it"
    return "failed" if _run([str(own), "-m", "pytest", "-q", *tests], show=True) else "passed"


def _interpreters(python: str) -> Iterator[str]:
    """Programs that may be this Python. pyenv's on the PATH only start the version that is switched on."""
    if found := shutil.which(f"python{python}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from map(str, sorted(pyenv.glob(f"{python}.*/bin/python{python}"), reverse=True))


def _run(command: list[str], *, show: bool = False) -> int:
    output = None if show else subprocess.DEVNULL
    return subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
