"""Weights that a module computes in every forward pass become plain ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from slimdeploy.tests.toolchain.networks.example_modules import Function, Net
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.training.pretrained import read_weights


class _Computing(nn.Module):
    """A layer whose weight, or other parameter, is `computed` of its own."""

    def __init__(self, own: nn.Module, computed: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.own, self.computed = own, computed

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(self.own, x)


def _by_batch_norm(own: nn.Module, x: Tensor) -> Tensor:
    """Weight standardisation (Qiao et al., arXiv 1903.10520) as timm writes it."""
    rows = own.weight.reshape(1, own.out_channels, -1)
    weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0)
    return functional.conv2d(x, weight.reshape_as(own.weight), own.bias, padding=1)


def _by_hand(own: nn.Module, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(own.weight, (1, 2, 3), keepdim=True)
    weight = own.weight - mean
    weight /= (variance + 1e-5).sqrt()
    return functional.conv2d(x, weight, own.bias, padding=1)


def _through_views(own: nn.Module, x: Tensor) -> Tensor:
    """Operators in place on views of the weight, before and after its use."""
    weight = own.weight.clone()
    weight[:, :, 1, 1] = 0
    weight.view(8, -1)[:4].mul_(2)
    y = functional.conv2d(x, weight, own.bias, padding=1)
    weight.view(8, -1).mul_(3)
    return y


def _without_gradients(own: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        largest = own.weight.abs().amax((1, 2, 3), keepdim=True)
    return functional.conv2d(x, own.weight / largest, own.bias, padding=1)


def _scaled() -> nn.Module:
    layer = nn.Conv2d(8, 8, 1, bias=False)
    layer.gain = nn.Parameter(torch.ones(8, 1, 1, 1))
    return layer


def _flat() -> nn.Module:
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(8, 72))
    return layer


def _vectors(**tensors: Tensor) -> nn.Module:
    layer = nn.Module()
    for name, tensor in tensors.items():
        layer.register_buffer(name, tensor)
    return layer


COMPUTING = {
    "by batch norm": _Computing(nn.Conv2d(8, 8, 3), _by_batch_norm),
    "by hand": _Computing(nn.Conv2d(8, 8, 3), _by_hand),
    "through views": _Computing(nn.Conv2d(8, 8, 3), _through_views),
    "without gradients": _Computing(nn.Conv2d(8, 8, 3), _without_gradients),
    "scaled": _Computing(_scaled(), lambda own, x: functional.conv2d(x, own.gain * own.weight.tanh() / 3)),
    "flat": _Computing(_flat(), lambda own, x: functional.conv2d(x, own.weight.view(8, 8, 3, 3))),
    "transposed": _Computing(
        nn.Linear(8, 8), lambda own, x: x * functional.linear(x.mean((2, 3)), own.weight.t())[..., None, None]
    ),
    "PReLU": _Computing(nn.PReLU(8), lambda own, x: functional.prelu(x, own.weight.abs())),
    "β": _Computing(nn.GroupNorm(2, 8), lambda own, x: functional.group_norm(x, 2, own.weight, own.bias * 2)),
    "255": _Computing(_vectors(mean=torch.rand(8, 1, 1)), lambda own, x: (x - own.mean * 255) / 255),
    "crossed": _Computing(
        _vectors(taps=torch.rand(3)),
        lambda own, x: functional.conv2d(x, torch.outer(own.taps, own.taps).expand(8, 1, 3, 3), groups=8),
    ),
}


@pytest.mark.parametrize("what", COMPUTING)
@torch.no_grad()
def test_computed_weights_become_plain_ones(what: str) -> None:
    module = Net(COMPUTING[what])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found, images = from_module(module, size=16), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(found.network(images), module(images))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert found.network.state_dict().keys() <= before.keys()
    if what in ("transposed", "255", "crossed"):  # no parameter, or not changed
        assert found.remarks == ()
    else:
        (remark,) = found.remarks
        assert remark.startswith("middle.own.")


def test_computed_weights_are_compared_in_float64_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that amplifies rounding: rounded to float32, the weights would be others."""
    forward = GraphNetwork.forward

    def rounded(network: GraphNetwork, images: Tensor) -> Tensor:
        found = forward(network, images)
        return found * (1 + 1e-3) if found.dtype == torch.float32 else found

    monkeypatch.setattr(GraphNetwork, "forward", rounded)
    found = from_module(Net(_Computing(nn.Conv2d(8, 8, 3), _by_hand)), size=16)
    assert found.relative_error == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize(
    "reparametrize",
    [
        parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal,
        nn.utils.weight_norm, nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_unstructured(layer, "bias", 0.5) if layer.bias is not None else layer,
    ],
)  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@torch.no_grad()
def test_reparametrized_layers_become_plain_ones(
    reparametrize: Callable[[nn.Conv2d], nn.Module], bias: bool
) -> None:
    """Of torch.nn.utils.parametrize, and of the hooks before it."""
    module, images = Net(reparametrize(nn.Conv2d(8, 8, 3, bias=bias))).eval(), torch.randn(3, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    network = from_module(module, size=16).network
    torch.testing.assert_close(network(images), module(images))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    expected = {"middle.weight", "middle.bias"} if bias else {"middle.weight"}
    assert {name for name in network.state_dict() if name.startswith("middle.")} == expected


@torch.no_grad()
def test_a_cosine_classifier_is_taken_over() -> None:
    class Cosine(Net):
        def forward(self, x: Tensor) -> Tensor:
            vector = functional.normalize(self.middle(self.conv(x)).mean((2, 3)))
            return 16 * functional.linear(vector, functional.normalize(self.fc.weight))

    module, images = Cosine(nn.ReLU()), torch.randn(3, 3, 16, 16)
    network = from_module(module, size=16).network
    torch.testing.assert_close(network(images), module(images))
    network.get_submodule("conv").weight[2] = 0  # type: ignore[index, operator]
    network.get_submodule("conv").bias[2] = 0  # type: ignore[index, operator]
    (group,) = channel_groups(network.graph)
    pruned, _ = prune_network(network, [group], {group.name: np.array([0, 1, 3, 4, 5, 6, 7])})
    torch.testing.assert_close(pruned(images), network(images))


def _opposite_gates(own: nn.Module, x: Tensor) -> Tensor:
    gate = own.gate.sigmoid()
    return x.relu() * gate + x.tanh() * (1 - gate)


def _frozen_bn(own: nn.Module, x: Tensor) -> Tensor:
    """As torchvision writes it."""
    weight, bias, mean, variance = (
        tensor.reshape(1, -1, 1, 1) for tensor in (own.weight, own.bias, own.running_mean, own.running_var)
    )
    scale = weight * (variance + 1e-5).rsqrt()
    return x * scale + (bias - mean * scale)


def _folded(own: nn.Module, x: Tensor) -> Tensor:
    """A convolution with its BN folded in every forward pass: the convolution has no bias of its own."""
    scale = own[1].weight / (own[1].running_var + 1e-5).sqrt()
    bias = own[1].bias - own[1].running_mean * scale
    return functional.conv2d(x, own[0].weight * scale[:, None, None, None], bias, padding=1)


def _column(vector: Tensor) -> Tensor:
    return vector[:, None, None]


SEVERAL_VALUES = {
    "gates": (_Computing(_vectors(gate=torch.randn(8, 1, 1)), _opposite_gates), {"gate", "gate_2"}),
    "plain too": (
        _Computing(_vectors(s=torch.rand(8, 1, 1)), lambda own, x: (x * own.s.exp()).relu() * own.s),
        {"s", "s_2"},
    ),
    "mean": (
        _Computing(nn.Conv2d(8, 8, 1), lambda own, x: own(x) * own.weight.mean()),
        {"weight", "bias", "weight_2"},
    ),
    "bias apart": (
        _Computing(
            nn.Conv2d(8, 8, 1), lambda own, x: functional.conv2d(x, own.weight) + _column(own.bias * 2)
        ),
        {"weight", "bias_2"},
    ),
    "filter twice": (
        _Computing(
            _vectors(filter=torch.rand(8, 1, 3, 3)),
            lambda own, x: functional.conv2d(
                functional.conv2d(x, own.filter, groups=8), own.filter, groups=8
            ),
        ),
        {"filter", "filter_2"},
    ),
    "frozen BN": (
        _Computing(
            _vectors(**{part: torch.rand(8) for part in ("weight", "bias", "running_mean", "running_var")}),
            _frozen_bn,
        ),
        {"weight", "weight_2"},
    ),
    "masked": (
        _Computing(
            _vectors(mask=torch.randint(2, (8, 8, 1, 1)), bias=torch.rand(8)),
            lambda own, x: functional.conv2d(x, own.mask * own.weight_orig, own.bias),
        ),
        {"weight", "bias"},
    ),
    "folded BN": (
        _Computing(nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)), _folded),
        {"0.weight", "0.bias"},
    ),
}
SEVERAL_VALUES["masked"][0].own.weight_orig = nn.Parameter(torch.randn(8, 8, 1, 1))


