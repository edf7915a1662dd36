"""Charts of a classifier's predictions: accuracy by class, confusions, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from slimdeploy.toolchain.formatting import percent
from slimdeploy.toolchain.measure.accuracy import Evaluation
from slimdeploy.toolchain.measure.reliability import BINS
from slimdeploy.toolchain.report.axes import Axis
from slimdeploy.toolchain.report.charts import FINAL, FOURTH, ORIGINAL, SHARE
from slimdeploy.toolchain.report.predictions import Predictions
from slimdeploy.toolchain.report.svg import (
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    WIDTH,
    Chart,
    Series,
    Stop,
    bar_chart,
    drawing,
    xy_chart,
)

MOST = 20
"""Maximum number of classes in a confusion matrix, so that their names fit."""
NUMBERED = 12
"""Maximum number of classes for which cells show numbers."""


def class_charts(found: Predictions) -> list[Chart]:
    """All charts, original beside final."""
    both = (("original", found.original, ORIGINAL), ("final", found.final, FINAL))
    return [
        class_recall(found),
        *(
            confusion_chart(f"confusion-{name}", f"Confusions of the {name} network", one, found.class_names)
            for name, one, _ in both
        ),
        reliability_chart(both),
    ]


def class_recall(found: Predictions) -> Chart:
    """Accuracy within each class, original and final; 0 for a class without images."""
    series = [
        Series(name, [(i, value or 0.0) for i, value in enumerate(one.recall)], colour)
        for name, one, colour in (("original", found.original, ORIGINAL), ("final", found.final, FINAL))
    ]
    low = min(value for one in series for _, value in one.points)
    y = Axis("accuracy", SHARE.write, low=max(0.0, np.floor(low * 10 - 1) / 10), high=1.0)
    note = f"The axis begins at {percent(y.low)}." if y.low else ""
    names = list(found.class_names)
    title = "Test accuracy, class by class"
    return bar_chart("classes", title, names, series, y=y, marks=_fitting_marks(names), note=note)


def reliability_chart(models: Sequence[tuple[str, Evaluation, int]]) -> Chart:
    """Accuracy against confidence in the bins of the expected calibration error."""
    series = [Series("confidence = accuracy", [(0.0, 0.0), (1.0, 1.0)], FOURTH)]
    for name, one, colour in models:
        filled = [entry for entry in one.reliability.to_json() if entry["images"]]
        points = [(entry["confidence"], entry["accuracy"]) for entry in filled]
        series.append(Series(name, points, colour))
    errors = ", ".join(f"{name} {percent(one.reliability.error)}" for name, one, _ in models)
    note = (
        f"Expected calibration error over {BINS} bins (arXiv 1706.04599): {errors}. Below the diagonal a "
        "network is overconfident."
    )
    x, y = Axis("confidence", SHARE.write, low=0, high=1), Axis("accuracy", SHARE.write, low=0, high=1)
    return xy_chart("reliability", "Accuracy against confidence", series, x=x, y=y, note=note)


def confusion_chart(key: str, title: str, found: Evaluation, class_names: Sequence[str]) -> Chart:
    """Share of each true class's images (rows) by predicted class (columns), for the MOST classes with the
    most errors.
    """
    confusion = found.confusion
    wrong = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST])
    cells, totals = confusion[np.ix_(shown, shown)], confusion.sum(1)[shown]
    names = [class_names[k] for k in shown]
    short = [name if len(name) <= 10 else f"{name[:9]}…" for name in names]
    margin = max(map(len, short)) * LETTER + 6
    width, height = (WIDTH - margin - RIGHT) / len(names), (HEIGHT - margin - 14) / len(names)
    size = min(12.0, height)
    parts: list[str] = []
    stops: list[Stop] = []
    for i, row in enumerate(cells):
        middle = 14 + height * (i + 0.5)
        parts.append(_word(short[i], margin - 6, middle + size / 3, size, "end"))
        for j, images in enumerate(row.tolist()):
            left, share = margin + width * j, images / totals[i] if totals[i] else 0.0
            colour = FOURTH if i == j else FINAL
            top = middle - height / 2
            parts.append(f'<rect class="fill c{colour}" fill-opacity="{share**0.5:.2f}" x="{left:.1f}"'
                         f' y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>')  # fmt: skip
            if len(names) <= NUMBERED and images:
                parts.append(_word(str(images), left + width / 2, middle + size / 3, size, "middle"))
            text = f"{names[i]} predicted as {names[j]}: {images} of {totals[i]} ({percent(share)})"
            stops.append((round(left + width / 2, 1), round(middle, 1), text))
    for j, name in enumerate(short):
        x, y = margin + width * (j + 0.5) + size / 3, HEIGHT - margin + 6
        parts.append(f'<text text-anchor="end" style="font-size:{size:.1f}px" transform="rotate(-90 {x:.1f}'
                     f' {y:.1f})" x="{x:.1f}" y="{y:.1f}">{escape(name)}</text>')  # fmt: skip
    note = "A row is a true class, a column a predicted class; colour by the square root of the row's share."
    if len(names) < len(class_names):
        note += f" The {len(names)} of {len(class_names)} classes with the most errors."
    rows = [[name, *map(str, row.tolist())] for name, row in zip(names, cells, strict=True)]
    return Chart(key, title, drawing(title, parts, stops), (["", *names], rows), note)


def _word(text: str, x: float, y: float, size: float, anchor: str) -> str:
    return (
        f'<text text-anchor="{anchor}" style="font-size:{size:.1f}px" x="{x:.1f}" y="{y:.1f}">'
        f"{escape(text)}</text>"
    )


def _fitting_marks(names: Sequence[str]) -> list[tuple[int, str]]:
    """As many category names, shortened, as fit below the axis."""
    shown = [name if len(name) <= 9 else f"{name[:8]}…" for name in names]
    needed = (max(map(len, shown)) + 1) * LETTER
    slot = (WIDTH - LEFT - RIGHT) / len(shown)
    every = math.ceil(needed / slot)
    return [(i, name) for i, name in enumerate(shown) if i % every == 0]
