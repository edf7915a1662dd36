"""Initial weights: a torchvision state dict, plain safetensors with torchvision's names, or a slimdeploy
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models import checkpoint
from slimdeploy.toolchain.models.checkpoint import Checkpoint, load_checkpoint, load_state
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.models.named_networks import named_network
from slimdeploy.toolchain.networks.architectures import build_graph, is_imported
from slimdeploy.toolchain.networks.architectures.resnet import STEMS, channel_config
from slimdeploy.toolchain.networks.fitting import classifier_of, fit_to_tensors, with_classes
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.networks.operators.batchnorm import COUNTER
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.published_weights import PublishedWeights, published_weights, tell_of_transform
from slimdeploy.toolchain.training.state_dicts import (
    read_state_dict,
    recognised_resnet,
    unwrapped,
    without_wrappers,
)

IMPORT_SIZE = 224
"""Image side for tracing a network of torchvision, whose graph is the same for other sizes."""


@dataclass(frozen=True)
class Weights:
    """A network read from a file."""

    network: GraphNetwork
    path: Path
    sha256: str
    info: ModelInfo | None
    """The description, if the file is a slimdeploy checkpoint."""
    classifier: bool = True
    """Whether the file contains the classifier; otherwise it is random."""
    published: PublishedWeights | None = None
    """torchvision's description of the file."""

    @property
    def source(self) -> str | None:
        """Source of its preprocessing; None if unknown."""
        if self.info:
            return f"of {self.path}"
        if self.published:
            return f"of {self.published} ({self.path}), unless an option overrides it"
        return "of ImageNet, because the weights have its stem" if self._has_imagenet_stem else None

    @property
    def _has_imagenet_stem(self) -> bool:
        return self.network.graph.origin.get("stem") == "imagenet"

    def prepared(self, data: DataOptions) -> DataOptions:
        """`data` with the preprocessing and options of the weights as defaults."""
        data = data.for_network(str(self.path), self.network.graph.image_channels)
        if self.info:
            return data.or_else(self.info.preprocessing)
        if self.published:
            return data.or_else(self.published.preprocessing)
        if self._has_imagenet_stem and data.channels != "gray":
            mean, std = data.statistics
            return replace(data, mean=mean or IMAGENET_MEAN, std=std or IMAGENET_STD)
        return data

    def for_classes(self, dataset: Dataset, seed: int) -> Checkpoint:
        """The network for the classes of `dataset`; the classifier is initialised again if they differ."""
        own = self.network.graph
        if self.info:
            same = self.info.class_names == dataset.class_names
        else:
            same = self.classifier and own.classes == len(dataset.class_names)
        network = self.network
        if not same:
            there = own.classes if self.classifier else "none"
            log(f"new classifier for {len(dataset.class_names)} classes ({self.path} has {there})")
            network = build_network(with_classes(own, len(dataset.class_names)), seed=seed)
            classifier = f"{classifier_of(own).name}."
            fresh = {name: t for name, t in network.state_dict().items() if name.startswith(classifier)}
            network.load_state_dict({**self.network.state_dict(), **fresh})
        info = ModelInfo(network.graph, dataset.preprocessing, dataset.class_names)
        if self.info:
            info = replace(info, metrics=self.info.metrics, provenance=self.info.provenance)
        return Checkpoint(network, info, self.sha256)


