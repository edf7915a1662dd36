from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from slimdeploy.toolchain.cli import cli
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import ChannelConfig
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing

CHANNELS = ChannelConfig(4, ((4, 4),) * 2 + ((4, 8),) * 2 + ((4, 8),) * 2 + ((4, 8),) * 2)
FEW = ["--images", "20", "--selection-images", "20", "--parity-images", "30", "--threads", "1"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny untrained network for the digits, as `export` writes it."""
    pytest.importorskip("sklearn")
    spec = build_graph("resnet18", stem="cifar", channels=CHANNELS)
    info = ModelInfo(
        spec,
        Preprocessing(16, (0.3,) * 3, (0.37,) * 3),
        tuple("0123456789"),
        provenance=({"stage": "train", "data": {"name": "digits", "data_dir": "data", "size": None}},),
    )
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    onnx.save(build_onnx(build_network(spec, seed=0).eval(), info), path)
    return path


def call(*arguments):
    return CliRunner().invoke(cli, ["calibrate", *map(str, arguments)])


def test_json_has_the_documented_keys(exported, tmp_path):
    output = tmp_path / "int8.onnx"
    result = call(exported, "-o", output, *FEW, "--max-drop", "100", "--method", "mse", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["onnx"] == str(output)
    assert (document["precision"], document["engine"], document["method"]) == ("int8", None, "mse")
    assert set(document["parity"]) >= {"max_abs_error", "top1_agreement", "images", "drop_points_ci95"}
    assert document["parity"]["images"] == 30
    assert output.exists()


def test_a_person_sees_tables(exported, tmp_path):
    result = call(
        exported, "-o", tmp_path / "o.onnx", *FEW, "--max-drop", "100", "--sensitivity", "--target", "cpu",
        "--timing-seconds", "0.01",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in (
        "accuracy float32 / INT8",
        "int8, for cpu",
        "on the selection images",
        "one layer in float, all others in INT8",
        "batch 1 float32 / INT8",
    ):
        assert text in result.output
    assert "layer1.0.conv1" in result.output


def test_a_drop_beyond_the_budget_ends_with_1(exported, tmp_path, monkeypatch):
    from slimdeploy.toolchain.library import quantize as stage

    honest = stage.compare_logits
    monkeypatch.setattr(stage, "compare_logits", lambda b, x, labels: honest(b, -x, b.argmax(axis=1)))
    result = call(exported, "-o", tmp_path / "o.onnx", *FEW, "--method", "minmax", "--max-drop", "10")
    assert isinstance(result.exception, SlimdeployError)
    assert result.exception.exit_code == 1
    assert "INT8 loses 100.00 points on 30 test images (10 allowed); no file written" in str(result.exception)
    assert "not written" in result.output
    assert not (tmp_path / "o.onnx").exists()


def test_data_of_other_classes_is_refused(exported, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "1.png")
    result = call(exported, "-o", tmp_path / "o.onnx", "--data", f"folder:{tmp_path / 'data'}")
    assert isinstance(result.exception, SlimdeployError)
    assert result.exception.exit_code == 2
    assert "other classes" in str(result.exception)


def test_a_model_of_others_is_refused(exported, tmp_path):
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    result = call(tmp_path / "foreign.onnx", "-o", tmp_path / "o.onnx")
    assert "foreign.onnx contains no preprocessing" in str(result.exception)


def test_a_quantised_model_is_refused(exported, tmp_path):
    assert (
        call(exported, "-o", tmp_path / "a.onnx", *FEW, "--max-drop", "100", "--method", "mse").exit_code == 0
    )
    result = call(tmp_path / "a.onnx", "-o", tmp_path / "b.onnx", *FEW)
    assert "a.onnx is quantised already" in str(result.exception)
    assert not (tmp_path / "b.onnx").exists()
