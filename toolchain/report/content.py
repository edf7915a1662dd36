"""The content of a report, in order, independent of HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimdeploy.toolchain.formatting import file_name, percent, short
from slimdeploy.toolchain.measure.bench_table import NOISY
from slimdeploy.toolchain.report import charts, headline
from slimdeploy.toolchain.report.class_charts import class_charts
from slimdeploy.toolchain.report.headline import Figure
from slimdeploy.toolchain.report.predictions import Predictions
from slimdeploy.toolchain.report.run import Run
from slimdeploy.toolchain.report.svg import Chart

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Thumbnail:
    """An image (H, W, 3) uint8 and its caption."""

    image: np.ndarray
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading, followed by any of: paragraphs, warnings, a table (header first), charts, images and
    commands. Two consecutive `narrow` sections share the width of a wide screen.
    """

    title: str
    paragraphs: Sequence[str] = ()
    warnings: Sequence[str] = ()
    table: Rows = ()
    charts: Sequence[Chart] = ()
    thumbnails: Sequence[Thumbnail] = ()
    code: str = ""
    narrow: bool = False


@dataclass(frozen=True)
class Report:
    """`summary` is one sentence, `figures` are large numbers beside it."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)
    summary: str = ""
    figures: Sequence[Figure] = ()

    def charts(self) -> list[Chart]:
        """All charts, in order."""
        return [chart for section in self.sections for chart in section.charts]


def run_report(
    run: Run,
    *,
    predictions: Predictions | str,
    layer_times: dict[str, dict[str, float]] | None,
    layer_batch: int,
) -> Report:
    """The report of one run. `predictions` may be the reason why they are missing."""
    graph, machine = run.final.info.graph, run.bench["machine"]
    stem = f" with the {graph.origin['stem']} stem" if "stem" in graph.origin else ""
    lead = [
        f"{graph.arch}{stem}, {graph.classes} classes, images of "
        f"{run.final.info.preprocessing.size}×{run.final.info.preprocessing.size}.",
        f"Measured {run.bench['created'][:10]} on {machine['cpu']}, "
        f"{machine['cores']} processor{'s' if machine['cores'] > 1 else ''}.",
    ]
    ratio = charts.ratio_curve(run)
    pruning = [
        *([charts.gamma_histogram(run)] if len(run.final.scales) else []),
        *([ratio] if ratio else []),
        *charts.kept_channels(run.original, run.final),
    ]
    speed = charts.latencies(run)
    if layer_times:
        speed.append(charts.layer_scatter(run, layer_times, batch=layer_batch))
    return Report(
        run.table["title"],
        lead,
        [
            Section("Original against final", table=headline.headline(run.bench), narrow=True),
            Section("Step by step", table=_steps(run.table), narrow=True),
            Section("Training", charts=charts.curves(run)),
            Section("Pruning", charts=pruning),
            Section("Speed", _comparison_lines(run.bench), _warnings(run.bench), _speeds(run.table), speed),
            _answers(predictions),
            Section("How it was made", table=_options(run), code=_commands(run), narrow=True),
            Section("Measured with", table=_machine(run.bench), narrow=True),
        ],
        headline.summary(run.bench),
        headline.figures(run.bench),
    )


def _steps(table: dict[str, Any]) -> Rows:
    rows = [["step", "test accuracy", "parameters", "MACs"]]
    for row in table["rows"]:
        if row["batch"] is None:
            accuracy = "" if row["accuracy"] is None else percent(row["accuracy"])
            rows.append([row["step"], accuracy, short(row["params"]), short(row["macs"])])
    return rows


def _speeds(table: dict[str, Any]) -> Rows:
    rows = [["model, batch", "p50 ms", "speed-up (95 %)", "realised"]]
    for row in table["rows"]:
        if row["batch"] is None:
            continue
        noisy = "" if row.get("interval_reached", True) else NOISY
        speedup = ""
        if row["speedup"] is not None:
            low, high = row["speedup_ci95_low"], row["speedup_ci95_high"]
            speedup = f"{noisy}{row['speedup']:.2f}× ({low:.2f}–{high:.2f})"
        realised = "" if row["realised"] is None else f"{row['realised']:.2f}"
        name = f"{row['step']}, {row['batch']}"
        rows.append([name, f"{noisy}{row['latency_p50_ms']:.3g}", speedup, realised])
    return rows


def _comparison_lines(bench: dict[str, Any]) -> list[str]:
    lines = []
    for one in bench["comparisons"]:
        low, high = one["ci95"]
        noisy = "" if one["interval_reached"] else NOISY
        name = file_name(one["model"])
        speedup = f"{noisy}{one['speedup']:.2f} times as fast (95 %: {low:.2f} to {high:.2f})"
        line = f"{name}, batch {one['batch']}: {speedup}"
        if one["mac_ratio"]:
            line += f" with {one['mac_ratio']:.2f} times fewer MACs, realised {one['realised']:.2f}"
        lines.append(line + ".")
    return lines


def sentence(remark: str) -> str:
    """A remark of a result as a sentence."""
    return f"{remark[0].upper()}{remark[1:]}."


def _warnings(bench: dict[str, Any]) -> list[str]:
    said = [sentence(remark) for remark in bench["remarks"]]
    for row in bench["rows"]:
        name = file_name(row["model"])
        said += [f"{name}, batch {row['batch']}: {remark}." for remark in row["remarks"]]
    return said


def _answers(predictions: Predictions | str, most: int = 24) -> Section:
    if isinstance(predictions, str):
        return Section("Answers", warnings=[f"No comparison image by image: {predictions}."])
    lost, gained = predictions.lost(), predictions.gained()
    names = predictions.class_names
    shown = [*lost[: most // 2], *gained[: most // 2]]
    thumbnails = []
    for i in shown:
        found = (predictions.labels, predictions.original.answers, predictions.final.answers)
        true, old, new = (names[numbers[i]] for numbers in found)
        thumbnails.append(Thumbnail(predictions.images[i], f"{true}: {old} → {new}"))
    text = (
        f"Of {len(predictions.labels):,} test images, {len(lost):,} that the original classifies correctly "
        "are wrong "
        f"in the final network, and {len(gained):,} the other way round."
    )
    more = f"Shown: {len(shown)} of them, as true class: original's answer → final's." if shown else ""
    return Section(
        "Answers",
        [text, *([more] if more else [])],
        charts=class_charts(predictions),
        thumbnails=thumbnails,
    )


def _options(run: Run) -> Rows:
    stages = {entry["stage"]: entry for entry in run.final.info.provenance if "options" in entry}
    names = dict.fromkeys(name for entry in stages.values() for name in entry["options"])
    rows = [["", *stages], ["data", *(entry["data"]["name"] for entry in stages.values())]]
    return rows + [[n, *(_plain(entry["options"].get(n, "")) for entry in stages.values())] for n in names]


def _commands(run: Run) -> str:
    return "\n".join(filter(None, (run.table["command"], run.bench["command"])))


def _machine(bench: dict[str, Any]) -> Rows:
    machine, before, after = bench["machine"], bench["conditions"]["before"], bench["conditions"]["after"]
    rows = [["", "", ""], ["system", machine["system"], ""]]
    rows += [[name, version, ""] for name, version in sorted(machine["versions"].items())]
    rows.append(["", "before", "after"])
    rows += [
        [name.replace("_", " "), _plain(before.get(name)), _plain(after.get(name))]
        for name in sorted({*before, *after})
    ]
    if (others := bench["conditions"].get("during", {}).get("other_work")) is not None:
        rows.append(["other work while timing, processors", f"{others:.2f}", ""])
    rows.append(["not available on this machine", ", ".join(bench["conditions"]["missing"]) or "–", ""])
    return rows


def _plain(value: Any) -> str:
    """A setting as text."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
