"""The models of `gpu_check`: an original and a pruned network, as checkpoint, ONNX and engine.

The files are written by the commands that a user would call, each in its own process.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.process import launched
from slimdeploy.toolchain.measure.subjects import Subject, unique
from slimdeploy.toolchain.runtime.session import BACKENDS, SessionOptions, backend_for, open_session

ROLES = ("original", "pruned")
DEVICE = "cuda"
ENGINE_BATCHES = "1,64,256"
# Backend -> its measured precisions.
BACKENDS_MEASURED = {
    "torch": ("fp32", "fp16", "bf16"),
    "torch-compiled": ("fp32", "fp16", "bf16"),
    "torch-graph": ("fp32", "fp16", "bf16"),
    "onnxruntime": ("fp32", "fp16"),  # its CUDA provider has no INT8 convolutions
    "tensorrt": ("fp32", "fp16", "int8"),
    "tensorrt-no-graph": ("fp16",),
}


class LeftOut(Exception):
    """A part of the check that this machine can't run."""


@dataclass(frozen=True)
class Pair:
    """The checkpoints to measure; None: a ResNet-50 is trained on `data` and pruned, which takes a minute."""

    original: Path | None
    pruned: Path | None
    data: str
    data_dir: Path


@dataclass(frozen=True)
class Models:
    """The checkpoints, and the folder in which ONNX files and engines are created on demand."""

    checkpoints: dict[str, Path]
    pair: Pair
    folder: Path
    making: defaultdict[Path, Lock] = field(default_factory=lambda: defaultdict(Lock))
    """A lock for each file, and one of the folder for all engines."""

    def onnx(self, role: str, precision: str) -> Path:
        how: tuple[str, ...]
        path = self.folder / f"{role}-{precision}.onnx"
        with self.making[path]:
            if path.is_file():
                return path
            if precision == "int8":
                # At any loss of accuracy: only the speed is measured here.
                how = ("--method", "mse", "--compute", "fp16", "--max-drop", "100")
                slimdeploy("calibrate", self.onnx(role, "fp32"), *how, *_data(self.pair), "-o", path)
            else:
                how = () if precision == "fp32" else ("--precision", precision)
                slimdeploy("export", self.checkpoints[role], *how, *_data(self.pair), "-o", path)
            return path

    def engine(self, role: str, precision: str) -> Path:
        source, path = self.onnx(role, precision), self.folder / f"{role}-{precision}.engine"
        with self.making[self.folder]:  # one after the other: the builder times its kernels
            if not path.is_file():
                slimdeploy("export", source, "--trt", "--batch", ENGINE_BATCHES, "-o", path)
            return path


@dataclass(frozen=True)
class Contestant:
    """Original and pruned network on one backend in one precision."""

    backend: str
    precision: str
    models: Models

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    def subjects(self) -> list[Subject]:
        """Raises LeftOut or ModuleNotFoundError if the backend isn't installed or sees no GPU, and
        SlimdeployError if a file can't be made.
        """
        check_equipped(self.backend)
        options = SessionOptions(device=DEVICE, precision=self.precision)
        found = []
        for role in ROLES:
            path = self._file(role)
            opener = functools.partial(open_session, path, self.backend, options)
            module = BACKENDS[backend_for(path, self.backend)][0]
            # `asked` is the whole name, so that each pruned network is compared with its original.
            found.append(Subject(role, self.name, opener, path, (module,)))
        return found

    def openable(self) -> list[Subject]:
        """The subjects, each of which was opened once; raises as `subjects` does."""
        subjects = self.subjects()
        with launched(unique(subjects), 1, range(len(subjects))):
            return subjects

    def _file(self, role: str) -> Path:
        if self.backend.startswith("torch"):
            return self.models.checkpoints[role]
        if self.backend.startswith("onnxruntime"):
            return self.models.onnx(role, self.precision)
        return self.models.engine(role, self.precision)


def contests(models: Models, backends: Collection[str]) -> list[Contestant]:
    """Each of these backends in all of its precisions."""
    return [
        Contestant(backend, precision, models)
        for backend, precisions in BACKENDS_MEASURED.items()
        for precision in precisions
        if backend in backends
    ]


def prepare(pair: Pair, folder: Path) -> Models:
    """The checkpoints of `pair`, or new ones trained and pruned here. Raises SlimdeployError if that
    fails.
    """
    if pair.original and pair.pruned:
        return Models({"original": pair.original, "pruned": pair.pruned}, pair, folder)
    if pair.original or pair.pruned:
        raise SlimdeployError("--original and --pruned must be given together")
    original, cut, pruned = (folder / f"{name}.safetensors" for name in ("original", "cut", "pruned"))
    data = _data(pair)
    slimdeploy("train", *data, "--sparsity", "1e-3", "--epochs", "5", "--no-flip", "-o", original)
    slimdeploy("prune", original, "--ratio", "0.9", *data, "-o", cut)
    slimdeploy("finetune", cut, "--epochs", "3", "--no-flip", *data, "-o", pruned)
    return Models({"original": original, "pruned": pruned}, pair, folder)


def check_equipped(backend: str) -> None:
    """Raises LeftOut or ModuleNotFoundError if the backend can't run on a GPU here."""
    if backend.startswith("torch"):
        if not importlib.import_module("torch").cuda.is_available():
            raise LeftOut("torch sees no CUDA GPU: it is the CPU build, or the driver is too old for it")
    elif backend.startswith("onnxruntime"):
        if "CUDAExecutionProvider" not in importlib.import_module("onnxruntime").get_available_providers():
            raise LeftOut("onnxruntime has no CUDA provider: pip install 'slimdeploy[gpu]'")
    else:
        importlib.import_module("tensorrt")


def slimdeploy(*arguments: object) -> None:
    """Run a slimdeploy command; raises SlimdeployError with its last line if it fails."""
    command = [sys.executable, "-m", "slimdeploy.toolchain", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.strip()] or ["no message"]
        raise SlimdeployError(f"slimdeploy {arguments[0]}: {said[-1].removeprefix('slimdeploy: ')}")


def _data(pair: Pair) -> list[str]:
    size = ["--size", "32"] if pair.data == "digits" else []
    return ["--data", pair.data, "--data-dir", str(pair.data_dir), *size]
