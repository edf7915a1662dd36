from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from slimdeploy.toolchain.report.axes import Axis
from slimdeploy.toolchain.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Series, bar_chart, xy_chart

X, Y = Axis("epoch", lambda v: f"{v:g}"), Axis("accuracy", lambda v: f"{v:.0%}")


def stops(chart):
    return json.loads(ElementTree.fromstring(chart.svg).attrib["data-stops"])


def test_a_line_chart_stops_at_every_x_with_all_series_there():
    series = [Series("train", [(1, 0.5), (2, 1.0)]), Series("validation", [(1, 0.25), (2, 0.75)], 1)]
    chart = xy_chart("key", "A title", series, x=X, y=Y)
    found = stops(chart)
    assert [text for *_, text in found] == [
        "epoch 1: train 50%, validation 25%", "epoch 2: train 100%, validation 75%"
    ]  # fmt: skip
    assert [x for x, *_ in found] == [LEFT, WIDTH - RIGHT]
    assert chart.table == (["epoch", "train", "validation"], [["1", "50%", "25%"], ["2", "100%", "75%"]])


def test_lines_go_through_their_points():
    chart = xy_chart("key", "t", [Series("only", [(0, 0), (1, 1), (2, 0.5)])], x=X, y=Y)
    path = next(e for e in ElementTree.fromstring(chart.svg) if e.tag == "path")
    top, floor, middle = 14, HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    assert path.attrib["d"] == (
        f"M{LEFT:.1f} {floor:.1f}L{middle:.1f} {top:.1f}L{WIDTH - RIGHT:.1f} {(top + floor) / 2:.1f}"
    )


def test_series_that_lack_an_x_leave_it_empty():
    chart = xy_chart(
        "key", "t", [Series("a", [(0, 0), (1, 1)]), Series("b", [(1, 0.5)], 1, "dots")], x=X, y=Y
    )
    assert chart.table[1] == [["0", "0%", ""], ["1", "100%", "50%"]]


def test_a_line_s_word_stands_above_the_plot_and_beside_no_axis():
    """At the left end, where the line lies on the axis."""
    chart = xy_chart("k", "t", [Series("only", [(0, 0), (1, 1)])], x=X, y=Y, lines=[(0, "90% lie below")])
    root = ElementTree.fromstring(chart.svg)
    word = next(e for e in root if e.text == "90% lie below")
    highest = min(float(e.attrib["y"]) for e in root if e.tag == "text" and e is not word)
    assert float(word.attrib["y"]) < highest - 4
    assert float(word.attrib["x"]) >= LEFT


def test_named_dots_are_told_apart():
    dots = [Series("original", [(3, 0.5), (1, 1)], 0, "dots", ["conv1", "fc"])]
    chart = xy_chart("key", "t", dots, x=X, y=Y)
    assert [text for *_, text in stops(chart)] == ["fc, original: 1, 100%", "conv1, original: 3, 50%"]


def test_bars_stand_on_the_axis_side_by_side():
    series = [Series("full", [(0, 10), (1, 20)], 3), Series("kept", [(0, 5), (1, 0)], 1)]
    chart = bar_chart("k", "t", ["a", "b"], series, y=Axis("n", low=0), marks=[(0, "a")])
    root = ElementTree.fromstring(chart.svg)
    bars = [e for e in root if e.tag == "rect" and float(e.attrib["width"]) != 10]  # but for the legend's
    assert [float(bar.attrib["y"]) + float(bar.attrib["height"]) for bar in bars] == [HEIGHT - BOTTOM] * 4
    assert float(bars[2].attrib["x"]) == pytest.approx(
        float(bars[0].attrib["x"]) + float(bars[0].attrib["width"]), abs=0.2
    )
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[1] == 2 * heights[0] == 4 * heights[2]
    assert heights[3] == 0
    assert [text for *_, text in stops(chart)] == ["a: full 10, kept 5", "b: full 20, kept 0"]


def test_bars_stand_on_an_axis_that_does_not_begin_at_zero():
    chart = bar_chart("k", "t", ["a"], [Series("only", [(0, 0.75)])], y=Axis("n", low=0.5, high=1), marks=[])
    (bar,) = (e for e in ElementTree.fromstring(chart.svg) if e.tag == "rect")
    assert float(bar.attrib["height"]) == (HEIGHT - BOTTOM - 14) / 2
    assert float(bar.attrib["y"]) + float(bar.attrib["height"]) == HEIGHT - BOTTOM


def test_what_users_name_their_classes_cannot_break_the_page():
    name = '<script>"&'
    chart = bar_chart("k", name, [name], [Series(name, [(0, 1)])], y=Axis(name), marks=[(0, name)])
    assert "<script>" not in chart.svg
    assert stops(chart)[0][2] == f"{name}: {name} 1"


def test_a_chart_alone_brings_its_colours():
    chart = xy_chart("k", "t", [Series("a", [(0, 0), (1, 1)], 1), Series("b", [(0, 1)], 2)], x=X, y=Y)
    alone = chart.standalone()
    root = ElementTree.fromstring(alone)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in alone
    assert ".line.c1{stroke:#" in alone
