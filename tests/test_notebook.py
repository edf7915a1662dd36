"""docs/notebooks, executed: their cells in order, as a quick run (QUICK=1), on few drawn photos."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import slimdeploy
from slimdeploy.benchmarks import own_model
from slimdeploy.toolchain.torchvision import import_torchvision

NOTEBOOK = Path(slimdeploy.__file__).parent / "docs" / "notebooks" / "resnet50-photos.ipynb"
CELLS = [
    "".join(cell["source"])
    for cell in json.loads(NOTEBOOK.read_text())["cells"]
    if cell["cell_type"] == "code"
]


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "densenet121", "squeezenet1_1"])
def test_the_notebook_loads_any_classifier_of_torchvision(tmp_path: Path, arch: str) -> None:
    torch.manual_seed(0)
    trained = getattr(import_torchvision().models, arch)(num_classes=4)
    own_model.save_weights(trained, tmp_path / "own.pth")
    (load,) = (cell for cell in CELLS if "load_state_dict" in cell)
    names: dict[str, Any] = {"WEIGHTS": tmp_path / "own.pth", "NETWORK": arch}
    exec(compile(load, "the network", "exec"), names)
    assert names["model"](torch.zeros(2, 3, 64, 64)).shape == (2, 4)


def test_the_notebook_runs_from_weights_to_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICK", "1")
    own_model.draw_photos(Path("photos"), train=8, test=4)
    torch.manual_seed(0)
    own_model.save_weights(import_torchvision().models.resnet18(num_classes=4), Path("weights.ckpt"))
    # 16 images decide the accuracy, so chance decides how much of it INT8 loses.
    monkeypatch.setattr(slimdeploy, "quantize", functools.partial(slimdeploy.quantize, max_drop=100))
    names: dict[str, Any] = {}
    for number, source in enumerate(CELLS):
        exec(compile(source, f"cell {number}", "exec"), names)
        if source.startswith("import os") and "QUICK" in names:  # smaller than a quick run
            names |= {"SIZE": 32, "EPOCHS": 1, "SECONDS": 0.01}
    assert names["pruned"].after.params <= names["budget"]
    assert [row.model for row in names["measured"].rows] == ["original.onnx", "final.onnx", "final.int8.onnx"]
    assert names["parity"].max_abs_error < 1e-3
    assert names["bundle"].bundle == Path("final.slim.tar")
    assert {variant.precision for variant in names["bundle"].manifest.variants} == {"fp32", "int8"}
