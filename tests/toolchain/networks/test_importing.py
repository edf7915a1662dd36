"""Importing foreign modules: what is taken over, and what is refused, by operator and module path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.torchvision import import_torchvision


class _Net(nn.Module):
    """A classifier with `middle` between its convolution and its pooling."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.conv, self.middle, self.fc = nn.Conv2d(3, 8, 3, padding=1), middle, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.conv(x)).mean((2, 3)))


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _mbconv_settings() -> tuple[Any]:
    from torchvision.models.efficientnet import MBConvConfig

    return (MBConvConfig(2, 3, 1, 8, 8, 1, 1.0, 1.0),)


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class _RowGate(nn.Module):
    """ECA-Net's gate as timm writes it."""

    def __init__(self, taps: int = 3, filters: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, filters, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).view(len(x), 1, -1)).sigmoid()
        return x * gate[:, :1, : x.shape[1]].reshape(len(x), -1, 1, 1).expand_as(x)


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


class _Blur(nn.Module):
    """A fixed filter: one kernel, expanded as in timm, or one for each channel, as in antialiased-cnns."""

    def __init__(self, *, each: bool = False, bias: bool = False) -> None:
        super().__init__()
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.each, self.bias = each, torch.zeros(8) if bias else None
        self.register_buffer(
            "filt", kernel.repeat(8, 1, 1, 1) if each else kernel[None, None], persistent=each
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filt if self.each else self.filt.expand(8, -1, -1, -1)
        return nn.functional.conv2d(x, weight, self.bias, stride=2, padding=(1, 0), groups=8)


class _Smooth(nn.Module):
    """A fixed filter with padding by name."""

    def __init__(self, padding: str, rows: int = 3) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("filt", torch.rand(8, 1, rows, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.filt, padding=self.padding, groups=8)


class _Borrowing(nn.Module):
    """A layer called with a tensor that isn't the layer's own."""

    def __init__(self, layer: nn.Module, call: str) -> None:
        super().__init__()
        self.layer, self.call, self.extra = layer, call, nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return eval(self.call, {"x": x, "layer": self.layer, "extra": self.extra, "F": nn.functional})


class _Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.glu(self.offset - x, 1), x[:, :4]], 1)


SHARED, NORM, RAMP = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), torch.linspace(0, 1, 16)

