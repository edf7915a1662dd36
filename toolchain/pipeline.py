"""`slimdeploy run`: all stages of a recipe in order, into one folder.

    RUN/sparse.safetensors        trained with the L1 penalty on γ
    RUN/pruned.safetensors        and compare-<ratio>.safetensors for the recipe's compare_ratios
    RUN/final.safetensors         pruned and fine-tuned
    RUN/original.onnx, final.onnx
    RUN/bench.json                both against each other
    RUN/run.json                  what each stage was given (as a hash), wrote and reported
    RUN/table.json                the result, one row a step

A stage whose inputs are the same and whose output is as it was written is skipped, so a killed run goes on
where it was, and a changed recipe repeats only what depends on the change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from slimdeploy import __version__
from slimdeploy.benchmarks import results
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import load_dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.stage import export_stage
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.stage import prune_stage
from slimdeploy.toolchain.recipe import TRAINED, Recipe
from slimdeploy.toolchain.run_table import result_table
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.stage import finetune_stage, train_stage
from slimdeploy.toolchain.training.state import state_path

StageResult = dict[str, Any]
Around = Callable[[str], AbstractContextManager[Any]]
"""Stage -> what is entered around it."""
_nothing: Around = nullcontext
# Stage -> its files, the ones that it need not have written included.
ORIGINAL_FILES = {
    "train": ("sparse.safetensors", "sparse.history.jsonl"),
    "export-original": ("original.onnx", "original.onnx.json"),
}


@dataclass(frozen=True)
class RunResult:
    """Where everything lies, what each stage reported, and the result as a `table` document."""

    folder: Path
    stages: dict[str, StageResult]
    table: dict[str, Any]


def run_recipe(
    recipe: Recipe, folder: Path, *, device: str, threads: int | None = None, around: Around = _nothing
) -> RunResult:
    """Carry out `recipe` in `folder`; stages that are done and unchanged are skipped. `around` is entered
    around each one that isn't.

    Raises SlimdeployError as the stages do.
    """
    run = _Run(recipe, folder, device, threads, around)
    run.train()
    for ratio in recipe.compare_ratios:
        run.prune(f"compare-{ratio:g}", recipe.prune.at_ratio(ratio))
    run.prune("pruned", recipe.prune)
    run.finetune()
    run.export("original", "train", run.sparse)
    run.export("final", "finetune", run.final)
    run.bench()
    table = result_table(recipe, run.stages.results)
    results.write(folder / "table.json", table)
    return RunResult(folder, run.stages.results, table)


def run_original(
    recipe: Recipe, folder: Path, *, device: str, threads: int | None = None, around: Around = _nothing
) -> None:
    """Only what doesn't depend on the pruning: the sparse training, and the unpruned network as ONNX."""
    run = _Run(recipe, folder, device, threads, around)
    run.train()
    run.export("original", "train", run.sparse)


def adopt_original(source: Path, folder: Path) -> None:
    """Let the run in `folder` begin with what `run_original` made in `source`: the same files by hard link
    (copied where the file system has none), and the record of how they came about.
    """
    theirs = Stages(source)
    ours = Stages(folder)
    for name, written in ORIGINAL_FILES.items():
        files = [file for file in written if (source / file).exists()]
        if ours.entry(name) == theirs.entry(name) and all((folder / file).exists() for file in files):
            continue
        for file in files:
            artifacts.link(source / file, folder / file)
        ours.adopt(name, theirs)


