"""The content of a sweep's report, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimdeploy.toolchain.formatting import count, percent, short
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.report import sweep_charts
from slimdeploy.toolchain.report.content import Report, Rows, Section, sentence
from slimdeploy.toolchain.report.sweep_charts import Trial, label

FILE = "sweep.json"
CHOSEN_BY = "Trials are chosen by their accuracy on held-out training images; test images are only reported."
REPAIRED = (
    "Cut: only channels removed. Repaired: constants folded, removed channels "
    "compensated and BN recalibrated, where that helps."
)


def sweep_report(folder: Path) -> Report:
    """The report of the sweep in `folder`, from its `sweep.json`: the trials may be on other machines.

    Raises SlimdeployError if that file is damaged or of another version.
    """
    sweep = results.read(folder / FILE, "sweep")
    trials, front, machine = sweep["trials"], sweep["front"], sweep["machine"]
    hosts = sorted({f"{trial['host']} ({trial['cpu']})" for trial in trials})
    lead = [
        f"{len(trials)} trials over {_list('λ', sweep['space']['sparsity'])}, "
        f"{_list('ratio', sweep['space']['ratio'])} and {_list('alignment', sweep['space']['align'])}.",
        f"Measured {sweep['created'][:10]} on {', '.join(hosts)}.",
    ]
    best = [trial for name in front for trial in trials if trial["name"] == name]
    rest = [trial for trial in trials if trial["name"] not in front]
    rest.sort(key=lambda trial: trial["latency"][0]["p50_ms"])
    failed = [f"Failed: {label(one)}: {one['error']}." for one in sweep["failed"]]
    versions = [["", ""], *([name, version] for name, version in sorted(machine["versions"].items()))]
    study = [["", ""], *([name, value] for name, value in sweep["study"].items())]
    sections = [
        Section(
            "The best trade-offs",
            [_picked(sweep), CHOSEN_BY],
            [sentence(remark) for remark in sweep["remarks"]] + failed,
            table=_table(best),
            charts=[sweep_charts.pareto(trials, front)],
        ),
        *([Section("The other trials", table=_table(rest))] if rest else []),
        Section(
            "Accuracy against ratio",
            [REPAIRED],
            charts=sweep_charts.ratios(trials),
        ),
        Section("What the penalty does to γ", charts=sweep_charts.gammas(trials)),
        Section("Training", charts=sweep_charts.curves(trials, front)),
        Section("How it was made", table=study, code=sweep["command"]),
        Section("Measured with", table=versions),
    ]  # fmt: skip
    shown = [s for s in sections if s.charts or s.table]
    return Report(f"Sweep of {sweep['title']}", lead, shown)


def _list(name: str, values: list[float]) -> str:
    return f"{name} {', '.join(f'{value:g}' for value in values)}"


def _picked(sweep: dict[str, Any]) -> str:
    picked = sweep["picked"]
    if picked is None:
        return "None was picked: slimdeploy sweep … --pick 'latency<=1ms' picks one."
    trial = next(trial for trial in sweep["trials"] if trial["name"] == picked["name"])
    return f"Picked for {' and '.join(picked['conditions'])}: {label(trial)}."


def _table(trials: list[Trial]) -> Rows:
    batches = [one["batch"] for one in trials[0]["latency"]]
    accuracies = ["validation", "test", "before fine-tuning"]
    times = [f"p50 ms, batch {batch}" for batch in batches]
    header = ["trial", *accuracies, "parameters", "MACs", *times, f"speed-up (95 %), batch {batches[0]}"]
    return [header, *(_row(trial) for trial in trials)]


def _row(trial: Trial) -> list[str]:
    low, high = trial["latency"][0]["speedup_ci95"]
    return [
        label(trial),
        percent(trial["accuracy"]["validation"]),
        percent(trial["accuracy"]["test"]),
        percent(trial["accuracy"]["pruned"]),
        count(trial["params"]),
        short(trial["macs"]),
        *(f"{'' if one['interval_reached'] else '~'}{one['p50_ms']:.3g}" for one in trial["latency"]),
        f"{trial['latency'][0]['speedup']:.2f}× ({low:.2f}–{high:.2f})",
    ]
