"""The operators that the import takes over, in the spellings that people use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimdeploy.tests.toolchain.networks.example_modules import Blur, Function, Net, RowGate
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.pruning.surgery import prune_network


class _GatedBy(nn.Module):
    """One value per channel, pooled in any of the ways that people write, times the image."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling

    def extra_repr(self) -> str:
        return self.spelling

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        return x * eval(self.spelling, {"x": x, "n": n, "c": c, "F": nn.functional}).view(n, c, 1, 1)


SPELLINGS = (
    "x.mean(-1).mean(-1)", "x.mean(3, keepdim=True).mean(2, keepdim=True)", "x.flatten(2).mean(2)",
    "x.mean(2, keepdim=True).mean(3)", "x.view(n, c, -1).mean(-1, keepdim=True)", "x.amax(2).amax(-1)",
    "x.flatten(2).amax(-1)", "F.adaptive_avg_pool2d(x, 1).squeeze(-1).sigmoid().squeeze(-1)",
    "F.adaptive_avg_pool2d(x, 1).flatten(2).permute(0, 2, 1).permute(0, 2, 1)",
    "-F.adaptive_max_pool2d(x, 1).view(n, c)",
)  # fmt: skip


def _in_groups(x: Tensor) -> Tensor:
    return x.view(len(x), 2, 4, *x.shape[2:])


def _shared(shares: Tensor, x: Tensor) -> Tensor:
    """The weighted sum of the two halves of the channels, twice."""
    half = (shares * _in_groups(x)).sum(1)
    return torch.cat([half, half], 1)


class _Tokens(nn.Module):
    """Linear layers and a norm of pixels in one dimension, as in GAM's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, -1, c)
        first, gate = self.inner(self.norm(tokens)).chunk(2, -1)
        tokens = tokens + self.outer(nn.functional.gelu(first) * gate)
        tokens = tokens * torch.cat([tokens[..., 4:], tokens[..., :4]], -1).mean(-1, keepdim=True)
        return x * (tokens + tokens.amax(1, keepdim=True)).transpose(1, 2).reshape(n, c, h, w)


RAMP = torch.linspace(0, 1, 16)


class _Smooth(nn.Module):
    """A fixed filter with padding by name."""

    def __init__(self, padding: str, rows: int = 3) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("filt", torch.rand(8, 1, rows, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.filt, padding=self.padding, groups=8)


class _Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.glu(self.offset - x, 1), x[:, :4]], 1)


WINDOWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x[:, :, 1::2, 1::2],
    lambda x: x[..., 3:, :-2],
    lambda x: nn.functional.pad(x, (-1, 2, 0, -3)),
    lambda x: nn.functional.pad(x, (-1, -2, 0, -3)),
    lambda x: nn.functional.max_pool2d(nn.functional.pad(x - 9, (0, 1, 1, 0), value=-torch.inf), 3, 2),
    lambda x: x[:, :, -4:, 2:100],
    lambda x: x[:, :, 1:15:3][:, :, 1:],
    lambda x: x[..., 1:][..., 1:][..., ::2, 3:9],
    lambda x: nn.functional.pixel_unshuffle(x, 2)[:, 3:11],
    lambda x: x.view(-1, 8, 4, 4, 4, 4).permute(0, 3, 5, 1, 2, 4).reshape(-1, 128, 4, 4)[:, 70:78],
    lambda x: x.view(-1, 8, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 32, 8, 8)[:, 5:13],
)
"""Slices of images, and pixels that become channels."""


def _joined(x: Tensor) -> Tensor:
    """Channel slices and their concatenation where the channels come last."""
    first, second, third = x.split([2, 4, 2], dim=-1)
    return torch.cat([second.relu(), third * x[..., 3:5], first], -1)


class _Normalised(nn.Module):
    """ConvNeXt V2's normalisation of responses, as in its paper or as in timm."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.last, shape = last, (1, 1, 1, 8) if last else (8,)
        self.weight, self.bias = nn.Parameter(torch.rand(shape)), nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            x = x.permute(0, 2, 3, 1)
            each = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
            x = self.weight * (x * (each / (each.mean(dim=-1, keepdim=True) + 1e-6))) + self.bias + x
            return x.permute(0, 3, 1, 2)
        each = x.norm(p=2, dim=(2, 3), keepdim=True)
        each = each / (each.mean(dim=1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), x * each)


