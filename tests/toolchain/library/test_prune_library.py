"""`slimdeploy.prune` and `slimdeploy.sparsity` in a loop of one's own: no files, no flags."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

import slimdeploy
from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.library import prune
from slimdeploy.toolchain.library.sparsity import Proximal, parameter_groups
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.training.evaluation import Evaluation
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.sparsity import FixedPenalty

SIZE = 16
Batch = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Somebody else's network."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Linear(32, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


@pytest.fixture
def module() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    split = tiny.learnable_split(16)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).numpy()
    return list(plain_batches(split.take(order), tiny.PREPROCESSING, batch_size=16, device="cpu"))


def train(network: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer, epochs: int) -> float:
    """A loop that knows nothing of slimdeploy; returns the last epoch's mean loss."""
    network.train()
    for _ in range(epochs):
        losses = []
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def test_a_module_is_pruned_and_trains_on(module: Net, batches: list[Batch]) -> None:
    before = copy.deepcopy(module.state_dict())
    result = slimdeploy.prune(module, data=batches, test=batches, size=SIZE, ratio=0.5, align=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert module.training
    network = result.network
    assert isinstance(network, nn.Module)
    assert sum(p.numel() for p in network.parameters()) == result.after.params < result.before.params
    assert {"before", "after", "after_recalibration", "final"} <= set(result.accuracy or {})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    first = train(network, batches, optimizer, 1)
    assert train(network, batches, optimizer, 5) < first


@pytest.mark.parametrize(
    ("with_new", "with_old", "new_is_kept"),
    [
        (
            (0.48, 2.0),
            (0.36, 1.7),
            True,
        ),  # right more often, but less confident: seen on a network cut to a sixth
        ((0.50, 0.1), (0.60, 0.2), False),
        ((0.50, 0.1), (0.50, 0.2), True),
        ((0.50, 0.2), (0.50, 0.1), False),
    ],
)
def test_new_bn_statistics_are_kept_if_they_raise_the_accuracy(
    module: Net, batches: list[Batch], monkeypatch: pytest.MonkeyPatch, with_new, with_old, new_is_kept
) -> None:
    found = iter([with_new, with_old])
    monkeypatch.setattr(prune, "evaluate_feed", lambda *args, **options: Evaluation(*next(found), 48))
    old = module.features[1].running_mean
    with torch.no_grad():
        old += 7.0  # far from that of the images
    network = slimdeploy.prune(module, data=batches, size=SIZE, ratio=0.0, compensate=False).network
    assert (network.batchnorms()[0].running_mean.mean() < 3.5) == new_is_kept


def test_ratio_0_gives_the_same_logits(module: Net) -> None:
    images = tiny.random_images(4)
    pruned = slimdeploy.prune(module, size=SIZE, ratio=0.0).network
    torch.testing.assert_close(pruned(images), module.eval()(images), atol=1e-5, rtol=1e-5)


def test_a_dataset_a_checkpoint_and_options_in_one_object_do_too() -> None:
    split = tiny.learnable_split(12)
    dataset = Dataset(tiny.CLASSES, split, split, tiny.PREPROCESSING)
    network = tiny.random_network(build_graph("tiny", stem="cifar", classes=3))
    checkpoint = slimdeploy.from_module(network, preprocessing=tiny.PREPROCESSING, class_names=tiny.CLASSES)
    options = slimdeploy.PruneOptions(ratio=0.4, align=1, steps=2)
    found = slimdeploy.prune(checkpoint, data=dataset, options=options)
    assert "before_last_step" in (found.accuracy or {})
    assert found.checkpoint.info.class_names == tiny.CLASSES
    assert found.to_json()["params"]["after"] == found.after.params


def test_what_trains_between_the_steps_is_the_callers(module: Net, batches: list[Batch]) -> None:
    seen = []

    def between(network: nn.Module, step: int) -> None:
        seen.append((step, sum(p.numel() for p in network.parameters())))
        train(network, batches, torch.optim.SGD(network.parameters(), lr=0.01), 1)

    found = slimdeploy.prune(module, data=batches, size=SIZE, ratio=0.6, align=1, steps=3, between=between)
    assert [step for step, _ in seen] == [1, 2]
    assert found.before.params > seen[0][1] > seen[1][1] > found.after.params
    assert not found.network.training


def _once(batches: list[Batch]) -> Iterator[Batch]:
    yield from batches


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"ratio": 0.5}, "size is needed"),
        ({"ratio": 2, "size": SIZE}, "^ratio must be from 0 to below 1, not 2"),
        ({"ratio": 0.5, "size": SIZE, "min_channels": 0}, "^min_channels must be at least 1"),
        ({"ratio": 0.5, "size": SIZE, "criterion": "taylor"}, "needs real images: pass data$"),
        ({"ratio": 0.5, "size": SIZE, "steps": 2}, "^steps fine-tunes between the steps: pass data$"),
        ({"ratio": 0.5, "options": slimdeploy.PruneOptions(ratio=0.5)}, "give options or ratio, not both"),
        ({"params": 10.0, "size": SIZE}, "out of reach"),
        ({"ratio": 0.5, "size": SIZE, "data": _once([])}, "data can be iterated only once: pass a list"),
        ({"ratio": 0.5, "size": SIZE, "data": []}, "data contains no images"),
        ({"ratio": 0.5, "size": SIZE, "data": [torch.zeros(2, 3, 16, 16)]}, "data yields Tensors that are "
                                                                            "not"),
        ({"ratio": 0.5, "size": SIZE, "data": [(torch.zeros(2, 16, 16, 3).byte(), torch.zeros(2))]},
         r"data yields \(2, 16, 16, 3\) torch.uint8 and \(2,\) torch.float32; pairs of images \(N, C, H, "
          r"W\)"),
    ],
)  # fmt: skip
def test_errors_name_the_parameter(module: Net, keywords: dict[str, object], message: str) -> None:
    with pytest.raises(slimdeploy.SlimdeployError, match=message):
        slimdeploy.prune(module, **keywords)


