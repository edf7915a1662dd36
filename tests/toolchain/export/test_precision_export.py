"""`export --precision`, from a checkpoint to the file."""

from __future__ import annotations

import dataclasses
import functools
import json

import onnx
import pytest
import torch
from click.testing import CliRunner

from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.toolchain.cli import cli
from slimdeploy.toolchain.export import options
from slimdeploy.toolchain.library import export as stage
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import ChannelConfig
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing

CHANNELS = ChannelConfig(4, ((4, 4),) * 2 + ((4, 8),) * 2 + ((4, 8),) * 2 + ((4, 8),) * 2)


def checkpoint(folder, *, huge=False):
    spec = build_graph("resnet18", stem="cifar", channels=CHANNELS)
    network = build_network(spec, seed=0).eval()
    if huge:  # layer1.0.conv1 writes values beyond 65,504, and the next layer scales them back
        with torch.no_grad():
            network.get_submodule("layer1.0.bn1").weight.fill_(1e6)
            network.get_submodule("layer1.0.conv2").weight.mul_(1e-6)
    info = ModelInfo(
        spec,
        Preprocessing(16, (0.3,) * 3, (0.37,) * 3),
        tuple("0123456789"),
        provenance=({"stage": "train", "data": {"name": "digits", "data_dir": "data", "size": None}},),
    )
    save_checkpoint(folder / "net.safetensors", network, info)
    return folder / "net.safetensors"


def export(*arguments):
    return CliRunner().invoke(cli, ["export", *map(str, arguments), "--parity-images", "20", "--json"])


def test_fp16(tmp_path):
    result = export(checkpoint(tmp_path), "-o", tmp_path / "m.onnx", "--precision", "fp16")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["precision"], document["fp32_layers"]) == ("fp16", [])
    assert 0 < document["parity"]["max_abs_error"] < 0.1
    kinds = {c.data_type for c in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_a_layer_that_overflows_stays_in_fp32_and_is_named(tmp_path):
    result = export(checkpoint(tmp_path, huge=True), "-o", tmp_path / "m.onnx", "--precision", "fp16")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["precision"] == "mixed"
    assert document["fp32_layers"] == ["layer1.0.conv1", "layer1.0.relu1", "layer1.0.conv2"]
    described = json.loads((tmp_path / "m.onnx.json").read_text())
    assert described["fp32_layers"] == document["fp32_layers"]


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_int8(tmp_path, monkeypatch, target):
    # The network is untrained: which of its guesses INT8 changes is chance, so none may end the export.
    monkeypatch.setattr(stage, "CalibrateOptions", functools.partial(CalibrateOptions, max_drop=100))
    monkeypatch.setitem(options.PRECISIONS, "int8", options.Tolerance(float("inf"), 0))
    given = ("--precision", "int8", "--target", target)
    result = export(checkpoint(tmp_path), "-o", tmp_path / "m.onnx", *given)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["precision"] == "int8"
    model = onnx.load(tmp_path / "m.onnx")
    assert "QuantizeLinear" in {n.op_type for n in model.graph.node}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["target"], facts["reduced_range"]) == (target, str(target == "cpu"))


def test_int8_that_costs_too_much(tmp_path, monkeypatch):
    honest = stage.quantize

    def costly(*arguments, **given):
        result = honest(*arguments, **given)
        return dataclasses.replace(result, onnx=None, parity=dataclasses.replace(result.parity, drop=7.0))

    monkeypatch.setattr(stage, "quantize", costly)
    result = export(checkpoint(tmp_path), "-o", tmp_path / "m.onnx", "--precision", "int8")
    assert "INT8 loses 7.00 points of accuracy; no file written" in str(result.exception)
    assert result.exception.exit_code == 1
    assert not (tmp_path / "m.onnx").exists()


def test_an_unknown_precision(tmp_path):
    result = export(checkpoint(tmp_path), "-o", tmp_path / "m.onnx", "--precision", "fp-16")
    assert "'fp-16' is not one of 'fp32', 'fp16', 'int8'" in result.output


@pytest.mark.parametrize("value", ["0", "1e-9"])
def test_the_error_allowed_can_be_set(tmp_path, value):
    result = export(
        checkpoint(tmp_path), "-o", tmp_path / "m.onnx", "--precision", "fp16", "--max-abs-error", value
    )
    assert "logits differ by" in str(result.exception)
    assert not (tmp_path / "m.onnx").exists()
