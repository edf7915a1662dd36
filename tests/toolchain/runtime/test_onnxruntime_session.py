"""Sessions over onnxruntime. What needs a GPU is played by a stand-in for its InferenceSession."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from processes import process_environment

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.runtime import onnxruntime as runtime
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

GPU = SessionOptions(device="cuda")


def genuine(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_onnxruntime_sends_nothing_and_keeps_no_identifier(models: dict[str, Path], tmp_path: Path) -> None:
    """Its builds of 1.31 do both by default, in ~/.cache/Microsoft."""
    program = """if True:
        import sys
        from pathlib import Path
        from slimdeploy.toolchain.runtime.session import SessionOptions, open_session
        with open_session(Path(sys.argv[1]), "onnxruntime", SessionOptions(device="cpu")) as session:
            print(session.input_shape)
    """
    environment = process_environment() | {"HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", program, str(models["fp32"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(3, ")
    assert list(tmp_path.iterdir()) == []


class GpuOnnxruntime:
    """Stands in for a build with GPU providers: notes what it is asked for and runs it on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, gives: str | None = None) -> None:
        self.providers: list[tuple[str, dict[str, str]]] = []
        self.settings: Any = None
        self.fallback = True
        self._gives = gives
        available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
        self._session_class = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.open)
        from_numpy = onnxruntime.OrtValue.ortvalue_from_numpy
        monkeypatch.setattr(
            onnxruntime.OrtValue,
            "ortvalue_from_numpy",
            staticmethod(lambda array, device, index: from_numpy(array, "cpu", 0)),
        )

    def open(self, path: str, settings: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
        self.providers, self.settings = providers, settings
        session = self._session_class(path, providers=["CPUExecutionProvider"])
        session.get_providers = lambda: [self._gives or providers[0][0]]
        session.disable_fallback = lambda: setattr(self, "fallback", False)
        binding = session.io_binding

        def on_cpu() -> Any:
            made = binding()
            bind = made.bind_output
            made.bind_output = lambda name, device: bind(name, "cpu")
            return made

        session.io_binding = on_cpu
        return session


def test_cpu_session_computes_logits(models: dict[str, Path], small_batch: np.ndarray) -> None:
    with open_session(models["fp32"], options=SessionOptions(threads=1)) as session:
        logits = session.run(small_batch)
        assert (session.backend, session.precision) == ("onnxruntime-cpu", "fp32")
        assert logits.shape == (9, 4)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_process_limited_to_one_processor_has_one_thread(models: dict[str, Path]) -> None:
    program = """if True:
        import os, sys
        from pathlib import Path
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from slimdeploy.toolchain.latency.profile import profiling_session
        from slimdeploy.toolchain.runtime.session import open_session
        count = lambda: len(os.listdir("/proc/self/task"))
        before = count()
        with open_session(Path(sys.argv[1])):
            print(count() - before)
        before, session = count(), profiling_session(sys.argv[1], Path(sys.argv[2]))
        print(count() - before)
    """
    command = [sys.executable, "-c", program, str(models["fp32"]), str(models["fp32"].parent)]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]  # besides the caller's


def test_bound_run_computes_the_same_for_every_batch_size(
    models: dict[str, Path], small_batch: np.ndarray
) -> None:
    path = models["fp32"]
    with (
        open_session(path) as plain,
        runtime.OnnxSession(genuine(path), path, "bound", bound="cpu") as bound,
    ):
        for start, count in ((0, 4), (3, 2), (5, 4), (1, 2)):
            part = small_batch[start : start + count]
            np.testing.assert_allclose(bound.run(part), plain.run(part), rtol=1e-5, atol=1e-6)
        assert sorted(bound._bound) == [2, 4], "memory of two batch sizes, each made once"


def test_result_of_a_bound_run_survives_the_next(models: dict[str, Path], small_batch: np.ndarray) -> None:
    path = models["fp32"]
    with runtime.OnnxSession(genuine(path), path, "bound", bound="cpu") as session:
        first = session.run(small_batch[:2])
        kept = first.copy()
        session.run(small_batch[2:4])
        np.testing.assert_array_equal(first, kept)


