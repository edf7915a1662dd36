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


def test_huge_logits_do_not_overflow():
    found = evaluate(lambda images: np.array([[1e4, 0.0]] * len(images)), IMAGES, np.zeros(5, int), batch=5)
    assert found.loss == 0


def test_labels_the_model_cannot_answer_are_refused():
    with pytest.raises(SlimdeployError, match="a class number 2, the model only 2 classes"):
        evaluate(lambda images: np.zeros((len(images), 2)), IMAGES, np.array([0, 1, 2, 0, 0]), batch=5)


def test_no_images_are_refused():
    with pytest.raises(SlimdeployError, match="no images"):
        evaluate(lambda images: images, IMAGES[:0], np.array([], int), batch=5)
