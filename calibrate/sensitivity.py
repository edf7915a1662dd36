"""Sensitivity: the loss of each layer in INT8, and the choice of layers to keep in float.

A layer is judged inside the quantised network, by the gain if only that layer runs in float. As the only INT8
layer between float layers it would use other kernels: onnxruntime computes with integers only if the
neighbouring layers are INT8 too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slimdeploy.calibrate.comparison import Comparison

Measure = Callable[[frozenset[str]], Comparison]
"""Comparison with the float model when the named layers are in float and all others in INT8."""


@dataclass(frozen=True)
class Sensitivity:
    """The network with one layer in float and all others in INT8. `drop` is in percentage points."""

    layer: str
    drop: float
    relative_error: float
    top1_agreement: float
    gain: float
    """Share of the `relative_error` caused by this layer: how much larger the error is if it is in
    INT8 too.
    """

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def sensitivities(
    layers: Sequence[str], measure: Measure, *, advance: Callable[[int], object] = lambda layers: None
) -> list[Sensitivity]:
    """Measure the network with each layer in float; the largest gain first.

    They are ordered by the logit error: on a few thousand images, the effect of a single layer on the
    accuracy is mostly noise.
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
    """The smallest number of `ranked` layers, most sensitive first, that must stay in float for a drop of at
    most `max_drop` points; also returns the result for them.

    Found by bisection, assuming that more float layers never increase the drop. If even the model without
    INT8 layers exceeds the budget, that one is returned.
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
