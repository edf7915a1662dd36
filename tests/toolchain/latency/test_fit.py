"""The least-squares fits that latency tables are made with, against what is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.toolchain.latency.fit import least_absolute, nonnegative


def test_nonnegative_least_squares_by_hand():
    # x₁ + x₂ = 1, x₁ = 2: without the bound (2, −1); with it x₂ = 0 and x₁ = 1.5
    features, target = np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([1.0, 2.0])
    assert nonnegative(features.T @ features, features.T @ target) == pytest.approx([1.5, 0])


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_nonnegative_least_squares_meets_its_conditions(seed):
    rng = np.random.default_rng(seed)
    features, target = rng.normal(size=(12, 5)), rng.normal(size=12)
    gram, moments = features.T @ features, features.T @ target
    found = nonnegative(gram, moments)
    slope = gram @ found - moments  # Karush, Kuhn and Tucker: ≥ 0, and 0 wherever x > 0
    assert (found >= 0).all()
    assert slope.min() > -1e-8
    assert np.abs(slope * found).max() < 1e-8


def test_least_absolute_ignores_a_third_of_outliers():
    x = np.arange(1.0, 31)
    target = 2 + 3 * x
    target[::3] *= 4
    found = least_absolute(np.stack([np.ones_like(x), x], axis=1), target, rounds=50)
    assert found == pytest.approx([2, 3], rel=0.02)


def test_signed_coefficients_may_be_negative():
    x = np.arange(1.0, 31)
    found = least_absolute(np.stack([np.ones_like(x), x], axis=1), 3 * x - 1, signed=(0,))
    assert found == pytest.approx([-1, 3], rel=1e-3)
