"""`slimdeploy lut` on real, tiny networks."""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from families import FAMILIES, family
from families import SIZE as FAMILY_SIZE
from tiny import PREPROCESSING, random_network

pytest.importorskip("onnxruntime", reason="latency tables are measured on onnxruntime")

from slimdeploy.benchmarks import lut_accuracy
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency import backend as lut_backend
from slimdeploy.toolchain.latency import fit as lut_fit
from slimdeploy.toolchain.latency import measure as lut_measure
from slimdeploy.toolchain.latency import networks as lut_networks
from slimdeploy.toolchain.latency import onnxruntime as lut_onnxruntime
from slimdeploy.toolchain.latency.backend import LutOptions, open_for_table
from slimdeploy.toolchain.latency.networks import build_noise
from slimdeploy.toolchain.latency.onnxruntime import open_backend
from slimdeploy.toolchain.latency.table import load_table
from slimdeploy.toolchain.measure import options
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cutting import at_widths, widths_of
from slimdeploy.toolchain.networks.layers import convolutions, priced_layers
from slimdeploy.toolchain.runtime.onnx_file import read_onnx

SMALL, SIZE = lut_accuracy.scaled(build_graph("resnet18"), 0.25, 0.25, 8), 32


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Times of few runs in few processes: they needn't be exact."""
    quick = {"warm_up_floor_s": 0.0, "warm_up_limit_s": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lut_backend, "RUNS_S", 0.01)
        patch.setattr(lut_backend, "LAUNCHES", 2)
        patch.setattr(lut_backend, "INTERVAL", 0.99)
        patch.setattr(options, "TimingOptions", functools.partial(options.TimingOptions, **quick))
        patch.setattr(lut_accuracy, "ANCHORS", 1)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network."""
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    names = tuple(f"class {i}" for i in range(SMALL.classes))
    save_checkpoint(path, random_network(SMALL), ModelInfo(SMALL, replace(PREPROCESSING, size=SIZE), names))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pass over that network."""
    path = tmp_path_factory.mktemp("lut") / "table.json"
    with open_backend(LutOptions(threads=1)) as backend:
        lut_measure.measure_table(SMALL, SIZE, backend, path, seconds=0)
    return path


@pytest.mark.parametrize(("widths", "precision"), [(8, "fp32"), (16, "fp32"), (20, "fp32"), (8, "int8")])
def test_every_convolution_has_a_time(widths, precision):
    spec = lut_accuracy.scaled(build_graph("resnet50"), widths / 512, widths / 512, widths)
    with open_backend(LutOptions(threads=1, precision=precision)) as backend:
        assert backend.device.get("precision", "fp32") == precision
        sample = backend.profile(spec, 8)
    assert list(sample.convs_ms) == [conv.name for conv in convolutions(spec, 8)]
    assert min(sample.convs_ms.values()) > 0
    assert sample.rest_ms > 0
    assert sample.total_ms > 0


def test_layers_faster_than_the_profiler_counts_are_no_missing_ones():
    """A relative error of a time of 0 is infinite."""
    convs = convolutions(SMALL, SIZE)
    found = lut_backend.sample(SMALL, convs, {conv.name: 0.0 for conv in convs}, 0.02, "onnxruntime 1.0")
    assert min(found.convs_ms.values()) == found.rest_ms == lut_backend.LEAST_MS
    with pytest.raises(SlimdeployError, match=r"onnxruntime 1\.0 doesn't report the time of conv1: "):
        lut_backend.sample(SMALL, convs, {}, 0.02, "onnxruntime 1.0")


