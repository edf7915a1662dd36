"""Weights to start from: a torchvision state dict, bare safetensors with torchvision's names, or a
checkpoint of slimdeploy.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from slimdeploy.toolchain import artifacts, checkpoint
from slimdeploy.toolchain.checkpoint import Checkpoint, load_checkpoint, load_state, read_safetensors
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import ModelInfo
from slimdeploy.toolchain.networks.channels import ChannelConfig
from slimdeploy.toolchain.networks.layers import enumerate_layers
from slimdeploy.toolchain.networks.resnet import ResNet, build_network
from slimdeploy.toolchain.networks.spec import STEMS, NetworkSpec, network_spec
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from slimdeploy.toolchain.progress import log

PICKLE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts put the state dict beside their optimiser's state."""


@dataclass(frozen=True)
class Weights:
    """A network read from a file."""

    network: ResNet
    path: Path
    sha256: str
    info: ModelInfo | None
    """Of a slimdeploy checkpoint."""

    @property
    def source(self) -> str | None:
        """Where its preprocessing is known from; None: it isn't."""
        if self.info:
            return f"of {self.path}"
        return "of ImageNet, as the weights have its stem" if self.network.spec.stem == "imagenet" else None

    def prepared(self, data: DataOptions) -> DataOptions:
        """`data` with what the weights were trained with, where nothing else is chosen."""
        if self.info:
            return data.or_else(self.info.preprocessing)
        if self.network.spec.stem == "imagenet":
            mean, std = data.statistics
            return replace(data, mean=mean or IMAGENET_MEAN, std=std or IMAGENET_STD)
        return data

    def for_classes(self, dataset: Dataset, seed: int) -> Checkpoint:
        """The network for the classes of `dataset`; its classifier is drawn anew where they are others."""
        own = self.network.spec
        same = (
            self.info.class_names == dataset.class_names
            if self.info
            else own.classes == len(dataset.class_names)
        )
        network = self.network
        if not same:
            log(f"new classifier for {len(dataset.class_names)} classes ({self.path} has {own.classes})")
            network = build_network(replace(own, classes=len(dataset.class_names)), seed=seed)
            fresh = {name: t for name, t in network.state_dict().items() if name.startswith("fc.")}
            network.load_state_dict({**self.network.state_dict(), **fresh})
        info = ModelInfo(network.spec, dataset.preprocessing, dataset.class_names)
        if self.info:
            info = replace(info, metrics=self.info.metrics, provenance=self.info.provenance)
        return Checkpoint(network, info, self.sha256)


def read_weights(path: Path, *, arch: str | None = None, stem: str | None = None) -> Weights:
    """The network in `path`.

    Widths and whether the shortcut BN has γ and β are read off the tensors, so a pruned network loads too.
    `arch` and `stem` default to the reference's, or to the checkpoint's own; its stem may be changed for one
    with the same weights. Raises SlimdeployError where the file can't be read safely (pickles are read with
    weights_only) or doesn't hold such a network.
    """
    if not path.is_file():
        raise SlimdeployError(f"no weights at {path}")
    if path.suffix.lower() in PICKLE_ENDINGS:
        tensors = _read_pickle(path)
    else:
        header, tensors = read_safetensors(path)
        if checkpoint.HEADER_KEY in header:
            return _from_checkpoint(load_checkpoint(path), path, arch, stem)
    tensors = {name.removeprefix("module."): _as_float32(t) for name, t in tensors.items()}
    spec = _spec_of(tensors, network_spec(arch, stem=stem), path)
    network = build_network(spec)
    own = network.state_dict()
    counters = {name: own[name] for name in own if name.endswith(".num_batches_tracked")}
    load_state(network, counters | tensors, source=str(path))
    return Weights(network, path, artifacts.sha256_file(path), None)


def _from_checkpoint(found: Checkpoint, path: Path, arch: str | None, stem: str | None) -> Weights:
    spec = found.info.spec
    if arch not in (None, spec.arch):
        raise SlimdeployError(f"{path} is a {spec.arch} network, not {arch}: leave --arch out")
    if stem not in (None, spec.stem):
        found = _with_stem(found, stem, path)
    return Weights(found.network, path, found.sha256, found.info)


def _with_stem(found: Checkpoint, stem: str, path: Path) -> Checkpoint:
    """`found` behind another stem with the same weights: `cifar` and `cifar-pool` differ in the pooling
    alone, so a network can be trained and pruned at half the resolution, and go on at the full one.
    """
    spec = replace(found.info.spec, stem=stem)
    _check_kernel(STEMS[found.info.spec.stem].kernel, stem, path)
    network = ResNet(spec)
    network.load_state_dict(found.network.state_dict())
    return replace(found, network=network, info=replace(found.info, spec=spec))


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


def _spec_of(tensors: dict[str, Tensor], full: NetworkSpec, path: Path) -> NetworkSpec:
    """`full` at the widths that the tensors have."""
    layers = enumerate_layers(full, 32)
    wanted = [layers.stem, *(conv for block in layers.blocks for conv in block.convs)]
    for name in (*(conv.name + ".weight" for conv in wanted), "fc.weight"):
        if name not in tensors:
            raise SlimdeployError(f"{path}: {name} is missing; is it a {full.arch}? (--arch, --stem)")
    kernel = tensors["conv1.weight"].shape[-1]
    _check_kernel(kernel, full.stem, path)
    widths = [len(tensors[conv.name + ".weight"]) for conv in wanted]
    try:
        return NetworkSpec(
            arch=full.arch,
            stem=full.stem,
            classes=len(tensors["fc.weight"]),
            channels=ChannelConfig.from_flat(full.architecture, widths),
            shortcut_affine=any(name.endswith("downsample.1.weight") for name in tensors),
        )
    except SlimdeployError as error:
        raise SlimdeployError(f"{path}: {error}") from error


def _check_kernel(own: int, stem: str, path: Path) -> None:
    wanted = STEMS[stem].kernel
    if own != wanted:
        raise SlimdeployError(f"{path} has a {own}×{own} stem, --stem {stem} is {wanted}×{wanted}")
