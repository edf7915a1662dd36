"""What each layer costs in INT8, and which ones to leave in float for the rest to fit.

A layer is judged inside the quantised network, by what it gains to compute that layer alone in float. Alone
in INT8 between float layers it would run by other kernels: onnxruntime computes on integers only where what
surrounds a layer is INT8 too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slimdeploy.calibrate.comparison import Comparison

Measure = Callable[[frozenset[str]], Comparison]
"""The comparison with the float model when the layers named stay in float and all others are INT8."""


@dataclass(frozen=True)
class Sensitivity:
    """The network with one layer in float and all others in INT8. `drop` is in percentage points."""

    layer: str
    drop: float
    relative_error: float
    top1_agreement: float
    gain: float
    """How much of `relative_error` the layer costs in INT8: without any float layer it is larger by that."""

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def sensitivities(
    layers: Sequence[str], measure: Measure, *, advance: Callable[[int], object] = lambda layers: None
) -> list[Sensitivity]:
    """Measure the network with each layer in float; the one that gains most comes first.

    They are ordered by the error of the logits: on the few thousand images at hand, what a single layer does
    to the accuracy is mostly chance.
    """
    whole = measure(frozenset()).relative_error
    found = []
    for layer in layers:
        result = measure(frozenset({layer}))
        found.append(
            Sensitivity(
                layer,
                result.drop,
                result.relative_error,
                result.top1_agreement,
                whole - result.relative_error,
            )
        )
        advance(1)
    return sorted(found, key=lambda s: -s.gain)


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