def test_an_int8_network_of_noise_has_the_form_of_calibrated_files(tmp_path):
    """The batch is folded, and no slow exact kernels are asked for on CPUs without VNNI."""
    path = tmp_path / "noise.onnx"
    graph = lut_accuracy.scaled(build_graph("resnet50"), 8 / 512, 8 / 512, 8)
    path.write_bytes(build_noise(graph, 32, "int8", target="cpu"))
    assert not read_onnx(path).can_overflow
    nodes = onnx.load(path).graph.node
    assert any(node.op_type == "Reshape" for node in nodes)
    stem = next(node for node in nodes if node.op_type == "Conv")
    constants = {one.name: one.dims for one in onnx.load(path).graph.initializer}
    weights = next(node for node in nodes if node.output[0] == stem.input[1]).input[0]
    assert constants[weights][1] == 4


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_every_family_are_measured(name, precision):
    graph = family(name).graph
    with open_backend(LutOptions(threads=1, precision=precision)) as backend:
        sample = backend.profile(graph, FAMILY_SIZE)
    assert list(sample.convs_ms) == [layer.name for layer in priced_layers(graph, FAMILY_SIZE)]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_widths_in_a_table_make_its_networks_again(name):
    """Also where a layer has channels of several groups: shortcuts without weights, ShuffleNets."""
    full = family(name).graph
    groups = channel_groups(full, residual="couple")
    for seed in range(4):
        narrow = lut_networks.random_network(full, random.Random(seed))
        widths = widths_of(narrow, full, groups)
        assert at_widths(full, groups, {g.name: n for g, n in zip(groups, widths, strict=True)}) == narrow


@pytest.mark.parametrize("name", ["convnext", "custom", "senet"])
def test_noise_keeps_activations_near_1(name):
    """The factors and filters of a network are made up, too: a division by almost 0 would give infinities."""
    import onnxruntime

    session = onnxruntime.InferenceSession(build_noise(family(name).graph, FAMILY_SIZE))
    images = np.random.default_rng(0).random((2, 3, FAMILY_SIZE, FAMILY_SIZE), dtype=np.float32)
    (logits,) = session.run(None, {"images": images})
    assert 1e-3 < np.abs(logits).max() < 1e3


def test_the_default_number_of_threads_is_the_one_that_the_table_names(monkeypatch):
    """onnxruntime's own default leaves out hyper-threads, and the limits of a container."""
    asked = []
    monkeypatch.setattr(
        lut_onnxruntime, "profiling_session", lambda *_, threads: asked.append(threads) or 1 / 0
    )
    with open_backend(LutOptions()) as backend, pytest.raises(ZeroDivisionError):
        backend.profile(SMALL, 8)
    assert asked == [backend.device["threads"]]


