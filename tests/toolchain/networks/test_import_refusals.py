"""What the import refuses, by operator and module path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slimdeploy.tests.toolchain.networks.example_modules import Blur, Borrowing, Function, Net, RowGate
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.importing import from_module


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


SHARED, RAMP = nn.Conv2d(8, 8, 1), torch.linspace(0, 1, 16)


REFUSED = {
    "rolled": (Net(Function(lambda x: x.roll(1, 1))), "middle: aten.roll isn't supported"),
    "mirrored": (Net(Function(lambda x: x.flip(3))), "aten.flip is supported for channels at constant"),
    "picked by a weight": (
        Net(Borrowing(nn.ReLU(), "layer(x)[:, extra.argsort()]")),
        "middle: aten.index is supported for channels at constant positions only",
    ),
    "rows as channels": (Net(Function(lambda x: x.transpose(1, 2)[:, :8])), "aten.transpose isn't supported"),
    "upside down": (
        Net(Function(lambda x: x.permute(0, 2, 1, 3)[:, :8])),
        "middle: aten.permute is supported from",
    ),
    "to a power, by pixels": (
        Net(Function(lambda x: (x.abs() + 1) ** RAMP)),
        "a parameter that isn't one value a channel or pixel",
    ),
    "in rows": (Net(nn.LayerNorm(16)), "middle: layer_norm is supported over the channels only"),
    "1-norm": (
        Net(Function(lambda x: x / x.norm(p=1, dim=(2, 3), keepdim=True))),
        "middle: norms other than the Euclidean one",
    ),
    "infinite borders": (
        Net(Function(lambda x: nn.functional.pad(x, (1, 0, 0, 0), value=-torch.inf).relu())),
        "middle: padding is supported on the four sides",
    ),
    "positions": (
        Net(Function(lambda x: x * nn.functional.max_pool2d(x, 1, return_indices=True)[1])),
        "of something that isn't an image",
    ),
    "circular": (Net(nn.CircularPad2d(1)), "middle: padding is supported on the four sides"),
    "alpha": (Net(Function(lambda x: torch.sub(x, x.relu(), alpha=2))), "sub with alpha"),
    "both expanded": (
        Net(Function(lambda x: x.mean((2, 3), True).expand_as(x) * x.amax((2, 3), True).expand_as(x))),
        "mul of two expanded images",
    ),
    "repeated": (
        Net(Function(lambda x: torch.cat([x[:, :4], x[:, 4:].mean((2, 3), True).expand(-1, -1, 16, 16)], 1))),
        "cat of something that isn't an image",
    ),
    "stretched": (
        Net(nn.Upsample(scale_factor=1.3)),
        "middle: resizing by 1.3×1.3 from 16×16 pixels isn't supported",
    ),
    "bicubic": (Net(nn.Upsample(32, mode="bicubic")), "middle: aten.upsample_bicubic2d isn't supported"),
    "volumes": (
        Net(Function(lambda x: nn.functional.avg_pool3d(x.unsqueeze(1), (3, 3, 3), 1, 1).squeeze(1))),
        "middle: avg_pool3d is supported over adjacent channels only",
    ),
    "windows that aren't centred": (
        Net(Function(lambda x: nn.functional.avg_pool3d(x.unsqueeze(1), (4, 1, 1), 1, (2, 0, 0))[:, 0, 1:])),
        "middle: avg_pool3d is supported over adjacent channels only",
    ),
    "even taps": (Net(RowGate(4)), "middle.conv: conv1d is supported with one filter along the channels"),
    "mean, then max": (
        Net(Function(lambda x: x * x.mean(3).amax(2)[..., None, None])),
        "amax over the axes",
    ),
    "one mean": (Net(Function(lambda x: x.mean(3)[..., None] * x)), "isn't supported"),
    "of all": (Net(Function(lambda x: x * torch.max(x))), "middle: max of all values isn't supported"),
    "in half": (Net(Function(lambda x: x.to(torch.bfloat16).float())), "middle: bfloat16 values aren't"),
    "where": (Net(Function(lambda x: x * x.max(1, True)[1])), "of something that isn't an image"),
    "mixed blocks": (
        Net(
            Function(
                lambda x: x.view(-1, 8, 8, 2, 8, 2).permute(0, 5, 1, 3, 2, 4).reshape(-1, 32, 8, 8)[:, :8]
            )
        ),
        "from N×2×8×2×8×8 to",
    ),
    "low threshold": (Net(nn.Softplus(threshold=8)), "softplus is supported with a threshold of at least 20"),
    "several filters": (Net(RowGate(3, 2)), "middle.conv: conv1d is supported with one filter"),
    "as a row": (
        Net(Function(lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1)[:, :8, None, None] * x)),
        "aten.reshape from N×16×16×8 to N×2048 isn't supported",
    ),
    "biased blur": (Net(Blur(bias=True)), "a buffer as the weight is supported as one filter per channel"),
    "tiled": (Net(Function(lambda x: x.repeat(1, 1, 2, 2))), "middle: aten.repeat isn't supported"),
    "no β": (
        Net(
            Borrowing(
                nn.BatchNorm2d(8), "F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight)"
            )
        ),
        "middle: batch_norm with a weight and no bias isn't supported",
    ),
    "every second channel": (
        Net(Function(lambda x: x[:, ::2].repeat(1, 2, 1, 1))),
        "middle: slices are supported along",
    ),
    "softmax of rows": (Net(Function(lambda x: x.softmax(2))), "middle: softmax is supported over channels"),
    "spread of rows": (Net(Function(lambda x: x - x.std(2, keepdim=True))), "std over the axes [2] isn't"),
    "summed": (Net(Function(lambda x: x * x.sum(2, keepdim=True))), "middle: sum is supported over"),
    "zeros alone": (
        Net(Function(lambda x: x + torch.zeros_like(x))),
        "aten.add.Tensor of something that isn't",
    ),
    "one logit": (nn.Sequential(nn.Conv2d(3, 1, 16), nn.Flatten()), "returns torch.cat([-x / 2, x / 2], 1)"),
    "branching": (Net(_Branching()), "does its forward branch on the values"),
    "recurrent": (
        Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), SHARED, nn.ReLU(), SHARED)),
        "a layer that reads its own output",
    ),
    "two outputs": (Function(lambda x: (x, x)), "the module returns a tuple of 2 outputs"),
    "a map": (nn.Conv2d(3, 2, 1), "returns (2, 2, 16, 16); expected (N, classes) logits"),
    "other images": (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten()), "doesn't accept images (2, 3, 16, 16)"),
    "normed vector": (
        Net(Function(lambda x: x * nn.functional.group_norm(x.mean((2, 3)), 2)[..., None, None])),
        "middle.group_norm: group_norm needs an image, not a vector",
    ),
    "in training": (
        Net(Function(lambda x: nn.functional.batch_norm(x, torch.zeros(8), torch.ones(8), training=True))),
        "middle: batch_norm with training=True",
    ),
    "no convolution": (nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), "the network has no convolution"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_said_is_refused(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    module, message = REFUSED[what]
    with pytest.raises(SlimdeployError) as refused:
        from_module(module, size=16)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", ""), "torch.export's logs and graphs are suppressed"
