"""Words that charts share, and the charts of a network's layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from slimdeploy.toolchain.latency.profile import OTHER
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.report.charts import kept_channels, layer_scatter, strength_text
from slimdeploy.toolchain.report.run import Model


def test_a_strength_is_a_number_or_a_share() -> None:
    assert strength_text(1e-4) == "λ = 0.0001"
    assert strength_text(0.0) == "λ = 0"
    assert strength_text("auto:0.9") == "λ adjusted to 90% zeros"


@pytest.fixture
def plain() -> Model:
    """A convolution, a hidden linear layer and the classifier."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = from_module(module, size=8).network.graph
    return Model(ModelInfo(graph, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), ("a", "b")), np.ones(0))


def test_hidden_linear_layers_have_their_places_in_charts(plain: Model) -> None:
    run: Any = SimpleNamespace(original=plain, final=plain)
    times = {"0": 1.0, "2": 6.0, "4": 2.0, OTHER: 1.0}
    chart = layer_scatter(run, {"original": times, "final": times}, batch=1)
    assert "2, original: " in chart.svg
    assert "the classifier, 30% of the original's time and 30% of the final's" in chart.note
    (kept,) = kept_channels(plain, plain)
    assert "12 of 12 output channels kept" in kept.note