REFUSED = {
    "rolled": (_Net(_Function(lambda x: x.roll(1, 1))), "middle: aten.roll isn't supported"),
    "flipped": (_Net(_Function(lambda x: x.transpose(2, 3))), "middle: aten.transpose isn't supported"),
    "upside down": (
        _Net(_Function(lambda x: x.permute(0, 1, 3, 2))),
        "middle: aten.permute is supported from",
    ),
    "by pixels": (_Net(_Function(lambda x: x * RAMP)), "a parameter that isn't one value a channel"),
    "in rows": (_Net(nn.LayerNorm((8, 16, 16))), "middle: layer_norm is supported over the channels only"),
    "1-norm": (
        _Net(_Function(lambda x: x / x.norm(p=1, dim=(2, 3), keepdim=True))),
        "middle: norms other than the Euclidean one",
    ),
    "infinite borders": (
        _Net(_Function(lambda x: nn.functional.pad(x, (1, 0, 0, 0), value=-torch.inf).relu())),
        "middle: padding is supported on the four sides",
    ),
    "circular": (_Net(nn.CircularPad2d(1)), "middle: padding is supported on the four sides"),
    "alpha": (_Net(_Function(lambda x: torch.sub(x, x.relu(), alpha=2))), "sub with alpha"),
    "both expanded": (
        _Net(_Function(lambda x: x.mean((2, 3), True).expand_as(x) * x.amax((2, 3), True).expand_as(x))),
        "mul of two expanded images",
    ),
    "repeated": (
        _Net(
            _Function(lambda x: torch.cat([x[:, :4], x[:, 4:].mean((2, 3), True).expand(-1, -1, 16, 16)], 1))
        ),
        "cat of something that isn't an image",
    ),
    "stretched": (_Net(nn.Upsample(24)), "middle: upsampling from 16×16 to 24×24 isn't a whole multiple"),
    "bilinear": (_Net(nn.Upsample(32, mode="bilinear")), "middle: aten.upsample_bilinear2d isn't supported"),
    "even taps": (_Net(_RowGate(4)), "middle.conv: conv1d is supported with one filter along the channels"),
    "mean, then max": (
        _Net(_Function(lambda x: x * x.mean(3).amax(2)[..., None, None])),
        "amax over the axes",
    ),
    "one mean": (_Net(_Function(lambda x: x.mean(3)[..., None] * x)), "isn't supported"),
    "of two": (_Net(_Function(lambda x: torch.max(x, -x))), "middle: max of two images, or of all values"),
    "where": (_Net(_Function(lambda x: x * x.max(1, True)[1])), "of something that isn't an image"),
    "mixed blocks": (
        _Net(
            _Function(
                lambda x: x.view(-1, 8, 8, 2, 8, 2).permute(0, 5, 1, 3, 2, 4).reshape(-1, 32, 8, 8)[:, :8]
            )
        ),
        "from N×2×8×2×8×8 to",
    ),
    "several filters": (_Net(_RowGate(3, 2)), "middle.conv: conv1d is supported with one filter"),
    "as a row": (
        _Net(_Function(lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1)[:, :8, None, None] * x)),
        "aten.reshape from N×16×16×8 to N×2048 isn't supported",
    ),
    "biased blur": (_Net(_Blur(bias=True)), "a buffer as the weight is supported as one filter per channel"),
    "tiled": (_Net(_Function(lambda x: x.repeat(1, 1, 2, 2))), "middle: aten.repeat isn't supported"),
    "another bias": (
        _Net(_Borrowing(nn.Conv2d(8, 8, 1, bias=False), "F.conv2d(x, layer.weight, extra)")),
        "middle: aten.conv2d.default without a parameter of its own called bias",
    ),
    "another γ": (
        _Net(
            _Borrowing(
                nn.BatchNorm2d(8, affine=False),
                "F.batch_norm(x, layer.running_mean, layer.running_var, extra, extra)",
            )
        ),
        "middle: aten.batch_norm.default without a parameter of its own called weight",
    ),
    "another module's bias": (
        _Net(
            _Borrowing(
                nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
                "x * F.linear(x.mean((2, 3)), layer[0].weight, layer[1].bias)[:, :, None, None]",
            )
        ),
        "middle: aten.linear.default with parameters of several modules",
    ),
    "no β": (
        _Net(
            _Borrowing(
                nn.BatchNorm2d(8), "F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight)"
            )
        ),
        "middle: batch_norm with a weight and no bias isn't supported",
    ),
    "every second channel": (
        _Net(_Function(lambda x: x[:, ::2].repeat(1, 2, 1, 1))),
        "middle: slices are supported along",
    ),
    "zeros alone": (
        _Net(_Function(lambda x: x + torch.zeros_like(x))),
        "aten.add.Tensor of something that isn't",
    ),
    "one logit": (nn.Sequential(nn.Conv2d(3, 1, 16), nn.Flatten()), "returns torch.cat([-x / 2, x / 2], 1)"),
    "branching": (_Net(_Branching()), "does its forward branch on the values"),
    "shared": (
        _Net(nn.Sequential(SHARED, nn.ReLU(), SHARED)),
        "middle.0: a layer that is called several times",
    ),
    "shared norm": (_Net(nn.Sequential(NORM, nn.ReLU(), NORM)), "is called twice: shared weights"),
    "recurrent": (
        _Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), SHARED, nn.ReLU(), SHARED)),
        "a layer that reads its own output",
    ),
    "two outputs": (_Function(lambda x: (x, x)), "the module returns a tuple of 2 outputs"),
    "a map": (nn.Conv2d(3, 2, 1), "returns (2, 2, 16, 16); expected (N, classes) logits"),
    "other images": (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten()), "doesn't accept images (2, 3, 16, 16)"),
    "no convolution": (nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), "the network has no convolution"),
}


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


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_said_is_refused(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    module, message = REFUSED[what]
    with pytest.raises(SlimdeployError) as refused:
        from_module(module, size=16)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", ""), "torch.export's logs and graphs are suppressed"


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
        *map(_GatedBy, SPELLINGS), _Offset(), _Blur(), _Blur(each=True),
        _Smooth("same"), _Smooth("same", 4), _Smooth("valid"),
        _RowGate(), _RowGate(5), nn.Upsample(scale_factor=2),
        _Function(lambda x: x.permute(0, 2, 3, 1).contiguous().relu().clone().permute(0, 3, 1, 2)),
        nn.Sequential(nn.MaxPool2d(4), nn.Upsample((12, 16))),
        _Function(lambda x: x.sigmoid() - x.tanh()), _Function(lambda x: x - x.mean((2, 3), True)),
        nn.AdaptiveMaxPool2d(1), _Function(lambda x: 1 - x / 3), _Function(lambda x: x.clamp(-1, 1) * 2 - 1),
        _Function(lambda x: torch.cat([x[:, 3].unsqueeze(1), x[:, 1:]], 1)),
        _Function(lambda x: x.view(-1, 2, 4, 16, 16).permute(0, 2, 1, 3, 4).reshape(x.shape)),
        _Function(lambda x: torch.cat([torch.zeros_like(x[:, :2]), x[:, :4], x.new_zeros(2, 2, 16, 16)], 1)),
        _Function(lambda x: x[:, :, ::2, ::2]), _Function(lambda x: x[..., ::3, :].relu()[..., ::5]),
        _Function(lambda x: nn.functional.pad(x[:, 1:6], (0, 0, 0, 0, 2, 1))),
        _Normalised(last=True), _Normalised(last=False), *map(_Function, WINDOWS),
        _Function(lambda x: x * x.mean(1, True).sigmoid()),
        _Function(lambda x: _joined(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        _Function(lambda x: x * x.max(1)[0][:, None].expand_as(x)),
        _Function(lambda x: x * x.mean(1).view(len(x), 1, 16, 16).sigmoid()),
        _Function(lambda x: torch.stack([x.mean(1), x[:, 3], x.amax(1)], 1).repeat(1, 3, 1, 1)[:, :8]),
        _Function(lambda x: x.mean((2, 3), True).expand_as(x) * x.mean(1, True).expand_as(x) + x),
    ],
    ids=str,
)  # fmt: skip
def test_operators_are_taken_over(middle: nn.Module) -> None:
    net = _Net(middle)
    if isinstance(middle, nn.Conv2d) and middle.out_channels == 12:
        net.fc = nn.Linear(12, 2)
    assert from_module(net, size=16).relative_error < 1e-5


def test_a_layer_of_several_calls_is_one_layer() -> None:
    """Multi-sample dropout (Inoue, arXiv 1905.09788): the last layer is called on several dropouts."""

    class Samples(_Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu().mean((2, 3))
            samples = [self.fc(self.middle(x)) for _ in range(4)]
            return (torch.stack(samples).mean(0) + sum(samples) / 4) / 2

    module = Samples(nn.Dropout())
    network = from_module(module, size=16).network
    assert network.state_dict().keys() == module.state_dict().keys()
    images = torch.randn(2, 3, 16, 16)
    network.train()
    assert not torch.equal(network(images), network(images))


def test_the_stride_of_a_layer_of_several_calls_skips_none_of_them() -> None:
    layer = nn.Conv2d(8, 8, 1, stride=2)
    both = _Function(lambda x: layer(x.mean((2, 3), True)) + layer(x.amax((2, 3), True)))
    both.layer = layer
    assert from_module(_Net(both), size=16).relative_error < 1e-5


def test_a_layer_of_several_calls_needs_single_pixels_at_every_size() -> None:
    """Its images have one pixel at the size of the import only: elsewhere the calls would be mixed."""
    layer = nn.Conv2d(8, 8, 1)
    both = _Function(lambda x: layer(x) + layer(x.relu()))
    both.layer = layer
    graph = from_module(_Net(nn.Sequential(nn.MaxPool2d(16), both)), size=16).network.graph
    with pytest.raises(SlimdeployError, match="expects another image size: 2×2 pixels"):
        graph.shapes(32)


def test_a_layer_may_be_called_like_an_operator() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add, self.concat = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 8, 1)
            self.dropout = nn.Sequential(nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.add(x + x)
            x = self.concat(torch.cat([x, x.sigmoid()], 1))
            return nn.functional.dropout(self.dropout(x.mean((2, 3))), training=self.training)

    module = Named()
    assert from_module(module, size=16).network.state_dict().keys() == module.state_dict().keys()


def test_one_logit_is_taken_as_two() -> None:
    """As the error for a binary classifier advises."""
    single = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )
    both = nn.Sequential(single, _Function(lambda x: torch.cat([-x / 2, x / 2], 1)))
    network, images = from_module(both, size=16).network, torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images).softmax(1)[:, 1:], single(images).sigmoid())


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout2d(0.5)], ids=str)
@torch.no_grad()
def test_dropout_drops_the_same_in_training(dropout: nn.Module) -> None:
    module = _Net(dropout)
    found, images = from_module(module, size=16).network.train(), torch.randn(4, 3, 16, 16)
    logits = []
    for one in (module.train(), found):
        torch.manual_seed(5)
        logits.append(one(images))
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(-1), nn.Sigmoid()], ids=str)
@torch.no_grad()
def test_a_softmax_or_sigmoid_at_the_end_is_left_out(end: nn.Module) -> None:
    module = nn.Sequential(_Net(nn.ReLU()), end)
    found, images = from_module(module, size=16), torch.randn(3, 3, 16, 16)
    assert found.network.graph.nodes[-1].operator == "linear"
    torch.testing.assert_close(end(found.network(images)), module(images))
    assert bool(found.remark) == isinstance(end, nn.Sigmoid)


