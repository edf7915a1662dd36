"""What a network of given widths costs, in the unit of a budget, and what narrowing one group saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from slimdeploy.toolchain.networks.layers import Conv, enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec
from slimdeploy.toolchain.pruning.groups import CLASSIFIER, ChannelGroup

Widths = dict[str, int]
"""Group name -> channels. 0 stands for a removed block."""

ConvCost = Callable[[Conv], float]


@dataclass(frozen=True)
class _Part:
    """One convolution, or the classifier, and the groups that decide its widths (None: fixed)."""

    conv: Conv
    input_group: str | None
    output_group: str | None


class CostModel:
    """Sums a cost over the convolutions of a network whose groups may be narrower than now.

    `conv_cost` prices one convolution, `classifier_cost` one with the given inputs and outputs. Images have
    a side of `size` pixels.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        groups: list[ChannelGroup],
        *,
        size: int,
        conv_cost: ConvCost,
        classifier_cost: Callable[[int, int], float],
        fixed: float = 0.0,
    ) -> None:
        layers = enumerate_layers(spec, size)
        made_by = {name: group.name for group in groups for name in group.producers}
        read_by = {name: group.name for group in groups for name in group.consumers}
        self._parts = [_Part(c, read_by.get(c.name), made_by.get(c.name)) for c in layers.convs()]
        self._classifier_group = read_by.get(CLASSIFIER)
        self._classifier = layers.classifier_in, layers.classes
        self._conv_cost, self._classifier_cost, self._fixed = conv_cost, classifier_cost, fixed
        self._touched: dict[str | None, list[_Part]] = {
            group.name: [p for p in self._parts if group.name in (p.input_group, p.output_group)]
            for group in groups
        }

    def total(self, widths: Widths) -> float:
        """Cost of the whole network at `widths`."""
        return self._fixed + self._of(self._parts, widths) + self._head(widths)

    def saving(self, widths: Widths, changes: Widths) -> float:
        """How much less the network costs when `widths` are changed as given."""
        parts = {p.conv.name: p for name in changes for p in self._touched[name]}.values()
        after = {**widths, **changes}
        saved = self._of(parts, widths) - self._of(parts, after)
        return saved + (self._head(widths) - self._head(after) if self._classifier_group in changes else 0.0)

    def _of(self, parts: Iterable[_Part], widths: Widths) -> float:
        return sum(self._part_cost(part, widths) for part in parts)

    def _part_cost(self, part: _Part, widths: Widths) -> float:
        conv = part.conv
        inputs = widths[part.input_group] if part.input_group else conv.in_channels
        outputs = widths[part.output_group] if part.output_group else conv.out_channels
        if inputs == 0 or outputs == 0:  # in a removed block
            return 0.0
        return self._conv_cost(replace(conv, in_channels=inputs, out_channels=outputs))

    def _head(self, widths: Widths) -> float:
        inputs, classes = self._classifier
        return self._classifier_cost(widths.get(self._classifier_group or "", inputs), classes)


class ChannelCount:
    """Counts the prunable channels themselves: the unit of `--ratio`."""

    def total(self, widths: Widths) -> float:
        return float(sum(widths.values()))

    def saving(self, widths: Widths, changes: Widths) -> float:
        return float(sum(widths[name] - new for name, new in changes.items()))


def parameter_model(spec: NetworkSpec, groups: list[ChannelGroup]) -> CostModel:
    """Counts parameters."""
    return CostModel(
        spec, groups, size=32, conv_cost=lambda conv: conv.params, classifier_cost=lambda i, o: (i + 1) * o
    )


def mac_model(spec: NetworkSpec, groups: list[ChannelGroup], size: int) -> CostModel:
    """Counts multiply-accumulates for one image."""
    return CostModel(
        spec, groups, size=size, conv_cost=lambda conv: conv.macs, classifier_cost=lambda i, o: i * o
    )
