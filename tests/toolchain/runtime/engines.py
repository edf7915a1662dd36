"""Engines of a fake TensorRT."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.tests.toolchain.tensorrt_fake import FakeTensorrt
from slimdeploy.toolchain.export.engine import export_engine
from slimdeploy.toolchain.export.engine_options import EngineOptions

OPTIONS = EngineOptions(batch=(2, 3, 4))


def build(trt: FakeTensorrt, onnx: Path, folder: Path, options: EngineOptions = OPTIONS) -> Path:
    """The engine `m.engine` of an ONNX file, in `folder`."""
    return export_engine(trt, onnx, folder / "m.engine", options, device=trt._device).path
