"""`slimdeploy classify`"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.errors import SlimdeployError

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from slimdeploy.toolchain.deploy.classify import Result, Source

PATH = click.Path(path_type=Path)


@command("classify")
@click.argument("images", nargs=-1, required=True)
@click.option("--model", type=PATH, help="An ONNX file or an engine. [default: the deployed version]")
@click.option("--root", type=PATH, help="Where versions are kept. [default: $SLIMDEPLOY_HOME or "
              "~/.local/share/slimdeploy]")  # fmt: skip
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes for each image."
)
@click.option(
    "--batch", type=click.IntRange(1, 1024), default=8, show_default=True, help="Images computed together."
)
@click.option("--frames", metavar="WIDTHxHEIGHT", help="With '-': raw frames of this size on standard input.")
@click.option("--pixels", default="rgb", show_default=True, help="Their bytes: rgb, bgr or gray.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
def classify(
    images: tuple[str, ...],
    model: Path | None,
    root: Path | None,
    top: int,
    batch: int,
    frames: str | None,
    pixels: str,
    threads: int | None,
) -> Output:
    """Classify IMAGES: files, folders, or '-' for raw frames on standard input.

    Images are resized so that the shorter side fits, and the centre is taken, as in training. The exit code
    is 1 where some of them couldn't be read.
    """
    from slimdeploy.toolchain.deploy.classify import classify_images, open_model
    from slimdeploy.toolchain.deploy.store import default_root
    from slimdeploy.toolchain.runtime.session import SessionOptions

    if ("-" in images) != (frames is not None) or ("-" in images and len(images) > 1):
        raise SlimdeployError("'-' and --frames WIDTHxHEIGHT belong together, without other images")
    session, info, name = open_model(model, root or default_root(), SessionOptions(threads=threads))
    with session:
        sources = _sources(images, info.preprocessing.size, frames, pixels)
        results, timings = classify_images(session, info, sources, top=top, batch=batch)
        document = {
            "model": name,
            "backend": session.backend,
            "precision": session.precision,
            "results": [result.to_json() for result in results],
            "timings": timings.to_json(),
        }
    bad = sum(result.error is not None for result in results)
    failed = f"{bad} of {len(results)} images couldn't be read" if bad else None
    return Output(document, _table(results, document), failed)


def _sources(images: tuple[str, ...], size: int, frames: str | None, pixels: str) -> Iterator[Source]:
    from slimdeploy.toolchain.deploy.images import (
        FrameFormat,
        ImageLimits,
        decode_image,
        list_images,
        read_frames,
    )

    if frames:
        frame = FrameFormat.parse(frames, pixels)
        yield from _frames(read_frames(sys.stdin.buffer, frame, size=size))
        return
    limits = ImageLimits()
    for path in list_images(images):

        def read(path: Path = path):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
            return decode_image(content, str(path), size=size, limits=limits)

        yield str(path), read


def _frames(images: Iterator[np.ndarray]) -> Iterator[Source]:
    """The frames of a stream. One that breaks off in the middle of a frame loses that frame alone."""
    number = 0
    try:
        for image in images:
            yield f"frame {number}", functools.partial(_given, image)
            number += 1
    except SlimdeployError as error:
        yield f"frame {number}", functools.partial(_refuse, error)
    else:
        if not number:
            raise SlimdeployError("no frame came on standard input")


def _table(results: list[Result], document: dict) -> Table:
    from rich.table import Table

    spent = document["timings"]["ms_per_image"].items()
    stages = ", ".join(f"{stage} {ms:.3g} ms" for stage, ms in spent if ms is not None)
    title = f"{document['model']}: {document['precision']} on {document['backend']}"
    caption = f"each image: {stages}" if stages else None
    table = Table("image", "classes", title=title, caption=caption, min_width=72)
    for result in results:
        classes = ", ".join(f"{p.label} {p.probability:.1%}" for p in result.top)
        table.add_row(result.image, (result.error or classes).removeprefix(f"{result.image}: "))
    return table


def _given(image: np.ndarray) -> np.ndarray:
    """A frame is an image already."""
    return image


def _refuse(error: SlimdeployError) -> np.ndarray:
    raise error
