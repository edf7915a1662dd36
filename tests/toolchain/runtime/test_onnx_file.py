"""Reading ONNX files without `onnx`."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import METADATA_KEY
from slimdeploy.toolchain.runtime.onnx_file import parse_onnx, read_onnx


@pytest.mark.parametrize(
    ("kind", "opset", "half"),
    [("fp32", 17, False), ("fp16", 17, True), ("int8", 17, False), ("opset19", 19, False)],
)
def test_facts_agree_with_onnx(kind: str, opset: int, half: bool, models: dict[str, Path]) -> None:
    model, facts = onnx.load(models[kind]), read_onnx(models[kind])
    weighted = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    precision = "fp32" if kind == "opset19" else kind
    assert facts.opset == opset
    assert facts.half is half
    assert facts.layers == dict.fromkeys(weighted, precision)
    assert facts.precision == precision
    assert facts.quantised is (kind == "int8")
    assert facts.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert '"class_names"' in facts.metadata[METADATA_KEY]


def test_precision_of_a_file_that_says_nothing_is_that_of_its_layers(models: dict[str, Path]) -> None:
    for kind in ("fp32", "fp16", "int8"):
        model = onnx.load(models[kind])
        del model.metadata_props[:]
        assert parse_onnx(model.SerializeToString(), source="m").precision == kind
    model = onnx.load(models["int8"])
    del model.metadata_props[:]
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.input[0] = "images"
    facts = parse_onnx(model.SerializeToString(), source="m")
    assert facts.layers[conv.name] == "fp32"
    assert facts.precision == "mixed"


@given(content=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_the_one_error(content: bytes) -> None:
    with pytest.raises(SlimdeployError, match="m is not an ONNX file, or is damaged"):
        parse_onnx(content, source="m")


def test_file_cut_off_is_refused(models: dict[str, Path]) -> None:
    content = models["fp32"].read_bytes()
    for length in (10, len(content) // 2, len(content) - 3):
        with pytest.raises(SlimdeployError, match="not an ONNX file, or is damaged"):
            parse_onnx(content[:length], source="m")


@pytest.mark.parametrize("field", ["external_data", "data_location"])
def test_file_that_points_outside_itself_is_refused(
    field: str, models: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(models["fp32"])
    tensor = model.graph.initializer[0]
    if field == "external_data":
        tensor.external_data.add(key="location", value="../elsewhere")
    else:
        tensor.data_location = onnx.TensorProto.EXTERNAL
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SlimdeployError, match=r"m\.onnx: its weights are in other files"):
        read_onnx(path)


def test_missing_empty_and_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for name, said in (
        ("none.onnx", "no model at"),
        ("empty.onnx", "it is empty"),
        (".", "is a folder, not a model"),
    ):
        with pytest.raises(SlimdeployError, match=said):
            read_onnx(tmp_path / name)
