"""Parameters that no layer of torch.nn owns, or that several calls use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimdeploy.tests.toolchain.networks.example_modules import Borrowing, Function, Net
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.importing import Imported, from_module
from slimdeploy.toolchain.training.pretrained import read_weights


class _Head(nn.Module):
    """A convolution, and a classifier that `call` computes of the vector v and the parameters w (8, 4),
    u (4, 8) and b (4,).
    """

    def __init__(self, call: Callable[[_Head, Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.conv, self.head = call, nn.Conv2d(3, 8, 3), nn.Module()
        self.w, self.u, self.b = (nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (4, 8), (4,)))
        self.head.kernel, self.head.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.conv(x).mean((2, 3)))


HEADS: dict[str, tuple[Callable[[_Head, Tensor], Tensor], set[str]]] = {
    "@": (lambda own, v: v @ own.w, {"w.weight"}),
    "@ and bias": (lambda own, v: torch.matmul(v, own.w) + own.b, {"w.weight", "b"}),
    "mm of its transpose": (lambda own, v: v.mm(own.u.t()), {"u.weight"}),
    "addmm": (lambda own, v: torch.addmm(own.b, v, own.w), {"w.weight", "w.bias"}),
    "linear": (lambda own, v: functional.linear(v, own.u, own.b), {"u.weight", "u.bias"}),
    "in a module": (lambda own, v: v @ own.head.kernel + own.head.bias, {"head.weight", "head.bias"}),
    "addmm in a module": (
        lambda own, v: torch.addmm(own.head.bias, v, own.head.kernel), {"head.weight", "head.bias"},
    ),
    "cosine": (lambda own, v: functional.normalize(v) @ functional.normalize(own.w, dim=0), {"w.weight"}),
    "two": (lambda own, v: (v @ own.w) @ own.u @ own.w, {"w.weight", "u.weight", "w_2.weight"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_classifier_may_be_a_product(name: str) -> None:
    call, expected = HEADS[name]
    module, images = _Head(call), torch.randn(3, 3, 16, 16)
    network = from_module(module, size=16).network
    torch.testing.assert_close(network(images), module(images))
    assert network.state_dict().keys() == {"conv.weight", "conv.bias"} | expected


def test_a_product_of_two_images_is_refused() -> None:
    with pytest.raises(SlimdeployError, match=r"aten\.matmul of two images isn't supported"):
        from_module(Net(Function(lambda x: x @ x)), size=16)


SHARED, NORM = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
BORROWED: dict[str, tuple[nn.Module, set[str]]] = {
    "bias": (
        Borrowing(nn.Conv2d(8, 8, 1, bias=False), "F.conv2d(x, layer.weight, extra)"),
        {"layer.weight", "layer.bias"},
    ),
    "bias of a copy": (
        Borrowing(
            nn.Conv2d(8, 8, 1),
            "(lambda y: (y.clone() + layer.bias.view(1, -1, 1, 1)) * y)(F.conv2d(x, layer.weight))",
        ),
        {"layer.weight", "layer.bias_2"},
    ),
    "γ": (
        Borrowing(
            nn.BatchNorm2d(8, affine=False),
            "F.batch_norm(x, layer.running_mean, layer.running_var, extra, extra)",
        ),
        {f"layer.{part}" for part in NORM.state_dict()},
    ),
    "another module's bias": (
        Borrowing(
            nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
            "x * F.linear(x.mean((2, 3)), layer[0].weight, layer[1].bias)[:, :, None, None]",
        ),
        {"layer.0.weight", "layer.0.bias"},
    ),
    "twice the weight": (
        Borrowing(
            nn.Linear(8, 8, bias=False),
            "x * (layer(x.mean((2, 3))) + F.linear(x.mean((2, 3)), layer.weight * 2))[:, :, None, None]",
        ),
        {"layer.weight", "layer_2.weight"},
    ),
    "factor": (Borrowing(nn.ReLU(), "layer(x * extra[0]) * extra[0]"), {"extra", "extra_2"}),
    "one product, twice": (
        Borrowing(nn.ReLU(), "x * extra[:, None, None] + layer(x * extra[:, None, None])"),
        {"extra"},
    ),
    "threshold": (Borrowing(nn.ReLU(), "layer(x.max(extra[:, None, None]))"), {"extra"}),
    "ceiling": (Borrowing(nn.ReLU(), "layer(-x.minimum(extra.view(1, -1, 1, 1)))"), {"extra"}),
    "shared layer": (
        nn.Sequential(SHARED, nn.ReLU(), SHARED, nn.ReLU(), SHARED),
        {f"{name}.{part}" for name in ("4", "4_2", "4_3") for part in ("weight", "bias")},
    ),
    "shared norm": (
        nn.Sequential(NORM, nn.ReLU(), NORM),
        {f"{name}.{part}" for name in ("2", "2_2") for part in NORM.state_dict()},
    ),
}


def _import(middle: nn.Module) -> tuple[Net, Imported]:
    module = Net(middle).eval()
    for name, tensor in module.named_buffers():
        if "running" in name:
            tensor.uniform_(0.5, 1)
    return module, from_module(module, size=16)


@pytest.mark.parametrize("name", BORROWED)
@torch.no_grad()
def test_a_parameter_may_be_used_anywhere(name: str) -> None:
    middle, expected = BORROWED[name]
    module, found = _import(middle)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(found.network(images), module(images))
    own = {key.removeprefix("middle.") for key in found.network.state_dict() if key.startswith("middle.")}
    assert own == expected


def test_a_parameter_may_be_moved_to_the_images() -> None:
    _, found = _import(Borrowing(nn.ReLU(), "x * extra.to(x.device)[:, None, None].type_as(x)"))
    assert found.remarks == ()
    assert "computed" not in found.network.graph.origin
    module, found = _import(Borrowing(nn.ReLU(), "x * extra.exp().type_as(x)[:, None, None]"))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found.network(images), module(images))


@torch.no_grad()
def test_channels_are_picked_beside_a_counter() -> None:
    """Which isn't computed for the constant positions."""

    class Counting(_Keeping):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x[:, [1, 0, 2, 3, 4, 5, 6, 7]]

    module, images = Net(Counting()), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(from_module(module, size=16).network(images), module(images))


