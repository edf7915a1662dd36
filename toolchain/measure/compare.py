"""Comparison of the results of one or several runs, with conditions on the changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import conditions
from slimdeploy.toolchain.measure.changes import (
    BETWEEN_RUNS,
    TIMES,
    Change,
    Row,
    change,
    change_between_runs,
)
from slimdeploy.toolchain.measure.guards import Guard, judge_all

DISPLAYED = ("latency_p50", "latency_p99", "images_per_second", "memory_peak_above_idle", "accuracy")


def judge_run(guards: Sequence[Guard], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Apply every guard to every model of one run, against its baseline."""
    rows = {(row["model"], row["batch"]): row for row in result["rows"]}
    compared = [
        (
            rows[one["baseline"], one["batch"]],
            rows[one["model"], one["batch"]],
            one.get("accuracy_difference"),
        )
        for one in result["comparisons"]
    ]

    def changes(metric: str) -> list[Change | None]:
        return [_paired(change(old, new, metric), difference) for old, new, difference in compared]

    return judge_all(guards, [new for _, new, _ in compared], changes)


def _paired(found: Change | None, difference: dict[str, Any] | None) -> Change | None:
    """The change of an accuracy with the interval of the paired `difference`, which is narrower."""
    if found is None or found.metric != "accuracy" or difference is None:
        return found
    low, high = difference["ci95"]
    return replace(found, value=difference["value"], ci95=(low, high))


def compare_results(
    old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], guards: Sequence[Guard] = ()
) -> dict[str, Any]:
    """Compare two sides of one or several runs, by model, backend, precision and batch size.

    Raises SlimdeployError if they have no row in common, if the runs of one side measured different files, or
    if `guards` can't be judged because a row is only in `old`.
    """
    sides = {"old": _by_key(old), "new": _by_key(new)}
    known, found = sides["old"], sides["new"]
    pairs = [(known[key], found[key]) for key in found if key in known]
    if not pairs:
        raise SlimdeployError(
            "the two results have no model in common (same path, backend, precision and batch size)"
        )

    only_old = [key for key in known if key not in found]
    if guards and only_old:
        model, backend, precision, batch = only_old[0]
        raise SlimdeployError(
            f"`guards` need the same models in both results, but {model} ({backend}, {precision}, batch "
            f"{batch}) is only in the old one"
        )
    busy = [name for name, runs in (("old", old), ("new", new)) if any(map(conditions.busy, runs))]
    doubt = f"the machine was busy in the {' and the '.join(busy)} run" if busy else ""

    def changes(metric: str) -> list[Change | None]:
        changes = [change_between_runs(a, b, metric) for a, b in pairs]
        if (
            len(old) + len(new) == 2 and metric in TIMES
        ):  # only repeated runs show the effect of other programs
            return [one and replace(one, doubt=doubt) for one in changes]
        return changes

    return {
        "old": [{"created": one["created"], "command": one["command"]} for one in old],
        "new": [{"created": one["created"], "command": one["command"]} for one in new],
        "remarks": _remarks(old, new),
        "changes": [asdict(one) for one in _by_row(changes)],
        "only_old": [list(key) for key in only_old],
        "only_new": [list(key) for key in found if key not in known],
        "guards": judge_all(guards, [rows[0] for _, rows in pairs], changes),
    }


def _by_row(changes: Callable[[str], Sequence[Change | None]]) -> list[Change]:
    """The DISPLAYED metrics, row by row."""
    found = [one for metric in DISPLAYED for one in changes(metric) if one]
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
    said = [f"{name} differs: {before} and {after}" for name, before, after in found if before != after]
    return said + _other_images(old, new)


def _other_images(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line if an accuracy is of other test images than before, as far as the results tell."""
    known = {_key(row): row for row in old["rows"]}
    for b in new["rows"]:
        a = known.get(_key(b))
        if a is None or a["accuracy"] is None or b["accuracy"] is None:
            continue
        if a["images"] != b["images"]:
            return [f"the test images differ: {a['images']:,} and {b['images']:,}"]
        hashes = a.get("images_sha256"), b.get("images_sha256")
        if None not in hashes and len(set(hashes)) > 1:
            return [f"the test images, or their preprocessing, differ: {b['images']:,} in each result"]
    return []
