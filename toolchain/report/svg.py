"""Charts as plain SVG: lines, steps, dots and bars, with texts for pointer and arrow keys.

A chart is 400 wide, so that its text is readable on a phone. Colours are classes (`c0`, `c1`, …), which the
page defines for light and dark mode; `standalone` defines its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from slimdeploy.toolchain.report.axes import Axis, Scale, scale

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, BOTTOM = 48, 8, 40
WORD = 14
"""Height of the labels above the plot."""
LETTER = 6.3
"""Width of an average letter at font size 12, for the layout of legends."""

STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI","DejaVu Sans",Arial,sans-serif;fill:var(--text)}
.axis{stroke:var(--axis);stroke-width:1}.grid{stroke:var(--grid);stroke-width:1}
.mark{stroke:var(--text);stroke-width:1.5;stroke-dasharray:4 3}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}
.line{stroke:var(--c)}.fill{fill:var(--c)}
"""
LIGHT = (
    "--text:#1c2430;--axis:#5b6675;--grid:#e3e7ec;"
    "--c0:#6b7785;--c1:#c2500a;--c2:#0b6bcb;--c3:#b9c2cd;--c4:#1a7f5a"
)
DARK = (
    "--text:#e6eaf0;--axis:#9aa5b3;--grid:#2b333e;"
    "--c0:#9fabb9;--c1:#ff9a52;--c2:#6cb4ff;--c3:#4a5563;--c4:#57c79a"
)

Table = tuple[list[str], list[list[str]]]
"""A header, and rows."""
Stop = tuple[float, float, str]
"""A position on the drawing, and its text."""


