"""The beginning of a report: summary, large figures, and the table of original and final network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slimdeploy.toolchain.formatting import count, percent, short
from slimdeploy.toolchain.measure.bench_table import NOISY

Bench = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A large number, its name, and its uncertainty."""

    value: str
    what: str
    doubt: str = ""


@dataclass(frozen=True)
class Pair:
    """Original and final network at one batch size, and their comparison."""

    batch: int
    original: dict[str, Any]
    final: dict[str, Any]
    compared: dict[str, Any]


def pairs(bench: Bench) -> list[Pair]:
    """By batch size: the first two models of the run."""
    found = []
    for batch in sorted({row["batch"] for row in bench["rows"]}):
        old, new = [row for row in bench["rows"] if row["batch"] == batch][:2]
        compared = next(c for c in bench["comparisons"] if (c["model"], c["batch"]) == (new["model"], batch))
        found.append(Pair(batch, old, new, compared))
    return found


def summary(bench: Bench) -> str:
    """The result in one sentence."""
    found = pairs(bench)
    speeds = [f"{_speed(pair)} at batch {pair.batch}" for pair in found]
    first = found[0]
    text = f"The final network runs {' and '.join(speeds)}"
    if first.original["params"] and first.final["params"]:
        text += f", has {first.original['params'] / first.final['params']:.1f} times fewer parameters"
    if first.compared["accuracy_difference"]:
        low, high = first.compared["accuracy_difference"]["ci95"]
        images = first.final["images"]
        answer = "more" if low > 0 else "less" if high < 0 else None
        verdict = (
            f"{answer} accurate than the original"
            if answer
            else f"as accurate as the original within the resolution of {images:,} test images"
        )
        text += f" and is {verdict}"
    noisy = [f"batch {pair.batch}" for pair in found if not pair.compared["interval_reached"]]
    doubt = f" Less precise than requested: the speed-up at {' and '.join(noisy)}." if noisy else ""
    return f"{text}.{doubt}"


def _speed(pair: Pair) -> str:
    (low, high), speedup = pair.compared["ci95"], pair.compared["speedup"]
    if low <= 1 <= high:
        return "not measurably faster"
    return f"{speedup:.1f} times as fast"


def figures(bench: Bench) -> list[Figure]:
    """Speed-ups, size and accuracy, large."""
    found = pairs(bench)
    shown = []
    for pair in found:
        (low, high), one = pair.compared["ci95"], pair.compared
        value = f"{_noisy(one)}{one['speedup']:.1f}×"
        shown.append(Figure(value, f"as fast, batch {pair.batch}", f"95 %: {low:.2f} to {high:.2f}"))
    first = found[0]
    if first.original["params"] and first.final["params"]:
        value = f"{first.original['params'] / first.final['params']:.1f}×"
        shown.append(Figure(value, "fewer parameters", f"{short(first.final['params'])} left"))
    if (difference := first.compared["accuracy_difference"]) is not None:
        low, high = (100 * bound for bound in difference["ci95"])
        what = f"points of accuracy, now {percent(first.final['accuracy'])}"
        shown.append(Figure(f"{100 * difference['value']:+.1f}", what, f"95 %: {low:+.1f} to {high:+.1f}"))
    return shown


def headline(bench: Bench) -> list[list[str]]:
    """Original and final network with their ratio, and its 95 % interval if measured."""
    rows = [["", "original", "final", "factor (95 %)"]]
    found = pairs(bench)
    first = found[0]
    if first.compared["accuracy_difference"]:
        low, high = (100 * bound for bound in first.compared["accuracy_difference"]["ci95"])
        points = 100 * first.compared["accuracy_difference"]["value"]
        rows.append(["test accuracy", percent(first.original["accuracy"]), percent(first.final["accuracy"]),
                     f"{points:+.2f} points ({low:+.2f} to {high:+.2f})"])  # fmt: skip
    for name, key, write in (("parameters", "params", count), ("MACs", "macs", short)):
        if first.original[key] and first.final[key]:
            rows.append(_factor(name, first.original[key], first.final[key], write))
    old, new = (row["memory_mb"]["file"] for row in (first.original, first.final))
    rows.append(_factor("ONNX file, MB", old, new, _one))
    for pair in found:
        low, high = pair.compared["ci95"]
        rows.append(
            [
                f"p50 latency, batch {pair.batch}, ms",
                *(f"{_noisy(row)}{row['latency_ms']['p50']:.3g}" for row in (pair.original, pair.final)),
                f"÷ {_noisy(pair.compared)}{pair.compared['speedup']:.2f} ({low:.2f} to {high:.2f})",
            ]
        )
        old, new = (row["memory_mb"]["peak_above_idle"] for row in (pair.original, pair.final))
        rows.append(_factor(f"peak memory, batch {pair.batch}, MB", old, new, _one))
    return rows


def _noisy(one: dict[str, Any]) -> str:
    return "" if one["interval_reached"] else NOISY


def _factor(name: str, old: float, new: float, write: Callable[[float], str]) -> list[str]:
    return [name, write(old), write(new), f"÷ {old / new:.2f}" if new > 0 else "–"]


def _one(value: float) -> str:
    return f"{value:.1f}"
