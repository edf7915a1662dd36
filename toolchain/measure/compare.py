"""Comparison of measurements, and conditions on the change, judged by intervals.

A condition is met only if the whole 95 % interval of the change is beyond its limit, so that a noisy run
doesn't fail a CI job. If the interval contains the limit, the result is "undecided".

Two models in one run are timed side by side. Two runs are not: the state of the machine (other programs,
clocks, temperature) differs between them, and a single run can't show that variance. It is measured if a side
has several runs, and assumed (BETWEEN_RUNS) if each side has one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError, nearest
from slimdeploy.toolchain.measure import conditions, statistics

Row = dict[str, Any]

BETWEEN_RUNS = 0.05
"""Assumed relative standard deviation of a median between runs on a quiet machine."""
ASSUMED_FREEDOM = 1000
"""Degrees of freedom of the assumed error."""
POINTS = ("memory_file", "memory_weights", "memory_peak", "memory_peak_above_idle", "params", "macs")
"""Metrics that are single numbers without an interval."""
TIMES = (*(f"latency_{name}" for name in ("mean", *statistics.PERCENTILES)), "images_per_second")
METRICS = (*TIMES, "accuracy", *POINTS)
DISPLAYED = ("latency_p50", "latency_p99", "images_per_second", "memory_peak_above_idle", "accuracy")
_GUARD = re.compile(r"\s*([\w.]+)\s*([<>])\s*([-+]?\d+(?:\.\d+)?)\s*(x|pp)\s*")


@dataclass(frozen=True)
class Guard:
    """Met if `metric` is `above` (or else below) `limit`: a factor, or for accuracy a difference."""

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
    noisy: bool = False
    """Whether one of its rows missed the requested interval."""
    doubt: str = ""
    """Why this can't be judged, whatever the interval."""


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


def change(old: Row, new: Row, metric: str) -> Change | None:
    """The change of `metric` from one row to another of the same run; None if one doesn't have it."""
    return _change([old], [new], metric, _side_by_side)


def change_between_runs(old: Sequence[Row], new: Sequence[Row], metric: str) -> Change | None:
    """The change of `metric` from the runs `old` of a model to the runs `new`; None if one side doesn't have
    it.
    """
    return _change(old, new, metric, _between_runs)


def _change(
    old: Sequence[Row],
    new: Sequence[Row],
    metric: str,
    ratio: Callable[[Sequence[Row], Sequence[Row], str], statistics.Estimate],
) -> Change | None:
    before, after = _values(old, metric), _values(new, metric)
    if not before or not after:
        return None
    if metric == "accuracy":  # same images and weights: repetitions give the same value
        a, b = before[0], after[0]
        value, bounds = b - a, _difference_interval(old[0], new[0])
    elif min(*before, *after) <= 0:
        return None
    else:
        a, b = (math.exp(np.mean(np.log(side))) for side in (before, after))
        value, bounds = b / a, (b / a, b / a)
        if metric not in POINTS or len(before) + len(after) > 2:
            found = ratio(old, new, metric)
            value, bounds = math.exp(found.mean), found.interval()
    row, noisy = new[0], metric in TIMES and not all(one["interval_reached"] for one in (*old, *new))
    return Change(
        row["model"], row["backend"], row["precision"], row["batch"], metric, a, b, value, bounds, noisy
    )


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


def judge_all(guards: Sequence[Guard], changes: Callable[[str], Sequence[Change]]) -> list[dict[str, Any]]:
    """Apply every guard to all `changes` of its metric; returns JSON. A guard without a change is an
    error.
    """
    verdicts = []
    for guard in guards:
        found = changes(guard.metric)
        if not found:
            raise SlimdeployError(f"--fail-if {guard.text!r}: nothing here has {guard.metric} to compare")
        verdicts += [{"condition": guard.text, "verdict": judge(guard, one), **asdict(one)} for one in found]
    return verdicts


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


