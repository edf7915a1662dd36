"""`slimdeploy run`: all stages of a recipe in order, into one folder.

    RUN/sparse.safetensors        trained with the L1 penalty on γ
    RUN/pruned.safetensors        and compare-<ratio>.safetensors for the recipe's compare_ratios
    RUN/final.safetensors         pruned and fine-tuned
    RUN/original.onnx, final.onnx
    RUN/final.int8.onnx           with [calibrate]
    RUN/bench.json                comparison of the ONNX files
    RUN/table.json                the result, one row a step
    RUN/final.slim.tar            with [package]: the bundle for a device
    RUN/report.html               with [report]
    RUN/run.json                  what each stage was given (as a hash), wrote and reported

A stage with unchanged inputs and output is skipped. A killed run continues where it stopped, and a changed
recipe repeats only the stages that depend on the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts, locks
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.pipeline.plan import Job, plan
from slimdeploy.toolchain.pipeline.recipe import TRAINED, Recipe
from slimdeploy.toolchain.pipeline.record import Around, RunRecord, no_surroundings
from slimdeploy.toolchain.pipeline.stage import Stage, StageResult
from slimdeploy.toolchain.pipeline.start import starting_point
from slimdeploy.toolchain.pruning.reach import check_reachable

# Stage that doesn't depend on pruning -> its files, including optional ones.
ORIGINAL_FILES = {
    "train": ("sparse.safetensors", "sparse.history.jsonl"),
    "export-original": ("original.onnx", "original.onnx.json"),
}


@dataclass(frozen=True)
class RunResult:
    """Paths of the outputs, results of the stages, and the final table as a `table` document."""

    folder: Path
    stages: dict[str, StageResult]
    table: dict[str, Any]


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    device: str,
    threads: int | None = None,
    around: Around = no_surroundings,
    held: bool = False,
    repeat_from: str | None = None,
) -> RunResult:
    """Run `recipe` in `folder`. Finished, unchanged stages are skipped, except those of the command
    `repeat_from` and all later ones. `around` is entered around each stage that runs. `held`: the caller
    holds the lock of the folder.

    Raises SlimdeployError like the stages.
    """
    stages = plan(Job(recipe, _checked_data(recipe), folder, device, threads))
    repeated = _from(repeat_from, stages) if repeat_from else []
    with _record(folder, around, held) as record:
        record.check(stages)
        if repeated:
            record.forget(repeated)
        for stage in stages:
            record.do(stage)
        record.tell_outdated()
    return RunResult(folder, record.results, results.read(folder / "table.json", "table"))


def run_original(
    recipe: Recipe,
    folder: Path,
    *,
    device: str,
    threads: int | None = None,
    around: Around = no_surroundings,
    held: bool = False,
) -> None:
    """Run only the stages that don't depend on pruning: sparse training, and the export of the unpruned
    network.
    """
    job = Job(recipe, _checked_data(recipe), folder, device, threads)
    stages = [stage for stage in plan(job) if stage.name in ORIGINAL_FILES]
    with _record(folder, around, held) as record:
        record.check(stages)
        for stage in stages:
            record.do(stage)


def adopt_original(source: Path, folder: Path) -> None:
    """Prepare `folder` with the output of `run_original` in `source`: hard links to the files (copies if the
    file system has no links), and their records.
    """
    theirs = RunRecord(source)
    ours = RunRecord(folder)
    for name, written in ORIGINAL_FILES.items():
        files = [file for file in written if (source / file).exists()]
        if ours.entry(name) == theirs.entry(name) and all((folder / file).exists() for file in files):
            continue
        for file in files:
            artifacts.link(source / file, folder / file)
        ours.adopt(name, theirs)


def _from(command: str, stages: list[Stage]) -> list[str]:
    """Names of the first stage of `command` and of all later ones."""
    first = next((i for i, stage in enumerate(stages) if stage.command == command), None)
    if first is None:
        raise SlimdeployError(f"`repeat_from` {command}: the recipe has no section [{command}]")
    return [stage.name for stage in stages[first:]]


def _checked_data(recipe: Recipe) -> dict[str, Any]:
    """What identifies the data of `recipe`. Raises SlimdeployError for a missing teacher or weights file,
    unreadable data, and a pruning target out of reach.
    """
    for options in (recipe.train, recipe.finetune):
        if options.teacher not in (None, TRAINED) and not Path(options.teacher).is_file():
            raise artifacts.missing(options.teacher, "teacher")
    dataset, graph = starting_point(recipe)
    size = dataset.preprocessing.size
    for target in (recipe.prune, *map(recipe.prune.at_ratio, recipe.compare_ratios)):
        check_reachable(graph, target, size)
    return {"images": dataset.digest(), "preprocessing": dataset.preprocessing.to_json()}


@contextmanager
def _record(folder: Path, around: Around, held: bool) -> Iterator[RunRecord]:
    """The record of the run in `folder`, which is locked against other processes."""
    artifacts.make_folder(folder)
    with nullcontext() if held else locks.exclusive(folder, f"the run folder {folder}"):
        yield RunRecord(folder, around)
