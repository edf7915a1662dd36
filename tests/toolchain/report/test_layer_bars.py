"""Bars of what is kept, layer by layer."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from slimdeploy.toolchain.report.layer_bars import MOST, Kept, kept_charts


def charts_of(*names):
    layers = [Kept(name, 64, 10, 16) for name in names]
    return kept_charts("channels", layers, pale=3, middle=2, strong=1, note="a note")


def test_layers_are_shown_stage_by_stage():
    names = ["conv1", *(f"layer{k}.{i}" for k in (1, 2) for i in range(10))]
    charts = charts_of(*names)
    assert [chart.key for chart in charts] == ["channels-1", "channels-2"]
    assert charts[0].title == "Channels kept: conv1 to layer1.9"
    assert charts[1].table[1][0] == ["layer2.0", "64", "10", "16"]
    assert (charts[0].note, charts[1].note) == ("a note", "")


def test_a_stage_of_many_layers_is_cut_into_even_parts():
    charts = charts_of(*(f"features.{i}" for i in range(2 * MOST + 1)))
    assert [len(chart.table[1]) for chart in charts] == [13, 14, 14]


def test_bars_are_shares_of_the_unpruned_layer():
    (chart,) = charts_of("conv1")
    bars = [
        e for e in ElementTree.fromstring(chart.svg) if e.tag == "rect" and float(e.attrib["height"]) != 10
    ]
    full, padded, kept = (float(bar.attrib["width"]) for bar in bars)
    assert abs(kept / full - 10 / 64) < 1e-3
    assert abs(padded / full - 16 / 64) < 1e-3
    texts = [e.text for e in ElementTree.fromstring(chart.svg) if e.tag == "text"]
    assert "10 of 64" in texts
    assert "conv1" in texts
