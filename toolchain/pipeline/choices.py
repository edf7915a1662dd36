"""Sections of a recipe that have no options class elsewhere; their keys are the commands' options."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.toolchain.checks import MAX_BATCH, check_finite, check_range
from slimdeploy.toolchain.declared import option
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.measure.timing import TimingOptions
from slimdeploy.toolchain.networks.architectures import build_graph, is_imported
from slimdeploy.toolchain.report.write import FORMATS


@dataclass(frozen=True)
class NetworkChoice:
    """[network]: which network to train: a built-in architecture with its stem (None: its first), or an
    imported one (`torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`).
    """

    arch: str = "resnet50"
    stem: str | None = None
    arguments: tuple[str, ...] = ()
    """`name=value` for what builds an imported network."""

    def __post_init__(self) -> None:
        if not is_imported(self.arch):
            build_graph(self.arch, stem=self.stem)
        elif self.stem is not None:
            raise SlimdeployError(f"stem is for built-in architectures; {self.arch} has its own first layers")


@dataclass(frozen=True)
class BenchChoice:
    """[bench]: how to measure the ONNX files of a run against each other, on onnxruntime."""

    batches: tuple[int, ...] = (1, 64)
    seconds: float = TimingOptions.seconds
    ci: float = TimingOptions.ci
    launches: int = TimingOptions.launches

    def __post_init__(self) -> None:
        check_finite(self)
        if not self.batches or min(self.batches) < 1:
            raise SlimdeployError("batches must be a list of sizes from 1 on")
        check_range("batches", max(self.batches), 1, MAX_BATCH)
        if self.seconds <= 0 or self.ci <= 0:
            raise SlimdeployError("seconds and ci must be above 0")
        if self.launches < 2:
            raise SlimdeployError("launches must be at least 2")


@dataclass(frozen=True)
class CalibrateChoice:
    """[calibrate]: how the final network becomes INT8, by default for where [bench] measures."""

    target: str = "cpu"
    method: str = CalibrateOptions.method
    compute: str = CalibrateOptions.compute
    max_drop: float = CalibrateOptions.max_drop
    sensitivity: bool = CalibrateOptions.sensitivity
    keep: tuple[str, ...] = ()
    images: int = 1000
    selection_images: int = 2000
    parity_images: int | None = None

    def __post_init__(self) -> None:
        check_finite(self)
        check_range("max_drop", self.max_drop, 0)
        for name in ("images", "selection_images", "parity_images"):
            check_range(name, getattr(self, name), 1)
        self.options(threads=None)

    def options(self, *, threads: int | None) -> CalibrateOptions:
        return CalibrateOptions(
            method=self.method,
            target=self.target,
            compute=self.compute,
            max_drop=self.max_drop,
            sensitivity=self.sensitivity,
            float_layers=self.keep,
            threads=threads,
        )


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
