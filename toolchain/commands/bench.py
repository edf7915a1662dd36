"""`slimdeploy bench`: accuracy, latency and memory of models, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags, refuse
from slimdeploy.toolchain.commands.options import data_options
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.options import BenchOptions
from slimdeploy.toolchain.paths import InputPath, OutputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions

OF_COMPARE = {"compare", "guards", "as_json", "debug"}


@command("bench")
@click.argument("models", nargs=-1, type=InputPath(".json"))
@data_options(required=False)
@flags(BenchOptions)
@click.option("-o", "--output", type=OutputPath(), help="File for the result, raw samples included.")
@click.option("--force", is_flag=True, help="Replace the output where it exists.")
@click.option(
    "--compare", nargs=2, type=InputPath(), metavar="OLD NEW",
    help="Measure nothing: compare results that --output wrote. A folder holds the results of repeated runs.",
)  # fmt: skip
@click.option(
    "--fail-if", "guards", multiple=True, metavar="CONDITION",
    help="Exit 1 if the whole 95 % interval meets it, such as 'latency_p50 > 1.05x' or 'accuracy < -0.5pp'.",
)  # fmt: skip
def bench(
    models: tuple[Path, ...],
    compare: tuple[Path, Path] | None,
    guards: tuple[str, ...],
    output: Path | None,
    force: bool,
    data: DataOptions | None,
    options: BenchOptions,
) -> Output:
    """Measure MODELS (checkpoints, ONNX files, engines) side by side; the first is the baseline.

    Each launch starts a fresh process for every model and times them alternately, in random order. With
    --data, the accuracy on the test images is measured as well.
    """
    from slimdeploy.toolchain import artifacts
    from slimdeploy.toolchain.measure import bench_table as table
    from slimdeploy.toolchain.measure import compare as comparing
    from slimdeploy.toolchain.measure import results
    from slimdeploy.toolchain.measure.guards import failures, parse_guard

    conditions = [parse_guard(text) for text in guards]
    if compare:
        if models:
            raise SlimdeployError("--compare reads two results and measures nothing: leave the models out")
        others = [param.name or "" for param in click.get_current_context().command.params]
        refuse(sorted({*others} - OF_COMPARE), "has no effect with --compare, which measures nothing")
        old, new = (results.read_runs(path, "bench") for path in compare)
        compared = comparing.compare_results(old, new, conditions)
        return Output(compared, table.compare_table(compared), failures(compared["guards"]))
    if not models:
        raise SlimdeployError("name at least one model: slimdeploy bench original.onnx pruned.onnx")
    if output:
        artifacts.check_output(output, force=force)
    if conditions and len(models) * len(options.backends) < 2:
        raise SlimdeployError("--fail-if compares: name a baseline and another model, or use --compare")
    if data is None and any(condition.metric == "accuracy" for condition in conditions):
        raise SlimdeployError("--fail-if accuracy needs `data`")
    result = _measure(models, data, options)
    result["guards"] = comparing.judge_run(conditions, result)
    if output:
        results.write(output, result)
    shown = results.without_samples(result)
    return Output(shown, table.bench_table(shown), failures(result["guards"]))


def _measure(models: tuple[Path, ...], data: DataOptions | None, options: BenchOptions) -> dict[str, Any]:
    from rich.console import Console

    from slimdeploy.toolchain.library.bench import bench as measured

    console = Console(stderr=True)
    # Updated only between the blocks: an animated bar would use CPU time during the measurement.
    line = console.print if not console.is_terminal else lambda text: console.print(f"\r{text:<100}", end="")
    command = ["slimdeploy", *sys.argv[1:]]
    result = measured(models, data=data, options=options, progress=line, command=command)
    line("")
    return result.document
