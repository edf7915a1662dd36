"""Latency tables on TensorRT, on a fake of it whose layers' times are known."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import onnx
import pytest

from slimdeploy.benchmarks.lut_accuracy import NETWORKS, compare, scaled
from slimdeploy.tests.toolchain.tensorrt_fake import VERSIONS, FakeTensorrt
from slimdeploy.tests.toolchain.tensorrt_fake_run import REFORMAT_MS, layer_ms
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.audit import EngineLayer, read_layers
from slimdeploy.toolchain.latency import backend as lut_backend
from slimdeploy.toolchain.latency import networks as lut_networks
from slimdeploy.toolchain.latency import tensorrt as lut_tensorrt
from slimdeploy.toolchain.latency.backend import LutOptions, open_backend
from slimdeploy.toolchain.latency.measure import PASS, measure_table
from slimdeploy.toolchain.latency.profile import OTHER
from slimdeploy.toolchain.latency.table import load_table
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import convolutions
from slimdeploy.toolchain.pruning import latency
from slimdeploy.toolchain.runtime.device import Device
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

SMALL = scaled(build_graph("resnet18"), 0.125, 0.125, 8)
SMALL_50 = scaled(build_graph("resnet50"), 0.125, 0.125, 8)


def installed(version: str, patch: pytest.MonkeyPatch, cache: Path) -> FakeTensorrt:
    """A fake TensorRT of a version, and a device for each that asks for one."""
    fake = FakeTensorrt(version)

    def device() -> Device:
        fake._device.closed = False
        return fake._device

    patch.setitem(sys.modules, "tensorrt", fake)
    patch.setattr(lut_tensorrt, "open_device", device)
    patch.setattr("slimdeploy.toolchain.runtime.tensorrt.open_device", device)
    patch.setattr(lut_tensorrt, "WARM_UP_S", 0.0)
    patch.setattr(lut_backend, "RUNS_S", 0.0)
    patch.setenv("SLIMDEPLOY_CACHE", str(cache))
    return fake


@pytest.fixture(params=["10.13.3"])
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorrt:
    return installed(request.param, monkeypatch, tmp_path / "cache")


@pytest.mark.parametrize("trt", VERSIONS, indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_version_tells_each_convolution_s_time(trt: FakeTensorrt, precision: str) -> None:
    with open_backend(LutOptions(batch=2, backend="tensorrt", precision=precision)) as backend:
        assert backend.device["precision"] == precision
        assert backend.device["versions"]["tensorrt"] == trt.__version__
        sample = backend.profile(SMALL, 8)
    convs = convolutions(SMALL, 8)
    assert sample.convs_ms == {conv.name: pytest.approx(layer_ms([conv.weights])) for conv in convs}
    assert sample.rest_ms == pytest.approx(layer_ms([64 * 10]) + 2 * REFORMAT_MS), "classifier, reformats"
    assert sample.total_ms > 0
    assert trt._device.closed
    assert trt._device.buffers == []


def test_convolutions_that_one_layer_computes_share_its_time(trt: FakeTensorrt) -> None:
    """The first block's 1×1 convolutions read one tensor: TensorRT makes one layer of them."""
    with open_backend(LutOptions(backend="tensorrt")) as backend:
        found = backend.profile(SMALL_50, 8).convs_ms
    convs = {conv.name: conv for conv in convolutions(SMALL_50, 8)}
    pair = [convs["layer1.0.conv1"], convs["layer1.0.downsample.0"]]
    whole = layer_ms([conv.weights for conv in pair])
    for conv in pair:
        assert found[conv.name] == pytest.approx(whole * conv.macs / sum(one.macs for one in pair))
    assert found["layer2.0.conv1"] == pytest.approx(layer_ms([convs["layer2.0.conv1"].weights]))


def test_layers_become_convolutions_by_hand() -> None:
    convs = convolutions(SMALL_50, 8)[:4]
    a, b, c, d = (conv.name for conv in convs)
    layers = [
        EngineLayer("Reformatting CopyNode for Input Tensor 0 to x", "Reformat", None, (a,), reformat=True),
        EngineLayer("x", "CaskConvolution", "fp16", (a, "relu"), reformat=False),
        EngineLayer("pool", "CaskPooling", "fp16", ("maxpool",), reformat=False),
        EngineLayer("{ForeignNode[y]}", "Myelin", "fp16", (b, "add", c, d), reformat=False),
    ]
    profiled = {layers[0].name: 1.0, "x": 2.0, "pool": 3.0, "{ForeignNode[y]}": 4.0, "unknown": 5.0}
    found = lut_tensorrt.by_convolution(profiled, layers, convs)
    macs = sum(conv.macs for conv in convs[1:])
    assert found == {OTHER: 9.0, a: 2.0, **{one.name: 4 * one.macs / macs for one in convs[1:]}}


def test_layers_that_only_have_names_are_split_at_both_signs() -> None:
    (layer,) = read_layers(
        {"Layers": [{"Name": "Conv_1 + Relu_2 || Conv_5", "LayerType": "CaskConvolution"}]}
    )
    assert layer.nodes == ("Conv_1", "Relu_2", "Conv_5")


def test_precision_that_was_not_built_is_refused(trt: FakeTensorrt) -> None:
    trt._loses_int8 = True
    with (
        open_backend(LutOptions(backend="tensorrt", precision="int8")) as backend,
        pytest.raises(SlimdeployError, match="precision int8: 21 layers are not in the requested precision"),
    ):
        backend.profile(SMALL, 8)