def test_copies_of_shared_weights_are_reported() -> None:
    _, found = _import(BORROWED["shared layer"][0])
    (remark,) = found.remarks
    assert remark.startswith("middle.4.weight and 1 more: the module uses the values several times")
    assert "a copy for each use" in remark
    assert found.network.graph.origin["computed"] == [
        f"middle.{name}.{part}" for name in ("4_2", "4_3") for part in ("weight", "bias")
    ]


class _Numbered(nn.Module):
    """Layers that are called like copies of others, and like an operator; and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_2 = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 8, 3)
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.second.weight = self.first.weight
        self.ones, self.scale = nn.Linear(8, 2), nn.Parameter(torch.rand(8, 1, 1))
        self.scale_2 = nn.Sequential(nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.conv_2(self.conv(self.conv(x)))).relu()) * torch.ones(8, 1, 1)
        return self.ones((self.scale_2((x * self.scale).relu()) * self.scale).mean((2, 3)))


@torch.no_grad()
def test_a_copy_takes_no_name_of_another_layer() -> None:
    module = _Numbered().eval()
    found, images = from_module(module, size=16), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(found.network(images), module(images))
    own, state = found.network.state_dict(), module.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    assert own.keys() - state.keys() == {"conv_3.weight", "conv_3.bias", "scale_3", "ones_2"}


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "ones": lambda x: x * (torch.ones(8, 1, 1) * 2),
    "full": lambda x: x + torch.full((1, 8, 1, 1), 0.5),
    "zeros": lambda x: x + torch.zeros(8, 1, 1),
    "linspace": lambda x: x * torch.linspace(0, 1, 8).view(1, -1, 1, 1),
    "arange": lambda x: x / (1 + torch.arange(8.0))[:, None, None],
    "tensor": lambda x: x * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]).view(-1, 1, 1),
    "box filter": lambda x: functional.conv2d(x, torch.ones(8, 1, 3, 3) / 9, padding=1, groups=8),
    "diagonal": lambda x: x * torch.eye(8).sum(1)[:, None, None],
}


@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_forward_may_make_constants(name: str) -> None:
    module, images = Net(Function(MADE[name])), torch.randn(3, 3, 16, 16)
    found = from_module(module, size=16)
    torch.testing.assert_close(found.network(images), module(images))
    assert found.remarks == ()
    assert {name for name, _ in found.network.named_parameters()} == module.state_dict().keys()


def test_a_state_dict_without_these_constants_can_be_read(tmp_path: Path) -> None:
    source, weights = tmp_path / "net.py", tmp_path / "net.pth"
    source.write_text(CONSTANTS)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    torch.save({"conv.weight": module[0].weight, "conv.bias": module[0].bias, "fc.weight": module[2].weight,
                "fc.bias": module[2].bias}, weights)  # fmt: skip
    network = read_weights(weights, arch=f"{source}:build", size=lambda: 16).network
    assert torch.equal(network.state_dict()["conv.weight"], module[0].weight)
    assert torch.equal(network.state_dict()["blur"], torch.full((8, 1, 3, 3), 1 / 9))


CONSTANTS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x):
        x = self.conv(x) * torch.linspace(0, 1, 8)[:, None, None] + torch.ones(8, 1, 1) / 2
        return self.fc(torch.conv2d(x, self.blur, groups=8).mean((2, 3)))

def build():
    return Net()
"""


class _Keeping(nn.Module):
    """Changes its tensors in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("largest", torch.zeros(8))
        self.register_buffer("scale", None)
        self.ready = False
        self.weight = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.ready, self.scale = True, torch.ones(8, 1, 1)
            self.register_buffer("grid", torch.arange(8.0)[:, None, None])
        x = x * self.scale + self.grid
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        with torch.no_grad():
            self.largest.copy_(x.amax((0, 2, 3)))
            self.weight.clamp_(max=0.5)
        return x * self.weight


def test_a_module_is_left_as_it_was() -> None:
    module = Net(_Keeping()).train()
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    network = from_module(module, size=16).network
    after = dict(module.named_parameters()) | dict(module.named_buffers())
    assert all(after[name] is tensor and torch.equal(tensor, before[name]) for name, tensor in own.items())
    assert after.keys() == before.keys()
    assert module.middle.scale is None
    assert module.training
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(network(images), module(images))
