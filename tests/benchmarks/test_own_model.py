"""docs/own-model.md as it is printed: a torchvision network and a folder of photos to a device, unchanged."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from slimdeploy.benchmarks import own_model
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.models.named_networks import named_network
from slimdeploy.toolchain.torchvision import import_torchvision


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and `weights.ckpt`, a torchvision ResNet-18 that has seen a batch of noise."""
    folder = tmp_path_factory.mktemp("own")
    own_model.draw_photos(folder / "photos", train=3, test=2)
    torch.manual_seed(0)
    network = import_torchvision().models.resnet18(num_classes=len(own_model.CLASSES))
    network(torch.randn(8, 3, 64, 64))
    with torch.no_grad():
        network.fc.weight *= 20  # so that probabilities aren't all alike
    own_model.save_weights(network, folder / "weights.ckpt")
    return folder


@pytest.fixture
def inside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder with both, whose `device` is the device."""
    for name in ("photos", "weights.ckpt"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIMDEPLOY_HOME", str(tmp_path / "device"))
    return tmp_path


def test_the_classifier_that_arrives_is_the_one_that_left(slimdeploy_command: Callable, inside: Path) -> None:
    commands = own_model.printed_commands("To a device")
    assert [shlex.split(command)[1] for command in commands] == [
        "train", "export", "package", "deploy", "classify"
    ]  # fmt: skip
    for command in commands:
        ran = slimdeploy_command(*shlex.split(command)[1:])
        assert ran.exit_code == 0, ran.err
    expected = own_model.torchvision_probabilities(Path("photos"), Path("weights.ckpt"))
    assert np.ptp([p.max() for p in expected.values()]) > 0.01
    ran = slimdeploy_command("classify", "photos/test", "--top", 4, "--json")
    found = own_model.difference(expected, json.loads(ran.out)["results"], Path())
    assert (found.files, found.other_top) == (8, 0)
    assert found.probability < 1e-5


def test_the_benchmark_finds_the_commands_of_all_its_sections() -> None:
    assert all(own_model.printed_commands(section) for section in own_model.SECTIONS)


def test_the_recipe_does_the_whole_of_it(slimdeploy_command: Callable, inside: Path) -> None:
    """Of a tiny ResNet at 32 pixels, with an epoch of fine-tuning and short measurements."""
    network = named_network("tiny-basic", size=32, stem="imagenet", classes=4, seed=1)
    Path("weights.ckpt").unlink()
    own_model.save_weights(network, Path("weights.ckpt"))
    settings = (
        "network.arch=tiny-basic", "network.stem=imagenet", "data.preprocessing=none", "data.resize=40",
        "data.size=32", "finetune.epochs=1", "bench.seconds=0.01", "bench.launches=2", "bench.batch=[1]",
        "calibrate.max_drop=100", "calibrate.timing_seconds=0.1", "prune.recalibration_images=8",
        "prune.statistics_images=16", "prune.align=1", "prune.ratio=0.3", "train.validation=0.2",
    )  # fmt: skip
    ran = slimdeploy_command("run", "own-model", *(part for one in settings for part in ("--set", one)))
    assert ran.exit_code == 0, ran.err
    folder = Path("runs/own-model")
    for name in ("final.int8.onnx", "final.slim.tar", "report.html", "table.json", "original.onnx"):
        assert (folder / name).is_file(), name
    sparse, own = load_checkpoint(folder / "sparse.safetensors"), network.state_dict()
    for name, tensor in sparse.network.state_dict().items():
        torch.testing.assert_close(tensor, own[name])
    assert sparse.info.preprocessing.resize == 40
    assert sparse.info.preprocessing.mean == (0.485, 0.456, 0.406), "as the weights have ImageNet's stem"
    final = load_checkpoint(folder / "final.safetensors").info
    assert final.preprocessing == sparse.info.preprocessing
    assert final.provenance[-1]["options"]["augmentation"] == "imagenet"
    title = json.loads((folder / "table.json").read_text())["title"]
    assert title.startswith("own-model: tiny-basic, stem imagenet, on folder:photos")
