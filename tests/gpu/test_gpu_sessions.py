"""Every session against torch on the CPU, where there is an NVIDIA GPU and the library that it needs."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.engine import export_engine
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.measure import gpu
from slimdeploy.toolchain.runtime.device import Device, open_device
from slimdeploy.toolchain.runtime.engine_record import read_engine_record
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

pytestmark = pytest.mark.gpu

GPU = SessionOptions(device="cuda")
# Largest difference of a logit, relative to the largest logit: the rounding of each precision.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1}


def assert_close(logits: np.ndarray, expected: np.ndarray, precision: str) -> None:
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < TOLERANCES[precision], f"off by {error:.2g} of the largest logit"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def expected(small_checkpoint: Path, small_batch: np.ndarray) -> np.ndarray:
    with open_session(small_checkpoint, options=SessionOptions(device="cpu")) as session:
        return session.run(small_batch)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    try:
        opened = open_device()
    except SlimdeployError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def torch_cuda() -> None:
    if not importlib.import_module("torch").cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")


@pytest.fixture(scope="module")
def tensorrt(device: Device) -> ModuleType:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        pytest.skip(f"no TensorRT: {error}")


@pytest.mark.usefixtures("torch_cuda")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", ["torch", "torch-channels-last", "torch-compiled", "torch-graph"])
def test_torch_sessions(
    backend: str, precision: str, small_checkpoint: Path, small_batch: np.ndarray, expected: np.ndarray
) -> None:
    with open_session(small_checkpoint, backend, replace(GPU, precision=precision)) as session:
        for count in (9, 3, 9):  # a graph for each size, and back to the first
            assert_close(session.run(small_batch[:count]), expected[:count], precision)
        assert {"gpu_ms", "enqueue_ms"} <= set(gpu.available(session))
        assert gpu.device_memory(session)["peak"] > 0


@pytest.fixture
def onnxruntime_cuda() -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDA provider")


@pytest.mark.usefixtures("onnxruntime_cuda")
def test_onnxruntime_on_cuda_refuses_int8(models: dict[str, Path]) -> None:
    """Its CUDA provider would run the convolutions on the CPU."""
    with pytest.raises(SlimdeployError, match="CUDAExecutionProvider has no kernel for some"):
        open_session(models["int8"], options=GPU)


@pytest.mark.usefixtures("onnxruntime_cuda")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_cuda(
    precision: str, models: dict[str, Path], small_batch: np.ndarray, expected: np.ndarray
) -> None:
    with open_session(models[precision], options=GPU) as session:
        for count in (9, 3, 9):
            assert_close(session.run(small_batch[:count]), expected[:count], precision)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_builds_audits_and_runs(
    precision: str, graphs: bool, tensorrt: ModuleType, device: Device, models: dict[str, Path],
    small_batch: np.ndarray, expected: np.ndarray, tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "m.engine"
    engine = export_engine(tensorrt, models[precision], path, EngineOptions(batch=(1, 3, 4)), device=device)
    assert engine.audit.failed is None
    manifest = read_engine_record(path)
    assert manifest is not None
    assert manifest.machine.gpu == device.name
    with open_session(path, "tensorrt" if graphs else "tensorrt-no-graph") as session:
        assert_close(session.run(small_batch), expected, precision)
        assert_close(session.run(small_batch[:1]), expected[:1], precision)
        assert gpu.available(session) == gpu.RUN_FIGURES
        started = time.perf_counter()
        session.run(small_batch[:4])
        host = (time.perf_counter() - started) * 1000
        told = {name: getattr(session, name) for name in gpu.RUN_FIGURES}
        assert min(told.values()) > 0
        assert told["copy_in_ms"] + told["gpu_ms"] + told["copy_out_ms"] < host
        assert told["enqueue_ms"] < host
        session.close()
        session.close()


def test_second_build_takes_its_times_from_the_cache(
    tensorrt: ModuleType, device: Device, models: dict[str, Path], tmp_path: Path
) -> None:
    build = [
        export_engine(tensorrt, models["fp16"], tmp_path / "m.engine", EngineOptions(), device=device)
        for _ in range(2)
    ]
    caches = list((tmp_path / "cache").rglob("*.cache"))
    assert len(caches) == 1
    assert build[0].audit == build[1].audit


def test_layer_times_add_up_to_about_the_whole(
    tensorrt: ModuleType, device: Device, models: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "m.engine"
    export_engine(tensorrt, models["fp32"], path, EngineOptions(batch=(1, 4, 4)), device=device)
    with open_session(path) as session:
        layers = session.layer_ms(4)  # type: ignore[attr-defined]
        assert len(layers) > 10
        assert 0 < sum(layers.values()) < 100
