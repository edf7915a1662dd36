"""Weights to start from: a torchvision state dict, bare safetensors with torchvision's names, or a
checkpoint of slimdeploy.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimdeploy.toolchain import artifacts, checkpoint
from slimdeploy.toolchain.checkpoint import Checkpoint, load_checkpoint, load_state, read_safetensors
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import ModelInfo
from slimdeploy.toolchain.named_networks import named_network
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import STEMS, channel_config
from slimdeploy.toolchain.networks.fitting import classifier_of, fit_to_tensors, with_classes
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from slimdeploy.toolchain.progress import log

IMPORT_SIZE = 224
"""Side of the images that an imported network is traced with where the data's isn't known yet."""
PICKLE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts put the state dict beside their optimiser's state."""


@dataclass(frozen=True)
class Weights:
    """A network read from a file."""

    network: GraphNetwork
    path: Path
    sha256: str
    info: ModelInfo | None
    """Of a slimdeploy checkpoint."""

    @property
    def source(self) -> str | None:
        """Where its preprocessing is known from; None: it isn't."""
        if self.info:
            return f"of {self.path}"
        return "of ImageNet, as the weights have its stem" if self._has_imagenet_stem else None

    @property
    def _has_imagenet_stem(self) -> bool:
        return self.network.graph.origin.get("stem") == "imagenet"

    def prepared(self, data: DataOptions) -> DataOptions:
        """`data` with what the weights were trained with, where nothing else is chosen."""
        if self.info:
            return data.or_else(self.info.preprocessing)
        if self._has_imagenet_stem:
            mean, std = data.statistics
            return replace(data, mean=mean or IMAGENET_MEAN, std=std or IMAGENET_STD)
        return data

    def for_classes(self, dataset: Dataset, seed: int) -> Checkpoint:
        """The network for the classes of `dataset`; its classifier is drawn anew where they are others."""
        own = self.network.graph
        same = (
            self.info.class_names == dataset.class_names
            if self.info
            else own.classes == len(dataset.class_names)
        )
        network = self.network
        if not same:
            log(f"new classifier for {len(dataset.class_names)} classes ({self.path} has {own.classes})")
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
    size: int | None = None,
) -> Weights:
    """The network in `path`.

    Widths and whether the shortcut BN has γ and β are read off the tensors, so a pruned network loads too.
    `arch` and `stem` default to the reference's, or to the checkpoint's own; its stem may be changed for one
    with the same weights. Raises SlimdeployError where the file can't be read safely (pickles are read with
    weights_only) or doesn't hold such a network.
    """
    if path.is_file() and path.suffix.lower() not in PICKLE_ENDINGS:
        header, _ = read_safetensors(path)
        if checkpoint.HEADER_KEY in header:
            return _from_checkpoint(load_checkpoint(path), path, arch, stem)
    tensors = read_tensors(path)
    full = named_network(arch, size=size or IMPORT_SIZE, stem=stem, arguments=arguments).graph
    network = GraphNetwork(_fitted(full, tensors, path))
    own = network.state_dict()
    counters = {name: own[name] for name in own if name.endswith(".num_batches_tracked")}
    load_state(network, counters | tensors, source=str(path))
    return Weights(network, path, artifacts.sha256_file(path), None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth or safetensors file, in float32; raises SlimdeployError where it has none."""
    if not path.is_file():
        raise SlimdeployError(f"no weights at {path}")
    tensors = _read_pickle(path) if path.suffix.lower() in PICKLE_ENDINGS else read_safetensors(path)[1]
    return {name.removeprefix("module."): _as_float32(t) for name, t in tensors.items()}


def _from_checkpoint(found: Checkpoint, path: Path, arch: str | None, stem: str | None) -> Weights:
    graph = found.info.graph
    if arch not in (None, graph.arch):
        raise SlimdeployError(f"{path} is a {graph.arch} network, not {arch}: leave --arch out")
    if stem not in (None, graph.origin.get("stem")):
        found = _with_stem(found, stem, path)
    return Weights(found.network, path, found.sha256, found.info)


def _with_stem(found: Checkpoint, stem: str, path: Path) -> Checkpoint:
    """`found` behind another stem with the same weights: `cifar` and `cifar-pool` differ in the pooling
    alone, so a network can be trained and pruned at half the resolution, and go on at the full one.
    """
    tensors = found.network.state_dict()
    old = found.info.graph
    full = build_graph(old.arch, stem=stem, classes=old.classes, channels=channel_config(old))
    graph = _fitted(full, tensors, path)
    network = GraphNetwork(graph)
    network.load_state_dict(tensors)
    return replace(found, network=network, info=replace(found.info, graph=graph))


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise SlimdeployError(
            f"{path} is not a state dict that can be read safely: save the network's state_dict() alone"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise SlimdeployError(f"{path} holds no state dict: save the network's state_dict() alone")
    return content


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _fitted(full: Graph, tensors: dict[str, Tensor], path: Path) -> Graph:
    """`full` at the widths that the tensors have."""
    stem, first = full.origin.get("stem"), tensors.get("conv1.weight")
    if stem in STEMS and first is not None and first.shape[-1] != STEMS[stem].kernel:
        own, wanted = first.shape[-1], STEMS[stem].kernel
        raise SlimdeployError(f"{path} has a {own}×{own} stem, --stem {stem} is {wanted}×{wanted}")
    try:
        return fit_to_tensors(full, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except SlimdeployError as error:
        raise SlimdeployError(f"{path}: {error}; is it a {full.arch}? (--arch, --stem)") from error
