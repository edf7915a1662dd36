"""Objects that a run needs according to its options: learning rates, penalty on γ, optimiser."""

from __future__ import annotations

import torch
from torch import nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.schedules import lr_factor
from slimdeploy.toolchain.training.sparsity import (
    FixedPenalty,
    Penalty,
    parameter_groups,
    penalised_batchnorms,
)
from slimdeploy.toolchain.training.steering import SteeredPenalty

FEW_STEPS = 200
"""Fewest steps for a new network; even the embedded digits, the easiest data, need these."""

GONE_AFTER, LEAST_GONE_AFTER = 0.02, 20
"""A γ counts as gone if it was zero for this share of all steps in a row, and at least this number of steps:
momentum that could change it again has decayed by then.
"""


LARGE_IMAGES = 128
"""Image side from which a crop shifted by a few pixels has almost no effect."""


def learning_rate(options: TrainOptions, number: int, *, steps_per_epoch: int) -> float:
    """The learning rate of step `number`, counted from 0 over all epochs."""
    factor = lr_factor(
        options.schedule,
        number,
        steps_per_epoch=steps_per_epoch,
        epochs=options.epochs,
        step_epochs=options.step_epochs,
    )
    return options.lr * factor


def short_run(options: TrainOptions, images: int) -> str | None:
    """The warning if a new network gets fewer steps than FEW_STEPS, with the option to change."""
    batch = min(options.batch_size, images)
    steps = images // batch * options.epochs
    if not 0 < steps < FEW_STEPS:
        return None
    sizes = [size for size in (64, 32, 16) if size < batch and images // size * options.epochs >= FEW_STEPS]
    advice = f"`epochs` {-(-FEW_STEPS // (images // batch))}"
    if sizes:
        advice = f"`batch_size` {sizes[0]} ({images // sizes[0] * options.epochs} steps) or {advice}"
    few = f"{steps} steps are" if steps > 1 else "1 step is"
    return f"warning: {few} too few for a new network at `lr` {options.lr:g}: use {advice}"


def small_crop(options: TrainOptions, size: int) -> str | None:
    """The hint if the default crop is used for images that it hardly changes."""
    default = options.augmentation == TrainOptions.augmentation and options.crop_pad is None
    if size < LARGE_IMAGES or not default or options.resized_crop is not None:
        return None
    pad = options.augmentations.pad
    return f"crops move images of {size} pixels by {pad} at most: `augmentation` imagenet crops and enlarges"


def build_penalty(
    network: GraphNetwork, options: TrainOptions, *, steps_per_epoch: int, removed: int = 0
) -> Penalty:
    """The penalty on γ according to `options`, with `removed` prunable channels removed before the start.
    Raises SlimdeployError if the network has no γ to penalise, and like SteeredPenalty.
    """
    if options.sparsity and not penalised_batchnorms(network.graph, options.sparse_layers):
        raise SlimdeployError(
            f"sparsity acts on the BN scales γ of prunable channels, and {network.graph.arch} has none: "
            "train without `sparsity`, and prune with `criterion` l2, taylor or surgeon"
        )
    steps = options.epochs * steps_per_epoch
    patience = max(LEAST_GONE_AFTER, int(steps * GONE_AFTER))
    if isinstance(options.sparsity, str):
        assert options.sparsity_target is not None
        return SteeredPenalty(
            network,
            options.sparsity_target,
            [learning_rate(options, number, steps_per_epoch=steps_per_epoch) for number in range(steps)],
            align=options.sparse_align,
            momentum=options.momentum,
            patience=patience,
            removed=removed,
        )
    return FixedPenalty(
        network,
        options.sparsity,
        layers=options.sparse_layers,
        form=options.sparsity_step,
        momentum=options.momentum,
        patience=patience,
    )


def build_optimizer(network: nn.Module, options: TrainOptions) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay only on the weights of convolution and linear layers."""
    groups = parameter_groups(network, options.weight_decay)
    momentum = options.momentum
    optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum > 0:
        # The fused kernel allocates the momenta in its first step, uninitialised, and never sets them if the
        # loss scaler skips that step. From zero, the first step that is taken is the same.
        for parameter in network.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
