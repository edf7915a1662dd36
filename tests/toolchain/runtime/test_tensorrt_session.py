"""Engines built, saved, loaded and run on a fake of every TensorRT version, with real numbers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from slimdeploy.tests.toolchain.runtime.engines import build
from slimdeploy.tests.toolchain.tensorrt_fake import VERSIONS, FakeTensorrt
from slimdeploy.tests.toolchain.tensorrt_fake_run import REFORMAT, REFORMAT_MS, layer_ms
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.measure import gpu
from slimdeploy.toolchain.runtime import tensorrt as runtime
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session


def reference(onnx: Path, batch: np.ndarray) -> np.ndarray:
    with open_session(onnx) as session:
        return session.run(batch)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("graphs", [True, False])
def test_every_version_computes_what_the_onnx_file_does(
    version: str, kind: str, graphs: bool, models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path
) -> None:
    trt = FakeTensorrt(version)
    path = build(trt, models[kind], tmp_path)
    with runtime.load(trt, path, trt._device, graphs=graphs) as session:
        # Nine images are more than the profile takes at once, and leave one, fewer than it takes at least.
        logits = session.run(small_batch)
        assert session.precision == kind
        assert session.input_shape == (3, 16, 16)
        assert session.info is not None
        assert session.info.class_names[0] == "cat"
    np.testing.assert_allclose(logits, reference(models[kind], small_batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_second_run_allocates_nothing_and_queues_the_least(
    graphs: bool, models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path
) -> None:
    trt = FakeTensorrt("10.13.3")
    device = trt._device
    with runtime.load(trt, build(trt, models["fp32"], tmp_path), device, graphs=graphs) as session:
        first = session.run(small_batch[:4])
        allocations, queued = device.allocations, device.queued
        np.testing.assert_array_equal(session.run(small_batch[:4]), first)
        assert device.allocations == allocations
        assert device.queued - queued == 7, "copy in, the network, copy out and the events around them"


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("slow", ["copy_in_ms", "gpu_ms", "copy_out_ms", "enqueue_ms"])
def test_each_time_is_that_of_its_own_step(
    slow: str, graphs: bool, models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One step is made to take 200 ms: that one's figure says so, and no other. The fake works as it is told
    to, so launching the network takes as long as the network.
    """
    trt = FakeTensorrt("10.13.3")
    device = trt._device
    with runtime.load(trt, build(trt, models["fp32"], tmp_path), device, graphs=graphs) as session:
        session.run(small_batch[:4])  # captures
        with monkeypatch.context() as patch:
            owner, name = {
                "copy_in_ms": (device, "upload"),
                "copy_out_ms": (device, "download"),
                "gpu_ms": (session, "_execute"),
                "enqueue_ms": (session, "_execute"),
            }[slow]
            if graphs and name == "_execute":
                owner, name = session._graphs[4][1], "launch"
            done = getattr(owner, name)
            patch.setattr(owner, name, lambda *args: (time.sleep(0.2), done(*args)))
            session.run(small_batch[:4])
            told = {figure: getattr(session, figure) for figure in gpu.RUN_FIGURES}
    together = {"gpu_ms", "enqueue_ms"}
    for figure, milliseconds in told.items():
        assert (milliseconds >= 200) == (figure == slow or {figure, slow} == together), told


def test_layer_times_are_medians_over_the_runs(models: dict[str, Path], tmp_path: Path) -> None:
    trt = FakeTensorrt("10.13.3")
    with runtime.load(trt, build(trt, models["fp32"], tmp_path), trt._device, graphs=True) as session:
        found = session.layer_ms(3, runs=4)
    assert found["conv1"] == pytest.approx(layer_ms([8 * 3 * 9]))
    assert found[REFORMAT] == 2 * REFORMAT_MS, "a layer that runs twice"


def test_graph_is_captured_once_a_batch_size(
    models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorrt("11.4.0")
    captured = []
    capture = trt._device.capture
    monkeypatch.setattr(trt._device, "capture", lambda *args: captured.append(1) or capture(*args))
    expected = reference(models["fp32"], small_batch)
    with runtime.load(trt, build(trt, models["fp32"], tmp_path), trt._device, graphs=True) as session:
        for start, count in ((0, 2), (2, 4), (5, 2), (1, 4), (0, 3)):
            logits = session.run(small_batch[start : start + count])
            np.testing.assert_allclose(logits, expected[start : start + count], rtol=1e-4, atol=1e-4)
    assert len(captured) == 3


def test_closing_twice_is_safe_and_frees_all_memory(
    models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path
) -> None:
    trt = FakeTensorrt("10.3.0")
    session = runtime.load(trt, build(trt, models["fp32"], tmp_path), trt._device, graphs=True)
    assert gpu.available(session) == ()
    session.run(small_batch)
    assert gpu.available(session) == gpu.RUN_FIGURES
    assert gpu.device_memory(session) == {
        "plan": (tmp_path / "m.engine").stat().st_size / 2**20,
        "workspace": 4096 / 2**20,
        "io": 4 * (3 * 16 * 16 + 4) * 4 / 2**20,
    }
    session.close()
    session.close()
    assert trt._device.buffers == []
    assert trt._device.closed
    with pytest.raises(SlimdeployError, match="the session is closed"):
        session.run(small_batch)


def test_fixed_batch_is_split_and_padded(
    models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path
) -> None:
    trt = FakeTensorrt("10.3.0")
    path = build(trt, models["batch2"], tmp_path, EngineOptions(batch=(2, 2, 2)))
    with runtime.load(trt, path, trt._device, graphs=True) as session:
        np.testing.assert_allclose(
            session.run(small_batch), reference(models["fp32"], small_batch), rtol=1e-4, atol=1e-4
        )


def test_wrong_image_size_is_refused(
    models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path
) -> None:
    trt = FakeTensorrt("10.3.0")
    with (
        runtime.load(trt, build(trt, models["fp32"], tmp_path), trt._device, graphs=True) as session,
        pytest.raises(SlimdeployError, match=r"expects images of \(3, 16, 16\), not \(3, 8, 8\)"),
    ):
        session.run(small_batch[:, :, :8, :8])


def test_a_driver_that_is_too_old_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    trt = FakeTensorrt("10.3.0")
    path = build(trt, models["fp32"], tmp_path)
    trt._cuda_fails = True
    with pytest.raises(SlimdeployError, match=r"^TensorRT can't start .*error: 35\): .* slimdeploy doctor$"):
        runtime.load(trt, path, trt._device, graphs=True)


def test_engine_opens_by_its_ending(
    models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorrt("10.3.0")
    path = build(trt, models["fp32"], tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for backend, name in (("auto", "tensorrt"), ("tensorrt-no-graph", "tensorrt-no-graph")):
        trt._device = FakeDevice()
        monkeypatch.setattr(runtime, "open_device", lambda: trt._device)
        with open_session(path, backend) as session:
            assert session.backend == name
            assert session.run(small_batch).shape == (9, 4)
    with pytest.raises(SlimdeployError, match="runs on an NVIDIA GPU, not on the CPU"):
        open_session(path, options=SessionOptions(device="cpu"))


def test_device_is_closed_where_loading_fails(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(FakeTensorrt("10.3.0"), models["fp32"], tmp_path)
    device = FakeDevice()
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorrt("10.7.0"))
    monkeypatch.setattr(runtime, "open_device", lambda: device)
    with pytest.raises(SlimdeployError, match="was built for"):
        open_session(path)
    assert device.closed
