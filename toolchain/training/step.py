"""One step of training: forward, loss, backward, the optimiser, and the penalty on γ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.precision import autocast
from slimdeploy.toolchain.training.sparsity import add_subgradient, proximal_step


class TrainingStep:
    """Call it with images (B, 3, H, W) and labels (B,); the network, the optimiser and `scales` (the γ that
    the penalty acts on) are changed in place. `weight` is what these images' mean loss counts.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scales: Sequence[Tensor],
        options: TrainOptions,
        *,
        precision: str,
        device: str,
        weight: float = 1.0,
    ) -> None:
        self.network, self.optimizer, self.scales = network, optimizer, scales
        self.options, self.precision, self.device, self.weight = options, precision, device, weight

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss and the logits, both detached and still on the device."""
        options = self.options
        with autocast(self.precision, self.device):
            logits = self.network(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=options.label_smoothing)
        loss = loss * self.weight
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if options.sparsity_step == "subgradient":
            add_subgradient(self.scales, options.sparsity)
        self.optimizer.step()
        if options.sparsity_step == "proximal":
            # Momentum turns a constant gradient λ into a step of lr·λ/(1 − momentum): the same here, so
            # that λ means what it means in the reference reports.
            lr = self.optimizer.param_groups[0]["lr"]
            proximal_step(self.scales, options.sparsity * lr / (1 - options.momentum))
        return loss.detach(), logits.detach()
