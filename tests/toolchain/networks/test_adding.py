"""docs/architecture.md shows how to add an operator and an architecture: what it prints is run here."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

import slimdeploy
from slimdeploy.tests.toolchain.networks.example_modules import Function
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks import aten
from slimdeploy.toolchain.networks.architectures import ARCHITECTURES, build_graph
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.operators import OPERATORS
from slimdeploy.toolchain.preprocessing import Preprocessing


def _printed(word: str) -> str:
    page = (Path(slimdeploy.__file__).parent / "docs" / "architecture.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in block)
    assert len(block.splitlines()) < 20
    return block


@torch.no_grad()
def test_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (OPERATORS, aten.READERS):
        monkeypatch.setitem(table, "round", None)  # put back afterwards
    exec(_printed('OPERATORS["round"]'), {})
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), Function(torch.round), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    network = from_module(module, size=16).network
    info = ModelInfo(network.graph, Preprocessing(16, (0.5,) * 3, (0.5,) * 3), ("a", "b"))
    session = onnxruntime.InferenceSession(build_onnx(network, info).SerializeToString())
    images = torch.randn(2, 3, 16, 16)
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module.eval()(images), atol=1e-5, rtol=1e-5)


def test_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", None)  # put back afterwards
    exec(_printed('ARCHITECTURES["small"]'), {})
    assert [group.width for group in channel_groups(build_graph("small", classes=3, width=24))] == [24]
