"""Compensation: the kept channels approximate the removed ones by least squares.

A removed activation is predicted from the kept ones, a_R ≈ M·a_K + b, and the layer that reads it gets
weights and a constant that use the prediction. M is the least-squares solution from the second moments of
real activations. The prediction is per pixel, so it can be merged into a convolution of any kernel size. For
a constant channel this equals folding the constant.

The order of removal follows Optimal Brain Surgeon (Hassibi & Stork, 1993) applied to whole channels, with the
Kronecker form of the Hessian: input second moments ⊗ diagonal Fisher information of the outputs (as in
EigenDamage, Wang et al., arXiv 1905.05934).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.pruning.activations import InputMoments

RIDGE = 1e-4
"""Added to the diagonal of the covariance, relative to its mean: keeps the solution stable if channels are
collinear.
"""


@dataclass(frozen=True)
class Compensated:
    """`weight` for the kept inputs; `shift` (O,) is added to each output inside the image."""

    weight: Tensor
    shift: Tensor


def compensate(weight: Tensor, moments: InputMoments, kept: Tensor) -> Compensated:
    """The weights (O, C, …) of a layer for the `kept` of its C inputs, with compensation for the others."""
    removed = torch.ones(weight.shape[1], dtype=torch.bool)
    removed[kept] = False
    covariance, mean = _ridged(moments.covariance), moments.mean
    mixing = torch.linalg.solve(covariance[kept][:, kept], covariance[kept][:, removed]).T  # (R, K)
    constant = mean[removed] - mixing @ mean[kept]
    double = weight.detach().cpu().double()
    lost = double[:, removed]
    taken_over = torch.einsum("or...,rk->ok...", lost, mixing)
    shift = torch.einsum("ort,r->o", lost.flatten(2) if lost.dim() > 2 else lost[..., None], constant)
    return Compensated((double[:, kept] + taken_over).to(weight.dtype), shift)


def surgeon_scores(readers: Sequence[tuple[Tensor, InputMoments]], *, chunk: int) -> np.ndarray:
    """Increase of the loss caused by removing each channel after all cheaper ones; (C,) float64.

    `readers` are the weights (O, C, …) of every layer that reads the channels, with its input moments.
    Channels are removed `chunk` at a time, the cheapest by the current estimate first; the remaining channels
    compensate after each chunk.
    """
    states = [_Reader(weight, moments) for weight, moments in readers]
    width = len(states[0].inverse)
    alive = torch.ones(width, dtype=torch.bool)
    scores, highest = np.zeros(width), 0.0
    while alive.any():
        costs = torch.stack([state.costs() for state in states]).sum(0)
        costs[~alive] = torch.inf
        chosen = torch.argsort(costs, stable=True)[: min(chunk, int(alive.sum()))]
        if len(chosen) == alive.sum():  # no channel is left to compensate
            scores[chosen.numpy()] = np.maximum(costs[chosen].numpy(), highest)
            break
        cost = sum(state.remove(chosen) for state in states) / len(chosen)
        highest = max(highest, cost)  # never below the cost of an earlier removal
        scores[chosen.numpy()] = highest
        alive[chosen] = False
    return scores


class _Reader:
    """One layer while its inputs are removed: its compensated weights and the inverse covariance."""

    def __init__(self, weight: Tensor, moments: InputMoments) -> None:
        rows = weight.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, O·taps)
        taps = rows.shape[1] // weight.shape[0]
        self.weight = rows * moments.sensitivity.repeat_interleave(taps).sqrt()
        self.inverse = torch.linalg.inv(_ridged(moments.covariance))

    def costs(self) -> Tensor:
        """(C,) cost of removing each channel alone; 0 for removed ones."""
        return self.weight.square().sum(1) / self.inverse.diagonal().clamp_min(1e-300) / 2

    def remove(self, chosen: Tensor) -> float:
        """Remove `chosen`, compensate with the rest, and return the cost."""
        columns = self.inverse[:, chosen]
        solved = torch.linalg.solve(columns[chosen], torch.cat([self.weight[chosen], columns.T], 1))
        for_weight, for_inverse = solved.split([self.weight.shape[1], len(self.inverse)], 1)
        cost = float((self.weight[chosen] * for_weight).sum()) / 2
        self.weight -= columns @ for_weight
        self.inverse -= columns @ for_inverse
        self.weight[chosen] = 0
        self.inverse[chosen] = 0
        self.inverse[:, chosen] = 0
        return cost


def _ridged(covariance: Tensor) -> Tensor:
    ridge = RIDGE * covariance.diagonal().mean() + 1e-12
    return covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)
