"""Names of nodes that no module can have: a checkpoint from elsewhere may hold any."""

from dataclasses import replace

import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork


@pytest.mark.parametrize("name", ["", "layer1..conv1", "fc.", "forward", "layer1", "conv1.weight.part"])
def test_a_name_that_no_module_can_have_is_refused(name: str) -> None:
    known = build_graph("resnet18")
    last = replace(known.nodes[-1], name=name)
    with pytest.raises(SlimdeployError, match="can't be the name of a node"):
        GraphNetwork(Graph((*known.nodes[:-1], last)))
