"""The checkpoint: it rebuilds its network by itself, and whatever else lies there is refused."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from strategies import network_specs
from tiny import model_info, random_network, write_checkpoint

from slimdeploy.toolchain.artifacts import sha256_file
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import (
    HEADER_KEY,
    load_checkpoint,
    read_safetensors,
    save_checkpoint,
)
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.memory_layout import place


@given(network_specs())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, spec: Graph) -> None:
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    network, info = random_network(spec), model_info(spec)
    info = replace(info, metrics={"accuracy": {"test": 0.5}}, provenance=({"stage": "train", "seed": 3},))
    sha256 = save_checkpoint(path, network, info)
    found = load_checkpoint(path)
    assert found.info == info
    assert found.sha256 == sha256 == sha256_file(path)
    assert not found.network.training
    before, after = network.state_dict(), found.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_channels_last_weights_are_kept(tmp_path: Path) -> None:
    network = place(random_network(build_graph("tiny")), "cpu")
    save_checkpoint(tmp_path / "x", network, model_info(network.graph))
    found = load_checkpoint(tmp_path / "x").network
    assert torch.equal(found.weight("layer1.0.conv2"), network.weight("layer1.0.conv2"))


def _rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change the header document and the tensors of a checkpoint."""
    header, tensors = read_safetensors(path)
    document = json.loads(header[HEADER_KEY])
    change(document, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {HEADER_KEY: json.dumps(document)}))


def _missing_tensor(path: Path) -> str:
    _rewrite(path, lambda _, tensors: tensors.pop("layer1.0.conv2.weight"))
    return f"{path}: layer1.0.conv2.weight is missing"


def _wrong_shape(path: Path) -> str:
    _rewrite(path, lambda _, tensors: tensors.update({"fc.bias": torch.zeros(4)}))
    return f"{path}: fc.bias has shape (4,), expected (3,)"


def _not_finite(path: Path) -> str:
    _rewrite(path, lambda _, tensors: tensors["fc.bias"].fill_(float("nan")))
    return f"{path}: fc.bias contains NaN or infinite values"


def _surplus_tensor(path: Path) -> str:
    _rewrite(path, lambda _, tensors: tensors.update({"layer1.7.conv1.weight": torch.zeros(4)}))
    return f"{path}: layer1.7.conv1.weight is not part of a tiny"


def _newer_format(path: Path) -> str:
    _rewrite(path, lambda document, _: document.update(format=3))
    return f"{path}: format 3; this slimdeploy reads up to 2"


def _inconsistent_channels(path: Path) -> str:
    _rewrite(path, lambda document, _: document["network"]["nodes"][1]["attributes"].update(channels=7))
    return f"{path}: bn1 has 7 channels, but gets 8"


def _class_names(path: Path) -> str:
    _rewrite(path, lambda document, _: document["class_names"].append("fourth"))
    return f"{path}: 3 classes, but 4 class names"


def _unknown_arch(path: Path) -> str:
    first = {"arch": "resnet51", "stem": "cifar", "classes": 3, "channels": [8], "shortcut_affine": False}
    _rewrite(path, lambda document, _: document.update(format=1, network=first))
    return f"{path}: unknown arch 'resnet51'; known: "


def _unknown_operator(path: Path) -> str:
    _rewrite(path, lambda document, _: document["network"]["nodes"][2].update(operator="rleu"))
    return f"{path}: unknown operator 'rleu'; known: "


def _no_network(path: Path) -> str:
    _rewrite(path, lambda document, _: document.pop("network"))
    return f"{path}: damaged description of the network (KeyError('network'))"


def _no_json(path: Path) -> str:
    _, tensors = read_safetensors(path)
    path.write_bytes(safetensors.torch.save(tensors, {HEADER_KEY: "{"}))
    return f"{path}: damaged description of the network: Expecting property name"


def _other_header(path: Path) -> str:
    _, tensors = read_safetensors(path)
    path.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    return (
        f"{path}: a safetensors file without a slimdeploy header; convert it with: "
        f"slimdeploy train --weights {path} --arch … --epochs 0"
    )


def _cut_off(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return f"{path} is not a safetensors file, or is damaged ("


def _empty(path: Path) -> str:
    path.write_bytes(b"")
    return f"{path} is not a safetensors file, or is damaged ("


def _gone(path: Path) -> str:
    path.unlink()
    return f"no checkpoint at {path}"


@pytest.mark.parametrize(
    "spoil",
    [_missing_tensor, _wrong_shape, _not_finite, _surplus_tensor, _newer_format, _inconsistent_channels,
     _class_names, _unknown_arch, _unknown_operator, _no_network, _no_json, _other_header, _cut_off, _empty,
     _gone],
)  # fmt: skip
def test_whatever_is_wrong_is_named(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors")
    message = spoil(path)
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}") as refused:
        load_checkpoint(path)
    assert "\n" not in str(refused.value)


class Trap:
    """Pickled, it creates a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("zipped", [False, True])
def test_no_pickle_is_read(slimdeploy_command: Callable, tmp_path: Path, zipped: bool) -> None:
    path, target = tmp_path / "x.safetensors", tmp_path / "executed"
    if zipped:
        torch.save({"state_dict": Trap(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(target)))
    ran = slimdeploy_command("summary", path)
    assert ran.exit_code == 2
    assert ran.error.startswith(f"{path} is a PyTorch file, not a checkpoint: convert it with")
    assert not target.exists()


def test_a_failed_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        SlimdeployError, match=f"^cannot write {re.escape(str(path))}: No space left on device$"
    ):
        write_checkpoint(path, seed=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
