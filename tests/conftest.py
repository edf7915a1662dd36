"""Fixtures that all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported. Several tests run at once, each on one core; and sums in one order give the same
# bits.
os.environ["OMP_NUM_THREADS"] = "1"

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402

import slimdeploy  # noqa: E402

hypothesis.settings.register_profile("tests", deadline=None, max_examples=30)
hypothesis.settings.load_profile("tests")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        import json

        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    @property
    def error(self) -> str:
        """The one line of an error, without `slimdeploy: `; log lines may stand before it."""
        last = self.err.splitlines()[-1]
        assert last.startswith("slimdeploy: "), self.err
        assert "Traceback" not in self.err
        return last.removeprefix("slimdeploy: ")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMDEPLOY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 24 test images of three classes, 16×16. Not to be changed."""
    return tiny.write_image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def slimdeploy_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Runs `slimdeploy ARGUMENTS…` in this process, from its entry point to its exit."""
    from slimdeploy.toolchain.cli import main

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["slimdeploy", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, written.out, written.err)

    return run


def process_environment() -> dict[str, str]:
    """Environment of a fresh process that imports this slimdeploy, the tests' helpers and the tiny
    networks.
    """
    paths = [
        TESTS / "subprocesses",
        TESTS,
        Path(slimdeploy.__file__).parents[1],
        os.environ.get("PYTHONPATH"),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in paths if p)}


@pytest.fixture(scope="session")
def fresh_python() -> Callable[..., Ran]:
    """Runs Python code in a fresh process that has imported nothing yet."""

    def run(code: str, *arguments: str) -> Ran:
        environment = process_environment()
        # Without the tiny networks: they bring torch.
        own = [p for p in environment["PYTHONPATH"].split(os.pathsep) if p != str(TESTS / "subprocesses")]
        setup = f"import sys; sys.path.append({str(TESTS / 'subprocesses')!r})\n"
        environment["PYTHONPATH"] = os.pathsep.join(own)
        command = [sys.executable, "-c", setup + code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def start_command() -> Callable[..., subprocess.Popen[str]]:
    """Starts `slimdeploy ARGUMENTS…` as a process of its own that knows the tiny networks."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "slimdeploy.toolchain", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=process_environment())

    return start
