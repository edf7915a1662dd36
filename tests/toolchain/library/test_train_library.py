"""`slimdeploy.train` and `slimdeploy.finetune` on batches of the caller's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import tiny
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import slimdeploy
from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import Dataset

SIZE = tiny.PREPROCESSING.size
Batch = tuple[torch.Tensor, torch.Tensor]


def batches(per_class: int = 8, seed: int = 0) -> list[Batch]:
    split = tiny.learnable_split(per_class, seed=seed)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).numpy()
    return list(plain_batches(split.take(order), tiny.PREPROCESSING, batch_size=7, device="cpu"))


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


class Counted:
    """Can be gone through again and again; has no length unless it is told one."""

    def __init__(self, given: list[Batch]) -> None:
        self.given, self.passes = given, 0

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        yield from self.given


class Known(Counted):
    def __len__(self) -> int:
        return len(self.given)


def test_a_pass_an_epoch_and_figures_of_what_was_given(module: nn.Module) -> None:
    train, val, test = Known(batches()), Known(batches(3, 1)), Known(batches(4, 2))
    found = slimdeploy.train(module, data=train, val=val, test=test, size=SIZE, epochs=3, lr=0.05)
    assert (train.passes, val.passes, test.passes) == (3, 4, 1)
    assert found.epochs == 3
    assert set(found.accuracy) == {"train", "val", "test"}
    assert found.accuracy["test"] == slimdeploy.evaluate(found.checkpoint, data=test).accuracy
    (entry,) = found.checkpoint.info.provenance
    assert entry["options"]["lr"] == 0.05
    assert not {"flip", "batch_size", "limit"} & set(entry["options"]), "they did nothing here"
    assert not found.network.training


def test_it_learns_and_leaves_the_network_as_it_was(module: nn.Module) -> None:
    before = [tensor.clone() for tensor in module.state_dict().values()]
    data = DataLoader(TensorDataset(*map(torch.cat, zip(*batches(16), strict=True))), 8, shuffle=True)
    found = slimdeploy.train(module, data=data, test=data, size=SIZE, epochs=6, lr=0.1)
    assert found.accuracy["test"] > 0.8
    assert set(found.accuracy) == {"train", "test"}, "nothing was validated on"
    assert all(map(torch.equal, before, module.state_dict().values()))
    on = slimdeploy.finetune(found.checkpoint, data=data, epochs=1, recalibration_images=16)
    assert [entry["stage"] for entry in on.checkpoint.info.provenance] == ["train", "finetune"]


def test_the_same_as_a_loop_of_ones_own(module: nn.Module) -> None:
    """Same batches, rate and steps: the same weights, whoever makes the batches."""
    data = batches()
    found = slimdeploy.train(
        module, data=data, size=SIZE, epochs=1, lr=0.1, schedule="constant", precision="fp32"
    )
    own = slimdeploy.from_module(module, size=SIZE).network.train()
    groups = slimdeploy.sparsity.parameter_groups(own, 5e-4)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for images, labels in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(own(images), labels).backward()
        optimizer.step()
    trained = found.network.state_dict()
    assert trained.keys() == own.state_dict().keys()
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_a_source_without_a_length_is_counted_first(module: nn.Module) -> None:
    source = Counted(batches())
    assert slimdeploy.train(module, data=source, size=SIZE, epochs=2, lr=0.01).epochs == 2
    assert source.passes == 3

    class Stream(IterableDataset):  # its DataLoader has a __len__ that raises TypeError
        def __iter__(self) -> Iterator[Batch]:
            yield from batches()

    loader = DataLoader(Stream(), batch_size=None)
    assert slimdeploy.train(module, data=loader, size=SIZE, epochs=1, lr=0.01).epochs == 1


def _changing(given: list[Batch]) -> Known:
    class Changing(Known):
        def __iter__(self) -> Iterator[Batch]:
            self.given = self.given[:-1]
            yield from self.given

    return Changing(given)


DATASET = Dataset(tiny.CLASSES, tiny.learnable_split(8), tiny.learnable_split(4), tiny.PREPROCESSING)
ONE = (torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1).long())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"data": iter(batches())}, "^data can be iterated only once: pass a list of batches or a DataL"),
        ({"data": batches(), "val": iter([])}, "^val can be iterated only once"),
        ({"data": batches(), "test": (b for b in [])}, "^test can be iterated only once"),
        ({"data": []}, "^data contains no images"),
        ({"data": [ONE]}, "^data gives a batch of one image, and BN needs 2"),
        ({"data": [(ONE[0], torch.tensor([3]))]}, "^data contains the label 3, but the network has 3 "
                                                  "classes"),
        ({"data": batches(), "test": [torch.zeros(2)]}, "^test yields Tensors that are not pairs"),
        ({"data": _changing(batches())}, "^data gives 3 batches in epoch 1, 4 before"),
        ({"data": batches(), "mixup": 0.2}, "^mixup needs a Dataset"),
        ({"data": batches(), "batch_size": 64}, "^batch_size needs a Dataset"),
        ({"data": batches(), "patience": 2}, "^patience needs val"),
        ({"data": DATASET, "val": batches()}, "^val is for batches"),
        ({"data": DATASET, "size": SIZE + 1}, "^size is 17, but data has images of 16×16"),
        ({"data": batches(), "size": None}, "^size is needed"),
    ],
)  # fmt: skip
def test_errors_name_the_parameter(module: nn.Module, keywords: dict[str, object], message: str) -> None:
    with pytest.raises(slimdeploy.SlimdeployError, match=message):
        slimdeploy.train(module, **{"size": SIZE, "epochs": 1, "lr": 0.01, **keywords})


def test_only_bn_needs_two_images() -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    assert slimdeploy.train(plain, data=[ONE], size=SIZE, epochs=1, lr=0.01).epochs == 1


def test_a_name_needs_a_dataset() -> None:
    with pytest.raises(slimdeploy.SlimdeployError, match=r"^network is a name: pass a Dataset as data"):
        slimdeploy.train("resnet18", data=batches(), size=SIZE)


def test_frozen_parameters_are_trained_too(module: nn.Module) -> None:
    start = slimdeploy.from_module(module, size=SIZE)
    expected = slimdeploy.train(start, data=batches(), epochs=1)
    frozen = copy.deepcopy(start.network).requires_grad_(requires_grad=False)
    found = slimdeploy.train(frozen, data=batches(), size=SIZE, epochs=1)
    state = found.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