@dataclass(frozen=True)
class Series:
    """Points (x, y) in drawing order. `form`: `line`, `steps` or `dots`; `names`: one per point."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    form: str = "line"
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Chart:
    """`key` is the file name; `table` contains the same numbers: a header and rows."""

    key: str
    title: str
    svg: str
    table: Table
    note: str = ""

    def standalone(self) -> str:
        """The chart as a separate file, in light colours, with its title."""
        start = self.svg.index(">") + 1
        colours = dict(pair.split(":") for pair in LIGHT.split(";"))
        style = STYLE
        for number in range(5):  # for SVG viewers without CSS variables
            colour = colours[f"--c{number}"]
            style = style.replace(
                f".c{number}{{--c:var(--c{number})}}",
                f".line.c{number}{{stroke:{colour}}}.fill.c{number}{{fill:{colour}}}",
            )
        style = style.replace(".line{stroke:var(--c)}.fill{fill:var(--c)}", "")
        for name, value in colours.items():
            style = style.replace(f"var({name})", value)
        background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        head = '<svg xmlns="http://www.w3.org/2000/svg"' + self.svg[4:start]
        return f"{head}<style>{style}</style>{background}{self.svg[start:]}"


def xy_chart(
    key: str,
    title: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    lines: Sequence[tuple[float, str]] = (),
    note: str = "",
) -> Chart:
    """Series in two axes. `lines` are labelled vertical lines."""
    points = [point for one in series for point in one.points]
    top, words = legend([(one.name, one.colour) for one in series])
    top += WORD if lines else 0
    to_x = scale(x, [p[0] for p in points] + [at for at, _ in lines], LEFT, WIDTH - RIGHT)
    to_y = scale(y, [p[1] for p in points], HEIGHT - BOTTOM, top)
    parts = [words, _x_axis(x, to_x), _y_axis(y, to_y)]
    parts += [_vertical(to_x(at), top, word) for at, word in lines]
    for one in series:
        placed = [(to_x(px), to_y(py)) for px, py in one.points]
        parts.append(_marks(one, placed))
    stops = _stops(series, x, y, to_x, to_y)
    header, rows = _xy_table(series, x, y)
    return Chart(key, title, drawing(title, parts, stops), (header, rows), note)


def bar_chart(
    key: str,
    title: str,
    categories: Sequence[str],
    series: Sequence[Series],
    *,
    y: Axis,
    marks: Sequence[tuple[int, str]],
    note: str = "",
) -> Chart:
    """One bar per category and series (the x of points is ignored), side by side.

    `marks` are the categories named below the axis: there may be too many to name all.
    """
    top, words = legend([(one.name, one.colour) for one in series])
    heights = [value for one in series for _, value in one.points]
    foot = y.low or 0.0
    to_y = scale(y, [*heights, foot], HEIGHT - BOTTOM, top)
    slot = (WIDTH - LEFT - RIGHT) / len(categories)
    width = slot * 0.8 / len(series)
    parts = [words, _y_axis(y, to_y)]
    stops: list[Stop] = []
    floor = to_y(foot)
    for n, one in enumerate(series):
        for i, (_, value) in enumerate(one.points):
            left = LEFT + slot * (i + 0.1) + n * width
            parts.append(f'<rect class="fill c{one.colour}" x="{left:.1f}" y="{to_y(value):.1f}"'
                         f' width="{width:.1f}" height="{max(0.0, floor - to_y(value)):.1f}"/>')  # fmt: skip
    rows = []
    for i, category in enumerate(categories):
        values = [(one.name, y.write(one.points[i][1])) for one in series]
        text = f"{category}: " + ", ".join(f"{name} {value}" for name, value in values)
        top_of_bar = min(to_y(one.points[i][1]) for one in series)
        stops.append((round(LEFT + slot * (i + 0.5), 1), round(top_of_bar, 1), text))
        rows.append([category, *(value for _, value in values)])
    for i, word in marks:
        left = LEFT + slot * (i + 0.1)
        parts.append(f'<text x="{left:.1f}" y="{HEIGHT - BOTTOM + 16}">{escape(word)}</text>')
    parts.append(_line(LEFT, floor, WIDTH - RIGHT, floor, "axis"))
    return Chart(key, title, drawing(title, parts, stops), (["", *(one.name for one in series)], rows), note)


def _x_axis(axis: Axis, place: Scale) -> str:
    parts = [_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")]
    for value in place.ticks():
        at = place(value)
        anchor = "end" if at > WIDTH - RIGHT - 12 else "middle"
        parts.append(_line(at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 4, "axis"))
        parts.append(f'<text text-anchor="{anchor}" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}">'
                     f"{escape(axis.write(value))}</text>")  # fmt: skip
    parts.append(f'<text text-anchor="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">'
                 f"{escape(axis.label)}</text>")  # fmt: skip
    return "".join(parts)


def _y_axis(axis: Axis, place: Scale) -> str:
    parts = []
    for value in place.ticks():
        at = place(value)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "grid"))
        parts.append(
            f'<text text-anchor="end" x="{LEFT - 5}" y="{at + 4:.1f}">{escape(axis.write(value))}</text>'
        )
    return "".join(parts)


def _vertical(at: float, top: float, word: str) -> str:
    """A dashed line, with its label above the plot, on the wider side."""
    place = f'text-anchor="end" x="{at + 4:.1f}"' if at > WIDTH / 2 else f'x="{max(at - 4, LEFT):.1f}"'
    dashes = f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 4:.1f}"'
    return f'{dashes} y2="{HEIGHT - BOTTOM}"/><text {place} y="{top - 7:.1f}">{escape(word)}</text>'


def _marks(series: Series, placed: Sequence[tuple[float, float]]) -> str:
    if series.form == "dots":
        return _circles(series, placed, radius=3)
    path = []
    for i, (px, py) in enumerate(placed):
        if i == 0:
            path.append(f"M{px:.1f} {py:.1f}")
        elif series.form == "steps":
            path.append(f"H{px:.1f}V{py:.1f}")
        else:
            path.append(f"L{px:.1f} {py:.1f}")
    drawn = f'<path class="line c{series.colour}" d="{"".join(path)}"/>'
    if series.form == "line" and len(placed) <= 40:
        drawn += _circles(series, placed, radius=2.5)
    return drawn


def _circles(series: Series, placed: Sequence[tuple[float, float]], *, radius: float) -> str:
    return "".join(
        f'<circle class="fill c{series.colour}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>'
        for px, py in placed
    )


def _stops(series: Sequence[Series], x: Axis, y: Axis, to_x: Scale, to_y: Scale) -> list[Stop]:
    """The positions that can be pointed at: every dot with its name; otherwise every x, with all series
    there.
    """
    stops: list[Stop] = []
    by_x: dict[float, list[tuple[Series, float]]] = {}
    for one in series:
        if one.names:
            for (px, py), name in zip(one.points, one.names, strict=True):
                text = f"{name}, {one.name}: {x.write(px)}, {y.write(py)}"
                stops.append((round(to_x(px), 1), round(to_y(py), 1), text))
        else:
            for px, py in one.points:
                by_x.setdefault(px, []).append((one, py))
    for px, here in by_x.items():
        figures = ", ".join(f"{one.name} {y.write(py)}" for one, py in here)
        stops.append((round(to_x(px), 1), round(to_y(here[0][1]), 1), f"{x.label} {x.write(px)}: {figures}"))
    return sorted(stops)


def _xy_table(series: Sequence[Series], x: Axis, y: Axis) -> Table:
    if any(one.names for one in series):
        named = [(name, one.name, *point) for one in series
                 for point, name in zip(one.points, one.names or (), strict=True)]  # fmt: skip
        return ["", "", x.label, y.label], [
            [name, of, x.write(px), y.write(py)] for name, of, px, py in named
        ]
    columns = [dict(one.points) for one in series]
    places = sorted({px for column in columns for px in column})
    rows = [[x.write(px), *(y.write(c[px]) if px in c else "" for c in columns)] for px in places]
    return [x.label, *(one.name for one in series)], rows


def legend(entries: Sequence[tuple[str, int]]) -> tuple[float, str]:
    """Top of the plot, and the legend above it; no legend for a single series."""
    if len(entries) < 2:
        return 14, ""
    parts, left, top = [], float(LEFT), 10
    for name, colour in entries:
        width = 16 + len(name) * LETTER + 12
        if left > LEFT and left + width > WIDTH:
            left, top = float(LEFT), top + 16
        parts.append(f'<rect class="fill c{colour}" x="{left}" y="{top - 8}" width="10" height="10"/>'
                     f'<text x="{left + 14}" y="{top + 1}">{escape(name)}</text>')  # fmt: skip
        left += width
    return top + 16, "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def drawing(title: str, parts: Sequence[str], stops: Sequence[Stop]) -> str:
    """The whole SVG; `stops` are the positions for pointer and arrow keys."""
    data, label = escape(json.dumps(stops, ensure_ascii=False)), escape(title)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}"'
    return f'{head} data-stops="{data}">{"".join(parts)}</svg>'
