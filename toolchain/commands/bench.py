"""`slimdeploy bench`: accuracy, latency and memory of models, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimdeploy.toolchain.checks import MAX_BATCH, MAX_SEED
from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import data_options, machine_options
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.paths import InputPath, OutputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


class Share(click.ParamType):
    """A share such as `2%` or `0.02`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            self.fail(f"{value!r} is not a share between 0 and 100%, such as 2%", param, ctx)
        return share


class Sizes(click.ParamType):
    """Batch sizes such as `1,8,64`."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.strip().isdecimal() and 0 < int(part) <= MAX_BATCH for part in parts):
            self.fail(f"{value!r} is not a list of batch sizes, such as 1,64", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


@command("bench")
@click.argument("models", nargs=-1, type=InputPath(".json"))
@data_options(required=False)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Accuracy on a class-balanced subset of N test images."
)
@click.option("--batch", "batches", type=Sizes(), default="1,64", show_default=True, help="Batch sizes.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True,
    help="Maximum timed seconds for each model and batch size, without start and warm-up.",
)  # fmt: skip
@click.option(
    "--launches", type=click.IntRange(min=2), default=10, show_default=True,
    help="Minimum number of fresh processes for each model and batch size.",
)  # fmt: skip
@click.option(
    "--ci", type=Share(), default="2%", show_default=True,
    help="Stop when the half-width of each 95 % interval is below this share of the median.",
)  # fmt: skip
@click.option(
    "--backend", "backends", multiple=True, default=["auto"], show_default=True,
    help="Runtime: torch, onnxruntime or tensorrt. Repeatable, to compare runtimes.",
)  # fmt: skip
@machine_options
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Seed of the order of the models.",
)
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
    **given: Any,
) -> Output:
    """Measure MODELS (checkpoints, ONNX files, engines) side by side; the first is the baseline.

    Each launch starts a fresh process for every model and times them alternately, in random order. With
    --data, the accuracy on the test images is measured as well.
    """
    from slimdeploy.toolchain import artifacts
    from slimdeploy.toolchain.measure import bench_table as table
    from slimdeploy.toolchain.measure import compare as comparing
    from slimdeploy.toolchain.measure import results

    conditions = [comparing.parse_guard(text) for text in guards]
    if compare:
        if models:
            raise SlimdeployError("--compare reads two results and measures nothing: leave the models out")
        old, new = (results.read_runs(path, "bench") for path in compare)
        compared = comparing.compare_results(old, new, conditions)
        return Output(compared, table.compare_table(compared), comparing.failures(compared["guards"]))
    if not models:
        raise SlimdeployError("name at least one model: slimdeploy bench original.onnx pruned.onnx")
    if output:
        artifacts.check_output(output, force=force)
    if conditions and len(models) * len(given["backends"]) < 2:
        raise SlimdeployError("--fail-if compares: name a baseline and another model, or use --compare")
    result = _measure(models, **given)
    result["guards"] = comparing.judge_run(conditions, result)
    if output:
        results.write(output, result)
    shown = results.without_samples(result)
    return Output(shown, table.bench_table(shown), comparing.failures(result["guards"]))


def _measure(
    models: tuple[Path, ...],
    *,
    backends: tuple[str, ...],
    batches: tuple[int, ...],
    seconds: float,
    ci: float,
    launches: int,
    seed: int,
    device: str,
    threads: int | None,
    data: DataOptions | None,
    limit: int | None,
) -> dict[str, Any]:
    from rich.console import Console

    from slimdeploy.toolchain.library.bench import bench as measured
    from slimdeploy.toolchain.measure.timing import TimingOptions

    console = Console(stderr=True)
    # Drawn by hand between the blocks: a bar that animates itself would take time from what is measured.
    line = console.print if not console.is_terminal else lambda text: console.print(f"\r{text:<100}", end="")
    result = measured(
        models,
        data=data,
        limit=limit,
        batches=batches,
        timing=TimingOptions(seconds=seconds, ci=ci, seed=seed, launches=launches),
        backends=backends,
        device=device,
        threads=threads,
        progress=line,
        command=["slimdeploy", *sys.argv[1:]],
    )
    line("")
    return result.document