def test_the_command_measures_a_table_and_goes_on_from_it(tmp_path, checkpoint, slimdeploy_command):
    path = tmp_path / "table.json"
    command = ("lut", checkpoint, "--threads", 1, "--seconds", 0, "-o", path)
    done = slimdeploy_command(*command, "--json")
    assert done.exit_code == 0, done.err
    told = done.json
    assert told["table"] == str(path)
    assert told["networks"] == lut_fit.PASS
    assert told["shapes"] == len(load_table(path).shapes)
    assert told["stable"] is False
    assert told["error"] == {"median": None, "worst": None}
    assert load_table(path).network_ms(SMALL, SIZE) > 0
    before = path.read_text()
    done = slimdeploy_command(*command)
    assert done.exit_code == 0, done.err
    assert "not yet: run the command again" in done.out
    assert ", 1 thread " in done.out
    assert path.read_text() == before  # no time, no change


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "tensorrt"], "this needs tensorrt, which is not installed: pip install"),
        (["--backend", "openvino"], "unknown backend 'openvino'; known: onnxruntime, tensorrt"),
        (["--precision", "fp16"], "--precision fp16: onnxruntime supports fp32 and int8 on a CPU; "),
        (["--precision", "bf16"], "'bf16' is not one of 'fp32', 'fp16', 'int8'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    tmp_path, monkeypatch, slimdeploy_command, options, said
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = slimdeploy_command("lut", *options, "-o", tmp_path / "t.json")
    assert done.exit_code == 2
    assert said in done.error
    assert not list(tmp_path.iterdir())


def test_an_int8_table_is_measured_and_prunes_by_int8_networks(tmp_path, checkpoint, slimdeploy_command):
    path, output = tmp_path / "int8.json", tmp_path / "pruned"
    own = (checkpoint, "--threads", 1, "--seconds", 0)
    done = slimdeploy_command("lut", *own, "--precision", "int8", "-o", path, "--json")
    assert done.exit_code == 0, done.err
    table = load_table(path)
    assert table.precision == done.json["device"]["precision"] == "int8"

    def prune(target):
        return slimdeploy_command("prune", checkpoint, "--latency-ms", target, "--latency-table", path,
                                  "--residual", "couple", "--no-measure", "-o", output, "--json")  # fmt: skip

    # The times of a moment decide how small a network may be, so a fixed share could be out of reach.
    done = prune(1e-4)
    assert done.exit_code == 2
    smallest = float(re.search(r"out of reach: the smallest .* has ([\d.]+) ms", done.error).group(1))
    target = (smallest + table.network_ms(SMALL, SIZE)) / 2
    done = prune(target)
    assert done.exit_code == 0, done.err
    pruned = done.json
    assert 0 < pruned["latency"]["predicted_ms"] <= target
    assert pruned["macs"]["after"] < pruned["macs"]["before"]
    with open_for_table(table.device) as backend:
        assert backend.options.precision == "int8", "what is measured runs in INT8, too"
    done = slimdeploy_command("lut", *own, "-o", path)
    assert done.exit_code == 2
    assert "precision int8 (here fp32)" in done.error, "an FP32 table doesn't go on from an INT8 one"


def test_another_batch_size_is_refused_in_one_line(table, slimdeploy_command):
    own = ("--arch", "resnet18", "--size", 8, "--threads", 1)
    done = slimdeploy_command("lut", *own, "--batch", 2, "-o", table)
    assert done.exit_code == 2
    assert done.err.count("\n") == 1
    assert "batch 1 (here 2)" in done.error


def test_a_whole_network_is_measured_in_its_own_process():
    with open_backend(LutOptions(batch=2, threads=1)) as backend:
        (ms,) = backend.whole_ms([SMALL], 8, seconds=0.01)
    assert 0 < ms < 60_000


def test_predictions_are_compared_with_measurements(table):
    (row,) = lut_accuracy.compare(table, {"all ×0.5": (0.5, 0.5, 8)}, seconds=0.01)
    assert list(row) == list(lut_accuracy.COLUMNS)
    assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)


def test_a_device_that_became_slower_is_told_from_a_wrong_table(table, monkeypatch):
    document = json.loads(table.read_text())
    full = lut_measure.full_network(document)
    groups = channel_groups(full, residual="couple")
    then = {tuple(row["widths"]): row["total_ms"] for row in document["samples"]}
    predicted = load_table(table)

    class Slowed:
        """Takes twice as long as the samples, and as predicted for networks that aren't among them."""

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def whole_ms(self, specs, size, *, seconds):
            return [
                2 * then.get(tuple(widths_of(one, full, groups)), predicted.network_ms(one, size))
                for one in specs
            ]

    monkeypatch.setattr(lut_accuracy, "open_for_table", lambda device: Slowed())
    (row,) = lut_accuracy.compare(table, {"all ×0.3": (0.3, 0.3, 8)}, seconds=0.01)
    assert row["drift"] == pytest.approx(2)
    assert row["error"] == pytest.approx(-0.5)
    assert row["steady_error"] == pytest.approx(0, abs=1e-9)


def test_no_torch_is_needed():
    code = (
        "import sys; sys.modules['torch'] = None; "
        "import slimdeploy.toolchain.latency.measure, slimdeploy.benchmarks.lut_accuracy, "
        "slimdeploy.toolchain.commands.lut"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
