"""What each layer costs when it alone is quantised, and which ones to leave in float for the rest to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slimdeploy.calibrate.comparison import Comparison

Measure = Callable[[frozenset[str]], Comparison]
"""The comparison with the float model when the layers named stay in float and all others are INT8."""


@dataclass(frozen=True)
class Sensitivity:
    """The effect of quantising one layer alone. `drop` is in percentage points."""

    layer: str
    drop: float
    relative_error: float
    top1_agreement: float

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def sensitivities(
    layers: Sequence[str], measure: Measure, *, advance: Callable[[int], object] = lambda layers: None
) -> list[Sensitivity]:
    """Measure each layer alone; the most sensitive first.

    They are ordered by the error of the logits: on the few thousand images at hand, the accuracy of a single
    layer's model is mostly chance.
    """
    found = []
    for layer in layers:
        result = measure(frozenset(layers) - {layer})
        found.append(Sensitivity(layer, result.drop, result.relative_error, result.top1_agreement))
        advance(1)
    return sorted(found, key=lambda s: -s.relative_error)


def layers_to_keep(
    ranked: Sequence[str], measure: Measure, *, max_drop: float
) -> tuple[frozenset[str], Comparison]:
    """The fewest of the `ranked` layers, most sensitive first, that must stay in float for a drop of at most
    `max_drop` points; with how the model then does.

    Found by bisection, which takes for granted that more float layers never do harm. Where even the model
    without any INT8 layer misses the budget, that one is returned.
    """
    fits, misses = len(ranked), 0
    result = measure(frozenset(ranked))
    while fits - misses > 1:
        middle = (fits + misses) // 2
        tried = measure(frozenset(ranked[:middle]))
        if tried.drop <= max_drop:
            fits, result = middle, tried
        else:
            misses = middle
    return frozenset(ranked[:fits]), result
