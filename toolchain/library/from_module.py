"""The input of the library's functions: a checkpoint, or a module converted to one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.argument_types import checked
from slimdeploy.toolchain.models.checkpoint import Checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo, unknown_class_names
from slimdeploy.toolchain.networks import importing
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Geometry, Preprocessing, default_preprocessing
from slimdeploy.toolchain.progress import log


@checked
def from_module(
    module: nn.Module,
    *,
    size: int | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str | int] | None = None,
    name: str = "custom",
) -> Checkpoint:
    """Convert `module` in eval mode, with a copy of its weights, to a slimdeploy network.

    Args:
        module: Takes images (N, 3, size, size) float32, or (N, 1, size, size) if they are gray, and returns
            logits (N, classes).
        size: Side of the images in pixels. Not needed with `preprocessing`.
        preprocessing: Preprocessing of the module's images. Default: resize the shorter side to `size`, crop
            the centre, normalise with ImageNet's mean and standard deviation; pixels of gray images are only
            scaled to 0…1.
        class_names: One for each logit. Default: `class 0`, `class 1`, ….
        name: Name of the network in reports.

    Raises:
        SlimdeployError: The module can't be traced by torch.export, it contains an unsupported operator
            (named with its path), or the numbers of class names and logits differ.
    """
    if preprocessing is None:
        if size is None:
            raise SlimdeployError("`size` is needed: the side in pixels of the images that the module takes")
        side = Geometry(size).size  # refuses impossible ones
    elif size not in (None, side := preprocessing.size):
        raise SlimdeployError(f"`size` is {size}, but `preprocessing` makes {side}×{side}")
    module = importing.unwrapped(module)
    if isinstance(module, GraphNetwork):
        network = copy.deepcopy(module)
    else:
        channels = preprocessing.image_channels if preprocessing else 3
        imported = importing.from_module(module, size=side, arch=name, image_channels=channels)
        for remark in imported.remarks:
            log(f"! {remark}")
        network = imported.network
    preprocessing = preprocessing or default_preprocessing(side, network.graph.image_channels)
    if class_names is None:
        class_names = unknown_class_names(network.graph.classes)
    names = tuple(map(str, class_names))
    if "" in names:  # the same name twice is allowed: ImageNet has two cranes
        raise SlimdeployError(f"`class_names` has no name for class {names.index('')}")
    return Checkpoint(network, ModelInfo(network.graph, preprocessing, names), "")


def as_checkpoint(network: Checkpoint | nn.Module, *, size: int | None = None) -> Checkpoint:
    """`network` itself, or the result of `from_module` for a module; raises SlimdeployError like
    `from_module`, and for a `size` other than the checkpoint's.
    """
    if not isinstance(network, Checkpoint):
        return from_module(network, size=size)
    own = network.info.preprocessing.size
    if size not in (None, own):
        raise SlimdeployError(f"`size` is {size}, but the network takes {own}×{own}")
    return network


def checkpoint_for(network: Checkpoint | nn.Module, data: object, *, size: int | None = None) -> Checkpoint:
    """`network` as a checkpoint that takes the images of `data`: if that is a Dataset, a module gets its
    preprocessing and class names.

    Raises SlimdeployError like `as_checkpoint`, and for a checkpoint with another preprocessing or another
    number of classes than the dataset.
    """
    if not isinstance(data, Dataset):
        return as_checkpoint(network, size=size)
    own = data.preprocessing
    check_size(size, data)
    if not isinstance(network, Checkpoint):
        found = from_module(network, preprocessing=own)
        return replace(found, info=described_by(data, found))
    described_by(data, network)
    if own != network.info.preprocessing:
        raise SlimdeployError(
            f"the images of `data` are made with {own}, but the network takes {network.info.preprocessing}: "
            "pass from_module the `preprocessing` of the dataset, or load the data with that of the network"
        )
    return network


def check_size(size: int | None, dataset: Dataset) -> None:
    """Raises SlimdeployError for a `size` other than that of the dataset's images."""
    own = dataset.preprocessing.size
    if size not in (None, own):
        raise SlimdeployError(f"`size` is {size}, but `data` has images of {own}×{own}")


def described_by(dataset: Dataset, start: Checkpoint) -> ModelInfo:
    """The description in `start`, with the preprocessing and the class names of `dataset`.

    Raises SlimdeployError if the numbers of classes differ.
    """
    classes = len(dataset.class_names)
    if start.info.graph.classes != classes:
        raise SlimdeployError(f"the network has {start.info.graph.classes} classes, `data` has {classes}")
    return replace(start.info, preprocessing=dataset.preprocessing, class_names=dataset.class_names)
