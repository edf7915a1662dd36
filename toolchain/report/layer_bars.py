"""Kept channels of each layer: one bar per layer with name and numbers, in as many charts as needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from slimdeploy.toolchain.report.svg import HEIGHT, LETTER, WIDTH, Chart, Stop, drawing, legend

MOST = 20
"""Maximum number of layers per chart, so that their names fit."""
GAP = 6


@dataclass(frozen=True)
class Kept:
    """Channels of a layer: original, kept, and kept rounded up to the alignment of hardware."""

    name: str
    full: int
    kept: int
    padded: int


def kept_charts(
    key: str, layers: Sequence[Kept], *, pale: int, middle: int, strong: int, note: str
) -> list[Chart]:
    """Charts of `layers` in order, split where the first part of the names changes; colours as in
    svg.STYLE.
    """
    parts = _parts(layers)
    return [
        _chart(f"{key}-{i}", part, (pale, middle, strong), note if i == 1 else "")
        for i, part in enumerate(parts, 1)
    ]


def _parts(layers: Sequence[Kept]) -> list[list[Kept]]:
    """Groups of at most MOST layers, of the same stage if possible."""
    parts: list[list[Kept]] = [[]]
    for _, group in groupby(layers, key=lambda layer: layer.name.split(".")[0]):
        stage = list(group)
        pieces = -(-len(stage) // MOST)
        for i in range(pieces):
            piece = stage[len(stage) * i // pieces : len(stage) * (i + 1) // pieces]
            if len(parts[-1]) + len(piece) <= MOST:
                parts[-1] += piece
            else:
                parts.append(piece)
    return parts


def _chart(key: str, layers: Sequence[Kept], colours: tuple[int, int, int], note: str) -> Chart:
    pale, middle, strong = colours
    top, words = legend([("unpruned", pale), ("padded", middle), ("kept", strong)])
    slot = (HEIGHT - top) / max(len(layers), MOST // 2)
    size = min(12.0, slot)
    numbers = [f"{layer.kept} of {layer.full}" for layer in layers]
    letter = LETTER * 1.05 * size / 12  # letters in names and numbers are wide
    left = max(len(layer.name) for layer in layers) * letter + GAP
    room = WIDTH - left - max(map(len, numbers)) * letter - GAP
    parts = [words]
    stops: list[Stop] = []
    for i, layer in enumerate(layers):
        y = top + i * slot
        base, label = y + slot * 0.78, f'style="font-size:{size:.1f}px" y="{y + slot * 0.78:.1f}"'
        for colour, share in (
            (pale, 1.0),
            (middle, layer.padded / layer.full),
            (strong, layer.kept / layer.full),
        ):
            width = room * min(1.0, share)
            parts.append(f'<rect class="fill c{colour}" x="{left:.1f}" y="{y + slot * 0.12:.1f}"'
                         f' width="{width:.1f}" height="{slot * 0.76:.1f}"/>')  # fmt: skip
        parts.append(f'<text text-anchor="end" x="{left - GAP:.1f}" {label}>{escape(layer.name)}</text>')
        parts.append(f'<text text-anchor="end" x="{WIDTH}" {label}>{numbers[i]}</text>')
        text = f"{layer.name}: kept {layer.kept} of {layer.full}, {layer.padded} padded"
        stops.append((round(left + room * layer.kept / layer.full, 1), round(base - slot * 0.28, 1), text))
    names = f"{layers[0].name} to {layers[-1].name}" if len(layers) > 1 else layers[0].name
    title = f"Channels kept: {names}"
    rows = [[layer.name, str(layer.full), str(layer.kept), str(layer.padded)] for layer in layers]
    return Chart(key, title, drawing(title, parts, stops), (["", "unpruned", "kept", "padded"], rows), note)