def judge_run(guards: Sequence[Guard], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Apply every guard to every model of one run, against its baseline."""
    rows = {(row["model"], row["batch"]): row for row in result["rows"]}
    pairs = [
        (rows[one["baseline"], one["batch"]], rows[one["model"], one["batch"]])
        for one in result["comparisons"]
    ]
    return judge_all(guards, lambda metric: [c for a, b in pairs if (c := change(a, b, metric))])


def compare_results(
    old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], guards: Sequence[Guard] = ()
) -> dict[str, Any]:
    """Compare two sides of one or several runs, by model, backend, precision and batch size.

    Raises SlimdeployError if they have no row in common, or the runs of one side measured different files.
    """
    sides = {"old": _by_key(old), "new": _by_key(new)}
    known, found = sides["old"], sides["new"]
    pairs = [(known[key], found[key]) for key in found if key in known]
    if not pairs:
        raise SlimdeployError(
            "the two results have no model in common (same path, backend, precision and batch size)"
        )

    busy = [name for name, runs in (("old", old), ("new", new)) if any(map(conditions.busy, runs))]
    doubt = f"the machine was busy in the {' and the '.join(busy)} run" if busy else ""

    def changes(metric: str) -> list[Change]:
        found = [c for a, b in pairs if (c := change_between_runs(a, b, metric))]
        if (
            len(old) + len(new) == 2 and metric in TIMES
        ):  # only repeated runs show the effect of other programs
            return [replace(one, doubt=doubt) for one in found]
        return found

    return {
        "old": [{"created": one["created"], "command": one["command"]} for one in old],
        "new": [{"created": one["created"], "command": one["command"]} for one in new],
        "remarks": _remarks(old, new),
        "changes": [asdict(one) for one in _by_row(changes)],
        "only_old": [list(key) for key in known if key not in found],
        "only_new": [list(key) for key in found if key not in known],
        "guards": judge_all(guards, changes),
    }


def _by_row(changes: Callable[[str], Sequence[Change]]) -> list[Change]:
    """The DISPLAYED metrics, row by row."""
    found = [one for metric in DISPLAYED for one in changes(metric)]
    rows = list(dict.fromkeys((one.model, one.backend, one.precision, one.batch) for one in found))
    return sorted(found, key=lambda c: rows.index((c.model, c.backend, c.precision, c.batch)))


def _by_key(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str, int], list[Row]]:
    """The repetitions of each row that all `runs` of a side have."""
    found = {_key(row): [row] for row in runs[0]["rows"]}
    for run in runs[1:]:
        own = {_key(row): row for row in run["rows"]}
        found = {key: [*rows, own[key]] for key, rows in found.items() if key in own}
    for key, rows in found.items():
        if len({row["sha256"] for row in rows}) > 1:
            raise SlimdeployError(f"{key[0]}: the repeated runs measured different files of this name")
    return found


def _key(row: Row) -> tuple[str, str, str, int]:
    return row["model"], row["backend"], row["precision"], row["batch"]


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    """The value in every row; empty if one doesn't have it."""
    values = [_value(row, metric) for row in rows]
    return [] if None in values else [value for value in values if value is not None]


def _value(row: Row, metric: str) -> float | None:
    group, _, name = metric.partition("_")
    if group == "latency":
        return row["latency_ms"][name]
    if group == "memory":
        return row["memory_mb"][name]
    return row[metric]


def _launches(row: Row) -> statistics.Launches:
    """Samples by launch and round; a row without launches counts as one process."""
    blocks, counts = [np.array(block) for block in row["samples_ms"]], row.get("launches")
    ends = np.cumsum(counts or [len(blocks)])
    return [statistics.rounds(blocks[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _statistic(metric: str) -> tuple[str, int]:
    """The statistic that a metric is computed from, and whether it grows with it."""
    return ("mean", -1) if metric == "images_per_second" else (metric.removeprefix("latency_"), 1)


def _side_by_side(old: Sequence[Row], new: Sequence[Row], metric: str) -> statistics.Estimate:
    name, sign = _statistic(metric)
    found = statistics.ratio(_launches(new[0]), _launches(old[0]), name)
    return replace(found, mean=sign * found.mean)


def _between_runs(old: Sequence[Row], new: Sequence[Row], metric: str) -> statistics.Estimate:
    """Log of new ÷ old; its error includes the variance between runs."""
    before, after = (np.log(_values(rows, metric)) for rows in (old, new))
    mean, freedom = float(after.mean() - before.mean()), len(before) + len(after) - 2
    share = 1 / len(before) + 1 / len(after)
    if freedom:
        squares = sum(float(((side - side.mean()) ** 2).sum()) for side in (before, after))
        return statistics.Estimate(mean, math.sqrt(squares / freedom * share), freedom)
    within = [_error(row, metric) for row in (old[0], new[0])]
    return statistics.Estimate(mean, math.hypot(*within, BETWEEN_RUNS * math.sqrt(share)), ASSUMED_FREEDOM)


def _error(row: Row, metric: str) -> float:
    """Standard error of the metric's log within a run; None for a run of one process."""
    launches = _launches(row)
    if len(launches) < 2:
        return 0.0
    return statistics.estimate(statistics.levels(launches, _statistic(metric)[0])).error


def _difference_interval(old: Row, new: Row) -> statistics.Interval:
    """Newcombe's interval of the difference of two proportions, from Wilson's intervals (method 10, 1998).

    It assumes independent images, so it is wider than a paired interval, never too narrow.
    """
    a, b = old["accuracy"], new["accuracy"]
    (a_low, a_high), (b_low, b_high) = old["accuracy_ci95"], new["accuracy_ci95"]
    down = ((b - b_low) ** 2 + (a_high - a) ** 2) ** 0.5
    up = ((b_high - b) ** 2 + (a - a_low) ** 2) ** 0.5
    return b - a - down, b - a + up


def _remarks(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[str]:
    """Warnings: those of the inputs, other changes between them, and assumptions."""
    said = []
    for side, runs in (("old", old), ("new", new)):
        for number, run in enumerate(runs, 1):
            name = side if len(runs) == 1 else f"{side}, run {number}"
            said += [f"{name}: {remark}" for remark in run["remarks"]]
            said += [
                f"{name}: {row['model']}, batch {row['batch']}: {remark}"
                for row in run["rows"]
                for remark in row["remarks"]
            ]
    said += list(dict.fromkeys(line for a in old for b in new for line in _differences(a, b)))
    if len(old) + len(new) == 2:
        said.append(
            f"one run a side says nothing of the scatter between runs: {BETWEEN_RUNS:.0%} is assumed. Repeat "
            "the runs into two folders and compare those to measure it"
        )
    return said


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Other changes besides the models: a comparison across machines is hard to interpret."""
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
