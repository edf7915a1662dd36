"""`slimdeploy lut` on real, tiny networks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import PREPROCESSING, random_network

pytest.importorskip("onnxruntime", reason="latency tables are measured on onnxruntime")

from slimdeploy.benchmarks import lut_accuracy
from slimdeploy.toolchain.latency import fit as lut_fit
from slimdeploy.toolchain.latency import measure as lut_measure
from slimdeploy.toolchain.latency.backend import LutOptions, open_for_table
from slimdeploy.toolchain.latency.onnxruntime import open_backend
from slimdeploy.toolchain.latency.table import load_table
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cutting import widths_of
from slimdeploy.toolchain.networks.layers import convolutions

SMALL = lut_accuracy.scaled(build_graph("resnet18"), 0.25, 0.25, 8)


def slimdeploy(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slimdeploy.toolchain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[Path, dict]:
    """One pass over a small architecture and small images."""
    path = tmp_path_factory.mktemp("lut") / "table.json"
    done = slimdeploy("lut", "--arch", "resnet18", "--size", 8, "--threads", 1, "--seconds", 0,
                      "-o", path, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout)


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


def test_the_command_tells_what_it_measured(table):
    path, told = table
    assert told["table"] == str(path)
    assert told["networks"] == lut_fit.PASS
    assert told["shapes"] == len(load_table(path).shapes)
    assert told["stable"] is False
    assert told["error"] == {"median": None, "worst": None}
    assert load_table(path).network_ms(SMALL, 8) > 0


def test_the_command_shows_a_table_and_goes_on_from_it(table):
    path, _ = table
    before = path.read_text()
    done = slimdeploy("lut", "--arch", "resnet18", "--size", 8, "--threads", 1, "--seconds", 0, "-o", path)
    assert done.returncode == 0, done.stderr
    assert "not yet: run the command again" in done.stdout
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


def test_an_int8_table_is_measured_and_prunes_by_int8_networks(tmp_path):
    path, sparse, output = (tmp_path / name for name in ("int8.json", "sparse", "pruned"))
    own = ("--arch", "resnet18", "--stem", "cifar", "--size", 8, "--threads", 1, "--seconds", 0)
    done = slimdeploy("lut", *own, "--precision", "int8", "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    table = load_table(path)
    assert table.precision == json.loads(done.stdout)["device"]["precision"] == "int8"
    graph = build_graph("resnet18", stem="cifar", classes=10)
    info = ModelInfo(graph, replace(PREPROCESSING, size=8), tuple(f"class {i}" for i in range(10)))
    save_checkpoint(sparse, random_network(graph), info)
    target = 0.8 * table.network_ms(graph, 8)
    done = slimdeploy("prune", sparse, "--latency-ms", target, "--latency-table", path, "--no-measure",
                      "-o", output, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    pruned = json.loads(done.stdout)
    assert 0 < pruned["latency"]["predicted_ms"] <= target
    assert pruned["macs"]["after"] < pruned["macs"]["before"]
    with open_for_table(table.device) as backend:
        assert backend.options.precision == "int8", "what is measured runs in INT8, too"
    done = slimdeploy("lut", *own, "-o", path)
    assert done.returncode == 2
    assert "precision int8 (here fp32)" in done.stderr, "an FP32 table doesn't go on from an INT8 one"


def test_another_batch_size_is_refused_in_one_line(table):
    path, _ = table
    done = slimdeploy("lut", "--arch", "resnet18", "--size", 8, "--threads", 1, "--batch", 2, "-o", path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "batch 1 (here 2)" in done.stderr


def test_a_whole_network_is_measured_in_its_own_process():
    with open_backend(LutOptions(batch=2, threads=1)) as backend:
        (ms,) = backend.whole_ms([SMALL], 8, seconds=0.1)
    assert 0 < ms < 60_000


def test_predictions_are_compared_with_measurements(table, monkeypatch):
    path, _ = table
    monkeypatch.setattr(lut_accuracy, "NETWORKS", {"all ×0.1": (0.1, 0.1, 8)})
    (row,) = lut_accuracy.compare(path, seconds=0.1)
    assert list(row) == list(lut_accuracy.COLUMNS)
    assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)


def test_a_device_that_became_slower_is_told_from_a_wrong_table(table, monkeypatch):
    path, _ = table
    document = json.loads(path.read_text())
    full = lut_measure.full_network(document)
    groups = channel_groups(full, residual="couple")
    then = {tuple(row["widths"]): row["total_ms"] for row in document["samples"]}
    predicted = load_table(path)

    class Slowed:
        """Takes twice as long as the samples, and as predicted for networks that aren't among them."""

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def whole_ms(self, specs, size, *, seconds):
            return [
                2 * then.get(tuple(widths_of(one, groups)), predicted.network_ms(one, size)) for one in specs
            ]

    monkeypatch.setattr(lut_accuracy, "open_for_table", lambda device: Slowed())
    monkeypatch.setattr(lut_accuracy, "NETWORKS", {"all ×0.3": (0.3, 0.3, 8)})
    (row,) = lut_accuracy.compare(path, seconds=0.1)
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
