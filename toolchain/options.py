"""Command-line options that several commands share, so that they read and behave alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from slimdeploy.toolchain.errors import SlimdeployError

F = TypeVar("F", bound=Callable[..., Any])


def checkpoint_argument(function: F) -> F:
    """The checkpoint that the command reads."""
    return click.argument("checkpoint", type=click.Path(path_type=Path))(function)


def output_option(function: F) -> F:
    """`-o/--output` and `--force`."""
    function = click.option("--force", is_flag=True, help="Replace the output where it exists.")(function)
    return click.option(
        "-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write."
    )(function)


def data_options(*, required: bool) -> Callable[[F], F]:
    """`--data`, `--data-dir`, `--size` and `--limit`."""

    def decorate(function: F) -> F:
        function = click.option(
            "--limit", type=click.IntRange(min=1), help="Use a class-balanced subset of N training images."
        )(function)
        function = click.option(
            "--size",
            type=click.IntRange(min=8),
            help="Resize images to N×N pixels (needed where they differ in size).",
        )(function)
        function = click.option(
            "--data-dir", type=click.Path(path_type=Path), default=Path("data"), show_default=True,
            help="Where cifar10 lies or is downloaded to.",
        )(function)  # fmt: skip
        return click.option(
            "--data", required=required, metavar="NAME",
            help="digits, cifar10, or folder:PATH with PATH/train/<class>/… and PATH/test/<class>/…",
        )(function)  # fmt: skip

    return decorate


def machine_options(function: F) -> F:
    """`--device` and `--threads`."""
    function = click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores]."
    )(function)
    return click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
    )(function)  # fmt: skip


def seed_option(function: F) -> F:
    return click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of every random choice."
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
        raise SlimdeployError(
            "--device cuda: torch sees no CUDA GPU here (slimdeploy doctor says what is missing)"
        )
    return name
