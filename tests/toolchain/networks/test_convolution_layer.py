"""Convolutions have the right output and gradients, whichever way they are computed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import layer_sweep
import pytest
import torch
from processes import process_environment
from torch import nn

from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators import convolution_layer
from slimdeploy.toolchain.networks.operators.convolution_layer import (
    Convolution,
    input_gradient_by_product,
    output_by_product,
    weight_gradient_by_product,
)

RULES = ("output_by_product", "input_gradient_by_product", "weight_gradient_by_product")


def test_every_layer_that_pruning_can_leave_has_right_gradients() -> None:
    # Threads that wait asleep leave the core to the others where there are more threads than cores.
    environment = {**process_environment(), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(Path(layer_sweep.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "all layers tried\n"), done.stderr


def _gradients(layer: nn.Conv2d, images: torch.Tensor, seed: torch.Tensor) -> list[torch.Tensor]:
    images = images.clone().requires_grad_()
    layer.zero_grad()
    output = layer(images)
    output.backward(seed.to(output.dtype))
    found = [output.detach(), images.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor.double() for tensor in found if tensor is not None]


@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((1, 1), (1, 1), (0, 0), (1, 1)),
        ((1, 1), (2, 3), (1, 0), (1, 1)),
        ((3, 3), (2, 1), (1, 1), (1, 1)),
        ((5, 2), (1, 2), (2, 0), (1, 2)),
        ((3, 1), (3, 3), (0, 2), (2, 1)),
    ],
)
def test_any_convolution_has_the_gradients_of_float64(
    monkeypatch: pytest.MonkeyPatch,
    product: bool,
    layout: torch.memory_format,
    kernel: convolution_layer.Pair,
    stride: convolution_layer.Pair,
    padding: convolution_layer.Pair,
    dilation: convolution_layer.Pair,
) -> None:
    for rule in RULES:
        monkeypatch.setattr(convolution_layer, rule, lambda *_: product)
    torch.manual_seed(0)
    layer = Convolution(20, 6, kernel, stride, padding, dilation).to(memory_format=layout)
    images = torch.randn(3, 20, 7, 6).to(memory_format=layout)
    exact = nn.Conv2d(20, 6, kernel, stride, padding, dilation).double()
    exact.load_state_dict(layer.state_dict())
    seed = torch.randn_like(exact(images.double()))
    expected = _gradients(exact, images.double(), seed)
    found = _gradients(layer, images, seed)
    assert len(found) == len(expected) == 4
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = _gradients(layer, images, seed)
    for mine, theirs in zip(rounded, expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


def test_the_next_layer_can_work_in_place() -> None:
    layer, plain = Convolution(8, 8, 1), nn.Conv2d(8, 8, 1)
    plain.load_state_dict(layer.state_dict())
    images = torch.randn(3, 8, 2, 2)
    for one in (layer, plain):
        nn.functional.hardswish(one(images), inplace=True).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def _weight(out: int, inputs: int, side: int) -> torch.Tensor:
    return torch.empty(out, inputs, side, side)


def test_the_product_is_used_for_few_pixels() -> None:
    assert output_by_product(_weight(512, 512, 3), 16)
    assert not output_by_product(_weight(512, 512, 3), 25)
    assert output_by_product(_weight(8, 64, 1), 4)
    assert not output_by_product(_weight(8, 64, 1), 5)
    assert not output_by_product(_weight(8, 64, 3), 4)
    assert input_gradient_by_product(_weight(512, 512, 3), (1, 1), 16)
    assert input_gradient_by_product(_weight(8, 64, 1), (1, 2), 64)
    assert not input_gradient_by_product(_weight(8, 64, 1), (1, 2), 65)
    assert not input_gradient_by_product(_weight(8, 64, 1), (1, 1), 64)
    assert not input_gradient_by_product(_weight(8, 64, 3), (2, 2), 64)
    assert weight_gradient_by_product(_weight(8, 64, 3), (1, 1), 16)
    assert not weight_gradient_by_product(_weight(8, 64, 3), (1, 1), 17)
    assert weight_gradient_by_product(_weight(8, 64, 1), (1, 1), 64)
    assert not weight_gradient_by_product(_weight(8, 64, 1), (2, 2), 65)


def test_the_product_is_used_where_onednn_is_wrong() -> None:
    assert weight_gradient_by_product(_weight(8, 15, 1), (1, 2), 10_000)
    assert not weight_gradient_by_product(_weight(8, 16, 1), (2, 2), 10_000)


@pytest.mark.parametrize("shape", [(1, 512, 1, 2), (1, 500, 2, 2), (512, 2, 2)])
def test_other_inputs_get_torchs_error_or_output(shape: tuple[int, ...]) -> None:
    layer, plain = Convolution(512, 512, 2), nn.Conv2d(512, 512, 2)
    plain.load_state_dict(layer.state_dict())
    images = torch.randn(shape)
    try:
        expected = plain(images)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            layer(images)
    else:
        torch.testing.assert_close(layer(images), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_network_can_be_exported_with_gradients_enabled() -> None:
    network = GraphNetwork(build_graph("resnet18", stem="cifar-pool", classes=3)).eval()
    images = torch.randn(2, 3, 32, 32)
    assert any(isinstance(layer, Convolution) for layer in network.modules())
    expected = network(images)
    torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), expected)
    torch.testing.assert_close(torch.jit.trace(network, (images,))(images), expected)
