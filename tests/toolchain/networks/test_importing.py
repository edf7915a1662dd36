"""Importing foreign modules: what is refused, by operator and module path, and the command as typed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.models.named_networks import foreign_module, named_network, parse_arguments
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Geometry, Preprocessing
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.published_weights import published_weights
from slimdeploy.toolchain.torchvision import import_torchvision

MODEL = """
import torch
from torch import nn

def build(width=1.0, num_classes=4):
    channels = int(8 * width)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(channels * 9, num_classes),
    )

def broken():
    raise RuntimeError("no weights\\nhere")

number = 3
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


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


SHARED, RAMP = nn.Conv2d(8, 8, 1), torch.linspace(0, 1, 16)

REFUSED = {
    "rolled": (_Net(_Function(lambda x: x.roll(1, 1))), "middle: aten.roll isn't supported"),
    "flipped": (_Net(_Function(lambda x: x.transpose(2, 3))), "middle: aten.transpose isn't supported"),
    "upside down": (
        _Net(_Function(lambda x: x.permute(0, 1, 3, 2))),
        "middle: aten.permute is supported from",
    ),
    "by pixels": (_Net(_Function(lambda x: x * RAMP)), "a parameter that isn't one value a channel"),
    "in rows": (_Net(nn.LayerNorm((8, 16, 16))), "middle: layer_norm is supported over the channels only"),
    "mirrored": (_Net(nn.ReflectionPad2d(1)), "middle: padding is supported with zeros"),
    "branching": (_Net(_Branching()), "does its forward branch on the values"),
    "shared": (_Net(nn.Sequential(SHARED, nn.ReLU(), SHARED)), "is called twice: shared weights"),
    "two outputs": (_Function(lambda x: (x, x)), "the module returns 2 outputs"),
    "a map": (nn.Conv2d(3, 2, 1), "returns (2, 2, 16, 16); expected (N, classes) logits"),
    "other images": (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), "doesn't accept images (2, 3, 16, 16)"),
    "no convolution": (nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), "the network has no convolution"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_said_is_refused(what: str) -> None:
    module, message = REFUSED[what]
    with pytest.raises(SlimdeployError) as refused:
        from_module(module, size=16)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


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
        nn.AdaptiveMaxPool2d(1), _Function(lambda x: 1 - x / 3), _Function(lambda x: x.clamp(-1, 1) * 2 - 1),
        _Function(lambda x: torch.cat([x[:, 3].unsqueeze(1), x[:, 1:]], 1)),
    ],
    ids=str,
)  # fmt: skip
def test_operators_are_taken_over(middle: nn.Module) -> None:
    net = _Net(middle)
    if isinstance(middle, nn.Conv2d) and middle.out_channels == 12:
        net.fc = nn.Linear(12, 2)
    assert from_module(net, size=16).relative_error < 1e-5


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(-1)], ids=str)
@torch.no_grad()
def test_a_softmax_at_the_end_is_left_out(end: nn.Module) -> None:
    module = nn.Sequential(_Net(nn.ReLU()), end)
    found, images = from_module(module, size=16), torch.randn(3, 3, 16, 16)
    assert "softmax" not in {node.operator for node in found.network.graph.nodes}
    torch.testing.assert_close(end(found.network(images)), module(images))


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


