"""The charts of a run: each function creates one chart from data."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.formatting import file_name
from slimdeploy.toolchain.networks.cost import round_up
from slimdeploy.toolchain.report.axes import Axis
from slimdeploy.toolchain.report.layer_bars import Kept, kept_charts
from slimdeploy.toolchain.report.run import Model, Run
from slimdeploy.toolchain.report.svg import (
    Chart,
    Series,
    xy_chart,
)

ORIGINAL, FINAL, THIRD, PALE, FOURTH = 0, 1, 2, 3, 4
"""Colours of the original and the final network, the same in every chart."""
ALIGNMENT = 8
QUANTILES = (*range(100), 99.5, 99.9, 100)

SHARE = Axis("accuracy", lambda value: f"{100 * value:.4g} %")
_LOSS = Axis("loss", lambda value: f"{value:.3g}", low=0)
EPOCH = Axis("epoch", lambda value: f"{value:.0f}", whole=True)


def curves(run: Run) -> list[Chart]:
    """Accuracy and loss of sparse training and fine-tuning, and the share of γ at zero."""
    charts = []
    for name, what in (("sparse", "Sparse training"), ("final", "Fine-tuning")):
        history = run.histories[name]
        if not history:
            continue
        charts += [
            _curve(history, f"{name}-accuracy", f"{what}: accuracy", "accuracy", SHARE),
            _curve(history, f"{name}-loss", f"{what}: loss", "loss", _LOSS),
        ]
        if any(record["zero_share"] for record in history):
            points = [(record["epoch"], record["zero_share"]) for record in history]
            title = f"{what}: share of γ at zero"
            y = Axis("share", SHARE.write, low=0, high=1)
            charts.append(xy_chart(f"{name}-zero", title, [Series("γ at zero", points)], x=EPOCH, y=y))
    return charts


def _curve(history: list[dict[str, float]], key: str, title: str, figure: str, y: Axis) -> Chart:
    series = [
        Series(name, [(record["epoch"], record[f"{split}_{figure}"]) for record in history], colour)
        for colour, (split, name) in enumerate((("train", "training"), ("val", "validation")))
    ]
    note = "The training accuracy is measured on augmented images, while the weights change."
    return xy_chart(key, title, series, x=EPOCH, y=y, note=note)


def gamma_histogram(run: Run) -> Chart:
    """|γ| of the prunable channels before and after pruning, and after fine-tuning."""
    pruned = run.pruned.get("pruned")
    removed = removed_share(run.original, pruned or run.final)
    tuned = "fine-tuned" if run.stages["finetune"]["accuracy"] else "final"
    sets = [
        ("sparse", run.original, ORIGINAL),
        *([("pruned", pruned, THIRD)] if pruned else []),
        (tuned, run.final, FINAL),
    ]
    scales = {name: np.abs(model.scales) for name, model, _ in sets}
    edges = np.linspace(0, max(1e-6, *(float(values.max()) for values in scales.values())) * 1.0001, 41)
    series = [Series(name, _counts(scales[name], edges), colour, "steps") for name, _, colour in sets]
    strength = run_option(run, "train", "sparsity")
    before, after = scales["sparse"], scales["pruned" if pruned else tuned]
    note = (
        f"{len(before):,} channels before, {len(after):,} after pruning; before, {(before == 0).mean():.0%} "
        "of γ were exactly 0. On the logarithmic scale 0.5 stands for none."
    )
    return xy_chart(
        "gamma",
        "|γ| of the prunable channels" + ("" if strength is None else f", {strength_text(strength)}"),
        series,
        x=Axis("|γ|", lambda value: f"{value:.3g}"),
        y=Axis("channels", compact, log=True),
        lines=[(float(np.quantile(before, removed)), f"{removed:.0%} lie below")],
        note=note,
    )


def strength_text(strength: float | str) -> str:
    """`--sparsity` as text: a fixed λ, or the target share."""
    if isinstance(strength, str):
        return f"λ adjusted to {float(strength.removeprefix('auto:')):.0%} zeros"
    return f"λ = {strength:g}"


def _counts(values: np.ndarray, edges: np.ndarray) -> list[tuple[float, float]]:
    """Steps of a histogram: (left edge, count), and the last count again at the right end."""
    counts = [float(max(count, 0.5)) for count in np.histogram(values, edges)[0]]
    return list(zip(map(float, edges), [*counts, counts[-1]], strict=True))


def kept_channels(original: Model, final: Model) -> list[Chart]:
    """Output channels of every layer but the classifier: kept, and kept rounded up to the alignment of
    hardware.
    """
    full, kept = original.layers(), final.layers()
    layers = []
    for name, layer in full.items():
        width = kept[name].out_channels if name in kept else 0
        layers.append(Kept(name, layer.out_channels, width, round_up(width, ALIGNMENT)))
    note = (
        f"{sum(layer.kept for layer in layers):,} of {sum(layer.full for layer in layers):,} output channels "
        f"kept; the lighter part is added by rounding up to a multiple of {ALIGNMENT}."
    )
    return kept_charts("channels", layers, pale=PALE, middle=THIRD, strong=FINAL, note=note)


def ratio_curve(run: Run) -> Chart | None:
    """Test accuracy against the share of channels removed; None without accuracies."""
    trained = run.stages["train"]["accuracy"].get("test")
    if trained is None:
        return None
    steps = {
        "after": ("cut", ORIGINAL),
        "after_folding": ("constants folded", PALE),
        "after_compensation": ("compensated", FOURTH),
        "after_recalibration": ("BN recalibrated", THIRD),
        "final": ("pruned", THIRD),
    }
    cuts = sorted(
        (removed_share(run.original, model), run.stages[name]["accuracy"])
        for name, model in run.pruned.items()
        if "accuracy" in run.stages[name]
    )
    if any("after" in accuracy for _, accuracy in cuts):
        del steps["final"]  # the final network is the last of the others
    series = []
    for key, (name, colour) in steps.items():
        found = [(share, accuracy[key]) for share, accuracy in cuts if key in accuracy]
        if found:
            series.append(Series(name, [(0.0, trained), *found], colour))
    tuned = run.stages["finetune"]["accuracy"].get("test")
    if tuned is not None:
        share = removed_share(run.original, run.final)
        series.append(Series("fine-tuned", [(share, tuned)], FINAL, "dots"))
    if not series:
        return None
    x = Axis("share of the prunable channels removed", lambda v: f"{v:.0%}", low=0, high=1)
    return xy_chart("ratio", "Test accuracy against the pruning ratio", series, x=x, y=SHARE)


def latencies(run: Run) -> list[Chart]:
    """The distribution of all timed runs, one chart per batch size."""
    charts = []
    for batch in sorted({row["batch"] for row in run.bench["rows"]}):
        rows = [row for row in run.bench["rows"] if row["batch"] == batch]
        series = []
        for colour, row in enumerate(rows[:2]):
            samples = np.concatenate([np.asarray(block) for block in row["samples_ms"]])
            points = [
                (float(ms), q / 100)
                for ms, q in zip(np.percentile(samples, QUANTILES), QUANTILES, strict=True)
            ]
            series.append(Series(_stem(row["model"]), points, colour))
        note = " ".join(f"{_stem(row['model'])}: {row['latency_ms']['runs']:,} runs." for row in rows[:2])
        x = Axis("time of a run", milliseconds, log=True)
        y = Axis("share of runs", lambda v: f"{100 * v:.4g} %", low=0, high=1)
        charts.append(xy_chart(f"latency-{batch}", f"Latency at batch {batch}: share of runs within a time",
                               series, x=x, y=y, note=f"{note} Steep: little variation."))  # fmt: skip
    return charts


def layer_scatter(run: Run, times: dict[str, dict[str, float]], *, batch: int) -> Chart:
    """MACs of each layer but the classifier against its time. `times`: `original` and `final` -> layer ->
    ms.
    """
    series, rest = [], {}
    for colour, (name, model) in enumerate((("original", run.original), ("final", run.final))):
        layers = [layer for layer in model.layers().values() if layer.name in times[name]]
        points = [(layer.macs * batch, times[name][layer.name]) for layer in layers]
        series.append(Series(name, points, colour, "dots", [layer.name for layer in layers]))
        rest[name] = 1 - sum(ms for _, ms in points) / sum(times[name].values())
    note = (
        f"Batch {batch}, onnxruntime on the CPU, each layer with its activation. On a diagonal the "
        "speed is the same; layers above it are slower per MAC. Not shown: pooling, reordering and the "
        f"classifier, {rest['original']:.0%} of the original's time and {rest['final']:.0%} of the final's."
    )
    x, y = Axis("MACs", compact, log=True), Axis("time", milliseconds, log=True)
    return xy_chart("layers", "MACs against measured time, layer by layer", series, x=x, y=y, note=note)


def removed_share(original: Model, cut: Model) -> float:
    """The share of the prunable channels that pruning removed, for any target."""
    return 1 - len(cut.scales) / max(len(original.scales), 1)


def run_option(run: Run, stage: str, name: str) -> float | str | None:
    """An option of a stage, from the provenance of the final checkpoint; None without that stage."""
    found = (entry for entry in run.final.info.provenance if entry["stage"] == stage)
    return next((entry["options"][name] for entry in found), None)


def compact(value: float) -> str:
    """`10 M`, for an axis."""
    for divisor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= divisor:
            return f"{value / divisor:.4g}{unit}"
    return f"{value:.4g}"


def milliseconds(value: float) -> str:
    """`0.25 ms`, and seconds from a thousand on."""
    return f"{value:.4g} ms" if value < 1000 else f"{value / 1000:.4g} s"


def _stem(model: str) -> str:
    return file_name(model).removesuffix(".onnx")
