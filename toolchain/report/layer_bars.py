"""What is kept of each layer: a bar a layer with its name and its numbers, in as many charts as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from slimdeploy.toolchain.report.svg import HEIGHT, LETTER, WIDTH, Chart, Stop, drawing, legend

MOST = 20
"""Layers in a chart: more would leave no room for their names."""
GAP = 6


@dataclass(frozen=True)
class Kept:
    """A layer's channels: before, now, and now rounded up to what hardware works on."""

    name: str
    full: int
    kept: int
    padded: int


def kept_charts(
    key: str, layers: Sequence[Kept], *, pale: int, middle: int, strong: int, note: str
) -> list[Chart]:
    """Charts of `layers` in order, cut where their names' first part changes; colours as in svg.STYLE."""
    parts = _parts(layers)
    return [
        _chart(f"{key}-{i}", part, (pale, middle, strong), note if i == 1 else "")
        for i, part in enumerate(parts, 1)
    ]


def _parts(layers: Sequence[Kept]) -> list[list[Kept]]:
    """Runs of at most MOST layers, of one stage as far as that goes."""
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
    letter = LETTER * 1.05 * size / 12  # names and numbers have wide letters
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