def _of_three(branches: Tensor) -> Tensor:
    return (branches * branches.softmax(1)).sum(1)


@pytest.mark.parametrize(
    "middle",
    [
        nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
        nn.Conv2d(8, 12, 3, dilation=2, groups=4), nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.GELU(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.ReLU6(),
        nn.ChannelShuffle(2), nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.SiLU(inplace=True)),
        nn.Identity(), nn.Dropout2d(0.3), nn.PReLU(), nn.PReLU(8), nn.ELU(0.5), nn.Mish(),
        nn.Hardtanh(-0.5, 2), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True),
        nn.ConstantPad2d((1, 0, 2, 0), 0.0),
        nn.ReflectionPad2d((1, 0, 2, 3)), nn.ReplicationPad2d(2), nn.GELU(approximate="tanh"),
        nn.Conv2d(8, 8, (2, 4), padding="same"), nn.Conv2d(8, 8, 3, padding=2, padding_mode="reflect"),
        *map(_GatedBy, SPELLINGS), _Offset(), Blur(), Blur(each=True),
        _Smooth("same"), _Smooth("same", 4), _Smooth("valid"),
        RowGate(), RowGate(5, keepdim=True), nn.Upsample(scale_factor=2),
        Function(lambda x: x.permute(0, 2, 3, 1).contiguous().relu().clone().permute(0, 3, 1, 2)),
        nn.Sequential(nn.MaxPool2d(4), nn.Upsample((12, 16))),
        Function(lambda x: x.sigmoid() - x.tanh()), Function(lambda x: x - x.mean((2, 3), True)),
        Function(nn.functional.normalize), Function(lambda x: x.clamp(min=-0.5)),
        Function(lambda x: x * (x.mean((2, 3)) / x.mean((2, 3)).norm(dim=1)[:, None])[:, :, None, None]),
        nn.AdaptiveMaxPool2d(1), Function(lambda x: 1 - x / 3), Function(lambda x: x.clamp(-1, 1) * 2 - 1),
        Function(lambda x: torch.cat([x[:, 3].unsqueeze(1), x[:, 1:]], 1)),
        Function(lambda x: x.view(-1, 2, 4, 16, 16).permute(0, 2, 1, 3, 4).reshape(x.shape)),
        Function(lambda x: torch.cat([torch.zeros_like(x[:, :2]), x[:, :4], x.new_zeros(2, 2, 16, 16)], 1)),
        Function(lambda x: x[:, :, ::2, ::2]), Function(lambda x: x[..., ::3, :].relu()[..., ::5]),
        Function(lambda x: nn.functional.pad(x[:, 1:6], (0, 0, 0, 0, 2, 1))),
        _Normalised(last=True), _Normalised(last=False), *map(Function, WINDOWS),
        Function(lambda x: x * x.mean(1, True).sigmoid()),
        Function(lambda x: _joined(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        Function(lambda x: x * x.max(1)[0][:, None].expand_as(x)),
        Function(lambda x: x * x.mean(1).view(len(x), 1, 16, 16).sigmoid()),
        Function(lambda x: torch.stack([x.mean(1), x[:, 3], x.amax(1)], 1).repeat(1, 3, 1, 1)[:, :8]),
        Function(lambda x: x.mean((2, 3), True).expand_as(x) * x.mean(1, True).expand_as(x) + x),
        Function(lambda x: x[:, [7, 1, 2, 3, 0, 0, 5, 6]]), Function(lambda x: x.flip(1)),
        Function(lambda x: torch.index_select(x, 1, torch.tensor([1, 0, 2, 3, 4, 5, 6, 7]))),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.UpsamplingBilinear2d(scale_factor=(2, 3)),
        nn.Sequential(nn.MaxPool2d(16), nn.UpsamplingBilinear2d(5)),
        Function(lambda x: x / (x.std((2, 3), keepdim=True) + 0.1)),
        Function(lambda x: x.var(1)[:, None] * x),
        Function(lambda x: x * x.flatten(2).std(2, unbiased=False)[..., None, None]),
        Function(lambda x: (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True)),
        Function(lambda x: x * x.flatten(2).permute(0, 2, 1).mean(1)[:, :, None, None]),
        Function(lambda x: x * x.sum((2, 3))[..., None, None].tanh()), Function(lambda x: x * x.softmax(1)),
        Function(lambda x: x * x.mean((2, 3)).softmax(-1)[..., None, None]),
        Function(lambda x: _of_three(torch.stack([x, -x, x / 2], 1))),
        Function(lambda x: x * x.mean(3, keepdim=True) - x.amax(2, keepdim=True)),
        Function(lambda x: x * nn.functional.adaptive_avg_pool2d(x, (None, 1))),
        Function(lambda x: torch.cat([x.view(-1, 4, 2, 16, 16).max(2)[0], _in_groups(x).amax(1)], 1)),
        Function(lambda x: torch.cat([x.view(-1, 4, 2, 16, 16).mean(2), _in_groups(x).sum(1)], 1)),
        Function(lambda x: x * torch.stack([_in_groups(x).view(-1, 8, 16, 16)]).mean(0)),
        Function(lambda x: _shared(x.mean((2, 3), True).view(-1, 2, 4).softmax(1)[..., None, None], x)),
        Function(lambda x: _shared(x.mean((2, 3)).view(-1, 2, 4, 1, 1).softmax(1), x)),
        _Tokens(),
        Function(lambda x: x * x.permute(0, 2, 3, 1).flatten(1, 2).mean(1, keepdim=True).view(-1, 8, 1, 1)),
        Function(lambda x: x * x.permute(0, 2, 3, 1).flatten(1, 2).sum(1)[..., None, None].tanh()),
        nn.AdaptiveMaxPool2d(4), nn.AdaptiveMaxPool2d((5, None)), nn.AdaptiveMaxPool2d(3),
        Function(lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[0]),
        nn.ConstantPad2d((2, -1, 0, 1), -3), nn.ConstantPad2d(-2, 7),
        nn.LayerNorm([8, 16, 16]), nn.LayerNorm([8, 16, 16], bias=False), nn.LayerNorm([16, 16]),
        nn.LPPool2d(2, 3), Function(lambda x: x * RAMP - RAMP[:, None]),
        Function(lambda x: torch.cat(x[:, :, :12].split((3, 9), 2)[::-1], 2).transpose(2, 3)),
        Function(lambda x: torch.cat(x.chunk(4, 3)[1:], 3).permute(0, 1, 3, 2)),
    ],
    ids=str,
)  # fmt: skip
def test_operators_are_taken_over(middle: nn.Module) -> None:
    net = Net(middle)
    if isinstance(middle, nn.Conv2d) and middle.out_channels == 12:
        net.fc = nn.Linear(12, 2)
    assert from_module(net, size=16).relative_error < 1e-5


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sum((2, 3), True) / 256,  # what the module computes of it may depend on the number
        lambda x: x[:, :, 2:14, 2:14], lambda x: x[:, :, :, 0:14:2], lambda x: x[:, :, -5:],
        lambda x: x[:, :, 1:, :12].relu()[:, :, ::2], lambda x: x.split((6, 10), 3)[1],
        lambda x: x.chunk(2, 2)[0],
        lambda x: nn.functional.interpolate(x, 10), lambda x: nn.functional.interpolate(x, scale_factor=0.5),
        lambda x: nn.functional.interpolate(nn.functional.max_pool2d(x, 5), x.shape[2:], mode="bilinear"),
        lambda x: x.relu() * nn.functional.avg_pool2d(x, x.shape[2:]),  # the sizes of its windows are numbers
        lambda x: x * nn.functional.max_pool2d(x, x.shape[2:]), lambda x: x[:, :, x.shape[2] // 2 :],
    ],
)  # fmt: skip
def test_what_depends_on_the_size_of_the_images_is_for_one_size(function: Callable[[Tensor], Tensor]) -> None:
    graph = from_module(Net(Function(function)), size=16).network.graph
    with pytest.raises(SlimdeployError, match=r"expects another image size: \d+×\d+ pixels"):
        graph.shapes(32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :, 1:-1, 2:], lambda x: x[:, :, 1::2, :-3:2], lambda x: x[:, :, 3:][:, :, :, 1:],
        lambda x: x * x.mean(3, keepdim=True),
        lambda x: torch.max(x.mean(3, keepdim=True), x), nn.functional.instance_norm,
    ],
)  # fmt: skip
@torch.no_grad()
def test_other_operators_are_for_every_size_of_the_images(function: Callable[[Tensor], Tensor]) -> None:
    module, images = Net(Function(function)).eval(), torch.randn(2, 3, 24, 24)
    network = from_module(module, size=16).network
    torch.testing.assert_close(network(images), module(images))


