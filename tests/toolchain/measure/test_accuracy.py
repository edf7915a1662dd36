from __future__ import annotations

import math

import numpy as np
import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.accuracy import evaluate

IMAGES = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, axis=3)


def test_accuracy_and_loss_by_hand():
    table = np.log(np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    seen = []

    def predict(images):
        seen.append(len(images))
        return table[images[:, 0, 0, 0]]

    found = evaluate(predict, IMAGES, np.array([0, 1, 1, 1, 1]), batch=2)
    assert seen == [2, 2, 1]
    assert found.correct.tolist() == [True, True, False, False, True]  # a tie goes to the first class
    assert found.accuracy == 0.6
    assert found.loss == pytest.approx(-sum(map(math.log, (0.7, 0.6, 0.5, 0.1, 0.8))) / 5)


def test_errors_by_class_and_the_first_five_by_hand():
    logits = np.array(
        [[6, 5, 4, 3, 2, 1, 0], [6, 5, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 0, 9.0], [1, 1, 1, 1, 1, 1, 1]]
    )
    found = evaluate(lambda part: logits[part[:, 0, 0, 0]], IMAGES[:4], np.array([0, 4, 5, 5]), batch=3)
    assert found.answers.tolist() == [0, 0, 6, 0]
    # Of equal logits the first come first: class 5 is the sixth of seven twice.
    assert found.top5_accuracy == 0.5
    assert found.confusion.sum() == 4
    assert (found.confusion[0, 0], found.confusion[4, 0], found.confusion[5, 6], found.confusion[5, 0]) == (
        1,
        1,
        1,
        1,
    )
    assert found.recall == [1.0, None, None, None, 0.0, 0.0, None]
    assert found.precision == [1 / 3, None, None, None, None, None, 0.0]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_expected_calibration_error_by_hand(batch):
    """.55 and .58 (right, wrong) lie in (8/15, 9/15]; .9 (right, right, wrong) in (13/15, 14/15]."""
    table = np.log(np.array([[0.55, 0.45], [0.58, 0.42], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]))
    found = evaluate(lambda part: table[part[:, 0, 0, 0]], IMAGES, np.array([0, 1, 0, 1, 1]), batch=batch)
    assert found.reliability.error == pytest.approx(2 / 5 * abs(0.5 - 0.565) + 3 / 5 * abs(2 / 3 - 0.9))
    bins = found.reliability.to_json()
    assert [(b["images"], b["accuracy"]) for b in bins if b["images"]] == [
        (2, 0.5),
        (3, pytest.approx(2 / 3)),
    ]
    assert bins[8] == {
        "from": 8 / 15,
        "to": 9 / 15,
        "images": 2,
        "confidence": pytest.approx(0.565),
        "accuracy": 0.5,
    }
    assert bins[0]["confidence"] is None


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(SlimdeployError, match="NaN or infinity"):
        evaluate(lambda images: np.full((len(images), 2), np.nan), IMAGES, np.zeros(5, int), batch=5)


def test_huge_logits_do_not_overflow():
    found = evaluate(lambda images: np.array([[1e4, 0.0]] * len(images)), IMAGES, np.zeros(5, int), batch=5)
    assert found.loss == 0


def test_labels_the_model_cannot_answer_are_refused():
    with pytest.raises(SlimdeployError, match="class index 2, but the model has only 2 classes"):
        evaluate(lambda images: np.zeros((len(images), 2)), IMAGES, np.array([0, 1, 2, 0, 0]), batch=5)


def test_no_images_are_refused():
    with pytest.raises(SlimdeployError, match="no images"):
        evaluate(lambda images: images, IMAGES[:0], np.array([], int), batch=5)
