"""Predicted against measured latency: ten networks across the range, for the table of `slimdeploy lut`.

    python -m slimdeploy.benchmarks.lut_accuracy table.json --output lut-accuracy.json

Each network is measured in its own process, all alternately. In between, ANCHORS of the networks to which the
table was fitted are measured, to determine the drift of the device since then (latency/drift.py). The error
is reported with and without drift.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.latency.backend import open_for_table
from slimdeploy.toolchain.latency.drift import measure_with_drift
from slimdeploy.toolchain.latency.measure import full_network, samples_of
from slimdeploy.toolchain.latency.table import KIND, table_of
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.cutting import at_widths
from slimdeploy.toolchain.networks.graph import Graph

Shares = tuple[float, float, int]
"""Share of the inner widths, share of the residual streams, alignment."""
NETWORKS: dict[str, Shares] = {
    "full": (1.0, 1.0, 8),
    "inner ×0.5": (0.5, 1.0, 8),
    "inner ×0.25": (0.25, 1.0, 8),
    "inner ×0.1": (0.1, 1.0, 8),
    "inner ×0.25, align 16": (0.25, 1.0, 16),
    "inner ×0.1, align 16": (0.1, 1.0, 16),
    "all ×0.5": (0.5, 0.5, 8),
    "all ×0.25": (0.25, 0.25, 16),
    "all ×0.1": (0.1, 0.1, 8),
    "inner ×0.4, streams ×0.15": (0.4, 0.15, 16),
}
ANCHORS = 5
COLUMNS = {
    "network": "widths, as shares of the full ones",
    "params": "parameters",
    "macs": "multiply-accumulates for one image",
    "predicted_ms": "by the table, ms",
    "measured_ms": "median of whole runs, ms",
    "error": "predicted ÷ measured − 1",
    "drift": "median ratio of the times of the table's networks now and when it was measured",
    "steady_error": "predicted × drift ÷ measured − 1: the error on a device without drift",
}


def scaled(full: Graph, inner: float, stream: float, align: int) -> Graph:
    """The network with its stem and inner widths times `inner` and its residual streams times `stream`."""
    groups = channel_groups(full, residual="couple")
    widths = {}
    for group in groups:
        share = stream if group.residual else inner
        widths[group.name] = (
            group.width if share == 1 else max(align, round(group.width * share / align) * align)
        )
    return at_widths(full, groups, widths)


def compare(path: Path, networks: Mapping[str, Shares], *, seconds: float) -> list[dict[str, Any]]:
    """Rows of COLUMNS for `networks` by the table at `path`; each network runs for `seconds`."""
    document = results.read(path, KIND)
    table, samples, size = table_of(document, path), samples_of(document, path), document["network"]["size"]
    graphs = [scaled(full_network(document), *shares) for shares in networks.values()]
    with open_for_table(table.device) as backend:
        found = measure_with_drift(backend, graphs, samples, size, anchors=ANCHORS, seconds=seconds)
    rows = []
    for name, graph, ms in zip(networks, graphs, found.ms, strict=True):
        cost, predicted = network_cost(graph, size), table.network_ms(graph, size)
        steady = predicted * found.drift / ms - 1
        values = (name, cost.params, cost.macs, predicted, ms, predicted / ms - 1, found.drift, steady)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


@click.command()
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Running for each network.")
@click.option(
    "--only", type=click.Choice(list(NETWORKS)), multiple=True, help="Only this network. Repeatable."
)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(tables: Sequence[Path], seconds: float, only: tuple[str, ...], output: Path) -> None:
    """Measure ten networks and compare them with the predictions of TABLES."""
    networks = {name: NETWORKS[name] for name in only or NETWORKS}
    rows = [
        {"batch": results.read(path, KIND)["device"]["batch"], **row}
        for path in tables
        for row in compare(path, networks, seconds=seconds)
    ]
    columns = {"batch": "batch size", **COLUMNS}
    command = shlex.join(["python", "-m", "slimdeploy.benchmarks.lut_accuracy", *sys.argv[1:]])
    title = "Latency predicted by slimdeploy lut against the latency measured"
    results.write(output, results.document("table", command=command, title=title, columns=columns, rows=rows))
    for row in rows:
        click.echo(
            f"{row['batch']:3} {row['network']:26} {row['predicted_ms']:9.3f} {row['measured_ms']:9.3f} ms "
            f"{row['error']:+7.1%} {row['steady_error']:+7.1%}"
        )
    for column in ("error", "steady_error"):
        errors = np.abs([row[column] for row in rows])
        click.echo(f"{COLUMNS[column]}: median {np.median(errors):.1%}, worst {errors.max():.1%}")
    click.echo(f"drift: {', '.join(f'{drift:.2f}' for drift in dict.fromkeys(row['drift'] for row in rows))}")


if __name__ == "__main__":
    run_program(main, "lut_accuracy")
