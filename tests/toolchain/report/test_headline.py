"""The sentence, the large figures and the table that a report begins with."""

from __future__ import annotations

import pytest

from slimdeploy.toolchain.report import headline


def bench(*, ci=(5.3, 5.6), reached=True, difference=(0.002, (-0.01, 0.014))):
    """Original and final at batch 1."""
    latency = {"p50": 4.3}
    rows = [
        {"model": f"{name}.onnx", "batch": 1, "params": params, "macs": params * 3, "accuracy": accuracy,
         "images": 364, "latency_ms": latency, "interval_reached": reached,
         "memory_mb": {"file": 10.0, "peak_above_idle": peak}}
        for name, params, accuracy, peak in
        (("original", 23_513_162, 0.97, 100.0), ("final", 3_590_000, 0.972, 0.0))
    ]  # fmt: skip
    compared = {"model": "final.onnx", "batch": 1, "speedup": 5.4, "ci95": ci, "interval_reached": reached}
    told = difference and {"value": difference[0], "ci95": difference[1]}
    return {"rows": rows, "comparisons": [compared | {"accuracy_difference": told}]}


def test_the_sentence_says_what_came_of_it():
    assert headline.summary(bench()) == (
        "The final network runs 5.4 times as fast at batch 1, has 6.5 times fewer parameters and is as "
        "accurate as the original within the resolution of 364 test images."
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"difference": (-0.05, (-0.08, -0.02))}, "and is less accurate than the original."),
        ({"difference": (0.05, (0.02, 0.08))}, "and is more accurate than the original."),
        ({"difference": None}, "times fewer parameters."),
        ({"ci": (0.9, 9)}, "runs not measurably faster at batch 1"),
        ({"reached": False}, "Less precise than requested: the speed-up at batch 1."),
    ],
)
def test_the_sentence_claims_no_more_than_the_intervals(given, said):
    assert said in headline.summary(bench(**given))


def test_every_large_figure_has_its_interval():
    assert [(one.value, one.doubt) for one in headline.figures(bench())] == [
        ("5.4×", "95 %: 5.30 to 5.60"),
        ("6.5×", "3.59 M left"),
        ("+0.2", "95 %: -1.0 to +1.4"),
    ]


def test_the_table_brings_the_speed_ups_interval_and_its_doubt():
    rows = {row[0]: row[1:] for row in headline.headline(bench(reached=False))}
    assert rows["p50 latency, batch 1, ms"] == ["~4.3", "~4.3", "÷ ~5.40 (5.30 to 5.60)"]
    assert rows["test accuracy"][2] == "+0.20 points (-1.00 to +1.40)"
    assert rows["peak memory, batch 1, MB"][2] == "–"  # no more than an idle process: no factor
