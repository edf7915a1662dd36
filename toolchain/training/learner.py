"""A network with its training state: optimiser, penalty on γ, average of the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimdeploy.toolchain.networks.channel_groups import ChannelGroup
from slimdeploy.toolchain.networks.cutting import Masks, keep_masks
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.selection import Kept
from slimdeploy.toolchain.pruning.surgery import narrowed, prune_network
from slimdeploy.toolchain.training.averaging import WeightAverage
from slimdeploy.toolchain.training.batchnorm import synchronise
from slimdeploy.toolchain.training.compiling import compiled
from slimdeploy.toolchain.training.distributed import Ranks
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.precision import resolve_precision
from slimdeploy.toolchain.training.setup import build_optimizer, build_penalty
from slimdeploy.toolchain.training.sparsity import penalised_count
from slimdeploy.toolchain.training.steering import steered_groups
from slimdeploy.toolchain.training.step import Objective, TrainingStep
from slimdeploy.toolchain.training.tensor_names import Tensors, part


@dataclass(frozen=True)
class Weights:
    """A network as data."""

    graph: Graph
    tensors: Tensors


@dataclass(frozen=True)
class Snapshot:
    """A learner as data."""

    weights: Weights
    momenta: Tensors
    """By parameter name."""
    extra: Tensors = field(default_factory=dict)
    """State that depends on the options: average of the weights, loss scale, penalty on γ."""


@dataclass(frozen=True)
class Course:
    """Settings that stay the same during a run, whatever is removed from the network."""

    options: TrainOptions
    whole: Graph
    """The network at the start of the run."""
    objective: Objective
    steps_per_epoch: int
    weight: float
    """Weight of the mean loss of this process's images."""
    device: str
    ranks: Ranks


class Learner:
    """`network` and its training state, at one set of widths."""

    def __init__(self, network: GraphNetwork, course: Course) -> None:
        options, ranks, device = course.options, course.ranks, course.device
        self.course = course
        # Also what the caller froze: after pruning every layer has to adapt.
        self.network = place(network, device).train().requires_grad_()
        synchronise(network, ranks)
        self.precision = resolve_precision(options.precision, device)
        self.optimizer = build_optimizer(network, options)
        self.penalty = build_penalty(
            network,
            options,
            steps_per_epoch=course.steps_per_epoch,
            removed=_steered(course.whole) - _steered(network.graph),
        )
        model = compiled(network, device=device, processes=ranks.size) if options.compile else network
        self.step = TrainingStep(
            ranks.wrap(model),
            self.optimizer,
            course.objective,
            self.penalty,
            precision=self.precision,
            device=device,
            weight=course.weight,
        )
        self.average = WeightAverage(network, options.ema) if options.ema else None

    @property
    def judged(self) -> GraphNetwork:
        """The network that is validated and saved: the average of the weights, if there is one."""
        return self.average.network if self.average else self.network

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def take_step(self, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """One training step on these images; returns loss and logits, still on the device."""
        found = self.step(images, labels, number)
        if self.average:
            self.average.update(number)
        return found

    def judged_weights(self) -> Weights:
        """A copy of the validated network."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.judged.state_dict().items()}
        return Weights(self.judged.graph, tensors)

    def trained(self, best: Weights | None) -> GraphNetwork:
        """The result of the run: `best`, else the validated network."""
        found = best or self.judged_weights()
        network = self.network
        if found.graph != network.graph:
            network = place(GraphNetwork(found.graph), self.course.device)
            synchronise(network, self.course.ranks)
        network.load_state_dict(found.tensors)
        return network

    @property
    def removed_scales(self) -> int:
        """Number of penalised γ whose channels have been removed."""
        layers = self.course.options.sparse_layers
        return penalised_count(self.course.whole, layers) - penalised_count(self.network.graph, layers)

    def snapshot(self) -> Snapshot:
        """The state for resuming; the tensors are references, not copies."""
        average = self.average.state() if self.average else {}
        found = {name: self.optimizer.state[p].get("momentum_buffer") for name, p in self._named_parameters()}
        return Snapshot(
            Weights(self.network.graph, dict(self.network.state_dict())),
            {name: momentum for name, momentum in found.items() if momentum is not None},
            {**self.step.state(), **{f"average.{name}": t for name, t in average.items()}},
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Restore `snapshot`, of a network with the same graph."""
        self.network.load_state_dict(snapshot.weights.tensors)
        for name, parameter in self._named_parameters():
            if name in snapshot.momenta:
                momentum = torch.empty_like(parameter)  # in its layout
                self.optimizer.state[parameter]["momentum_buffer"] = momentum.copy_(snapshot.momenta[name])
        self.step.restore(snapshot.extra)
        if self.average:
            self.average.restore(part(snapshot.extra, "average."))

    def without(self, groups: list[ChannelGroup], kept: Kept) -> Learner:
        """A learner for the network with only the `kept` units of each group. Weights, momenta, penalty and
        average lose the same channels; the constants of these channels are folded into the next layers.
        """
        graph, old = self.network.graph, self.snapshot()
        masks = keep_masks(graph, groups, kept)
        network, _ = prune_network(self.network, groups, kept)
        extra = _of_channels(old.extra, network.graph, masks)
        if self.average:
            average, _ = prune_network(self.average.network, groups, kept)
            extra |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
        momenta = narrowed(old.momenta, graph, network.graph, masks)
        made = Learner(network, self.course)
        made.lr = self.lr
        made.restore(Snapshot(Weights(network.graph, dict(network.state_dict())), momenta, extra))
        return made

    def _named_parameters(self) -> list[tuple[str, Tensor]]:
        return list(self.network.named_parameters())


def _of_channels(extra: Tensors, cut: Graph, masks: Masks) -> Tensors:
    """The per-channel state of the penalty (`penalty.KIND.BN`) without the removed channels."""
    found = {}
    for name, tensor in extra.items():
        _, _, batchnorm = name.removeprefix("penalty.").partition(".")
        if name.startswith("average.") or (batchnorm in masks and batchnorm not in cut.by_name):
            continue
        if name.startswith("penalty.") and batchnorm in masks:
            tensor = tensor[torch.from_numpy(masks[batchnorm]).to(tensor.device)]
        found[name] = tensor
    return found


def _steered(graph: Graph) -> int:
    return sum(group.width for group in steered_groups(graph))