@torch.no_grad()
def test_constants_pass_through_arithmetic_and_norms() -> None:
    """A removed channel is f(β) of everything behind it: 1 − x makes a 1 of a 0."""
    torch.manual_seed(0)
    middle = nn.Sequential(
        nn.BatchNorm2d(8), nn.PReLU(8), _Function(lambda x: 1 - x / 3), nn.InstanceNorm2d(8, affine=True)
    )
    network = from_module(_Net(middle), size=16).network
    for norm in (network.get_submodule("middle.0"), network.get_submodule("middle.3")):
        norm.weight.uniform_(0.5, 1), norm.bias.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    (group,) = channel_groups(network.graph)
    pruned, folding = prune_network(network, [group], {group.name: np.array([0, 2, 3])})
    network.get_submodule("middle.0").weight[[1, 4, 5, 6, 7]] = 0  # type: ignore[index, operator]
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(pruned(images), network(images))
    assert folding.exact == ("fc",)


def test_rounding_that_a_network_amplifies_is_told_from_another_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, forward = _Net(nn.ReLU()), GraphNetwork.forward

    def rounded(network: GraphNetwork, images: Tensor) -> Tensor:
        found = forward(network, images)
        return found * (1 + 1e-3) if found.dtype == torch.float32 else found

    monkeypatch.setattr(GraphNetwork, "forward", rounded)
    assert from_module(module, size=16).relative_error == pytest.approx(1e-3, rel=0.1)
    monkeypatch.setattr(
        GraphNetwork, "forward", lambda network, images: forward(network, images) * (1 + 1e-3)
    )
    with pytest.raises(SlimdeployError, match=r"logits differ from the module's by 1\.0e-03"):
        from_module(module, size=16)


