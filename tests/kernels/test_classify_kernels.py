"""topk.cu and accuracy.cu against torch and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.kernels.classify import Accuracy, TopK, threads
from slimdeploy.toolchain.errors import SlimdeployError


def top(device, memory, logits, k):
    batch, classes = logits.shape
    kernel = TopK(device, classes=classes, k=k, precision="fp32" if logits.dtype == np.float32 else "fp16")
    buffers = [
        memory.to(a) for a in (logits, np.zeros((batch, k), np.float32), np.zeros((batch, k), np.int32))
    ]
    kernel.queue(*buffers, batch, memory.stream)
    result = memory.back(buffers[1], (batch, k), np.float32), memory.back(buffers[2], (batch, k), np.int32)
    for buffer in buffers:
        buffer.free()
    return result


def count_correct(device, memory, logits, labels, start=0):
    batch, classes = logits.shape
    kernel = Accuracy(device, classes=classes, precision="fp32" if logits.dtype == np.float32 else "fp16")
    buffers = [memory.to(a) for a in (logits, np.int32(labels), np.uint32([start]))]
    kernel.queue(*buffers, batch, memory.stream)
    (count,) = memory.back(buffers[2], (1,), np.uint32)
    for buffer in buffers:
        buffer.free()
    return count


@st.composite
def logits(draw):
    """Few distinct values, so that many are equal; now and then one a row is infinite."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    shape = (
        draw(st.integers(1, 4)),
        draw(st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 1000]))),
    )
    values = rng.normal(0, 4, shape).round(draw(st.integers(0, 2)))
    if draw(st.booleans()):
        values[:, rng.integers(shape[1])] = -np.inf if shape[1] > 1 else 0
    return values.astype(draw(st.sampled_from([np.float32, np.float16])))


@settings(max_examples=60, deadline=None)
@given(values=logits(), data=st.data())
def test_top_k_is_softmax_sorted_the_lower_class_first(device, memory, values, data):
    k = data.draw(st.integers(1, min(values.shape[1], 12)))
    probabilities, indices = top(device, memory, values, k)
    order = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    softmax = torch.from_numpy(values).double().softmax(1).numpy()
    np.testing.assert_allclose(probabilities, np.take_along_axis(softmax, order, 1), rtol=2e-5, atol=1e-30)


@settings(max_examples=40, deadline=None)
@given(values=logits(), seed=st.integers(0, 99), start=st.integers(0, 5))
def test_accuracy_counts_what_argmax_gets_right(device, memory, values, seed, start):
    rng = np.random.default_rng(seed)
    right = values.argmax(1)
    labels = np.where(rng.random(len(values)) < 0.5, right, rng.integers(0, values.shape[1], len(values)))
    assert count_correct(device, memory, values, labels, start) == start + (labels == right).sum()


def test_all_of_a_row_in_order(device, memory):
    values = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    probabilities, indices = top(device, memory, values, 300)
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(300), (2, 1)))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_large_logits_do_not_overflow(device, memory):
    probabilities, indices = top(device, memory, np.float32([[3e38, -3e38, 3e38]]), 3)
    np.testing.assert_array_equal(indices, [[0, 2, 1]])
    np.testing.assert_allclose(probabilities, [[0.5, 0.5, 0]])


def test_nan_counts_as_the_largest_as_in_torch(device, memory):
    values = np.float32([[1, np.nan, 5, np.nan]])
    probabilities, indices = top(device, memory, values, 3)
    np.testing.assert_array_equal(indices, [[1, 3, 2]])
    assert np.isnan(probabilities).all()
    assert count_correct(device, memory, values, [2]) == 0  # a broken network doesn't pass for a right one
    assert int(torch.from_numpy(values).argmax(1)) == 1


def test_every_half_is_read_exactly(fake, device, memory):
    """All 65,536 of them that are numbers, one a row beside a smaller one: its own probability rank is
    first.
    """
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = np.sort(halves[np.isfinite(halves)])
    ascending = finite[1:][np.diff(finite.astype(np.float32)) > 0]
    pairs = np.stack([ascending[:-1], ascending[1:]], axis=1)[::37]  # each less than its neighbour
    assert count_correct(device, memory, pairs, np.ones(len(pairs))) == len(pairs)


def test_order_of_threads_does_not_matter(device, memory, monkeypatch):
    values = np.random.default_rng(3).normal(size=(3, 500)).astype(np.float32)
    forwards = top(device, memory, values, 7)
    monkeypatch.setenv("SLIMDEPLOY_REVERSED", "1")
    for a, b in zip(forwards, top(device, memory, values, 7), strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_are_a_power_of_two():
    assert [threads(n) for n in (1, 10, 33, 64, 65, 1000)] == [32, 32, 64, 64, 128, 256]


def test_refuses_what_it_cannot_do(fake):
    with pytest.raises(SlimdeployError, match="the best 11 of 10 classes: k must be 1 to 10"):
        TopK(fake, classes=10, k=11)
    with pytest.raises(SlimdeployError, match="logits are fp32 or fp16, not 'int8'"):
        Accuracy(fake, classes=10, precision="int8")
    buffer = fake.allocate(8)
    with pytest.raises(SlimdeployError, match="logits need 40 bytes; the buffer has 8"):
        TopK(fake, classes=10, k=1).queue(buffer, buffer, buffer, 1, fake.stream())
    with pytest.raises(SlimdeployError, match="batch must be at least 1, not 0"):
        TopK(fake, classes=1, k=1).queue(buffer, buffer, buffer, 0, fake.stream())
    with pytest.raises(SlimdeployError, match="batch must be at least 1, not 0"):
        Accuracy(fake, classes=1).queue(buffer, buffer, buffer, 0, fake.stream())
    buffer.free()
