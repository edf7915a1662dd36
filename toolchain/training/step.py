"""One step of training: forward, loss, backward, the optimiser, and the penalty on γ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.training.distillation import Teacher, distillation_loss
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.precision import autocast
from slimdeploy.toolchain.training.sparsity import Penalty
from slimdeploy.toolchain.training.tensor_names import part


class Objective:
    """The loss: smoothed cross-entropy with labels (N,) or, for mixed images, with probabilities (N,
    classes). With a teacher, which gets the same images, `options.distill` is the weight of the distillation
    loss.
    """

    def __init__(self, options: TrainOptions, teacher: Teacher | None, preprocessing: Preprocessing) -> None:
        self._options, self._teacher, self._preprocessing = options, teacher, preprocessing

    def __call__(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        options = self._options
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=options.label_smoothing)
        if self._teacher is None:
            return loss
        taught = self._teacher.logits(images, self._preprocessing).float()
        learnt = distillation_loss(logits.float(), taught, options.temperature)
        return (1 - options.distill) * loss + options.distill * learnt


class TrainingStep:
    """Call it with images (B, C, H, W), their labels and the step number, counted from 0 over all epochs. The
    network, the optimiser and the γ of `penalty` are changed in place. `weight` is that of the images' mean
    loss.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        penalty: Penalty,
        *,
        precision: str,
        device: str,
        weight: float = 1.0,
    ) -> None:
        self.network, self.optimizer, self.objective, self.penalty = network, optimizer, objective, penalty
        self.precision, self.device, self.weight = precision, device, weight
        # float16 gradients would underflow: the loss is scaled by the largest factor that doesn't overflow.
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def __call__(self, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Returns the loss and the logits, both detached and still on the device."""
        loss, logits = self.forward(self.network, images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.penalty.before_step()
        # If a gradient overflows, the scaler skips the step. The penalty, which needs no gradient, is applied
        # anyway, so that λ means the same in every precision.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.penalty.after_step(self.optimizer.param_groups[0]["lr"], number)
        return loss.detach(), logits.detach()

    def forward(self, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and logits of `network`."""
        with autocast(self.precision, self.device):
            logits = network(images)
            loss = self.objective(logits, images, labels) * self.weight
        return loss, logits

    def state(self) -> dict[str, Tensor]:
        """The state for resuming, besides network and optimiser."""
        found = {f"penalty.{name}": tensor for name, tensor in self.penalty.state().items()}
        for name, value in self.scaler.state_dict().items():
            found[f"scaler.{name}"] = torch.tensor(value, dtype=torch.float64)
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        self.penalty.restore(part(state, "penalty."))
        values = {name: tensor.item() for name, tensor in part(state, "scaler.").items()}
        if values:
            counts = ("growth_interval", "_growth_tracker")
            self.scaler.load_state_dict({n: int(v) if n in counts else v for n, v in values.items()})