@pytest.mark.parametrize("gamma", [0, 1e-6])
@pytest.mark.parametrize("same", [True, False])
def test_a_branch_that_is_scaled_by_almost_nothing_is_compared(gamma: float, same: bool) -> None:
    """Repeating one pixel before a padded convolution isn't taken over: only the logits tell it."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            nn.init.constant_(self.norm.weight, gamma)

        def forward(self, x: Tensor) -> Tensor:
            gate = x.mean((2, 3), True).expand_as(x) * (x if same else x.amax((2, 3), True))
            return x + self.norm(self.conv(gate))

    module = _Net(Branch())
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if same:
        network = from_module(module, size=16).network
        assert torch.all(network.get_submodule("middle.norm").weight == gamma)  # type: ignore[arg-type]
    else:
        with pytest.raises(SlimdeployError, match="logits differ"):
            from_module(module, size=16)
    torch.testing.assert_close(module.state_dict(), weights, rtol=0, atol=0)


def test_a_stochastic_depth_with_two_names_is_taken_over_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = import_torchvision().ops.StochasticDepth(0.5, "row")

        def forward(self, x: Tensor) -> Tensor:
            return x + self.one(x.relu()) + self.other(x.sigmoid())

    graph = from_module(_Net(Shared()), size=16).network.graph
    assert [node.operator for node in graph.nodes].count("stochastic_depth") == 2


def test_stochastic_depth_is_taken_over() -> None:
    module = import_torchvision().models.efficientnet.MBConv(
        *_mbconv_settings(), stochastic_depth_prob=0.25, norm_layer=nn.BatchNorm2d
    )
    network = from_module(_Net(module), size=16).network
    (node,) = (node for node in network.graph.nodes if node.operator == "stochastic_depth")
    assert (node.name, node.attributes["share"]) == ("middle.stochastic_depth", 0.25)
    branch = network.get_submodule(node.name).train()
    torch.manual_seed(0)
    found = branch(torch.ones(400, 2, 3, 3)).flatten(1)
    torch.testing.assert_close(found.unique(), torch.tensor([0, 4 / 3]))
    assert (found[:, :1] == found).all()
    assert 0.15 < (found[:, 0] == 0).float().mean() < 0.35