class _Run:
    """What each stage is given, and which earlier ones it depends on."""

    def __init__(
        self, recipe: Recipe, folder: Path, device: str, threads: int | None, around: Around
    ) -> None:
        self.recipe, self.folder, self.device, self.threads = recipe, folder, device, threads
        self.stages = Stages(folder, around)
        self.sparse, self.final = self._checkpoint("sparse"), self._checkpoint("final")
        for options in (recipe.train, recipe.finetune):
            if options.teacher not in (None, TRAINED) and not Path(options.teacher).is_file():
                raise SlimdeployError(f"no teacher at {options.teacher}")
        self._data = [recipe.data.to_json(), load_dataset(recipe.data).digest()]

    def train(self) -> None:
        network, options = self.recipe.network, self.recipe.train
        self.stages.do(
            "train",
            self.sparse,
            [self._data, asdict(network), self._options(options)],
            lambda resume: train_stage(
                arch=network.arch,
                stem=network.stem,
                data=self.recipe.data,
                options=options,
                output=self.sparse,
                device=self.device,
                resume=resume,
                force=True,
            ),
        )

    def prune(self, name: str, options: PruneOptions) -> None:
        self.stages.do(
            name,
            self._checkpoint(name),
            [self._data, asdict(options), self.stages.sha256("train")],
            lambda _: prune_stage(
                self.sparse,
                options=options,
                output=self._checkpoint(name),
                data=self.recipe.data,
                device=self.device,
                force=True,
            ),
        )

    def finetune(self) -> None:
        options = self.recipe.finetune
        if options.teacher == TRAINED:
            options = replace(options, teacher=str(self.sparse))
        self.stages.do(
            "finetune",
            self.final,
            [self._data, self._options(options), self.stages.sha256("pruned")],
            lambda resume: finetune_stage(
                self._checkpoint("pruned"),
                data=self.recipe.data,
                options=options,
                output=self.final,
                device=self.device,
                resume=resume,
                force=True,
            ),
        )

    def export(self, name: str, parent: str, checkpoint: Path) -> None:
        options, output = self.recipe.export, self.folder / f"{name}.onnx"
        self.stages.do(
            f"export-{name}",
            output,
            [self._data, asdict(options), self.stages.sha256(parent)],
            lambda _: export_stage(
                checkpoint, options=options, output=output, data=self.recipe.data, force=True
            ),
        )

    def bench(self) -> None:
        models = [self.folder / "original.onnx", self.folder / "final.onnx"]
        parents = [self.stages.sha256("export-original"), self.stages.sha256("export-final")]
        output = self.folder / "bench.json"
        self.stages.do(
            "bench",
            output,
            [asdict(self.recipe.bench), self.threads, *parents],
            lambda _: _bench(self.recipe, models, output, self.threads),
        )

    def _options(self, options: TrainOptions) -> dict[str, Any]:
        """What training depends on: of a teacher its content, not its place."""
        teacher = artifacts.sha256_file(options.teacher) if options.teacher else None
        return {**options.to_json(), "teacher": teacher}

    def _checkpoint(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class Reported(Protocol):
    """What a stage returns."""

    def to_json(self) -> StageResult: ...


class Stages:
    """The stages done so far in a run folder, kept in its `run.json`."""

    def __init__(self, folder: Path, around: Around = _nothing) -> None:
        self._path, self._around = folder / "run.json", around
        self._known: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._known = artifacts.read_json(self._path, "record of a run")
        self.results: dict[str, StageResult] = {}

    def do(self, name: str, output: Path, inputs: list[Any], work: Callable[[bool], Reported]) -> None:
        """Run `work(resume)` unless `output` is there, made from the same `inputs`.

        `resume` is true where the same work was started before and left a state.
        """
        key = hashlib.sha256(json.dumps([__version__, name, inputs], sort_keys=True).encode()).hexdigest()
        known = self._known.get(name, {})
        same = known.get("inputs") == key
        if (
            same
            and "result" in known
            and output.exists()
            and artifacts.sha256_file(output) == known["sha256"]
        ):
            log(f"{name}: up to date")
        else:
            with self._around(name):
                log(f"{name} …")
                self._record(name, {"inputs": key})
                result = work(same and state_path(output).exists()).to_json()
            known = {"inputs": key, "sha256": artifacts.sha256_file(output), "result": result}
            self._record(name, known)
        self.results[name] = known["result"]

    def entry(self, name: str) -> dict[str, Any] | None:
        """What is recorded of stage `name`."""
        return self._known.get(name)

    def adopt(self, name: str, other: Stages) -> None:
        """Record stage `name` as `other` has it, whose output lies here too."""
        self._record(name, other._known[name])

    def sha256(self, name: str) -> str:
        """Hash of what stage `name` wrote."""
        return self._known[name]["sha256"]

    def _record(self, name: str, entry: dict[str, Any]) -> None:
        self._known[name] = entry
        artifacts.write_json(self._path, self._known)


@dataclass(frozen=True)
class BenchResult:
    """A `bench` document without its raw samples, which stay in the file."""

    document: dict[str, Any]

    def to_json(self) -> StageResult:
        return self.document


def _bench(recipe: Recipe, models: list[Path], output: Path, threads: int | None) -> BenchResult:
    from slimdeploy.benchmarks.bench import BenchOptions, find_surroundings, measure
    from slimdeploy.benchmarks.images import dataset_images
    from slimdeploy.benchmarks.latency import TimingOptions
    from slimdeploy.benchmarks.subjects import subjects_for
    from slimdeploy.toolchain.runtime.session import SessionOptions

    timing = TimingOptions(seconds=recipe.bench.seconds, ci=recipe.bench.ci)
    subjects = subjects_for(models, ["onnxruntime"], SessionOptions(device="cpu", threads=threads))
    around = find_surroundings(dataset_images(recipe.data), lambda message: None)
    options = BenchOptions(recipe.bench.batches, timing, threads)
    result = measure(subjects, options, around, command=["slimdeploy", "bench", *map(str, models)])
    results.write(output, result)
    return BenchResult(results.without_samples(result))
