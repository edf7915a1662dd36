"""Weights to start from: torchvision's, bare safetensors, slimdeploy's own."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from torch import nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Geometry, Preprocessing
from slimdeploy.toolchain.torchvision import import_torchvision
from slimdeploy.toolchain.training.pretrained import read_weights

Command = Callable[..., Any]


@pytest.fixture
def convert(slimdeploy_command: Command, image_folder: Path, tmp_path: Path) -> Command:
    """`train --weights FILE --epochs 0` on the three classes of the image folder."""

    def run(weights: Path, *arguments: object) -> Any:
        return slimdeploy_command(
            "train", "--weights", weights, "--epochs", 0, "--data", f"folder:{image_folder}",
            "-o", tmp_path / "out.safetensors", "--device", "cpu", "--json", *arguments,
        )  # fmt: skip

    return run


def network(classes: int = 3, *, stem: str = "cifar", widths: list[int] | None = None) -> GraphNetwork:
    return tiny.random_network(build_graph("tiny", stem=stem, classes=classes, channels=widths))


def assert_same(found: GraphNetwork, expected: GraphNetwork, *, classifier: bool = True) -> None:
    own = expected.state_dict()
    for name, tensor in found.state_dict().items():
        if classifier or not name.startswith("fc."):
            assert torch.equal(tensor, own[name]), name


def _named(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _zeros(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": _named("module.", s), "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)},
    "lightning": lambda s: {
        "state_dict": {**_named("model.", s), "criterion.weight": torch.ones(3)}, "callbacks": {},
    },
    "compiled": lambda s: {"model_state_dict": _named("_orig_mod.", s), "best": np.float64(0.9)},
    "compiled in parallel": lambda s: _named("module._orig_mod.", s),
    "backbone": lambda s: {"net": _named("backbone.", s)},
    "averaged beside": lambda s: {"state_dict_ema": _zeros(s), "state_dict": s},
    "averaged alone": lambda s: {"state_dict_ema": s},
    "contrastive": lambda s: {
        "state_dict": {
            **_named("module.encoder_k.", _zeros(s)), **_named("module.encoder_q.", s),
            "module.queue": torch.ones(2, 2),
        },
    },
    "behind a dropout": lambda s: {n.replace("fc.", "fc.1."): t for n, t in s.items()},
    "nested": lambda s: {"checkpoint": {"network": {"weights": s}}},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_in_any_wrapping_are_taken_over_bit_for_bit(tmp_path: Path, wrapping: str) -> None:
    expected = network()
    for name in ("in.pth", "in.pth.tar", "in"):
        torch.save(WRAPPINGS[wrapping](expected.state_dict()), tmp_path / name)
        found = read_weights(tmp_path / name, arch="tiny", stem="cifar")
        assert found.classifier
        assert_same(found.network, expected)


def test_a_torchvision_state_dict_becomes_a_checkpoint(convert: Command, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    done = convert(tmp_path / "in.pth", "--arch", "tiny", "--stem", "cifar")
    assert done.exit_code == 0, done.err
    found = load_checkpoint(tmp_path / "out.safetensors")
    assert_same(found.network, network())
    assert found.info.class_names == tiny.CLASSES
    assert done.json["epochs"] == 0


@pytest.mark.parametrize("kind", ["none", "two layers"])
def test_without_a_linear_classifier_one_is_drawn(convert: Command, tmp_path: Path, kind: str) -> None:
    state = {n: t for n, t in network().state_dict().items() if not n.startswith("fc.")}
    if kind == "two layers":
        state |= {"fc.0.weight": torch.ones(8, 32), "fc.2.weight": torch.ones(3, 8)}
    torch.save(state, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", "--arch", "tiny", "--stem", "cifar")
    assert done.exit_code == 0, done.err
    assert "new classifier for 3 classes" in done.err
    assert_same(load_checkpoint(tmp_path / "out.safetensors").network, network(), classifier=False)


def test_a_resnet_is_recognised_by_its_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = import_torchvision().models.resnet18(weights=None).state_dict()
    torch.save(_named("model.", expected), tmp_path / "r18")
    found = read_weights(tmp_path / "r18").network
    assert (found.graph.arch, found.graph.origin.get("stem")) == ("resnet18", "imagenet")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    said = " ".join(capsys.readouterr().err.split())
    assert "r18: recognised resnet18 by its blocks" in said
    assert "was never trained: its BN layers counted no batches" in said


def test_what_cannot_be_read_is_told_by_what_it_is(tmp_path: Path) -> None:
    def error(path: Path) -> str:
        with pytest.raises(SlimdeployError) as refused:
            read_weights(path, arch="tiny", stem="cifar")
        assert "\n" not in str(refused.value)
        return str(refused.value)

    scripted = tmp_path / "scripted.pt"
    torch.jit.trace(torch.nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8)).save(scripted)
    assert "is a TorchScript archive, which is a program" in error(scripted)
    assert f"torch.save(torch.jit.load('{scripted}').state_dict(), 'weights.pth')" in error(scripted)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    assert "a pickle with torch.nn.modules.linear.Linear, which can't be read safely; save" in error(
        tmp_path / "whole.pth"
    )
    names = [f"features.{i}.weight" for i in range(9)]
    other = error(_saved(tmp_path / "vgg.pth", {name: torch.ones(2, 2, 3, 3) for name in names}))
    assert "expected conv1.weight, " in other
    assert "found features.0.weight, features.1.weight" in other
    assert "(9 in all)" in other


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("fc.weight", lambda t: t.to_sparse(), "is a sparse tensor: save dense floating-point weights"),
        ("fc.weight", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
         "is a quantised tensor: save dense"),
        ("fc.weight", lambda t: t.to(torch.complex64), "is a complex tensor: save dense"),
        ("bn1.running_var", lambda t: -t, "contains negative variances"),
    ],
)  # fmt: skip
def test_tensors_that_no_network_takes_over(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    state = network().state_dict()
    state[name] = change(state[name])
    with pytest.raises(SlimdeployError, match=re.escape(f"{name} {said}")):
        read_weights(_saved(tmp_path / "w.pth", state), arch="tiny", stem="cifar")


def test_a_wrong_checksum_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _saved(tmp_path / "w.pth", network().state_dict())
    read_weights(path, arch="tiny", stem="cifar")
    assert "is damaged" not in capsys.readouterr().err
    content = bytearray(path.read_bytes())
    marked = np.asarray(network().state_dict()["fc.weight"]).tobytes()
    content[content.index(marked)] ^= 1
    path.write_bytes(content)
    read_weights(path, arch="tiny", stem="cifar")
    assert "is damaged, or was saved without checksums" in " ".join(capsys.readouterr().err.split())


def test_half_precision_safetensors_without_counters(convert: Command, tmp_path: Path) -> None:
    expected = network(widths=[5, 3, 4, 16, 2, 5, 24, 3, 3, 32, 4, 3, 32])
    state = {
        name: t if name.endswith("running_var") else t.half()
        for name, t in expected.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    done = convert(
        tmp_path / "in.safetensors", "--arch", "tiny", "--stem", "cifar",
        "--mean", .4914, .4822, .4465, "--std", .247, .2435, .2616,
    )  # fmt: skip
    assert done.exit_code == 0, done.err
    found = load_checkpoint(tmp_path / "out.safetensors")
    assert found.network.graph == expected.graph
    for name, tensor in found.network.state_dict().items():
        if name in state:
            assert torch.equal(tensor, state[name].float()), name
    assert found.info.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert found.info.preprocessing.std == (0.247, 0.2435, 0.2616)


def test_preprocessing_is_chosen_else_the_weights_own_else_the_datas(
    convert: Command, tmp_path: Path
) -> None:
    def preprocessing(weights: Path, *arguments: object) -> tuple[Any, str]:
        done = convert(weights, *arguments, "--force")
        assert done.exit_code == 0, done.err
        return load_checkpoint(tmp_path / "out.safetensors").info.preprocessing, done.err

    plain = _saved(tmp_path / "plain.pth", network().state_dict())
    imagenet = _saved(tmp_path / "imagenet.pth", network(stem="imagenet").state_dict())
    found, said = preprocessing(plain, "--arch", "tiny", "--stem", "cifar")
    assert found.mean not in ((0.5, 0.4, 0.3), IMAGENET_MEAN)
    assert "of the training data" in said
    found, said = preprocessing(imagenet, "--arch", "tiny", "--stem", "imagenet", "--size", 32)
    assert (found.mean, found.std, found.geometry) == (IMAGENET_MEAN, IMAGENET_STD, Geometry(32))
    assert (
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, of ImageNet, because the weights have its stem"
        in said
    )
    given = ("--resize", "20x24", "--crop", 18, "--interpolation", "bicubic", "--channels", "bgr")
    found, said = preprocessing(
        imagenet, "--arch", "tiny", "--stem", "imagenet", *given, "--mean", .1, .2, .3, "--std", .4, .5, .6
    )  # fmt: skip
    assert found == Preprocessing(18, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (20, 24), "bicubic", "bgr")
    assert (
        "preprocessing: 20×24, bicubic, centre 18×18, BGR; mean 0.1 0.2 0.3, std 0.4 0.5 0.6, as given"
        in said
    )
    (tmp_path / "out.safetensors").rename(tmp_path / "own.safetensors")
    again, said = preprocessing(tmp_path / "own.safetensors")
    assert again == found
    assert f"of {tmp_path}/own.safetensors" in said


def test_other_classes_get_a_new_classifier(convert: Command, tmp_path: Path) -> None:
    expected = network(classes=7)
    torch.save(expected.state_dict(), tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", "--arch", "tiny", "--stem", "cifar")
    assert "new classifier for 3 classes" in done.err
    found = load_checkpoint(tmp_path / "out.safetensors").network
    assert found.fc.weight.shape == (3, 32)
    assert_same(found, expected, classifier=False)


def test_a_checkpoint_brings_network_preprocessing_and_provenance(convert: Command, tmp_path: Path) -> None:
    parent = tiny.write_checkpoint(tmp_path / "in.safetensors", "tiny-deep")
    done = convert(parent)
    assert done.exit_code == 0, done.err
    found, expected = load_checkpoint(tmp_path / "out.safetensors"), load_checkpoint(parent)
    assert_same(found.network, expected.network)
    assert found.info.preprocessing == expected.info.preprocessing
    assert found.info.provenance[-1]["parent"] == expected.sha256


def test_a_checkpoint_goes_on_behind_another_stem_with_the_same_weights(
    convert: Command, tmp_path: Path
) -> None:
    parent = tiny.write_checkpoint(tmp_path / "in.safetensors", "tiny-deep")
    own = load_checkpoint(parent)
    other = {"cifar": "cifar-pool", "cifar-pool": "cifar"}[own.info.graph.origin["stem"]]
    assert convert(parent, "--stem", other).exit_code == 0
    found = load_checkpoint(tmp_path / "out.safetensors")
    assert found.info.graph.origin["stem"] == other
    assert_same(found.network, own.network)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(found.network(images), own.network(images))


def test_errors_are_one_line_each(convert: Command, tmp_path: Path) -> None:
    def error(weights: Path, *arguments: object) -> str:
        done = convert(weights, *arguments)
        assert done.exit_code == 2
        assert not (tmp_path / "out.safetensors").exists()
        return done.error

    tiny_options = ("--arch", "tiny", "--stem", "cifar")
    assert "no weights at" in error(tmp_path / "missing.pth")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print, protocol=2))
    assert "can't be read safely" in error(tmp_path / "evil.pth", *tiny_options)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "contains no state dict" in error(tmp_path / "list.pth", *tiny_options)
    (tmp_path / "half.safetensors").write_bytes(b"\x08")
    assert "is damaged" in error(tmp_path / "half.safetensors", *tiny_options)
    good = _saved(tmp_path / "good.pth", network().state_dict())
    assert "is missing; is it a tiny-deep?" in error(good, "--arch", "tiny-deep", "--stem", "cifar")
    assert "has a 3×3 stem, --stem imagenet is 7×7" in error(good, "--arch", "tiny", "--stem", "imagenet")
    assert "fc.extra is not part of a tiny" in error(
        _saved(tmp_path / "extra.pth", {**network().state_dict(), "fc.extra": torch.zeros(1)}), *tiny_options
    )
    checkpoint = tiny.write_checkpoint(tmp_path / "ours.safetensors")
    assert "is a tiny network, not resnet18: leave --arch out" in error(checkpoint, "--arch", "resnet18")
    assert "has a 3×3 stem, --stem imagenet is 7×7" in error(checkpoint, "--stem", "imagenet")
    assert "unknown stem 'pool'" in error(checkpoint, "--stem", "pool")
    assert "std must be above 0" in error(checkpoint, "--std", 0, 1, 1)


def _saved(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, path)
    return path


def test_a_network_whose_graph_depends_on_the_size_is_traced_at_that_of_the_data(
    slimdeploy_command: Callable[..., Any], tmp_path: Path
) -> None:
    """Its pooling covers the whole image, 16×16 pixels here; without --size it was traced at 224×224."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=10):\n"
        "        super().__init__()\n"
        "        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)\n\n"
        "    def forward(self, x):\n"
        "        x = self.conv(x).relu()\n"
        "        return self.fc(nn.functional.avg_pool2d(x, x.size(3)).flatten(1))\n"
    )
    module = nn.Sequential()
    module.conv, module.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    done = slimdeploy_command(
        "train", "--arch", f"{tmp_path / 'net.py'}:Net", "--weights", tmp_path / "net.pth",
        "--data", "digits", "--epochs", 0, "-o", tmp_path / "out.safetensors",
    )  # fmt: skip
    assert done.exit_code == 0, done.err
    assert torch.equal(load_checkpoint(tmp_path / "out.safetensors").network.conv.weight, module.conv.weight)
