"""What tests work on: networks that train in a second, checkpoints of them, and a folder of small images."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.latency.table import LatencyTable
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph, channel_numbers
from slimdeploy.toolchain.networks.architectures.resnet import ResNet, register
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import priced_layers
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Preprocessing

WIDTHS = (4, 6, 8, 8)
TINY = register(ResNet("tiny", True, (1, 1, 1, 1), stem_width=8, widths=WIDTHS))
# Two blocks in a layer, so that one of them has no projection.
DEEP = register(ResNet("tiny-deep", True, (2, 1, 2, 1), stem_width=8, widths=WIDTHS))
BASIC = register(ResNet("tiny-basic", False, (2, 1, 2, 1), stem_width=8, widths=(8, 8, 12, 12)))

PREPROCESSING = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
CLASSES = ("blue", "green", "red")


def random_network(spec: Graph, seed: int = 0) -> GraphNetwork:
    """A network in eval mode with everything random that is usually 0 or 1: γ (of both signs), β, means,
    variances.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = functools.partial(torch.empty(0).new_empty, dtype=torch.float32)
    network = GraphNetwork(spec)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        low, high = (0.3, 1.5) if name.endswith("running_var") else (-1.0, 1.0)
        values = uniform(tensor.shape).uniform_(low, high, generator=generator)
        if tensor.dim() == 4:  # keeps the size of the activations
            values *= (6 / tensor[0].numel()) ** 0.5
        tensor.copy_(values)
    return network.eval()


def random_images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) float32, normally distributed."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_split(count: int, classes: int = 3, size: int = 16, seed: int = 0) -> Split:
    """Noise with labels in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % classes)


def learnable_split(per_class: int, size: int = 16, seed: int = 0) -> Split:
    """Images of three classes, in order, each class brighter in its own colour: a network can tell them
    apart.
    """
    split = random_split(3 * per_class, size=size, seed=seed)
    labels = np.repeat(np.arange(3), per_class)
    images = split.images // 2
    for label, colour in enumerate((2, 1, 0)):  # CLASSES: blue, green, red
        images[labels == label, :, :, colour] += 96
    return Split(images, labels.astype(np.int64))


def model_info(spec: Graph) -> ModelInfo:
    """A description with `spec.classes` class names; those of the image folder where there are three."""
    names = CLASSES if spec.classes == 3 else tuple(f"class {i}" for i in range(spec.classes))
    return ModelInfo(spec, PREPROCESSING, names)


def write_checkpoint(path: Path, arch: str = "tiny", *, stem: str = "cifar", seed: int = 0) -> Path:
    """A random network for three classes at `path`."""
    network = random_network(build_graph(arch, stem=stem, classes=3), seed)
    save_checkpoint(path, network, model_info(network.graph))
    return path


def write_latency_table(path: Path, table: LatencyTable, spec: Graph, size: int) -> Path:
    """What `slimdeploy lut` writes, as if fitted to the network of `spec` alone, which takes what `table`
    predicts.
    """
    sample = {
        "channels": channel_numbers(spec),
        "total_ms": table.network_ms(spec, size),
        "rest_ms": 0.0,
        "convs_ms": [0.0] * len(priced_layers(spec, size)),
    }
    network = {"arch": spec.arch, "stem": spec.origin["stem"], "classes": spec.classes, "size": size}
    parts = {"device": table.device, "network": network, "model": table.to_json(), "samples": [sample]}
    parts |= {"stable": True, "errors": [], "remarks": []}
    results.write(path, results.document("lut", command="made up", **parts))
    return path


def write_image_folder(root: Path, *, train: int = 20, test: int = 8, size: int = 16) -> Path:
    """`root/{train,test}/{blue,green,red}/<n>.png`, so many images of each class."""
    for seed, (name, count) in enumerate({"train": train, "test": test}.items()):
        split = learnable_split(count, size, seed)
        for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            file = root / name / CLASSES[label] / f"{i:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return root
