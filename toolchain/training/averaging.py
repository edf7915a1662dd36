"""The exponential moving average of a network's weights (Polyak & Juditsky 1992): evaluated and kept in
place of the weights themselves.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from slimdeploy.toolchain.networks.module import GraphNetwork


class WeightAverage:
    """`network` is the average of `live`: of its parameters and of its BN statistics alike.

    At each step the average keeps `decay` of itself, at first less, so that it isn't held back by where the
    run started: (1 + n)/(10 + n) at step n, as TensorFlow's ExponentialMovingAverage does. What is exactly
    zero among γ and β of `live` is so in the average too, else no channel could ever be removed for nothing.
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
        """Take the weights after step `number`, counted from 0 over all epochs, into the average."""
        decay = min(self._decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(self._own, self._followed, 1 - decay)
        for own, followed in zip(self._own_vectors, self._followed_vectors, strict=True):
            own.mul_(followed != 0)
        for own, followed in self._counters:
            own.copy_(followed)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return dict(self.network.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self.network.load_state_dict(state)
