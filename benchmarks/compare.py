"""Two measurements of the same thing against each other, and conditions on the change, judged by intervals.

A condition fails only where the whole 95 % interval of the change is past its limit: a single noisy run
fails no CI. Where the interval straddles the limit the answer is "undecided".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slimdeploy.benchmarks import statistics
from slimdeploy.toolchain.errors import SlimdeployError, nearest

Row = dict[str, Any]

POINTS = ("memory_file", "memory_weights", "memory_peak", "memory_peak_above_idle", "params", "macs")
"""Metrics that are one number, with no interval."""
_LATENCIES = tuple(f"latency_{name}" for name in ("mean", *statistics.PERCENTILES))
METRICS = (*_LATENCIES, "images_per_second", "accuracy", *POINTS)
DISPLAYED = ("latency_p50", "latency_p99", "images_per_second", "memory_peak_above_idle", "accuracy")
_GUARD = re.compile(r"\s*([\w.]+)\s*([<>])\s*([-+]?\d+(?:\.\d+)?)\s*(x|pp)\s*")


@dataclass(frozen=True)
class Guard:
    """Fails where `metric` is `above` (or else below) `limit`: a factor, for accuracy a difference."""

    text: str
    metric: str
    above: bool
    limit: float


@dataclass(frozen=True)
class Change:
    """`value` is new ÷ old, for accuracy new − old, with its 95 % interval."""

    model: str
    backend: str
    precision: str
    batch: int
    metric: str
    old: float
    new: float
    value: float
    ci95: statistics.Interval


def parse_guard(text: str) -> Guard:
    """Read `METRIC > FACTORx`, `METRIC < FACTORx` or `accuracy < POINTSpp`; raises SlimdeployError
    otherwise.
    """
    found = _GUARD.fullmatch(text)
    if not found:
        raise SlimdeployError(
            f"--fail-if {text!r}: write it as 'latency_p50 > 1.05x', or 'accuracy < -0.5pp'"
        )
    metric, operator, number, unit = found.groups()
    if metric not in METRICS:
        raise SlimdeployError(
            f"--fail-if {text!r}: no metric {metric}; known: {', '.join(METRICS)}.{nearest(metric, METRICS)}"
        )
    if (unit == "pp") != (metric == "accuracy"):
        right = (
            "a difference in points, such as -0.5pp" if metric == "accuracy" else "a factor, such as 1.05x"
        )
        raise SlimdeployError(f"--fail-if {text!r}: {metric} needs {right}")
    return Guard(text.strip(), metric, operator == ">", float(number) / (100 if unit == "pp" else 1))


def change(old: Row, new: Row, metric: str, *, paired: bool) -> Change | None:
    """The change of `metric` from `old` to `new`; None where one of them hasn't got it.

    `paired`: both were measured in one run, round by round.
    """
    before, after = _value(old, metric), _value(new, metric)
    if before is None or after is None:
        return None
    if metric == "accuracy":
        value, bounds = after - before, _difference_interval(old, new)
    else:
        if before == 0:
            return None
        value, bounds = after / before, (after / before, after / before)
        if metric not in POINTS:
            bounds = _ratio_interval(old, new, metric, paired=paired)
    key = (new["model"], new["backend"], new["precision"], new["batch"])
    return Change(*key, metric, before, after, value, bounds)


def judge(guard: Guard, found: Change) -> str:
    """`fails`, `passes` or, where the interval straddles the limit, `undecided`."""
    low, high = found.ci95
    if not guard.above:  # the same question, mirrored
        low, high = -high, -low
    limit = guard.limit if guard.above else -guard.limit
    if low > limit:
        return "fails"
    return "passes" if high <= limit else "undecided"


def judge_all(
    guards: Sequence[Guard], pairs: Sequence[tuple[Row, Row]], *, paired: bool
) -> list[dict[str, Any]]:
    """Every guard on every pair (old, new) that has its metric, as JSON; one that fits none is an error."""
    verdicts = []
    for guard in guards:
        changes = [found for old, new in pairs if (found := change(old, new, guard.metric, paired=paired))]
        if not changes:
            raise SlimdeployError(f"--fail-if {guard.text!r}: nothing here has {guard.metric} to compare")
        verdicts += [
            {"condition": guard.text, "verdict": judge(guard, found), **asdict(found)} for found in changes
        ]
    return verdicts


def failures(verdicts: Sequence[dict[str, Any]]) -> str | None:
    """One line on the conditions that fail; None where none does."""
    failed = [one for one in verdicts if one["verdict"] == "fails"]
    if not failed:
        return None
    lines = [
        f"{one['condition']!r} holds for {one['model']} at batch {one['batch']}: {_said(one)}"
        for one in failed
    ]
    return "; ".join(lines)


def result_pairs(result: dict[str, Any]) -> list[tuple[Row, Row]]:
    """Each comparison of a run as its two rows, baseline and model."""
    rows = {(row["model"], row["batch"]): row for row in result["rows"]}
    return [
        (rows[one["baseline"], one["batch"]], rows[one["model"], one["batch"]])
        for one in result["comparisons"]
    ]


def compare_results(old: dict[str, Any], new: dict[str, Any], guards: Sequence[Guard] = ()) -> dict[str, Any]:
    """What changed between two results, row by row, by model, backend, precision and batch size.

    Raises SlimdeployError where they have no row in common.
    """
    known = {_key(row): row for row in old["rows"]}
    pairs = [(known[_key(row)], row) for row in new["rows"] if _key(row) in known]
    if not pairs:
        raise SlimdeployError(
            "the two results have no model in common (same path, backend, precision and batch size)"
        )
    changes = [
        asdict(found)
        for a, b in pairs
        for metric in DISPLAYED
        if (found := change(a, b, metric, paired=False))
    ]
    matched = {_key(row) for _, row in pairs}
    return {
        "old": {"created": old["created"], "command": old["command"]},
        "new": {"created": new["created"], "command": new["command"]},
        "remarks": _differences(old, new),
        "changes": changes,
        "only_old": [list(key) for key in known if key not in matched],
        "only_new": [list(_key(row)) for row in new["rows"] if _key(row) not in matched],
        "guards": judge_all(guards, pairs, paired=False),
    }


def _key(row: Row) -> tuple[str, str, str, int]:
    return row["model"], row["backend"], row["precision"], row["batch"]


def _value(row: Row, metric: str) -> float | None:
    group, _, name = metric.partition("_")
    if group == "latency":
        return row["latency_ms"][name]
    if group == "memory":
        return row["memory_mb"][name]
    return row[metric]


def _rounds(row: Row) -> list[np.ndarray]:
    blocks = row["samples_ms"]
    return [np.array([*a, *b]) for a, b in zip(blocks[::2], blocks[1::2], strict=True)]


def _ratio_interval(old: Row, new: Row, metric: str, *, paired: bool) -> statistics.Interval:
    if metric == "images_per_second":  # batch ÷ mean latency: the inverse ratio
        return statistics.ratio_interval(_rounds(old), _rounds(new), "mean", paired=paired)
    name = metric.removeprefix("latency_")
    return statistics.ratio_interval(_rounds(new), _rounds(old), name, paired=paired)


def _difference_interval(old: Row, new: Row) -> statistics.Interval:
    """Newcombe's interval for the difference of two proportions, from Wilson's of each (method 10, 1998).

    As if the images were not the same: wider than a paired interval, never too narrow.
    """
    a, b = old["accuracy"], new["accuracy"]
    (a_low, a_high), (b_low, b_high) = old["accuracy_ci95"], new["accuracy_ci95"]
    down = ((b - b_low) ** 2 + (a_high - a) ** 2) ** 0.5
    up = ((b_high - b) ** 2 + (a - a_low) ** 2) ** 0.5
    return b - a - down, b - a + up


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What else changed, beside the models: a comparison across machines says little about either."""
    a, b = old["machine"], new["machine"]
    found = [(name, a.get(name), b.get(name)) for name in ("cpu", "cores", "gpu", "system")]
    found += [
        (name, a["versions"].get(name), b["versions"].get(name)) for name in a["versions"] | b["versions"]
    ]
    found.append(("threads", old["options"]["threads"], new["options"]["threads"]))
    return [f"{name} differs: {before} and {after}" for name, before, after in found if before != after]


def _said(one: dict[str, Any]) -> str:
    low, high = one["ci95"]
    if one["metric"] == "accuracy":
        return f"{100 * one['value']:+.2f} pp ({100 * low:+.2f} to {100 * high:+.2f})"
    return f"{one['value']:.3f}x ({low:.3f} to {high:.3f})"