def test_cuda_session_binds_and_forbids_the_cpu(
    models: dict[str, Path], small_batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = GpuOnnxruntime(monkeypatch)
    with open_session(models["fp32"], options=GPU) as session:
        assert session.backend == "onnxruntime-cuda"
        assert session.run(small_batch).shape == (9, 4)
    assert gpu.providers == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert gpu.settings.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert gpu.fallback is False


def test_tf32_is_passed_on_where_it_is_asked_for(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = GpuOnnxruntime(monkeypatch)
    open_session(models["fp32"], options=replace(GPU, tf32=True)).close()
    assert gpu.providers[0][1] == {"use_tf32": "1"}


@pytest.mark.parametrize(("kind", "half", "int8"), [("fp16", "True", "False"), ("int8", "False", "True")])
def test_tensorrt_provider_is_allowed_what_the_file_asks_for(
    kind: str, half: str, int8: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = GpuOnnxruntime(monkeypatch)
    with open_session(models[kind], "onnxruntime-tensorrt", GPU) as session:
        assert session.backend == "onnxruntime-tensorrt"
    assert [name for name, _ in gpu.providers] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert gpu.providers[0][1] == {"trt_fp16_enable": half, "trt_int8_enable": int8}


def test_silent_fallback_to_the_cpu_is_an_error(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    GpuOnnxruntime(monkeypatch, gives="CPUExecutionProvider")
    with pytest.raises(
        SlimdeployError, match=r"fp32.onnx: asked for CUDAExecutionProvider, got CPUExecutionProvider"
    ):
        open_session(models["fp32"], options=GPU)


def test_missing_provider_is_named(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SlimdeployError, match="onnxruntime has no CUDAExecutionProvider here: pip unin"):
        open_session(models["fp32"], options=GPU)


def test_closing_twice_is_safe(models: dict[str, Path], small_batch: np.ndarray) -> None:
    session = open_session(models["fp32"])
    session.close()
    session.close()
    with pytest.raises(SlimdeployError, match="the session is closed"):
        session.run(small_batch)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(SlimdeployError, match=r"m\.onnx is not an ONNX file, or is damaged \("):
        open_session(tmp_path / "m.onnx")


@pytest.mark.parametrize(("reduced", "exact"), [("True", False), ("False", True), (None, True)])
def test_int8_weights_that_can_overflow_run_on_exact_kernels(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduced: str | None, exact: bool
) -> None:
    model = onnx.load(models["int8"])
    if reduced:
        model.metadata_props.add(key="reduced_range", value=reduced)
    onnx.save(model, tmp_path / "int8.onnx")
    asked = []
    genuine_session = onnxruntime.InferenceSession

    def opened(path: str, settings: Any, providers: list) -> Any:
        asked.append(settings.get_session_config_entry("session.x64quantprecision") if exact else settings)
        return genuine_session(path, settings, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    open_session(tmp_path / "int8.onnx").close()
    if exact:
        assert asked == ["1"]
    else:
        with pytest.raises(RuntimeError):  # not set
            asked[0].get_session_config_entry("session.x64quantprecision")


def full_range_model(path: Path) -> Path:
    """A quantised 1×1 convolution of four channels whose weights are all 127, and its average."""
    largest = 4 * 255 * 127
    constants = {
        "one": np.float32(1), "zero": np.uint8(0), "step": np.float32(largest / 255),
        "weight": np.full((2, 4, 1, 1), 127, np.int8),
        "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.int8),
    }  # fmt: skip
    nodes = [
        onnx.helper.make_node(operator, inputs.split(), [output], name=output, **attributes)
        for operator, inputs, output, attributes in (
            ("QuantizeLinear", "images one zero", "image.q", {}),
            ("DequantizeLinear", "image.q one zero", "image.dq", {}),
            ("DequantizeLinear", "weight ones zeros", "weight.dq", {"axis": 0}),
            ("Conv", "image.dq weight.dq", "sum", {}),
            ("QuantizeLinear", "sum step zero", "sum.q", {}),
            ("DequantizeLinear", "sum.q step zero", "sum.dq", {}),
            ("GlobalAveragePool", "sum.dq", "mean", {}),
            ("Flatten", "mean", "logits", {}),
        )
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "full range",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 4, 2, 2])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_full_range_weights_are_computed_exactly(tmp_path: Path) -> None:
    """2 × 255 × 127 = 64,770 doesn't fit 16 bits: on CPUs without VNNI, plain onnxruntime saturates."""
    path = full_range_model(tmp_path / "model.onnx")
    batch, exact = np.full((1, 4, 2, 2), 255, np.float32), 4 * 255 * 127
    with open_session(path) as session:
        np.testing.assert_allclose(session.run(batch), exact, rtol=0.01)
    plain = genuine(path).run(None, {"images": batch})[0]
    assert (np.abs(plain - exact) > 0.4 * exact).all() == this_cpu().overflows
