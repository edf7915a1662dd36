"""The audit, on inspector JSON from public documentation: each file says where it is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slimdeploy.tests.toolchain.tensorrt_fake import VERSIONS, FakeTensorrt
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.audit import Missed, audit, read_layers
from slimdeploy.toolchain.export.engine import export_engine
from slimdeploy.toolchain.export.engine_options import EngineOptions

SAMPLES = Path(__file__).parent / "inspector"


def sample(name: str) -> dict[str, Any]:
    return json.loads((SAMPLES / f"{name}.json").read_text())


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_sample_says_where_it_is_from(path: Path) -> None:
    assert "https://" in json.loads(path.read_text())["source"]


def test_int8_layers_of_tensorrt_8() -> None:
    layers = read_layers(sample("tensorrt-8-int8"))
    assert [(layer.precision, layer.reformat) for layer in layers] == [
        ("fp32", True),
        ("int8", False),
        ("int8", False),
        ("int8", False),
    ]
    assert layers[3].nodes == (
        "layer1.0.conv2.weight", "QuantizeLinear_32", "Conv_34", "Add_42", "Relu_43"
    )  # fmt: skip
    found = audit(layers, {"Conv_9": "int8", "Conv_22": "int8", "Conv_34": "int8"})
    assert found.failed is None
    assert (found.layers, found.precisions, found.fused) == (4, {"int8": 3}, 3)
    assert found.reformats == ("QuantizeLinear_2",)


def test_fp16_layers_of_tensorrt_8_asked_for_as_int8_are_missed() -> None:
    layers = read_layers(sample("tensorrt-8-fp16"))
    found = audit(layers, {"Conv_0": "fp16", "Conv_3": "int8", "Conv_5": "fp32"})
    assert found.precisions == {"fp16": 3}
    assert len(found.reformats) == 2, "a copy and a NoOp"
    assert found.missed == (Missed("Conv_3", "int8", "fp16"),)
    assert found.failed == ("1 layers are not in the requested precision, e.g. Conv_3: fp16 instead of int8")
    assert found.to_json()["missed"] == [{"node": "Conv_3", "asked": "int8", "realised": "fp16"}]


def test_tf32_is_told_by_the_kernel_s_name() -> None:
    (layer,) = read_layers(sample("tensorrt-9-tf32"))
    assert layer.precision == "tf32"
    assert layer.nodes == ("p2o.Conv.20", "p2o.BatchNormalization.20", "p2o.Add.10", "p2o.Relu.18")
    assert audit([layer], {"p2o.Conv.20": "fp32"}).failed is None


def test_schema_of_tensorrt_11() -> None:
    layers = read_layers(sample("tensorrt-11"))
    assert [layer.precision for layer in layers] == ["fp16", "int8", "fp32"]
    found = audit(layers, {"conv1": "fp16", "layer1.0.conv1": "int8", "fc": "int8"})
    assert found.missed == (Missed("fc", "int8", "fp32"),)


def test_layers_that_nothing_names_are_told_and_fail_where_all_are() -> None:
    layers = read_layers(sample("tensorrt-11"))
    some = audit(layers, {"conv1": "fp16", "hidden": "int8"})
    assert (some.failed, some.unaccounted) == (None, ("hidden",))
    assert audit(layers, {"hidden": "int8"}).failed == (
        "the inspector reports the precision of none of the 1 FP16 or INT8 layers"
    )


@pytest.mark.parametrize("document", [{}, {"Layers": ["conv1 + relu", "fc"]}, {"Layers": None}])
def test_engine_without_details_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(SlimdeployError, match="contains no details of its layers: build it with DETAILED"):
        read_layers(document)


@pytest.mark.parametrize("version", VERSIONS)
def test_engine_that_lost_its_int8_fails_the_audit(
    version: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path))
    trt = FakeTensorrt(version)
    trt._loses_int8 = True
    options = EngineOptions(batch=(1, 2, 4))
    engine = export_engine(trt, models["int8"], tmp_path / "m.engine", options, device=trt._device)
    assert engine.audit.failed == (
        "21 layers are not in the requested precision, e.g. conv1: fp32 instead of int8"
    )
    assert engine.path.is_file(), "saved all the same, to be looked at"
