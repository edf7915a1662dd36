"""Sections of a recipe that have no options class elsewhere; their keys are the commands' options."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.calibrate.qdq import FORMS
from slimdeploy.toolchain.artifacts import sha256_file
from slimdeploy.toolchain.declared import option
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.networks.architectures import build_graph, is_imported
from slimdeploy.toolchain.networks.architectures.registry import DEFAULT
from slimdeploy.toolchain.report.write import FORMATS


@dataclass(frozen=True)
class NetworkChoice:
    """[network]: which network to train: a built-in architecture with its stem (None: its first), or an
    imported one (`torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`); fresh, or from a file of weights.
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
        """What a training depends on: of the weights their content, not their place."""
        return {**asdict(self), "weights": sha256_file(self.weights) if self.weights else None}

    def __str__(self) -> str:
        if self.weights and self.arch is None:
            return Path(self.weights).name
        return f"{self.arch or DEFAULT}, stem {self.stem}"


@dataclass(frozen=True)
class CalibrateChoice(CalibrateOptions):
    """[calibrate]: how the final network becomes INT8, by default for where [bench] measures."""

    target: str = option("cpu", "Where it will run: cpu (onnxruntime), or tensorrt.", choices=FORMS)
    images: int = option(1000, "Training images to measure activations on.", least=1)
    selection_images: int = option(2000, "Held-out images to choose method and layers with.", least=1)
    parity_images: int | None = option(None, "Test images for the reported accuracy.", least=1, unset="all")


@dataclass(frozen=True)
class ReportChoice:
    """[report]: one HTML page (`html`), or Markdown with its charts beside it (`md`)."""

    format: str = "html"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
