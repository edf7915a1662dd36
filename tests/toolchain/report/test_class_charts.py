"""What a report says of answers: which changed, which classes are taken for which, how sure a network is."""

from __future__ import annotations

import re

import numpy as np

from slimdeploy.toolchain.measure.accuracy import Evaluation, evaluate
from slimdeploy.toolchain.report.class_charts import class_recall, confusion_chart, reliability_chart
from slimdeploy.toolchain.report.predictions import Predictions

NAMES = ("a", "b", "c", "d")


def evaluation(labels: list[int], answers: list[int], *, classes: int = 4) -> Evaluation:
    """Of a network whose logits are 1 for its answer and 0 for every other class."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    logits = np.eye(classes)[answers]
    return evaluate(lambda part: logits[part[:, 0, 0, 0]], images, np.array(labels), batch=3)


def test_images_that_changed_their_class() -> None:
    labels = [0, 1, 2, 0]
    original, final = (evaluation(labels, answers) for answers in ([0, 1, 0, 1], [0, 2, 2, 2]))
    found = Predictions(np.zeros((4, 8, 8, 3), np.uint8), original, final, NAMES)
    assert found.lost().tolist() == [1]
    assert found.gained().tolist() == [2]
    assert class_recall(found).table[1] == [
        ["a", "50 %", "50 %"], ["b", "100 %", "0 %"], ["c", "0 %", "100 %"], ["d", "0 %", "0 %"]
    ]  # fmt: skip


def test_a_picture_of_confusions_has_a_cell_a_pair_of_classes() -> None:
    chart = confusion_chart("key", "Title", evaluation([0, 0, 0, 1, 2], [0, 1, 1, 1, 0]), NAMES)
    assert chart.table == (
        ["", *NAMES],
        [["a", "1", "2", "0", "0"], ["b", "0", "1", "0", "0"], ["c", "1", "0", "0", "0"], ["d", *"0000"]],
    )
    assert chart.svg.count("<rect") == 16
    assert "a predicted as b: 2 of 3 (66.67 %)" in chart.svg
    assert re.findall(r'fill-opacity="([\d.]+)"', chart.svg)[:2] == ["0.58", "0.82"]  # √(1/3), √(2/3)


def test_of_many_classes_those_with_the_most_errors_are_drawn() -> None:
    wrong = evaluation([7, 7, 9], [8, 8, 9], classes=100)
    chart = confusion_chart("key", "Title", wrong, [f"class number {i}" for i in range(100)])
    header, rows = chart.table
    assert len(rows) == 20
    assert rows[header.index("class number 7") - 1][header.index("class number 8")] == "2"
    assert "The 20 of 100 classes with the most errors." in chart.note


def test_confidence_beside_accuracy() -> None:
    chart = reliability_chart([("final", evaluation([0, 1, 2, 3], [0, 1, 0, 0]), 1)])
    confidence = np.e / (np.e + 3)
    assert f"final {100 * abs(0.5 - confidence):.2f} %" in chart.note
    assert [f"{100 * confidence:.4g} %", "", "50 %"] in chart.table[1]
