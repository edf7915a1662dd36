"""Command-line options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from slimdeploy.toolchain.channel_values import ChannelValues
from slimdeploy.toolchain.checks import MAX_IMAGE_SIZE, MAX_THREADS
from slimdeploy.toolchain.commands.flags import refuse
from slimdeploy.toolchain.paths import InputPath, OutputPath
from slimdeploy.toolchain.preprocessing import CHANNELS, INTERPOLATIONS
from slimdeploy.toolchain.preprocessing_options import PRESETS, PreprocessingOptions

F = TypeVar("F", bound=Callable[..., Any])

IMAGE_SIDE = click.IntRange(8, MAX_IMAGE_SIZE)


def checkpoint_argument(function: F) -> F:
    """The checkpoint argument of a command."""
    return click.argument("checkpoint", type=InputPath())(function)


def output_option(function: F) -> F:
    """`-o/--output` and `--force`."""
    function = click.option("--force", is_flag=True, help="Replace the output where it exists.")(function)
    return click.option("-o", "--output", type=OutputPath(".json"), required=True, help="File to write.")(
        function
    )


def network_options(default: str | None = None) -> Callable[[F], F]:
    """`--arch`, `--arg` and `--stem`; the function receives them as `arch`, `arguments` and `stem`."""

    def decorate(function: F) -> F:
        stem = click.option(
            "--stem", help="First layers of a ResNet: cifar-pool, cifar or imagenet. [default: cifar-pool]"
        )
        argument = click.option(
            "--arg", "arguments", multiple=True, metavar="NAME=VALUE",
            help="Argument of an imported network's function, e.g. width=0.5. Repeatable.",
        )  # fmt: skip
        arch = click.option(
            "--arch", default=default, metavar="NAME",
            help="resnet18, 34, 50, 101 or 152; torchvision:NAME, timm:NAME, or FILE.py:FUNCTION that "
            "returns a torch.nn.Module. [default: resnet50]",
        )  # fmt: skip
        return arch(argument(stem(function)))

    return decorate


def check_network_options(checkpoint: Path | None) -> None:
    """Raises SlimdeployError for an option of the network beside `checkpoint`, which contains its network."""
    if checkpoint is not None:
        refuse(("arch", "arguments", "stem", "classes"), "has no effect with a checkpoint")


def resume_option(function: F) -> F:
    """`--resume`."""
    return click.option("--resume", is_flag=True, help="Resume the interrupted run of this output.")(function)


def data_options(
    *, required: bool, preprocessing: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--data`, `--data-dir`, `--size` and `--stream`; with `preprocessing` also the preprocessing options,
    for commands that define the preprocessing. The function receives them as one argument, `data: DataOptions
    | None`.
    """
    how = "Input size: crop the central N×N pixels of the resized image (required if the images differ)."
    size = _size_option(how if preprocessing else "Side of the images in pixels: must be the model's.")
    own = _preprocessing_options(unknown="measured") if preprocessing else ()
    options = [_DATA_DIR, size, *_READING, *own]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(data: str | None, **arguments: Any) -> Any:
            from slimdeploy.toolchain.data.dataset import DataOptions

            chosen = {name: arguments.pop(name) for name in [*_NAMES, *(_CHOICES if preprocessing else ())]}
            if data is None:
                refuse(chosen, "needs `data`")
            return function(data=None if data is None else DataOptions(data, **chosen), **arguments)

        wrapped.__doc__ = function.__doc__
        wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        for option in reversed(options):
            wrapped = option(wrapped)
        return click.option(
            "--data",
            required=required,
            metavar="NAME",
            help="digits, cifar10, or folder:PATH with PATH/{train,val,test}/<class>/… or a CSV table.",
        )(wrapped)

    return decorate


_NAMES = ("data_dir", "size", "stream", "skip_unreadable")
_DATA_DIR = click.option(
    "--data-dir",
    type=InputPath(),
    default=Path("data"),
    show_default=True,
    help="Folder of cifar10, which is downloaded if missing.",
)
_READING = (
    click.option(
        "--stream/--no-stream",
        default=None,
        help="Read images from disk when needed instead of loading all at the start. [default: if they do "
        "not fit in half of the free memory]",
    ),
    click.option("--skip-unreadable", is_flag=True, help="Skip unreadable images and list them."),
)
_CHOICES = ("preprocessing", "resize", "interpolation", "mean", "std", "channels")


def _size_option(how: str) -> Callable[[F], F]:
    return click.option("--size", "--crop", "size", type=IMAGE_SIDE, help=how)


def _preprocessing_options(*, unknown: str) -> tuple[Callable[[F], F], ...]:
    """The preprocessing options; `unknown`: what `--help` shows as the default of mean and std."""
    return (
        click.option(
            "--preprocessing", metavar="NAME",
            help=f"Preset of resize, crop, mean and std: {', '.join(PRESETS)}. The options below override "
                 "it.",
        ),
        click.option(
            "--resize", metavar="N|HxW",
            help="Resize the shorter side to N, or to H×W ignoring the aspect ratio. [default: --size]",
        ),
        click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="[default: bilinear]"),
        click.option("--mean", type=ChannelValues(), metavar="R G B|V",
                     help="Mean of the pixels in 0…1; one number for gray images. "
                          f"[default: the weights', or {unknown}]"),
        click.option("--std", type=ChannelValues(), metavar="R G B|V",
                     help=f"Standard deviation of the pixels. [default: the weights', or {unknown}]"),
        click.option("--channels", type=click.Choice(list(CHANNELS)),
                     help="Colour channels of the input. [default: rgb, or gray if the network takes one]"),
    )  # fmt: skip


def preprocessing_options(*, size: str, unknown: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--size` and the preprocessing options, for a command without data; the function receives them as one
    argument, `images: PreprocessingOptions`.

    `size`: the default shown by `--help`; `unknown`: the same for mean and std.
    """
    side = _size_option(f"Input size: crop the central N×N pixels of the resized image. [default: {size}]")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(**arguments: Any) -> Any:
            chosen = {name: arguments.pop(name) for name in ("size", *_CHOICES)}
            return function(images=PreprocessingOptions(**chosen), **arguments)

        wrapped.__doc__ = function.__doc__
        wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        for option in reversed((side, *_preprocessing_options(unknown=unknown))):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def threads_option(function: F) -> F:
    """`--threads`."""
    count = click.IntRange(1, MAX_THREADS)
    return click.option("--threads", type=count, help="CPU threads. [default: all cores]")(function)


def machine_options(function: F) -> F:
    """`--device` and `--threads`."""
    function = threads_option(function)
    devices = click.Choice(["auto", "cpu", "cuda"])
    return click.option(
        "--device", type=devices, default="auto", show_default=True, help="Device to compute on."
    )(function)
