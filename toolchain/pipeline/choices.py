"""Sections of a recipe that have no options class elsewhere; their keys are the commands' options."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.calibrate.qdq import FORMS
from slimdeploy.toolchain.artifacts import sha256_file
from slimdeploy.toolchain.checks import MAX_BATCH, MAX_SEED, MAX_THREADS, check_finite, check_range
from slimdeploy.toolchain.declared import option
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.measure.timing import TimingOptions
from slimdeploy.toolchain.networks.architectures import build_graph, is_imported
from slimdeploy.toolchain.networks.architectures.registry import DEFAULT
from slimdeploy.toolchain.report.write import FORMATS


@dataclass(frozen=True)
class NetworkChoice:
    """[network]: which network to train: a built-in architecture with its stem (None: its first), or an
    imported one (`torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`); fresh, or from a file of weights.
    """

    arch: str | None = None
    """None: the ResNet that the weights are of, or the reference."""
    stem: str | None = None
    arg: tuple[str, ...] = ()
    """`name=value` for what builds an imported network."""
    weights: str | None = option(None, "State dict, safetensors or checkpoint to start from.", path=True)

    def __post_init__(self) -> None:
        if self.arch is None or not is_imported(self.arch):
            build_graph(self.arch, stem=self.stem)
        elif self.stem is not None:
            raise SlimdeployError(f"stem is for built-in architectures; {self.arch} has its own first layers")

    def facts(self) -> dict[str, Any]:
        """What a training depends on: of the weights their content, not their place."""
        return {**asdict(self), "weights": sha256_file(self.weights) if self.weights else None}

    def __str__(self) -> str:
        if self.weights and self.arch is None:
            return Path(self.weights).name
        return f"{self.arch or DEFAULT}, stem {self.stem}"


@dataclass(frozen=True)
class BenchChoice:
    """[bench]: how to measure the ONNX files of a run against each other, on onnxruntime."""

    batch: tuple[int, ...] = (1, 64)
    seconds: float = TimingOptions.seconds
    ci: float = TimingOptions.ci
    launches: int = TimingOptions.launches
    seed: int = TimingOptions.seed
    limit: int | None = None
    """Test images that the accuracy is measured on; None: all."""
    threads: int | None = None
    """CPU threads of the measured sessions; None: those of the run."""

    def __post_init__(self) -> None:
        check_finite(self)
        if not self.batch or min(self.batch) < 1:
            raise SlimdeployError("batch must be a list of sizes from 1 on")
        check_range("batch", max(self.batch), 1, MAX_BATCH)
        check_range("seed", self.seed, 0, MAX_SEED)
        check_range("limit", self.limit, 1)
        check_range("threads", self.threads, 1, MAX_THREADS)
        if self.seconds <= 0 or self.ci <= 0:
            raise SlimdeployError("seconds and ci must be above 0")
        if self.launches < 2:
            raise SlimdeployError("launches must be at least 2")


@dataclass(frozen=True)
class CalibrateChoice(CalibrateOptions):
    """[calibrate]: how the final network becomes INT8, by default for where [bench] measures."""

    target: str = option("cpu", "Where it will run: cpu (onnxruntime), or tensorrt.", choices=FORMS)
    images: int = option(1000, "Training images to measure activations on.", least=1)
    selection_images: int = option(2000, "Held-out images to choose method and layers with.", least=1)
    parity_images: int | None = option(None, "Test images for the reported accuracy.", least=1, unset="all")


@dataclass(frozen=True)
class PackageChoice:
    """[package]: what the bundle holds beside the models, and the SSH key that signs it."""

    golden: int = 16
    evaluation: int = 200
    sign: str | None = option(None, "SSH key to sign with.", path=True)

    def __post_init__(self) -> None:
        check_range("golden", self.golden, 1, 1024)
        check_range("evaluation", self.evaluation, 0)


@dataclass(frozen=True)
class ReportChoice:
    """[report]: one HTML page (`html`), or Markdown with its charts beside it (`md`)."""

    format: str = "html"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
