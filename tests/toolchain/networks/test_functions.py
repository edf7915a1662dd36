"""Element-wise functions: torch, the constants of removed channels, and ONNX agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimdeploy.tests.toolchain.networks.example_modules import Function, Net
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.operators import OPERATORS
from slimdeploy.toolchain.preprocessing import Preprocessing

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "mish": functional.mish,
    "elu": lambda x: functional.elu(x, 0.7),
    "celu": lambda x: functional.celu(x, 1.3),
    "selu": functional.selu,
    "softplus": functional.softplus,
    "log_sigmoid": functional.logsigmoid,
    "abs": torch.abs,
    "exp": lambda x: torch.exp(-x),
    "log": lambda x: torch.log(x.abs() + 0.1),
    "softsign": functional.softsign,
    "square": torch.square,
    "cube": lambda x: x**3,
    "root": lambda x: torch.sqrt(x.relu()),
    "inverse root": lambda x: (x * x + 0.1).rsqrt(),
    "reciprocal": lambda x: 1 / (x.abs() + 0.1),
    "power": lambda x: (x.relu() + 0.1).pow(1.7),
    "at least": lambda x: x.clamp(min=-0.5),
    "at most": lambda x: x.clamp(max=0.5),
    "between": lambda x: x.clamp(-0.5, 0.5),
    "at most 6": lambda x: torch.clamp_max(torch.clamp_min(x, 0), 6),
    "maximum": lambda x: torch.max(x, x * 0.25),
    "minimum": lambda x: torch.minimum(x, x * x),
    "sign": lambda x: x + torch.sign(x),
    "sine": torch.sin,
    "cosine": torch.cos,
    "greater": lambda x: x * (x > 0.5),
    "not smaller": lambda x: (x >= 0.5).float() + x,
    "smaller": lambda x: x * (x < 0.5).float(),
    "not greater": lambda x: x * (x <= 0.5),
    "greater than another": lambda x: x * (x > x * x) + (x <= x * x),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where, with numbers": lambda x: x + torch.where(x < 0.3, 2, torch.where(x >= 0.5, x, -1)),
    "where, not computed": lambda x: torch.where(x > 0, x, torch.exp(x * 200) - 1),
    "rrelu": functional.rrelu,
    "threshold": lambda x: functional.threshold(x, 0.3, -2),
    "softshrink": lambda x: functional.softshrink(x, 0.4),
    "hardshrink": lambda x: functional.hardshrink(x, 0.5),
    "sum of channels": lambda x: x * x.sum(1, keepdim=True),
    "sum of channels, apart": lambda x: x * x.sum(1)[:, None],
    "float": lambda x: x.float().to(torch.float32).relu(),
    "memory format": lambda x: x.to(memory_format=torch.channels_last).relu(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@torch.no_grad()
def test_functions_are_taken_over(name: str) -> None:
    torch.manual_seed(0)
    module, images = Net(Function(FUNCTIONS[name])).eval(), torch.randn(2, 3, 16, 16)
    network = from_module(module, size=16).network
    torch.testing.assert_close(network(images), module(images))
    info = ModelInfo(network.graph, Preprocessing(16, (0.5,) * 3, (0.5,) * 3), ("a", "b"))
    session = onnxruntime.InferenceSession(build_onnx(network, info).SerializeToString())
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_constants_are_the_function_s_values(name: str) -> None:
    """And NaN, which isn't constant, stays NaN."""
    graph = from_module(Net(Function(FUNCTIONS[name])), size=16).network.graph
    inputs = np.array([-3.0, -0.5, -0.0, 0.0, 0.3, 0.5, 6.5, np.nan])
    values = {"conv": inputs}
    for node in graph.nodes[1:]:
        if node.operator in ("adaptive_avg_pool", "channel_mean"):
            break
        op, given = OPERATORS[node.operator], [values[value] for value in node.inputs]
        values[node.name] = op.constant(node, given, {}, np.zeros(len(inputs), bool))
    expected = FUNCTIONS[name](torch.from_numpy(inputs)[None, :, None, None])[0, :, 0, 0].double().numpy()
    if node.operator == "adaptive_avg_pool":
        np.testing.assert_allclose(values[node.inputs[0]], expected, rtol=1e-6, atol=1e-9)


def test_a_constant_that_is_not_finite_is_none() -> None:
    node = next(
        node
        for node in from_module(Net(Function(lambda x: (x * x + 1).rsqrt())), size=16).network.graph.nodes
        if node.operator == "power" and node.attributes["exponent"] < 0
    )
    found = node.op.constant(node, [np.array([-1.0, 0.0, 4.0])], {}, np.zeros(3, bool))
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0.5])


class _Powers(nn.Module):
    """Generalised-mean pooling (Radenović et al., arXiv 1711.02512)."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(x.clamp(min=1e-6).pow(self.p), (x.size(-2), x.size(-1)))
        return pooled.pow(1.0 / self.p)


def test_the_exponent_may_be_a_parameter() -> None:
    network = from_module(Net(_Powers()), size=16).network
    assert {"middle.p", "middle.p_2"} <= dict(network.named_parameters()).keys()
    network.train()(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