@pytest.mark.parametrize("what", SEVERAL_VALUES)
@torch.no_grad()
def test_several_values_of_a_parameter_have_several_names(what: str) -> None:
    middle, expected = SEVERAL_VALUES[what]
    module, images = Net(middle).eval(), torch.randn(3, 3, 16, 16)
    network = from_module(module, size=16).network
    torch.testing.assert_close(network(images), module(images))
    prefix = "middle.own."
    assert {name.removeprefix(prefix) for name in network.state_dict() if prefix in name} == expected


def test_a_computation_of_the_images_is_no_constant() -> None:
    module = Net(Function(lambda x: functional.conv2d(x, x[:1, :, :3, :3].expand(8, 8, 3, 3))))
    with pytest.raises(SlimdeployError, match="middle: "):
        from_module(module, size=16)


STANDARDISED = """
from torch import nn
from torch.nn import functional

class Standardised(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

def build():
    return nn.Sequential(Standardised(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


def test_a_state_dict_with_the_weights_before_the_computation_is_refused(tmp_path: Path) -> None:
    source, weights = tmp_path / "net.py", tmp_path / "net.pth"
    source.write_text(STANDARDISED)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    torch.save(module.state_dict(), weights)
    with pytest.raises(
        SlimdeployError, match=r"computes or copies some weights, such as 0\.weight, .* import it"
    ):
        read_weights(weights, arch=f"{source}:build", size=lambda: 16)
