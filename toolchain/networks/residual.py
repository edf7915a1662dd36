"""Residual sums: their main branch, and the network without it. No torch here."""

from __future__ import annotations

from slimdeploy.toolchain.networks.graph import Graph, Node


def main_branches(graph: Graph) -> dict[str, Node]:
    """Name of each residual sum -> the convolution, or the BN after it, that ends its main branch.

    Only the sum reads the end of a main branch; an identity shortcut is read by the branch too. If both
    inputs qualify (a projection shortcut), it is the first one.
    """
    found = {}
    for node in graph.nodes:
        if node.operator == "add":
            ends = [_before_dropout(graph, name) for name in node.inputs if graph.only_consumer(name) is node]
            own = [end for end in ends if end and conv_before(graph, end)]
            if own:
                found[node.name] = own[0]
    return found


def _before_dropout(graph: Graph, value: str) -> Node | None:
    """The node that produces `value`; a dropout that nothing else reads is skipped."""
    node = graph.producer(value)
    while node and node.operator in ("dropout", "stochastic_depth") and graph.only_consumer(node.inputs[0]):
        node = graph.producer(node.inputs[0])
    return node


def conv_before(graph: Graph, node: Node) -> Node | None:
    """The convolution that `node` is, or whose BN it is; else None."""
    if node.operator == "batchnorm":
        before = graph.producer(node.inputs[0])
        return before if before and before.operator == "conv" else None
    return node if node.operator == "conv" else None


def batchnorm_behind(graph: Graph, node: Node) -> Node | None:
    """The BN that is the only reader of `node`, so that it can be folded into it."""
    reader = graph.only_consumer(node.name)
    return reader if reader and reader.operator == "batchnorm" and node.name != graph.output else None
