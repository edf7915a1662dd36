"""The exponential moving average (EMA) of the weights (Polyak & Juditsky 1992), which is validated and saved
instead of the weights.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from slimdeploy.toolchain.networks.module import GraphNetwork


class WeightAverage:
    """`network` is the average of `live`, of its parameters and BN statistics.

    The decay of step n is min(`decay`, (1 + n)/(10 + n)), as in TensorFlow's ExponentialMovingAverage, so
    that the initial weights are forgotten quickly. γ and β that are exactly zero in `live` are zero in the
    average too, so that their channels can be removed without loss.
    """

    def __init__(self, live: GraphNetwork, decay: float) -> None:
        self.network = copy.deepcopy(live).eval().requires_grad_(requires_grad=False)
        self._decay = decay
        own, followed = self.network.state_dict(), live.state_dict()
        floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
        self._own, self._followed = [own[n] for n in floating], [followed[n] for n in floating]
        counters = [name for name in own if name not in floating]
        self._counters = [(own[n], followed[n]) for n in counters]
        vectors = [n for n, p in live.named_parameters() if p.dim() == 1]
        self._own_vectors, self._followed_vectors = [own[n] for n in vectors], [followed[n] for n in vectors]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Update the average after step `number`, counted from 0 over all epochs."""
        decay = min(self._decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(self._own, self._followed, 1 - decay)
        for own, followed in zip(self._own_vectors, self._followed_vectors, strict=True):
            own.mul_(followed != 0)
        for own, followed in self._counters:
            own.copy_(followed)

    def state(self) -> dict[str, Tensor]:
        """The state for resuming."""
        return dict(self.network.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        self.network.load_state_dict(state)
