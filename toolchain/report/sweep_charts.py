"""The charts of a sweep, from the trials in its `sweep.json`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from slimdeploy.toolchain.report.axes import Axis
from slimdeploy.toolchain.report.charts import (
    EPOCH,
    FINAL,
    FOURTH,
    ORIGINAL,
    PALE,
    SHARE,
    THIRD,
    compact,
    milliseconds,
)
from slimdeploy.toolchain.report.svg import Chart, Series, xy_chart

Trial = dict[str, Any]
COLOURS = (ORIGINAL, THIRD, FINAL, FOURTH, PALE)
MOST_CURVES = len(COLOURS)


def label(trial: Trial) -> str:
    return f"λ {trial['sparsity']:g}, ratio {trial['ratio']:g}, align {trial['align']}"


def by_sparsity(trials: Sequence[Trial]) -> dict[float, Trial]:
    """λ -> a trial with it: everything before pruning is the same for all trials with one λ."""
    found: dict[float, Trial] = {}
    for trial in trials:
        found.setdefault(trial["sparsity"], trial)
    return dict(sorted(found.items()))


def pareto(trials: Sequence[Trial], front: Sequence[str]) -> Chart:
    """Validation accuracy and latency at the smallest batch size; the front as a line."""
    batch = trials[0]["latency"][0]["batch"]

    def series(name: str, chosen: Iterable[Trial], colour: int, form: str) -> Series:
        of = sorted(chosen, key=lambda t: t["latency"][0]["p50_ms"])
        points = [(t["latency"][0]["p50_ms"], t["accuracy"]["validation"]) for t in of]
        return Series(name, points, colour, form, [label(t) for t in of])

    best = [t for t in trials if t["name"] in front]
    beaten = [t for t in trials if t["name"] not in front]
    shown = [series("beaten", beaten, ORIGINAL, "dots"), series("Pareto front", best, FINAL, "line")]
    return xy_chart(
        "pareto",
        "Accuracy against latency",
        [one for one in shown if one.points],
        x=Axis(f"p50 latency at batch {batch}", milliseconds, log=True),
        y=Axis("validation accuracy", SHARE.write),
        note="No other trial is as fast and as accurate as one on the front.",
    )


def ratios(trials: Sequence[Trial]) -> list[Chart]:
    """Test accuracy and requested pruning ratio, before and after fine-tuning: one chart per λ and alignment
    with several ratios. Alignment and minimum widths may keep more channels.
    """
    charts = []
    aligns = {trial["align"] for trial in trials}
    for sparsity, align in sorted({(t["sparsity"], t["align"]) for t in trials}):
        own = [t for t in trials if (t["sparsity"], t["align"]) == (sparsity, align)]
        own.sort(key=lambda t: t["ratio"])
        if len({t["ratio"] for t in own}) < 2:
            continue
        start = (0.0, own[0]["accuracy"]["trained"])
        steps = (("cut", "cut", ORIGINAL), ("pruned", "repaired", THIRD), ("test", "fine-tuned", FINAL))
        series = [
            Series(name, [start, *((t["ratio"], t["accuracy"][key]) for t in own)], colour)
            for key, name, colour in steps
        ]
        title = f"λ = {sparsity:g}" + (f", align {align}" if len(aligns) > 1 else "")
        x = Axis("pruning ratio, as requested", lambda v: f"{v:.3g}", low=0, high=1)
        y = Axis("test accuracy", SHARE.write)
        charts.append(xy_chart(f"ratio-{sparsity:g}-{align}", title, series, x=x, y=y))
    return charts


def gammas(trials: Sequence[Trial]) -> list[Chart]:
    """|γ| of the prunable channels after sparse training: one histogram per λ, with the same axes."""
    found = by_sparsity(trials)
    edges = next(iter(found.values()))["gamma"]["edges"]
    used = max(i for t in found.values() for i, n in enumerate(t["gamma"]["counts"]) if n) + 1
    most = max(max(t["gamma"]["counts"]) for t in found.values())
    charts = []
    for number, (sparsity, trial) in enumerate(found.items()):
        gamma = trial["gamma"]
        counts = [float(max(n, 0.5)) for n in gamma["counts"][:used]]
        points = list(zip(edges[: used + 1], [*counts, counts[-1]], strict=True))
        note = f"{gamma['zero_share']:.0%} of {sum(gamma['counts']):,} are exactly 0."
        charts.append(
            xy_chart(
                f"gamma-{number}",
                f"|γ| at λ = {sparsity:g}",
                [Series("channels", points, FINAL, "steps")],
                x=Axis("|γ|", lambda v: f"{v:.3g}"),
                y=Axis("channels", compact, log=True, low=0.5, high=10 ** math.ceil(math.log10(most))),
                note=f"{note} On the logarithmic scale 0.5 stands for none.",
            )
        )
    return charts


def curves(trials: Sequence[Trial], front: Sequence[str]) -> list[Chart]:
    """Validation accuracy by epoch: of sparse training for each λ, of fine-tuning for the front."""
    trained = {f"λ {s:g}": t["curves"]["train"] for s, t in by_sparsity(trials).items()}
    best = sorted((t for t in trials if t["name"] in front), key=lambda t: front.index(t["name"]))
    tuned = {label(t): t["curves"]["finetune"] for t in best}
    sets = [
        ("curves-train", "Sparse training", trained),
        ("curves-finetune", "Fine-tuning, the Pareto front", tuned),
    ]
    charts = []
    for key, title, named in sets:
        drawn = [(name, curve) for name, curve in named.items() if curve][:MOST_CURVES]
        series = [
            Series(name, [(epoch, validation) for epoch, _, validation in curve], COLOURS[i])
            for i, (name, curve) in enumerate(drawn)
        ]
        if series:
            y = Axis("validation accuracy", SHARE.write)
            left = len(named) - len(drawn)
            note = f"{left} more are in sweep.json." if left else ""
            charts.append(xy_chart(key, title, series, x=EPOCH, y=y, note=note))
    return charts
