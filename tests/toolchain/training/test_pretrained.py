"""Weights to start from: torchvision's, bare safetensors, slimdeploy's own."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch

from slimdeploy.toolchain.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Geometry, Preprocessing

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


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_torchvision_state_dict_is_taken_over_bit_for_bit(
    convert: Command, tmp_path: Path, wrapper: str | None
) -> None:
    expected = network()
    state = {f"module.{n}" if wrapper else n: t for n, t in expected.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", "--arch", "tiny", "--stem", "cifar")
    assert done.exit_code == 0, done.err
    found = load_checkpoint(tmp_path / "out.safetensors")
    assert_same(found.network, expected)
    assert found.info.class_names == tiny.CLASSES
    assert done.json["epochs"] == 0


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
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, of ImageNet, as the weights have its stem" in said
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
    whole = tmp_path / "whole.pth"
    torch.save(network(), whole)
    assert "can be read safely" in error(whole, *tiny_options)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print, protocol=2))
    assert "can be read safely" in error(tmp_path / "evil.pth", *tiny_options)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in error(tmp_path / "list.pth", *tiny_options)
    (tmp_path / "half.safetensors").write_bytes(b"\x08")
    assert "is damaged" in error(tmp_path / "half.safetensors", *tiny_options)
    good = tmp_path / "good.pth"
    torch.save(network().state_dict(), good)
    assert "is missing; is it a resnet50?" in error(good, "--stem", "cifar")
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
