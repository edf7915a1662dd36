"""docs/library.md, executed: its blocks in order, on a small network and few images."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tiny
import torch
from torch import nn

import slimdeploy
from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.torchvision import import_torchvision

PAGE = Path(slimdeploy.__file__).parent / "docs" / "library.md"


def _batches(per_class: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    split = tiny.learnable_split(per_class, 32, seed)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).numpy()
    return list(plain_batches(split.take(order), tiny.PREPROCESSING, batch_size=12, device="cpu"))


def _small_resnet() -> nn.Module:
    """torchvision's ResNet, with one block in a layer."""
    torch.manual_seed(0)
    resnet = import_torchvision().models.resnet
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


def test_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_image_folder(tmp_path / "images", train=4, test=2, size=32)
    trained = slimdeploy.from_module(
        _small_resnet(), preprocessing=replace(tiny.PREPROCESSING, size=32), class_names=tiny.CLASSES
    )
    slimdeploy.save(trained, path="trained.safetensors")
    mine = {
        "model": _small_resnet(),
        "train_loader": _batches(12, 0),
        "test_loader": _batches(6, 1),
        "size": 32,
        "epochs": 1,
        "class_names": tiny.CLASSES,
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(block, mine)
    assert mine["exported"].parity.max_abs_error < 1e-3
    onnx.checker.check_model(onnx.load(tmp_path / "pruned.onnx"))
    again = slimdeploy.load(tmp_path / "pruned.safetensors")
    assert sum(p.numel() for p in again.network.parameters()) < sum(
        p.numel() for p in mine["model"].parameters()
    )
    assert mine["installed"].deployment.version == "0001-pruned"
    assert mine["result"].checkpoint.info.class_names == tiny.CLASSES


def test_the_page_lists_every_function() -> None:
    table = PAGE.read_text().split("## All functions")[1]
    for name in slimdeploy.__all__:
        if callable(getattr(slimdeploy, name)) and name.islower():
            assert f"`{name}`" in table, name


def test_a_dataset_from_training_to_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    split = tiny.learnable_split(16)
    dataset = Dataset(tiny.CLASSES, split, tiny.learnable_split(8, seed=1), tiny.PREPROCESSING)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    trained = slimdeploy.train(network, data=dataset, epochs=2, batch_size=8, lr=0.05, crop_pad=2)
    assert trained.epochs == 2
    start = slimdeploy.finetune(trained.checkpoint, data=dataset, epochs=1, batch_size=8).checkpoint
    assert [entry["stage"] for entry in start.info.provenance] == ["train", "finetune"]
    assert start.info.class_names == tiny.CLASSES
    assert not list(tmp_path.iterdir()), "training in a library writes no files"
    slimdeploy.export(start, output=tmp_path / "a.onnx", data=dataset)
    found = slimdeploy.quantize(
        tmp_path / "a.onnx", data=dataset, output=tmp_path / "b.onnx", max_drop=100.0, method="minmax"
    )
    assert found.onnx == tmp_path / "b.onnx"
    assert found.to_json()["method"] == "minmax"
    with pytest.raises(slimdeploy.SlimdeployError, match=r"b\.onnx exists"):
        slimdeploy.export(start, output=tmp_path / "b.onnx", data=dataset)
    with pytest.raises(
        slimdeploy.SlimdeployError, match="precision fp16 measures activations: pass a Dataset"
    ):
        slimdeploy.export(start, output=tmp_path / "c.onnx", data=_batches(4, 0), precision="fp16")
