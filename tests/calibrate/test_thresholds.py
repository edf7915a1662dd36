"""Each method beside a slow version that loops as its definition reads."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slimdeploy.calibrate import thresholds
from slimdeploy.calibrate.histogram import BINS, Histogram, histogram
from slimdeploy.calibrate.thresholds import METHODS, STRIDE
from slimdeploy.toolchain.errors import SlimdeployError

STEPS = [127, 255]


def samples() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    normal = random.standard_normal(20_000).astype(np.float32)
    return {
        "normal": normal,
        "rectified": np.maximum(normal, 0),
        "long tail": random.laplace(size=20_000).astype(np.float32) ** 3,
        "with an outlier": np.append(normal, np.float32(500)),
        "two values": np.float32([0.25] * 100 + [4.0] * 3),
        "uniform": random.uniform(-1, 1, 20_000).astype(np.float32),
    }


SAMPLES = samples()
each = pytest.mark.parametrize("name", list(SAMPLES))
each_steps = pytest.mark.parametrize("steps", STEPS)


def slow_candidates(h: Histogram, steps: int) -> list[int]:
    last = max(i for i in range(BINS) if h.counts[i]) + 1
    return [c for c in range(last, 0, -STRIDE) if c > min(steps, last - 1)]


def slow_best(h: Histogram, candidates: list[int], losses: list[float]) -> float:
    best, loss = h.largest, math.inf
    for candidate, found in zip(candidates, losses, strict=True):  # from the largest down
        if found < loss:
            best, loss = min(candidate * h.width, h.largest), found
    return best


def slow_mse(h: Histogram, steps: int) -> float:
    candidates = slow_candidates(h, steps)
    losses = []
    for candidate in candidates:
        step, loss = candidate / steps, 0.0
        for i in range(BINS):
            if h.counts[i]:
                centre = i + 0.5
                quantised = min(round(centre / step), steps) * step
                loss += int(h.counts[i]) * (centre - quantised) ** 2
        losses.append(loss)
    return slow_best(h, candidates, losses)


def slow_entropy(h: Histogram, steps: int) -> float:
    candidates, levels, losses = slow_candidates(h, steps), steps + 1, []
    counts = h.counts.tolist()
    for kept in candidates:
        p = counts[:kept]
        p[-1] += sum(counts[kept:])
        q = [0.0] * kept
        for level in range(levels):
            bins = [i for i in range(kept) if i * levels // kept == level]
            filled = [i for i in bins if p[i] > 0]
            for i in filled:
                q[i] = max(sum(counts[j] for j in bins) / len(filled), 1e-4)
        loss, total_p, total_q = 0.0, sum(p), sum(q)
        for i in range(kept):
            if p[i] > 0:
                loss += p[i] / total_p * math.log(p[i] / total_p / (q[i] / total_q))
        losses.append(loss)
    return slow_best(h, candidates, losses)


@each
@each_steps
def test_minmax_is_the_largest_magnitude(name, steps):
    assert METHODS["minmax"](histogram(SAMPLES[name]), steps) == np.abs(SAMPLES[name]).max()


@each
def test_percentile_leaves_the_share_below(name):
    h = histogram(SAMPLES[name])
    found = METHODS["percentile"](h, 127)
    magnitudes = np.sort(np.abs(SAMPLES[name]))
    exact = magnitudes[math.ceil(thresholds.PERCENTILE * len(magnitudes)) - 1]
    assert exact <= found <= exact + h.width


@each
@each_steps
def test_mse_as_the_slow_version(name, steps, monkeypatch):
    monkeypatch.setattr(thresholds, "STRIDE", 64)
    monkeypatch.setitem(globals(), "STRIDE", 64)
    h = histogram(SAMPLES[name])
    assert METHODS["mse"](h, steps) == pytest.approx(slow_mse(h, steps))


@each
@each_steps
def test_entropy_as_the_slow_version(name, steps, monkeypatch):
    monkeypatch.setattr(thresholds, "STRIDE", 256)
    monkeypatch.setitem(globals(), "STRIDE", 256)
    h = histogram(SAMPLES[name])
    assert METHODS["entropy"](h, steps) == pytest.approx(slow_entropy(h, steps))


@each_steps
def test_an_outlier_is_clipped_by_all_but_minmax(steps):
    h = histogram(np.append(np.repeat(SAMPLES["normal"], 5), np.float32(100)))
    found = {name: method(h, steps) for name, method in METHODS.items()}
    assert found["minmax"] == 100
    assert all(found[name] < 90 for name in ("percentile", "entropy", "mse"))


@each_steps
@pytest.mark.parametrize("name", list(METHODS))
def test_values_far_from_zero_are_not_clipped(name, steps):
    values = np.random.default_rng(0).uniform(4, 6, 5_000).astype(np.float32)
    assert METHODS[name](histogram(values), steps) > 5.9


@pytest.mark.parametrize("name", list(METHODS))
def test_all_zeros(name):
    assert METHODS[name](histogram(np.zeros(100, np.float32)), 127) == 0


def test_another_method_is_one_function(monkeypatch):
    def half(h: Histogram, steps: int) -> float:
        return h.largest / 2

    monkeypatch.setitem(METHODS, "half", half)
    assert METHODS.find("half")(histogram(np.float32([3, -4])), 127) == 2


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(SlimdeployError, match=r"unknown method 'entropie'.*Did you mean 'entropy'"):
        METHODS.find("entropie")