def test_a_convolution_without_a_time_is_named(trt: FakeTensorrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lut_tensorrt, "read_layers", lambda document: [])
    with (
        open_backend(LutOptions(backend="tensorrt")) as backend,
        pytest.raises(SlimdeployError, match=r"TensorRT 10.13.3 doesn't report the time of conv1"),
    ):
        backend.profile(SMALL, 8)


def test_threads_are_refused(trt: FakeTensorrt) -> None:
    with pytest.raises(SlimdeployError, match="threads: cannot be used with backend tensorrt"):
        open_backend(LutOptions(backend="tensorrt", threads=2))


def small_networks(full: Graph, rng: random.Random) -> Graph:
    return scaled(full, rng.uniform(0.02, 0.1), rng.uniform(0.02, 0.1), 8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one pass. Not to be changed."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        installed("10.13.3", patch, folder / "cache")
        patch.setattr("slimdeploy.toolchain.latency.measure.random_network", small_networks)
        with open_backend(LutOptions(backend="tensorrt", precision="fp16")) as backend:
            measure_table(build_graph("resnet18"), 8, backend, folder / "table.json", seconds=0)
    return folder / "table.json"


@pytest.fixture
def table(measured: Path, trt: FakeTensorrt, tmp_path: Path) -> Path:
    """A copy of it, and the TensorRT that it was measured on."""
    return Path(shutil.copy(measured, tmp_path))


def test_the_table_is_the_same_document_and_is_gone_on_with(table: Path, trt: FakeTensorrt) -> None:
    document = results.read(table, "lut")
    jsonschema.validate(document, results.schema("lut"))
    assert document["device"]["gpu"] == "fake"
    assert len(document["samples"]) == PASS
    with open_backend(LutOptions(backend="tensorrt", precision="fp16")) as backend:
        again = measure_table(build_graph("resnet18"), 8, backend, table, seconds=0)
    assert again.networks == PASS, "no time, nothing measured"
    assert load_table(table).precision == "fp16"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LutOptions(backend="tensorrt", precision="fp32"), "precision fp16 (here fp32)"),
        (LutOptions(backend="tensorrt", precision="fp16", batch=8), "batch 1 (here 8)"),
        (LutOptions(threads=1), "backend tensorrt (here onnxruntime-cpu)"),
    ],
)
def test_a_table_of_something_else_is_refused(table: Path, options: LutOptions, said: str) -> None:
    with open_backend(options) as backend, pytest.raises(SlimdeployError) as error:
        measure_table(build_graph("resnet18"), 8, backend, table, seconds=0)
    assert said in str(error.value)


def run_here(models: Sequence[Path], backend: str, *, batch: int, **options: object) -> list[float]:
    """`time_whole` without processes of their own, which wouldn't know the fake: an engine's layers on it."""
    assert options == {"threads": None, "device": "cuda", "seconds": pytest.approx(3.0, abs=3)}
    found = []
    for model in models:
        with open_session(model, backend, SessionOptions(device="cuda")) as session:
            found.append(sum(session.layer_ms(batch).values()))  # type: ignore[attr-defined]
    return found


def test_pruning_measures_on_tensorrt(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lut_tensorrt, "time_whole", run_here)
    budgets: list[float] = []

    def plan(budget: float) -> Graph:
        budgets.append(budget)
        return scaled(build_graph("resnet18"), min(1.0, budget / 2), 1.0, 8)

    found = latency.budget_for_latency(plan, 1.5, table, 8)
    assert found.not_measured is None
    assert found.measured_ms is not None
    assert 1.425 <= found.measured_ms <= 1.5
    assert found.budget_ms == budgets[-1]


def test_predictions_are_compared_with_measurements(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lut_tensorrt, "time_whole", run_here)
    rows = compare(table, NETWORKS, seconds=0.1)
    assert len(rows) == 10
    assert all(row["measured_ms"] > 0 for row in rows)


@pytest.mark.parametrize("change", [{"gpu": "H100"}, {"compute_capability": "9.0"}])
def test_another_gpu_s_table_predicts_only(
    table: Path, change: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(table.read_text())
    document["device"] |= change
    table.write_text(json.dumps(document))
    found = latency.budget_for_latency(lambda _: SMALL, 1.0, table, 8)
    (value,) = change.values()
    assert found.measured_ms is None
    assert found.not_measured is not None
    assert found.not_measured.startswith(f"the latency table is of {value} (here ")
    assert "predicted only" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("precision", "opset", "types"),
    [
        ("fp32", 17, {1}),
        ("fp16", 17, {1, 10}),
        ("int8", 19, {1, 3, 10}),
        ("int8", 17, {1, 3}),
    ],
)
def test_networks_of_noise_are_in_their_precision(precision: str, opset: int, types: set[int]) -> None:
    model = onnx.load_from_string(lut_networks.build_noise(SMALL, 8, precision, opset=opset))
    onnx.checker.check_model(model, full_check=True)
    held = {tensor.data_type for tensor in model.graph.initializer}
    assert held | {value.type.tensor_type.elem_type for value in model.graph.input} == types


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nvidia_s_own_builder_takes_networks_of_noise(
    precision: str, tmp_path: Path, tensorrt_cpu: object
) -> None:
    from slimdeploy.toolchain.export.engine_options import EngineOptions
    from slimdeploy.toolchain.export.tensorrt import build_plan

    path = tmp_path / "noise.onnx"
    path.write_bytes(lut_networks.build_noise(SMALL_50, 32, precision, opset=19))
    assert build_plan(tensorrt_cpu, path, EngineOptions()).content  # type: ignore[arg-type]


def test_another_backend_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[LutOptions] = []
    monkeypatch.setitem(lut_backend.BACKENDS, "made-up", opened.append)
    open_backend(LutOptions(backend="made-up"))
    assert opened == [LutOptions(backend="made-up")]
