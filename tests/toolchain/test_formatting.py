"""How figures look, and what a model's description holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import onnx
import onnxruntime
import pytest
import torch
from tiny import model_info

from slimdeploy.toolchain.errors import SlimdeployError, nearest, unknown
from slimdeploy.toolchain.formatting import count, facts_table, grid, percent, short
from slimdeploy.toolchain.models.model_info import ModelInfo, versions
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.progress import console, log


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.2978e9, "1.30 G"), (325_800_000, "325.80 M"), (23_513_162, "23.51 M"), (1500, "1.50 k"), (999, "999"),
     (0, "0")],
)  # fmt: skip
def test_short_figures(value: float, text: str) -> None:
    assert short(value) == text


def test_counts_and_shares() -> None:
    assert count(23_513_162) == "23,513,162"
    assert percent(0.91424) == "91.42 %"


def test_of_many_known_names_the_first_are_listed() -> None:
    said = str(unknown("layer", "n19x", [f"n{i}" for i in range(40)]))
    assert said.endswith("n10, n11, … (40 in all). Did you mean 'n19'?")


def test_nearest_word() -> None:
    assert nearest("trian", ["train", "prune"]) == " Did you mean 'train'?"
    assert nearest("xyzzy", ["train", "prune"]) == ""
    assert str(unknown("arch", "b", ["a", "c"])) == "unknown arch 'b'; known: a, c."


def test_a_stage_adds_to_the_provenance_and_replaces_the_metrics() -> None:
    info = model_info(build_graph("tiny", classes=3)).after("train", metrics={"a": 1}, seed=3)
    later = info.after("prune", graph=build_graph("tiny-deep", classes=3), metrics={}, parent="abc")
    assert [entry["stage"] for entry in later.provenance] == ["train", "prune"]
    assert later.provenance[0]["seed"] == 3
    assert later.provenance[1]["versions"] == versions()
    assert later.metrics == {}
    assert later.graph.arch == "tiny-deep"
    assert info.graph.arch == "tiny", "nothing is changed in place"


def test_versions_do_not_depend_on_what_is_imported(fresh_python: Callable) -> None:
    code = "from slimdeploy.toolchain.models.model_info import versions; import json; "
    ran = fresh_python(code + "import sys; assert 'torch' not in sys.modules; print(json.dumps(versions()))")
    assert ran.json == versions()
    assert versions()["torch"] == torch.__version__
    assert versions()["onnx"] == onnx.__version__
    assert versions()["onnxruntime"] == onnxruntime.__version__


def test_description_round_trip() -> None:
    info = model_info(build_graph("tiny", classes=5)).after("train", metrics={"accuracy": {"val": 0.5}})
    assert ModelInfo.from_json(info.to_json(), "x") == info


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 0, "format 0; this slimdeploy reads up to 2"),
        ("preprocessing", {"size": 16}, "damaged description of the network (KeyError('mean'))"),
        ("preprocessing", {"size": 16, "mean": [1, 2], "std": [1, 1, 1]}, "mean must be three numbers"),
        ("class_names", 3, "damaged description of the network ("),
        ("network", {"arch": "tiny"}, "damaged description of the network (KeyError("),
        ("network", None, "damaged description of the network ("),
    ],
)  # fmt: skip
def test_damaged_descriptions(key: str, value: object, message: str) -> None:
    document = json.loads(model_info(build_graph("tiny", classes=3)).to_json())
    document[key] = value
    with pytest.raises(SlimdeployError, match=f"^x.onnx: {re.escape(message)}"):
        ModelInfo.from_json(json.dumps(document), "x.onnx")


def test_brackets_are_shown_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    log("pip install 'slimdeploy[gpu]'")
    console.print(facts_table([("a[b]", "runs/[x]/m.onnx")]), grid(["c[d]"], [["e[f]"]]))
    shown = capfd.readouterr().err
    for text in ("'slimdeploy[gpu]'", "a[b]", "runs/[x]/m.onnx", "e[f]"):
        assert text in shown
