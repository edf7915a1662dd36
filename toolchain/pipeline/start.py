"""The start of a recipe: its data with the preprocessing of its weights, and its network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from slimdeploy.toolchain.data.dataset import Dataset, image_side, load_dataset
from slimdeploy.toolchain.data.of_model import for_network
from slimdeploy.toolchain.models.graphs import network_graph
from slimdeploy.toolchain.models.named_networks import parse_arguments
from slimdeploy.toolchain.networks.fitting import with_classes
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.pipeline.recipe import Recipe
from slimdeploy.toolchain.training.pretrained import read_weights


def starting_point(recipe: Recipe) -> tuple[Dataset, Graph]:
    """The recipe's images, by default with the preprocessing of its weights, and the network to train. Raises
    SlimdeployError if one of them is missing.
    """
    network = recipe.network
    if network.weights is None:
        dataset = load_dataset(recipe.data)
        size, classes = dataset.preprocessing.size, len(dataset.class_names)
        graph = network_graph(
            network.arch,
            arguments=network.arg,
            stem=network.stem,
            classes=classes,
            size=size,
            image_channels=dataset.preprocessing.image_channels,
        )
        return for_network(network.arch, graph, recipe.data, dataset)[1], graph
    weights = read_weights(
        Path(network.weights),
        arch=network.arch,
        arguments=parse_arguments(network.arg),
        stem=network.stem,
        size=partial(image_side, recipe.data),
        image_channels=recipe.data.image_channels,
    )
    dataset = load_dataset(weights.prepared(recipe.data))
    return dataset, with_classes(weights.network.graph, len(dataset.class_names))
