"""`slimdeploy classify`"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command, wants_json
from slimdeploy.toolchain.commands.flags import refuse
from slimdeploy.toolchain.commands.options import threads_option
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import printable
from slimdeploy.toolchain.paths import InputPath
from slimdeploy.toolchain.standard_output import result_stream

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from slimdeploy.toolchain.deploy.classify import Result, Source
    from slimdeploy.toolchain.preprocessing import Geometry


@command("classify")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--model",
    type=InputPath(),
    help="An ONNX file, an engine or a checkpoint. [default: the deployed version]",
)
@click.option("--root", type=InputPath(), help="Where versions are kept. [default: $SLIMDEPLOY_HOME or "
              "~/.local/share/slimdeploy]")  # fmt: skip
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes for each image."
)
@click.option("--batch", type=click.IntRange(1, 1024),
              help="Batch size. [default: 8; 1 for frames]")  # fmt: skip
@click.option("--frames", metavar="WIDTHxHEIGHT", help="With '-': raw frames of this size on standard input.")
@click.option(
    "--pixels", default="rgb", show_default=True, help="Pixel format of the frames: rgb, bgr or gray."
)
@threads_option
def classify(
    images: tuple[str, ...],
    model: Path | None,
    root: Path | None,
    top: int,
    batch: int | None,
    frames: str | None,
    pixels: str,
    threads: int | None,
) -> Output:
    """Classify IMAGES: files, folders, or '-' for raw frames on standard input.

    Images are preprocessed as in training. The classes of a frame are printed as soon as it arrives, one line
    each; --json prints all of them at the end. The exit code is 1 if an image could not be classified.
    """
    from slimdeploy.toolchain.deploy.classify import Timings, classify_images, open_model
    from slimdeploy.toolchain.deploy.root import default_root
    from slimdeploy.toolchain.runtime.session import SessionOptions

    if ("-" in images) != (frames is not None) or ("-" in images and len(images) > 1):
        raise SlimdeployError("'-' and --frames WIDTHxHEIGHT must be given together, without other images")
    if frames is None:
        refuse(("pixels",), "needs `frames`")
    if model is not None:
        refuse(("root",), "has no effect with `model`")
    session, info, name = open_model(model, root or default_root(), SessionOptions(threads=threads))
    live = frames is not None and not wants_json()
    timings, kept, seen, bad = Timings(), [], 0, 0
    with session:
        sources = _sources(images, info.preprocessing.geometry, frames, pixels)
        batch = batch or (1 if frames else 8)
        for result in classify_images(session, info, sources, timings, top=top, batch=batch):
            seen, bad = seen + 1, bad + (result.error is not None)
            if live:  # a camera stream does not end: keep nothing
                click.echo(f"{result.image}: {_line(result)}", file=result_stream())
            else:
                kept.append(result)
        document = {
            "model": name,
            "backend": session.backend,
            "precision": session.precision,
            "results": [result.to_json() for result in kept],
            "timings": timings.to_json(),
        }
    failed = f"{bad} of {seen} images could not be classified" if bad else None
    return Output(document, _spent(document) if live else _table(kept, document), failed)


def _sources(
    images: tuple[str, ...], geometry: Geometry, frames: str | None, pixels: str
) -> Iterator[Source]:
    from slimdeploy.toolchain.deploy.images import (
        FrameFormat,
        ImageLimits,
        decode_image,
        list_images,
        read_frames,
    )

    if frames:
        frame = FrameFormat.parse(frames, pixels)
        yield from _frames(read_frames(sys.stdin.buffer, frame, geometry=geometry))
        return
    limits = ImageLimits()
    for path in list_images(images):

        def read(path: Path = path):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
            return decode_image(content, str(path), geometry=geometry, limits=limits)

        yield str(path), read


def _frames(images: Iterator[np.ndarray]) -> Iterator[Source]:
    """The frames of a stream. If the stream ends within a frame, only that frame is lost."""
    number = 0
    try:
        for image in images:
            yield f"frame {number}", functools.partial(_given, image)
            number += 1
    except SlimdeployError as error:
        yield f"frame {number}", functools.partial(_refuse, error)
    else:
        if not number:
            raise SlimdeployError("no frame on standard input")


def _table(results: list[Result], document: dict) -> Table:
    from rich.markup import escape
    from rich.table import Table

    title = escape(printable(f"{document['model']}: {document['precision']} on {document['backend']}"))
    table = Table("image", "classes", title=title, caption=_spent(document) or None, min_width=72)
    for result in results:
        table.add_row(escape(printable(result.image)), escape(_line(result)))
    return table


def _line(result: Result) -> str:
    """The classes, or the error."""
    if result.error:
        return printable(result.error.removeprefix(f"{result.image}: "))
    return printable(", ".join(f"{p.label} {p.probability:.1%}" for p in result.top))


def _spent(document: dict) -> str:
    spent = document["timings"]["ms_per_image"].items()
    stages = ", ".join(f"{stage} {ms:.3g} ms" for stage, ms in spent if ms is not None)
    return f"each image: {stages}" if stages else ""


def _given(image: np.ndarray) -> np.ndarray:
    """Return the frame, which is decoded already."""
    return image


def _refuse(error: SlimdeployError) -> np.ndarray:
    raise error