def read_weights(
    path: Path,
    *,
    arch: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    stem: str | None = None,
    size: Callable[[], int] = lambda: IMPORT_SIZE,
    image_channels: int = 3,
) -> Weights:
    """The network in `path`. `size` and `image_channels` are those of the images, for an imported network,
    whose graph may depend on them.

    The widths, whether the shortcut BN has γ and β, and for a ResNet also `arch` and an ImageNet `stem` if
    not given, are derived from the tensors, so that pruned networks can be read. The stem of a checkpoint may
    be replaced by one with the same weights. Raises SlimdeployError if the file can't be read safely or
    contains no such network.
    """
    header, tensors = _read(path)
    if checkpoint.HEADER_KEY in header:
        return _from_checkpoint(load_checkpoint(path), path, arch, stem)
    if arch is None:
        arch, imagenet = recognised_resnet(tensors, path)
        stem = stem or ("imagenet" if imagenet else None)
    sha256 = artifacts.sha256_file(path)
    published = published_weights(arch.removeprefix("torchvision:"), sha256)
    if published:
        arguments = {**published.arguments, **(arguments or {})}
    else:
        tell_of_transform(arch, arguments or {})
    side = size() if is_imported(arch) and not published else IMPORT_SIZE
    fresh = named_network(arch, size=side, stem=stem, arguments=arguments, image_channels=image_channels)
    if computed := fresh.graph.origin.get("computed"):
        raise SlimdeployError(
            f"{path}: {arch} computes or copies some weights, such as {computed[0]}, in its forward pass: "
            "import it with this file, and pass the imported checkpoint"
        )
    classifier = classifier_of(fresh.graph).name
    unsaved = {name: fresh.state_dict()[name] for name in fresh.graph.origin.get("unsaved", ())}
    names = [
        name
        for name in fresh.state_dict()
        if not name.startswith(classifier) and not name.endswith(COUNTER) and name not in unsaved
    ]
    tensors = unsaved | _as_float32(unwrapped(tensors, names, classifier, path))
    has_classifier = f"{classifier}.weight" in tensors
    if not has_classifier:
        tensors |= {n: t for n, t in fresh.state_dict().items() if n.startswith(f"{classifier}.")}
    network = GraphNetwork(_fitted(fresh.graph, tensors, path))
    own = network.state_dict()
    counters = {name: own[name] for name in own if name.endswith(COUNTER)}
    load_state(network, counters | tensors, source=str(path))
    if (counted := counters.keys() & tensors.keys()) and not any(tensors[name].any() for name in counted):
        log(f"warning: {path} was never trained: its BN layers counted no batches (num_batches_tracked is 0)")
    return Weights(network, path, sha256, None, has_classifier, published)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a weights file, in float32; raises SlimdeployError if it contains none."""
    return _as_float32(without_wrappers(_read(path)[1]))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise SlimdeployError(f"no weights at {path}")
    return read_state_dict(path)


def _from_checkpoint(found: Checkpoint, path: Path, arch: str | None, stem: str | None) -> Weights:
    graph = found.info.graph
    if arch not in (None, graph.arch):
        raise SlimdeployError(f"{path} is a {graph.arch} network, not {arch}: leave `arch` out")
    if stem not in (None, graph.origin.get("stem")):
        found = _with_stem(found, stem, path)
    return Weights(found.network, path, found.sha256, found.info)


def _with_stem(found: Checkpoint, stem: str, path: Path) -> Checkpoint:
    """`found` with another stem that has the same weights: `cifar` and `cifar-pool` differ only in the
    pooling, so a network can be trained and pruned at half the resolution and fine-tuned at full resolution.
    """
    tensors = found.network.state_dict()
    old = found.info.graph
    full = build_graph(old.arch, stem=stem, classes=old.classes, channels=channel_config(old))
    graph = _fitted(full, tensors, path)
    network = GraphNetwork(graph)
    network.load_state_dict(tensors)
    return replace(found, network=network, info=replace(found.info, graph=graph))


def _as_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _fitted(full: Graph, tensors: dict[str, Tensor], path: Path) -> Graph:
    """`full` at the widths that the tensors have."""
    stem, first = full.origin.get("stem"), tensors.get("conv1.weight")
    if stem in STEMS and first is not None and first.shape[-1] != STEMS[stem].kernel:
        own, wanted = first.shape[-1], STEMS[stem].kernel
        raise SlimdeployError(f"{path} has a {own}×{own} stem, `stem` {stem} is {wanted}×{wanted}")
    try:
        return fit_to_tensors(full, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except SlimdeployError as error:
        raise SlimdeployError(f"{path}: {error.message}; is it a {full.arch}? (`arch`, `stem`)") from error