def test_a_keyword_that_does_not_exist_is_a_type_error(module: Net) -> None:
    with pytest.raises(
        TypeError, match=r"^prune\(\) got an unexpected keyword argument 'rato'\. Did you mean 'ratio'\?$"
    ):
        slimdeploy.prune(module, rato=0.5)


def test_every_option_is_declared() -> None:
    for options in (slimdeploy.PruneOptions, TrainOptions):
        assert all("slimdeploy.option" in field.metadata for field in fields(options))


def test_the_penalty_makes_exact_zeros_in_a_loop_of_ones_own(module: Net, batches: list[Batch]) -> None:
    optimizer = torch.optim.SGD(parameter_groups(module, 5e-4), lr=0.05, momentum=0.9)
    sparse = Proximal(optimizer, module, strength=0.1, size=SIZE)
    train(module, batches, optimizer, 10)
    zeros = sum(int((scale == 0).sum()) for scale in (module.features[1].weight, module.features[4].weight))
    assert 0 < zeros / 48 == pytest.approx(sparse.zero_share)
    with pytest.raises(slimdeploy.SlimdeployError, match="a penalty on these γ already"):
        Proximal(optimizer, module, strength=0.1, size=SIZE)
    sparse.remove()
    train(module, batches, optimizer, 2)
    assert sparse.zero_share < zeros / 48
    Proximal(optimizer, module, strength=0.1, size=SIZE).remove()


def test_the_penalty_leaves_frozen_scales_alone(module: Net, batches: list[Batch]) -> None:
    frozen = module.features[1].weight.requires_grad_(requires_grad=False)
    before = frozen.clone()
    optimizer = torch.optim.SGD(parameter_groups(module, 5e-4), lr=0.05, momentum=0.9)
    Proximal(optimizer, module, strength=0.1, size=SIZE)
    train(module, batches, optimizer, 2)
    assert torch.equal(frozen, before)


def test_a_step_is_that_of_our_own_training(batches: list[Batch]) -> None:
    ours, theirs = (build_network(build_graph("tiny", stem="cifar", classes=3), seed=1) for _ in range(2))
    penalty = FixedPenalty(ours, 0.01, momentum=0.9)
    one, other = (torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9) for n in (ours, theirs))
    Proximal(other, theirs, strength=0.01)
    images, labels = batches[0]
    for network, optimizer in ((ours, one), (theirs, other)):
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    penalty.after_step(0.1, 0)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda m: Proximal(torch.optim.SGD([m.classifier.weight], 0.1), m, strength=1e-4, size=SIZE),
            "optimizer must hold all γ",
        ),
        (
            lambda m: Proximal(
                torch.optim.SGD(m.parameters(), 0.1),
                nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(), nn.Linear(4, 3)),
                strength=1e-4,
                size=SIZE,
            ),
            "network has no BN scales",
        ),
        (lambda m: Proximal(torch.optim.SGD(m.parameters(), 0.1), m, strength=1e-4), "size is needed"),
    ],
)
def test_what_the_penalty_cannot_act_on(module: Net, build: Callable[[Net], Proximal], message: str) -> None:
    with pytest.raises(slimdeploy.SlimdeployError, match=message):
        build(module)
