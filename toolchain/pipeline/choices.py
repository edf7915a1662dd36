"""Sections of a recipe without an options class elsewhere; their keys are those of the commands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.calibrate.qdq import FORMS
from slimdeploy.toolchain.artifacts import sha256_file
from slimdeploy.toolchain.declared import option
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.networks.architectures import build_graph, is_imported, source_file
from slimdeploy.toolchain.networks.architectures.registry import DEFAULT
from slimdeploy.toolchain.report.write import FORMATS


@dataclass(frozen=True)
class NetworkChoice:
    """[network]: the network to train: a built-in architecture with its stem (None: the default), or an
    imported one (`torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`); with random weights, or weights from a
    file.
    """

    arch: str | None = option(None, "Architecture.", unset="that of the weights, or the reference's")
    stem: str | None = option(None, "First layers of a ResNet.")
    arg: tuple[str, ...] = option((), "`name=value` for the function that builds an imported network.")
    weights: str | None = option(None, "State dict, safetensors or checkpoint to start from.", path=True)

    def __post_init__(self) -> None:
        if self.arch is None or not is_imported(self.arch):
            build_graph(self.arch, stem=self.stem)
        elif self.stem is not None:
            raise SlimdeployError(f"stem is for built-in architectures; {self.arch} has its own first layers")

    def facts(self) -> dict[str, Any]:
        """The choices that training depends on: the content of files, not their path alone."""
        weights = sha256_file(self.weights) if self.weights else None
        source = source_file(self.arch) if self.arch else None
        return {**asdict(self), "weights": weights, **({"source": sha256_file(source)} if source else {})}

    def __str__(self) -> str:
        if self.weights and self.arch is None:
            return Path(self.weights).name
        if self.arch is not None and is_imported(self.arch):
            return self.arch
        origin = build_graph(self.arch, stem=self.stem).origin
        return f"{self.arch or DEFAULT}, stem {origin['stem']}" if "stem" in origin else str(self.arch)


@dataclass(frozen=True)
class CalibrateChoice(CalibrateOptions):
    """[calibrate]: how the final network is quantised to INT8, by default for the runtime of [bench]."""

    target: str = option("cpu", "Where it will run: cpu (onnxruntime), or tensorrt.", choices=FORMS)
    images: int = option(1000, "Training images to measure activations on.", least=1)
    selection_images: int = option(2000, "Other training images to choose method and layers with.", least=1)
    parity_images: int | None = option(None, "Test images for the reported accuracy.", least=1, unset="all")


@dataclass(frozen=True)
class ReportChoice:
    """[report]: one HTML page (`html`), or Markdown with its charts beside it (`md`)."""

    format: str = "html"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
