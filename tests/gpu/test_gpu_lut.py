"""Latency tables on TensorRT, where there is an NVIDIA GPU and TensorRT."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from slimdeploy.benchmarks.lut_accuracy import scaled
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency.backend import LutBackend, LutOptions, open_backend
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.layers import convolutions

pytestmark = pytest.mark.gpu

NARROW, WIDE = (scaled(build_graph("resnet50"), share, 1.0, 32) for share in (0.125, 0.5))


@pytest.fixture(params=["fp32", "fp16", "int8"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LutBackend:
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path / "cache"))
    try:
        importlib.import_module("tensorrt")
        return open_backend(LutOptions(batch=64, backend="tensorrt", precision=request.param))
    except (ImportError, SlimdeployError) as error:
        pytest.skip(str(error))


def test_every_convolution_has_a_time_and_wider_ones_take_longer(backend: LutBackend) -> None:
    with backend:
        narrow, wide = backend.profile(NARROW, 32), backend.profile(WIDE, 32)
        (whole,) = backend.whole_ms([WIDE], 32, seconds=1.0)
    for spec, sample in ((NARROW, narrow), (WIDE, wide)):
        assert list(sample.convs_ms) == [conv.name for conv in convolutions(spec, 32)]
        assert min(sample.convs_ms.values()) > 0
        assert sum(sample.convs_ms.values()) > 0.3 * sample.total_ms, "most of a run is convolutions"
    assert sum(narrow.convs_ms.values()) < sum(wide.convs_ms.values())
    assert whole == pytest.approx(wide.total_ms, rel=0.5)
