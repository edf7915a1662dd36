"""Conditions of `bench --fail-if` on changes, judged by intervals.

A condition is met only if the whole 95 % interval of the change is beyond its limit, so that a noisy run
doesn't fail a CI job. If the interval contains the limit, the result is "undecided".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError, nearest
from slimdeploy.toolchain.measure.changes import METRICS, Change, Row

_GUARD = re.compile(r"\s*([\w.]+)\s*([<>])\s*([-+]?\d+(?:\.\d+)?)\s*(x|pp)\s*")


@dataclass(frozen=True)
class Guard:
    """Met if `metric` is `above` (or else below) `limit`: a factor, or for accuracy a difference."""

    text: str
    metric: str
    above: bool
    limit: float


def parse_guard(text: str) -> Guard:
    """Read `METRIC > FACTORx`, `METRIC < FACTORx` or `accuracy < POINTSpp`; raises SlimdeployError
    otherwise.
    """
    found = _GUARD.fullmatch(text)
    if not found:
        raise SlimdeployError(f"`guards` {text!r}: write it as 'latency_p50 > 1.05x', or 'accuracy < -0.5pp'")
    metric, operator, number, unit = found.groups()
    if metric not in METRICS:
        raise SlimdeployError(
            f"`guards` {text!r}: no metric {metric}; known: {', '.join(METRICS)}.{nearest(metric, METRICS)}"
        )
    if (unit == "pp") != (metric == "accuracy"):
        right = (
            "a difference in points, such as -0.5pp" if metric == "accuracy" else "a factor, such as 1.05x"
        )
        raise SlimdeployError(f"`guards` {text!r}: {metric} needs {right}")
    if unit == "x" and float(number) <= 0:
        raise SlimdeployError(f"`guards` {text!r}: a factor is above 0")
    return Guard(text.strip(), metric, operator == ">", float(number) / (100 if unit == "pp" else 1))


def judge(guard: Guard, found: Change) -> str:
    """`fails`, `passes`, or `undecided` if the interval contains the limit."""
    if found.doubt:
        return "undecided"
    low, high = found.ci95
    if not guard.above:  # mirror the condition
        low, high = -high, -low
    limit = guard.limit if guard.above else -guard.limit
    if low > limit:
        return "fails"
    return "passes" if high <= limit else "undecided"


def judge_all(
    guards: Sequence[Guard], rows: Sequence[Row], changes: Callable[[str], Sequence[Change | None]]
) -> list[dict[str, Any]]:
    """Apply every guard to all `rows` by the `changes` of its metric, one for each row; returns JSON. A row
    without a change is undecided, and a guard without any change is an error.
    """
    verdicts = []
    for guard in guards:
        found = changes(guard.metric)
        if not any(found):
            raise SlimdeployError(f"`guards` {guard.text!r}: nothing here has {guard.metric} to compare")
        verdicts += [_verdict(guard, row, one) for row, one in zip(rows, found, strict=True)]
    return verdicts


def _verdict(guard: Guard, row: Row, found: Change | None) -> dict[str, Any]:
    if found:
        return {"condition": guard.text, "verdict": judge(guard, found), **asdict(found)}
    return {
        "condition": guard.text,
        "verdict": "undecided",
        **{name: row[name] for name in ("model", "backend", "precision", "batch")},
        "metric": guard.metric,
        **dict.fromkeys(("old", "new", "value", "ci95")),
        "noisy": False,
        "doubt": f"{guard.metric} was not measured for both",
    }


def failures(verdicts: Sequence[dict[str, Any]]) -> str | None:
    """One line about the conditions that are met; None if there are none."""
    failed = [one for one in verdicts if one["verdict"] == "fails"]
    if not failed:
        return None
    lines = [
        f"{one['condition']!r} holds for {one['model']} at batch {one['batch']}: {_said(one)}"
        for one in failed
    ]
    return "; ".join(lines)


def _said(one: dict[str, Any]) -> str:
    low, high = one["ci95"]
    if one["metric"] == "accuracy":
        return f"{100 * one['value']:+.2f} pp ({100 * low:+.2f} to {100 * high:+.2f})"
    return f"{one['value']:.3f}x ({low:.3f} to {high:.3f})"
