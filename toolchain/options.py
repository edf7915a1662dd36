"""Command-line options that several commands share, so that they read and behave alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from slimdeploy.toolchain.checks import MAX_IMAGE_SIZE, MAX_SEED
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.paths import InputPath, OutputPath

F = TypeVar("F", bound=Callable[..., Any])

IMAGE_SIDE = click.IntRange(8, MAX_IMAGE_SIZE)
MAX_THREADS = 1024
"""Far beyond it the libraries crash instead of refusing."""


def checkpoint_argument(function: F) -> F:
    """The checkpoint that the command reads."""
    return click.argument("checkpoint", type=InputPath())(function)


def output_option(function: F) -> F:
    """`-o/--output` and `--force`."""
    function = click.option("--force", is_flag=True, help="Replace the output where it exists.")(function)
    return click.option("-o", "--output", type=OutputPath(".json"), required=True, help="File to write.")(
        function
    )


def resume_option(function: F) -> F:
    """`--resume`."""
    return click.option("--resume", is_flag=True, help="Go on with the unfinished run of this output.")(
        function
    )


def data_options(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--data`, `--data-dir`, `--size` and `--stream`; the function gets them as one argument, `data:
    DataOptions | None`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(
            data: str | None, data_dir: Path, size: int | None, stream: bool | None, **arguments: Any
        ) -> Any:
            from slimdeploy.toolchain.data.dataset import DataOptions

            return function(data=DataOptions(data, data_dir, size, stream) if data else None, **arguments)

        wrapped.__doc__ = function.__doc__
        wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        stream_option = click.option(
            "--stream/--no-stream",
            default=None,
            help="Leave images in their files until needed. [default: where they don't fit in half of the "
            "free memory]",
        )
        size_option = click.option(
            "--size",
            type=IMAGE_SIDE,
            help="Resize images to N×N pixels (needed where they differ).",
        )
        folder_option = click.option(
            "--data-dir",
            type=InputPath(),
            default=Path("data"),
            show_default=True,
            help="Where cifar10 lies or is downloaded to.",
        )
        data_option = click.option(
            "--data",
            required=required,
            metavar="NAME",
            help="digits, cifar10, or folder:PATH with PATH/train/<class>/… and PATH/test/<class>/….",
        )
        return data_option(folder_option(size_option(stream_option(wrapped))))

    return decorate


def seed_option(function: F) -> F:
    """`--seed`."""
    return click.option(
        "--seed",
        type=click.IntRange(0, MAX_SEED),
        default=0,
        show_default=True,
        help="Seed of every random choice.",
    )(function)


def threads_option(function: F) -> F:
    """`--threads`."""
    count = click.IntRange(1, MAX_THREADS)
    return click.option("--threads", type=count, help="CPU threads. [default: all cores]")(function)


def machine_options(function: F) -> F:
    """`--device` and `--threads`."""
    function = threads_option(function)
    devices = click.Choice(["auto", "cpu", "cuda"])
    return click.option(
        "--device", type=devices, default="auto", show_default=True, help="Where to compute."
    )(function)


def torch_device(name: str, threads: int | None) -> str:
    """Turn `--device` and `--threads` into a torch device name; set torch's thread count.

    Raises SlimdeployError where cuda is asked for and torch has none.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SlimdeployError("--device cuda: torch sees no CUDA GPU here")
    return name
