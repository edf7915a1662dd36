"""Descriptions of networks that no module can have: a checkpoint from elsewhere may hold any."""

from dataclasses import replace

import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.graph import Graph, Node
from slimdeploy.toolchain.networks.module import GraphNetwork


@pytest.mark.parametrize("name", ["", "layer1..conv1", "fc.", "forward", "layer1", "conv1.weight.part"])
def test_a_name_that_no_module_can_have_is_refused(name: str) -> None:
    known = build_graph("resnet18")
    last = replace(known.nodes[-1], name=name)
    with pytest.raises(SlimdeployError, match="can't be the name of a node"):
        GraphNetwork(Graph((*known.nodes[:-1], last)))


BATCHNORM = {"channels": 10, "eps": 1e-5, "affine": True, "momentum": 0.1}


@pytest.mark.parametrize(
    ("operator", "attributes", "message"),
    [
        ("dropout", {"share": 1.5}, "share can't be 1.5"),
        ("batchnorm", BATCHNORM, "batchnorm needs an image, not a vector"),
        ("channel_mean", {"count": 0}, "count can't be 0"),
        ("crop", {"margins": [0, 0, -1, 0]}, "margins can't be"),
    ],
)
def test_a_node_that_cannot_run_is_refused(operator: str, attributes: dict, message: str) -> None:
    known = build_graph("resnet18")
    with pytest.raises(SlimdeployError, match=message):
        Graph((*known.nodes, Node("last", operator, ("fc",), attributes))).shapes(32)
