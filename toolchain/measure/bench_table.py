"""A `bench` result as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slimdeploy.toolchain.formatting import digits, percent, short

NOISY = "~"


def bench_table(result: dict[str, Any]) -> RenderableType:
    """Rows, comparisons, and below them the warnings."""
    rows, letters = result["rows"], _letters(result["rows"])
    parts: list[RenderableType] = [_models(rows, letters), _latencies(rows, letters)]
    if result["comparisons"]:
        parts.append(_comparisons(result["comparisons"], letters))
    noisy = any(not one["interval_reached"] for one in (*rows, *result["comparisons"]))
    parts += doubt_lines(doubts(result), noisy)
    if result["conditions"]["missing"]:
        parts.append(Text(f"not available here: {', '.join(result['conditions']['missing'])}"))
    parts += verdict_lines(result["guards"])
    return Group(*parts)


def doubts(result: dict[str, Any]) -> list[str]:
    """Warnings: of the run, then of its rows."""
    rows = [
        f"{row['model']}, batch {row['batch']}: {remark}"
        for row in result["rows"]
        for remark in row["remarks"]
    ]
    return [*result["remarks"], *rows]


def doubt_lines(remarks: Sequence[str], noisy: bool) -> list[Text]:
    """The lines below a table; `noisy`: the table contains NOISY marks."""
    lines = [f"{NOISY} noisy: the requested interval was not reached"] if noisy else []
    return [Text(line, style="yellow") for line in (*lines, *(f"! {remark}" for remark in remarks))]


def _letters(rows: list[dict[str, Any]]) -> dict[str, str]:
    """A letter for each model: a path is too wide for a table column."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    return {model: chr(ord("A") + i) if i < 26 else str(i) for i, model in enumerate(models)}


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for name in left:
        table.add_column(name, overflow="fold", no_wrap=not name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _models(rows: list[dict[str, Any]], letters: dict[str, str]) -> Table:
    accuracy = any(row["accuracy"] is not None for row in rows)
    table = _table(
        "Models", ["", "model", "runs on"], ["params", "MACs", "file MB", *(["accuracy"] if accuracy else [])]
    )
    for model, letter in letters.items():
        row = next(row for row in rows if row["model"] == model)
        cells = [
            letter,
            model,
            f"{row['backend']} {row['precision']}",
            _count(row["params"]),
            _count(row["macs"]),
        ]
        cells.append(_mb(row["memory_mb"]["file"]))
        if accuracy:
            cells.append("–" if row["accuracy"] is None else percent(row["accuracy"]))
        table.add_row(*cells)
    return table


def _latencies(rows: list[dict[str, Any]], letters: dict[str, str]) -> Table:
    gpu = any(row["gpu"] and "gpu_ms" in row["gpu"] for row in rows)
    power = any(row["power"] for row in rows)
    names = ["batch", "p50", "p90", "p99", "p99.9", *(["GPU p50"] if gpu else []), "images/s", "+RSS MB"]
    table = _table(
        "Latency in ms, and peak memory above an idle process",
        [""],
        [*names, *(["mJ/image"] if power else [])],
    )
    for row in rows:
        latency = row["latency_ms"]
        cells = [letters[row["model"]], str(row["batch"])]
        cells.append(("" if row["interval_reached"] else NOISY) + _ms(latency["p50"]))
        cells += [_ms(latency[name]) for name in ("p90", "p99", "p99.9")]
        if gpu:
            cells.append(_ms(row["gpu"]["gpu_ms"]["p50"]) if row["gpu"] else "–")
        cells += [f"{row['images_per_second']:,.0f}", _mb(row["memory_mb"]["peak_above_idle"])]
        if power:
            cells.append(f"{row['power']['joules_per_image'] * 1000:.2f}" if row["power"] else "–")
        table.add_row(*cells)
    return table


def _comparisons(comparisons: list[dict[str, Any]], letters: dict[str, str]) -> Table:
    accuracy = any(one["accuracy_difference"] for one in comparisons)
    names = ["batch", "speed-up", "95 %", "MACs", "realised", *(["accuracy, pp"] if accuracy else [])]
    table = _table("Speed-up with its 95 % interval; realised = speed-up ÷ ratio of the MACs", [""], names)
    for one in comparisons:
        low, high = one["ci95"]
        cells = [f"{letters[one['model']]} vs {letters[one['baseline']]}", str(one["batch"])]
        cells.append(f"{'' if one['interval_reached'] else NOISY}{digits(one['speedup'])}×")
        cells += [
            f"{digits(low)}–{digits(high)}",
            "–" if one["mac_ratio"] is None else f"{digits(one['mac_ratio'])}×",
        ]
        cells.append("–" if one["realised"] is None else digits(one["realised"]))
        if accuracy:
            cells.append(_difference(one["accuracy_difference"]))
        table.add_row(*cells)
    return table


def _difference(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return "–"
    low, high = (100 * bound for bound in difference["ci95"])
    return f"{100 * difference['value']:+.2f} ({low:+.2f}…{high:+.2f})"


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _mb(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _count(value: int | None) -> str:
    return "–" if value is None else short(value)


def compare_table(compared: dict[str, Any]) -> RenderableType:
    """Changes from one result to another."""
    names = ["batch", "metric", "old", "new", "change", "95 %"]
    table = _table("New ÷ old (accuracy: new − old), with its 95 % interval", ["model"], names)
    for one in compared["changes"]:
        low, high = one["ci95"]
        value, bounds = f"{one['value']:.3f}×", f"{low:.3f}–{high:.3f}"
        if one["metric"] == "accuracy":
            value, bounds = f"{100 * one['value']:+.2f} pp", f"{100 * low:+.2f}…{100 * high:+.2f}"
        cells = [f"{one['model']} {one['backend']} {one['precision']}", str(one["batch"]), one["metric"]]
        cells += [f"{NOISY if one['noisy'] else ''}{one[side]:.4g}" for side in ("old", "new")]
        table.add_row(*cells, value, "–" if low == high else bounds)
    lines = doubt_lines(compared["remarks"], any(one["noisy"] for one in compared["changes"]))
    for side in ("old", "new"):
        lines += [Text(f"only in {side}: {' '.join(map(str, key))}") for key in compared[f"only_{side}"]]
    return Group(table, *lines, *verdict_lines(compared["guards"]))


def verdict_lines(verdicts: list[dict[str, Any]]) -> list[Text]:
    """One line per condition of --fail-if, with its result."""
    lines = []
    for one in verdicts:
        verdict = {"fails": "FAILS"}.get(one["verdict"], one["verdict"])
        line = f"{one['condition']}: {verdict} for {one['model']}, batch {one['batch']}"
        if one["verdict"] == "undecided":
            line += f" ({one['doubt'] or 'the interval straddles the limit'})"
        lines.append(Text(line))
    return lines
