"""Batch normalisation over a batch that is shared by several processes, so that the result doesn't depend on
their number.

torch's SyncBatchNorm needs CUDA; this one works wherever `all_reduce` does, and is a BatchNorm2d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training.distributed import ALONE, Ranks


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d that in training normalises by the mean and variance over all processes.

    It takes over parameters and statistics of `batchnorm` under the same names.
    """

    def __init__(self, batchnorm: nn.BatchNorm2d, ranks: Ranks) -> None:
        super().__init__(batchnorm.num_features, batchnorm.eps, batchnorm.momentum, batchnorm.affine)
        self.ranks = ranks
        for name, parameter in batchnorm.named_parameters():
            setattr(self, name, parameter)
        for name, buffer in batchnorm.named_buffers():
            setattr(self, name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance, count = self._statistics(x.float())
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None]).to(x.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance (C,) over all processes, and the number of values of each process.

        Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983), for any number of parts;
        it avoids the cancellation of sums of squares.
        """
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        count = torch.full_like(mean, x.numel() // x.shape[1])
        # Each process fills only its own row: the sum gathers all rows, with a gradient, in one call.
        rows = torch.zeros(self.ranks.size, 3, len(mean), device=x.device)
        rows = rows.index_put(
            (torch.tensor([self.ranks.rank], device=x.device),), torch.stack([mean, variance, count])[None]
        )
        means, variances, counts = _SumOverRanks.apply(rows, self.ranks).unbind(1)
        total = counts.sum(0)
        weights = counts / total
        mean = (weights * means).sum(0)
        return mean, (weights * (variances + (means - mean) ** 2)).sum(0), total.detach()


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes, also of the gradient."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return ranks.sum(tensor.clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.ranks.sum(gradients[0].contiguous().clone()), None


def synchronise(network: GraphNetwork, ranks: Ranks) -> None:
    """Replace every BN of `network` by one over all processes; no change with one process."""
    if ranks.size == 1:
        return
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm1d):
            raise SlimdeployError(f"{name}: BN of vectors can be trained in one process only")
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, SynchronisedBatchNorm(module, ranks))


def end_synchronising(network: GraphNetwork) -> None:
    """Let every BN use the images of its own process, e.g. when all processes have the same images."""
    for module in network.modules():
        if isinstance(module, SynchronisedBatchNorm):
            module.ranks = ALONE
