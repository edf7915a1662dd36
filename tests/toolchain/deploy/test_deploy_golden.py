"""What counts as the same outputs."""

from __future__ import annotations

import numpy as np
import pytest

from slimdeploy.toolchain.deploy.golden import compare


def test_compare():
    expected = np.array([[1.0, -4.0], [2.0, 3.0]], np.float32)
    result = compare(expected + np.float32([[0, 0.2], [0, 0]]), expected, "int8")
    assert result.max_error == pytest.approx(0.05)
    assert result.passed
    assert not compare(expected * 1.2, expected, "int8").passed
    assert not compare(expected * np.float32(np.nan), expected, "int8").passed
    assert compare(expected[:, ::-1], expected, "fp32").top1_agreement == 0.0