def test_arguments_are_literals() -> None:
    assert parse_arguments(("width=0.5", "act=relu", "sizes=(1, 2)")) == {
        "width": 0.5, "act": "relu", "sizes": (1, 2),
    }  # fmt: skip
    with pytest.raises(SlimdeployError, match="arguments width: write it as name=value"):
        parse_arguments(("width",))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:mobilenet_v7", "torchvision has no classifier 'mobilenet_v7'"),
        ("my_model.py:biuld", "has no function 'biuld'. Did you mean 'build'?"),
        ("my_model.py:broken", "can't be built: RuntimeError: no weights here"),
        ("my_model.py:number", "has no function 'number'"),
        ("nothing.py:build", "no file at"),
        ("resnet5O", "Did you mean 'resnet50'"),
    ],
)
def test_names_that_lead_nowhere(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(model_file.parent)
    with pytest.raises(SlimdeployError) as refused:
        named_network(name, size=16)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


USERS_FILE = """from __future__ import annotations
from dataclasses import dataclass
import torch
from {helper} import WIDTH

@dataclass
class Options:
    width: int = WIDTH

def build():
    from {helper} import WIDTH
    return torch.nn.Sequential(torch.nn.Conv2d(3, Options().width, 3), torch.nn.Flatten())

def leave():
    raise SystemExit(3)
"""


@pytest.mark.parametrize("helper", ["beside_a_file", "beside_in_a_package", ".beside", "..inner.beside"])
def test_a_users_file_imports_what_lies_beside_it(tmp_path: Path, helper: str) -> None:
    packaged = helper != "beside_a_file"
    folder = tmp_path / "users_package" / "inner" if packaged else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    if packaged:
        for package in (folder, folder.parent):
            (package / "__init__.py").touch()
    (folder / f"{helper.rpartition('.')[2]}.py").write_text("WIDTH = 5\n")
    (folder / "net.py").write_text(USERS_FILE.format(helper=helper))
    before = list(sys.path)
    try:
        module = foreign_module(f"{folder}/net.py:build")
        assert module(torch.ones(1, 3, 4, 4)).shape == (1, 5 * 4)
        with pytest.raises(SlimdeployError, match="can't be built: SystemExit: 3"):
            foreign_module(f"{folder}/net.py:leave")
        (folder / "ends.py").write_text("import sys; sys.exit(3)")
        with pytest.raises(SlimdeployError, match=r"ends\.py can't be imported: SystemExit: 3"):
            foreign_module(f"{folder}/ends.py:build")
        assert sys.path == before
    finally:
        for name in [name for name in sys.modules if "beside" in name or "users_package" in name]:
            del sys.modules[name]


def test_the_command_writes_a_checkpoint_that_every_other_takes(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    weights, output = tmp_path / "w.pth", tmp_path / "net.safetensors"
    scope: dict = {}
    exec(MODEL, scope)
    module = scope["build"](width=2.0)
    torch.save(module.state_dict(), weights)
    command = ["import", f"{model_file}:build", "--arg", "width=2.0", "--size", 16, "-o", output]
    done = slimdeploy_command(*command, "--weights", weights, "--json")
    assert done.exit_code == 0, done.err
    assert done.json["relative_error"] < 1e-5
    found = load_checkpoint(output)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found.network(images), module.eval()(images))
    assert slimdeploy_command("summary", output).exit_code == 0
    pruned = tmp_path / "pruned.safetensors"
    cut = slimdeploy_command("prune", output, "--ratio", 0.5, "--min-channels", 1, "--align", 1, "-o", pruned)
    assert cut.exit_code == 0, cut.err
    assert load_checkpoint(pruned).network.graph.channels["0"] == 8
    assert load_checkpoint(pruned).network(images).shape == (2, 4)


def test_weights_that_do_not_fit_name_the_first_keys(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    weights, output = tmp_path / "w.pth", tmp_path / "net.safetensors"
    torch.save({"0.weight": torch.zeros(8, 3, 5, 5), "conv.bias": torch.zeros(3)}, weights)
    done = slimdeploy_command(
        "import", f"{model_file}:build", "--weights", weights, "--size", 16, "-o", output
    )
    assert done.exit_code == 2
    assert (
        "the weights don't fit: 0.bias is missing; 1.weight is missing; 1.bias is missing (and" in done.error
    )
    assert not output.exists()


def test_preprocessing_is_as_given(slimdeploy_command: Callable, model_file: Path, tmp_path: Path) -> None:
    def imported(*options: object) -> tuple[Preprocessing, str]:
        output = tmp_path / "net.safetensors"
        done = slimdeploy_command("import", f"{model_file}:build", *options, "-o", output, "--force")
        assert done.exit_code == 0, done.err
        return load_checkpoint(output).info.preprocessing, done.err

    found, said = imported("--size", 16)
    assert found == Preprocessing(16, IMAGENET_MEAN, IMAGENET_STD)
    assert "std 0.229 0.224 0.225, the default unless an option overrides it" in said
    found, _ = imported("--preprocessing", "imagenet-bicubic", "--crop", 24)
    assert found.geometry == Geometry(24, 256, "bicubic")
    found, said = imported(
        "--resize", "20x24", "--crop", 18, "--interpolation", "bicubic", "--channels", "bgr",
        "--mean", .1, .2, .3, "--std", .4, .5, .6,
    )  # fmt: skip
    assert found == Preprocessing(18, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (20, 24), "bicubic", "bgr")
    assert "0.4 0.5 0.6, as given" in said
    done = slimdeploy_command(
        "import", f"{model_file}:build", "--mean", 123.6, .2, .3, "-o", tmp_path / "no.safetensors"
    )  # fmt: skip
    assert done.exit_code == 2
    assert "mean 123.6 is not possible for pixels in 0…1: divide by 255, 0.4847" in done.error


def test_weights_that_torchvision_publishes_are_told_by_their_hash() -> None:
    v1, v2 = (published_weights("resnet50", digits + 56 * "0") for digits in ("0676ba61", "11ad3fa6"))
    assert v1
    assert v1.preprocessing.geometry == Geometry(224, 256)
    assert v2
    assert v2.preprocessing.geometry == Geometry(224, 232)
    assert str(v2) == "ResNet50_Weights.IMAGENET1K_V2 (--preprocessing imagenet-v2)"
    assert v1.class_names[:2] == ("tench", "goldfish")
    bicubic = published_weights("efficientnet_b0", "7f5810bc" + 56 * "0")
    assert bicubic
    assert bicubic.preprocessing.interpolation == "bicubic"
    assert published_weights("resnet50", "f37072fd" + 56 * "0") is None  # of another network
    assert published_weights("tiny", 64 * "0") is None


def test_published_weights_bring_their_preprocessing_and_classes(
    slimdeploy_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, output = tmp_path / "renamed.pth", tmp_path / "net.safetensors"
    torch.save(import_torchvision().models.squeezenet1_1(weights=None).state_dict(), weights)
    monkeypatch.setattr(artifacts, "sha256_file", lambda path: "b8a52dc0" + 56 * "0")
    done = slimdeploy_command("import", "torchvision:squeezenet1_1", "--weights", weights, "-o", output)
    assert done.exit_code == 0, done.err
    info = load_checkpoint(output).info
    assert info.preprocessing == Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD, 256)
    assert (info.class_names[0], len(info.class_names)) == ("tench", 1000)
    assert "of SqueezeNet1_1_Weights.IMAGENET1K_V1 (--preprocessing imagenet), unless" in done.err
