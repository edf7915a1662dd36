"""Decode many image files to arrays, and report unreadable ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import fit, open_image, upright_rgb
from slimdeploy.toolchain.preprocessing import Geometry
from slimdeploy.toolchain.progress import log, progress_bar

NAMED = 50
"""Number of unreadable files named in an error."""
_CHUNK = 256


class Unreadable(SlimdeployError):
    """A file that isn't a readable image."""


def decode(file: Path | str, geometry: Geometry | None) -> np.ndarray:
    """One image file as (H, W, 3) uint8; raises Unreadable where it can't be read."""
    try:
        with open_image(file) as image:
            rgb = upright_rgb(image)
            return np.asarray(rgb) if geometry is None else fit(rgb, geometry)
    except Exception as error:  # PIL raises many types of errors for damaged files
        reason = " ".join(str(error).replace(repr(os.fspath(file)), "").split()) or type(error).__name__
        raise Unreadable(f"{file}: not a readable image ({reason})") from error


def decode_as(file: str, *, shape: tuple[int, ...], geometry: Geometry | None) -> np.ndarray:
    """One image file as an array of `shape`, like the other files; raises SlimdeployError if it has another
    shape.
    """
    image = decode(file, geometry)
    if image.shape != shape:
        raise SlimdeployError(
            f"{file} is {image.shape[1]}×{image.shape[0]}, but earlier images are "
            f"{shape[1]}×{shape[0]}: pass `size` N to resize all"
        )
    return image


def square_shape(paths: Iterable[str]) -> tuple[int, ...]:
    """The shape of the first readable image, if no size is given."""
    error = None
    for path in paths:
        try:
            shape = decode(path, None).shape
        except Unreadable as first:
            error = error or first
            continue
        if shape[0] != shape[1]:
            raise SlimdeployError(
                f"{path} is {shape[1]}×{shape[0]}, not square: pass `size` N to resize and crop"
            )
        return shape
    raise error or SlimdeployError("there are no images")


def decode_all(
    paths: Sequence[str], shape: tuple[int, ...], geometry: Geometry | None
) -> tuple[np.ndarray, dict[str, str]]:
    """Decode `paths` into one (N, S, S, 3) array; also returns path -> error of unreadable files, whose
    images are black.
    """
    images = np.zeros((len(paths), *shape), dtype=np.uint8)

    def decode_one(i: int) -> None:
        images[i] = decode_as(paths[i], shape=shape, geometry=geometry)

    return images, _each(paths, decode_one, "decoding images")


def find_unreadable(paths: Sequence[str]) -> dict[str, str]:
    """Path -> error of all unreadable files."""

    def check(i: int) -> None:
        decode(paths[i], None)

    return _each(paths, check, "checking images")


def refuse(unreadable: dict[str, str]) -> SlimdeployError:
    """The error that lists unreadable files."""
    reasons = list(unreadable.values())
    if len(reasons) == 1:
        return SlimdeployError(f"{reasons[0]}; use `skip_unreadable` to skip it")
    named = "; ".join(reasons[:NAMED]) + ("; …" if len(reasons) > NAMED else "")
    return SlimdeployError(f"{len(reasons)} unreadable images (use `skip_unreadable` to skip them): {named}")


def tell_skipped(unreadable: dict[str, str]) -> None:
    """Log the files that are skipped because they can't be read."""
    for reason in list(unreadable.values())[:NAMED]:
        log(f"skipped: {reason}")
    if len(unreadable) > NAMED:
        log(f"skipped: {len(unreadable)} unreadable images in total")


def _each(paths: Sequence[str], work: Callable[[int], None], title: str) -> dict[str, str]:
    """Call `work` with every index, on all cores; returns path -> message of the Unreadable errors."""

    def chunk(start: int) -> tuple[int, dict[str, str]]:
        numbers = range(start, min(start + _CHUNK, len(paths)))
        failed = {}
        for i in numbers:
            try:
                work(i)
            except Unreadable as error:
                failed[paths[i]] = str(error)
        return len(numbers), failed

    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar(title, total=len(paths)) as advance:
        for count, failed in pool.map(chunk, range(0, len(paths), _CHUNK)):
            advance(count)
            unreadable |= failed
    return unreadable
