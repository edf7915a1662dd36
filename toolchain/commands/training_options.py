"""The options that `train` and `finetune` share, one for each field of TrainOptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import click
from click.core import ParameterSource

from slimdeploy.toolchain.paths import InputPath
from slimdeploy.toolchain.training.options import (
    AUGMENTATIONS,
    FLIP_MODES,
    PRECISIONS,
    SPARSE_LAYERS,
    SPARSITY_STEPS,
    TrainOptions,
)
from slimdeploy.toolchain.training.schedules import SCHEDULES

# Field of TrainOptions -> what `--help` says of it, or its choices and what it says.
_HELP: dict[str, str | tuple[tuple[str, ...], str]] = {
    "epochs": "Passes over the training images.",
    "batch_size": "Images in a step.",
    "lr": "Peak learning rate.",
    "schedule": (tuple(SCHEDULES), "How the learning rate moves."),
    "step_epochs": "With --schedule step: epochs between two divisions by 10.",
    "momentum": "Nesterov momentum.",
    "weight_decay": "On weights; never on γ, β and biases.",
    "label_smoothing": "Share of the target spread over all classes.",
    "sparsity": "λ of the L1 penalty on γ; auto:0.9 steers it until nine tenths are exactly zero.",
    "sparsity_step": (SPARSITY_STEPS, "proximal gives exact zeros; subgradient is the reference's form."),
    "sparse_layers": (SPARSE_LAYERS, "Which γ the penalty acts on."),
    "sparse_align": "With --sparsity auto: leave multiples of so many channels, as prune --align does.",
    "validation": "Share of the training images held out.",
    "patience": "Stop after so many epochs without a better one, and keep the best.",
    "ema": "Decay of the weights' moving average, e.g. 0.999; 0 disables.",
    "recalibration_images": "Measure BN statistics anew at the end, on so many training images.",
    "teacher": "Teacher checkpoint for distillation.",
    "distill": "Share of the teacher in the loss.",
    "temperature": "What the logits are divided by before they are compared with the teacher's.",
    "augmentation": (
        tuple(AUGMENTATIONS),
        "Preset of the random crop: cifar pads 4 pixels, for small images; imagenet is --resized-crop 0.08.",
    ),
    "crop_pad": "Random crop out of the image with so many black pixels around.",
    "resized_crop": "Random rectangle of at least this share of the image, resized; 0 disables.",
    "flip": "Flip half of the images; not for digits or text.",
    "flip_mode": (FLIP_MODES, "alternating flips each image in every second epoch."),
    "color_jitter": "Change brightness, contrast and saturation by up to this share, e.g. 0.4.",
    "cutout": "Blank a square of so many pixels in every image.",
    "mixup": "α of mixup, e.g. 0.2: blend pairs of images and their labels; 0 disables.",
    "cutmix": "α of CutMix, e.g. 1: paste part of another image; with --mixup, either at random.",
    "limit": "Use a class-balanced subset of N training images.",
    "precision": (PRECISIONS, "bf16 and fp16 are mixed; auto takes bf16 where the hardware has it."),
    "compile": "Compile the network's passes (torch.compile, CUDA graphs); on CUDA only.",
    "seed": "Seed of every random choice.",
}
_SPARSITY = {"sparsity", "sparsity_step", "sparse_layers", "sparse_align"}


class _Strength(click.ParamType):
    """A number, or a text that TrainOptions judges."""

    name = "strength"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "FLOAT|auto:SHARE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return float(value)
        except ValueError:
            return value


_TYPES: dict[str, click.ParamType] = {
    "patience": click.INT,
    "limit": click.INT,
    "crop_pad": click.INT,
    "resized_crop": click.FLOAT,
    "teacher": InputPath(text=True),
    "sparsity": _Strength(),
}
"""Of fields whose default doesn't tell."""


def training_options(
    defaults: TrainOptions, *, sparsity: bool, shown: Mapping[str, str]
) -> Callable[..., Any]:
    """Decorator: add an option for each field; the function gets them as one argument, `options:
    TrainOptions`, and the names of those that the user gave as `given: frozenset[str]`.

    `shown`: field -> what `--help` says its default is, where `defaults` doesn't tell.
    """
    names = [f.name for f in fields(TrainOptions) if sparsity or f.name not in _SPARSITY]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(**arguments: Any) -> Any:
            chosen = {name: arguments.pop(name) for name in names}
            source = click.get_current_context().get_parameter_source
            given = frozenset(name for name in names if source(name) is not ParameterSource.DEFAULT)
            return function(options=replace(defaults, **chosen), given=given, **arguments)

        wrapped.__doc__ = function.__doc__
        wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        decorated: Callable[..., Any] = wrapped
        for name in reversed(names):
            decorated = _option(name, getattr(defaults, name), shown.get(name))(decorated)
        return decorated

    return decorate


def _option(name: str, default: Any, shown: str | None) -> Callable[..., Any]:
    about = _HELP[name]
    show = default is not None and not shown
    told = f" [default: {shown}]" if shown else ""
    flag = "--" + name.replace("_", "-")
    if isinstance(about, tuple):
        choices, text = about
        return click.option(
            flag, type=click.Choice(choices), default=default, show_default=show, help=text + told
        )
    if isinstance(default, bool):
        return click.option(f"{flag}/--no-{name}", default=default, show_default=show, help=about + told)
    kind = _TYPES.get(name) or (click.INT if isinstance(default, int) else click.FLOAT)
    return click.option(flag, type=kind, default=default, show_default=show, help=about + told)
