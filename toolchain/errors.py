"""Errors for the user: one line with the problem, its place and what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

Naming = Callable[[str], str]
_naming: ContextVar[Naming] = ContextVar("naming", default=str)


@contextlib.contextmanager
def parameters_shown(naming: Naming) -> Iterator[None]:
    """Inside, `with_names` writes the parameters in a message by `naming`: a command's flags."""
    before = _naming.set(naming)
    try:
        yield
    finally:
        _naming.reset(before)


def with_names(message: str, naming: Naming | None = None) -> str:
    """The message, with each parameter name in backquotes replaced."""
    return re.sub(r"`(\w+)`", lambda found: (naming or _naming.get())(found[1]), message)


class SlimdeployError(Exception):
    """The input or the call was wrong; nothing was written. Ends the command with exit code 2.

    A parameter of a function stands in backquotes in the message: `str` shows its name, the command line its
    flag.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.told(lambda parameter: parameter)

    def told(self, naming: Naming) -> str:
        """The message, with each parameter name replaced by the result of `naming`."""
        return with_names(self.message, naming)


class CheckFailed(SlimdeployError):
    """The work was done, but the result failed a check (parity, accuracy, audit). Exit code 1."""

    exit_code = 1


class WorkerLost(SlimdeployError):
    """A worker process was killed. Exit code 1."""

    exit_code = 1


# Import name -> the command that installs it. On a Jetson, TensorRT comes with JetPack, not with pip.
INSTALL_COMMANDS = {
    "anyio": "pip install 'slimdeploy[device]'",
    "cuda": "pip install 'slimdeploy[gpu]'",
    "h11": "pip install 'slimdeploy[device]'",
    "jsonschema": "pip install 'slimdeploy[device]'",
    "onnx": "pip install 'slimdeploy[host]'",
    "onnxruntime": "pip install 'slimdeploy[cpu]'",
    "optuna": "pip install 'slimdeploy[sweep]'",
    "PIL": "pip install 'slimdeploy[device]'",
    "prometheus_client": "pip install 'slimdeploy[device]'",
    "psycopg": "pip install 'slimdeploy[sweep]'",
    "pycuda": "pip install 'slimdeploy[cuda]'",
    "pynvml": "pip install 'slimdeploy[gpu]'",
    "pytest": "pip install 'slimdeploy[test]'",
    "resvg_py": "pip install 'slimdeploy[report]'",
    "safetensors": "pip install 'slimdeploy[host]'",
    "sklearn": "pip install 'slimdeploy[host]'",
    "sqlalchemy": "pip install 'slimdeploy[sweep]'",
    "starlette": "pip install 'slimdeploy[device]'",
    "tensorboard": "pip install 'slimdeploy[host]'",
    "tensorrt": "pip install 'slimdeploy[gpu]' (on a Jetson: sudo apt install python3-libnvinfer, and a "
    "virtual environment made with --system-site-packages)",
    "torch": "pip install 'slimdeploy[host]'",
    "torchvision": "pip install 'slimdeploy[host]'",
    "uvicorn": "pip install 'slimdeploy[device]'",
}

ONNXRUNTIME_ON_GPU = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
"""The build for GPUs with its CUDA libraries. It and the CPU build overwrite each other's files."""


def missing_library(error: ModuleNotFoundError) -> SlimdeployError | None:
    """The one-line error for an optional library that isn't installed; None for other modules."""
    name = (error.name or "").split(".")[0]
    if name not in INSTALL_COMMANDS:
        return None
    return SlimdeployError(f"this needs {name}, which is not installed: {INSTALL_COMMANDS[name]}")


def shorten(said: object, limit: int = 200) -> str:
    """`said` in one line of at most `limit` characters, without control characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(said)).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def lost_worker(error: Exception) -> SlimdeployError | None:
    """The one-line error if a process that reads images was killed; None for other errors."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return WorkerLost("a process that reads images was killed, perhaps by the system for lack of memory")
    return None


_LISTED = 16


def unknown(what: str, value: str, known: Iterable[str]) -> SlimdeployError:
    """The error for a name that isn't in a table: the known names (the first ones, if many) and the nearest
    one.
    """
    names = list(known)
    listed = names if len(names) <= _LISTED else [*names[: _LISTED - 4], f"… ({len(names)} in all)"]
    return SlimdeployError(f"unknown {what} {value!r}; known: {', '.join(listed)}.{nearest(value, names)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known word, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