@torch.no_grad()
def test_one_pixel_that_is_enlarged_may_be_several_in_larger_images() -> None:
    enlarged = nn.Sequential(nn.MaxPool2d(16), nn.Upsample(scale_factor=4, mode="bilinear"))
    module = Net(nn.Sequential(enlarged, Function(torch.square)))
    network, images = from_module(module, size=16).network, torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), module(images))


def _by_matrices(x: Tensor, mask: Tensor) -> Tensor:
    return torch.bmm(x.flatten(2), mask.flatten(2).softmax(-1).transpose(1, 2))[..., None]


def _in_four_dimensions(x: Tensor, mask: Tensor) -> Tensor:
    n, c, h, w = x.shape
    shares = mask.view(n, 1, h * w).softmax(2).unsqueeze(-1)
    return torch.matmul(x.view(n, c, h * w).unsqueeze(1), shares).view(n, c, 1, 1)


def _by_a_sum(x: Tensor, mask: Tensor) -> Tensor:
    return (mask.flatten(2).softmax(2) * x.flatten(2)).sum(2, keepdim=True).unsqueeze(-1)


@pytest.mark.parametrize("context", [_by_matrices, _in_four_dimensions, _by_a_sum])
@torch.no_grad()
def test_a_mean_weighted_by_a_softmax_is_taken_over_for_every_size(context: Callable[..., Tensor]) -> None:
    class Context(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = nn.Conv2d(8, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + context(x, 9 * self.mask(x))

    module = Net(Context())
    network = from_module(module, size=16).network
    for size in (16, 24):
        images = 5 * torch.randn(3, 3, size, size)
        torch.testing.assert_close(network(images), module(images))


@torch.no_grad()
def test_constants_pass_through_arithmetic_and_norms() -> None:
    """A removed channel is f(β) of everything behind it: 1 − x makes a 1 of a 0."""
    torch.manual_seed(0)
    middle = nn.Sequential(
        nn.BatchNorm2d(8), nn.PReLU(8), Function(lambda x: 1 - x / 3), nn.InstanceNorm2d(8, affine=True)
    )
    network = from_module(Net(middle), size=16).network
    for norm in (network.get_submodule("middle.0"), network.get_submodule("middle.3")):
        norm.weight.uniform_(0.5, 1), norm.bias.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    (group,) = channel_groups(network.graph)
    pruned, folding = prune_network(network, [group], {group.name: np.array([0, 2, 3])})
    network.get_submodule("middle.0").weight[[1, 4, 5, 6, 7]] = 0  # type: ignore[index, operator]
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(pruned(images), network(images))
    assert folding.exact == ("fc",)


@pytest.mark.parametrize(
    ("function", "exact", "lost"),
    [
        (lambda x: x * x.mean(1, True).sigmoid(), (), ("middle.1.channel_mean", "fc")),
        (lambda x: torch.cat([x, x.mean(1, True)], 1)[:, :8], ("fc",), ("middle.1.channel_mean",)),
    ],
)
def test_folding_names_where_a_removed_channel_is_lost(
    function: Callable[[Tensor], Tensor], exact: tuple[str, ...], lost: tuple[str, ...]
) -> None:
    network = from_module(Net(nn.Sequential(nn.BatchNorm2d(8), Function(function))), size=16).network
    network.get_submodule("middle.0").bias.data.uniform_(0.5, 1)  # type: ignore[union-attr]
    groups = channel_groups(network.graph)
    _, folding = prune_network(network, groups, {group.name: np.array([0, 2, 3]) for group in groups})
    assert (folding.exact, folding.lost) == (exact, lost)
