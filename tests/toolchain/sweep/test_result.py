"""What a sweep's result says about its trials."""

from __future__ import annotations

from typing import Any

import pytest

from slimdeploy.toolchain.sweep.result import remarks


def row(**changes: Any) -> dict[str, Any]:
    return {"cpu": "CPU 0", "threads": 1, "remarks": [], **changes}


def test_comparable_trials_need_no_remark() -> None:
    assert remarks([row(), row()]) == []


@pytest.mark.parametrize(
    ("other", "remark"),
    [
        (
            {"cpu": "CPU 1"},
            "the trials were timed on different machines (CPU 0; CPU 1): compare their speed-ups",
        ),
        (
            {"threads": 2},
            "the trials were timed with different numbers of threads (1, 2): their milliseconds",
        ),
        ({"threads": None}, "the trials were timed with different numbers of threads (1, default): their"),
        ({"remarks": ["noisy"]}, "1 of 2 trials were measured on a busy or noisy machine"),
    ],
)
def test_what_makes_trials_hard_to_compare_is_told(other: dict[str, Any], remark: str) -> None:
    (said,) = remarks([row(), row(**other)])
    assert said.startswith(remark)


def test_trials_of_an_earlier_version_have_no_number_of_threads() -> None:
    old = row()
    del old["threads"]
    assert remarks([old, row()]) == []
