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

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts, locks
from slimdeploy.toolchain.data.dataset import Dataset, load_dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.graphs import network_graph
from slimdeploy.toolchain.models.named_networks import parse_arguments
from slimdeploy.toolchain.pipeline.recipe import TRAINED, Recipe
from slimdeploy.toolchain.pipeline.stages import Around, StageResult, Stages, no_surroundings
from slimdeploy.toolchain.pipeline.table import result_table
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.reach import check_reachable
from slimdeploy.toolchain.stages.export import export_stage
from slimdeploy.toolchain.stages.prune import prune_stage
from slimdeploy.toolchain.stages.train import finetune_stage, train_stage
from slimdeploy.toolchain.training.options import TrainOptions

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
    recipe: Recipe,
    folder: Path,
    *,
    device: str,
    threads: int | None = None,
    around: Around = no_surroundings,
    held: bool = False,
) -> RunResult:
    """Carry out `recipe` in `folder`; stages that are done and unchanged are skipped. `around` is entered
    around each one that isn't. `held`: the caller holds the folder's lock already.

    Raises SlimdeployError as the stages do.
    """
    with _opened(recipe, folder, device, threads, around, held) as run:
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
    recipe: Recipe,
    folder: Path,
    *,
    device: str,
    threads: int | None = None,
    around: Around = no_surroundings,
    held: bool = False,
) -> None:
    """Only what doesn't depend on the pruning: the sparse training, and the unpruned network as ONNX."""
    with _opened(recipe, folder, device, threads, around, held) as run:
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


@contextmanager
def _opened(
    recipe: Recipe, folder: Path, device: str, threads: int | None, around: Around, held: bool
) -> Iterator[_Run]:
    """The run in `folder`, held against every other process; nothing is written before `recipe` is checked.

    Raises SlimdeployError for a teacher that isn't there, data that can't be read, a pruning target out of
    reach, and a folder in which another process is at work.
    """
    for options in (recipe.train, recipe.finetune):
        if options.teacher not in (None, TRAINED) and not Path(options.teacher).is_file():
            raise SlimdeployError(f"no teacher at {options.teacher}")
    dataset = load_dataset(recipe.data)
    network = recipe.network
    size, classes = dataset.preprocessing.size, len(dataset.class_names)
    graph = network_graph(
        network.arch, arguments=network.arguments, stem=network.stem, classes=classes, size=size
    )
    for target in (recipe.prune, *map(recipe.prune.at_ratio, recipe.compare_ratios)):
        check_reachable(graph, target, size)
    artifacts.make_folder(folder)
    with nullcontext() if held else locks.exclusive(folder, f"the run folder {folder}"):
        yield _Run(recipe, folder, device, threads, around, dataset)


class _Run:
    """What each stage is given, and which earlier ones it depends on."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        device: str,
        threads: int | None,
        around: Around,
        dataset: Dataset,
    ) -> None:
        self.recipe, self.folder, self.device, self.threads = recipe, folder, device, threads
        self.stages = Stages(folder, around)
        self.sparse, self.final = self._checkpoint("sparse"), self._checkpoint("final")
        self._data = [recipe.data.to_json(), dataset.digest()]

    def train(self) -> None:
        network, options = self.recipe.network, self.recipe.train
        self.stages.do(
            "train",
            self.sparse,
            [self._data, asdict(network), self._options(options)],
            lambda resume: train_stage(
                arch=network.arch,
                arguments=parse_arguments(network.arguments),
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
        if name == "original":  # in FP32 whatever the final network is in: speed-ups are against it
            options = replace(options, precision="fp32", target=ExportOptions.target)
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


@dataclass(frozen=True)
class BenchResult:
    """A `bench` document without its raw samples, which stay in the file."""

    document: dict[str, Any]

    def to_json(self) -> StageResult:
        return self.document


def _bench(recipe: Recipe, models: list[Path], output: Path, threads: int | None) -> BenchResult:
    from slimdeploy.toolchain.measure.bench import BenchOptions, find_surroundings, measure
    from slimdeploy.toolchain.measure.labelled_images import dataset_images
    from slimdeploy.toolchain.measure.subjects import subjects_for
    from slimdeploy.toolchain.measure.timing import TimingOptions
    from slimdeploy.toolchain.runtime.session import SessionOptions

    timing = TimingOptions(seconds=recipe.bench.seconds, ci=recipe.bench.ci, launches=recipe.bench.launches)
    subjects = subjects_for(models, ["onnxruntime"], SessionOptions(device="cpu", threads=threads))
    around = find_surroundings(dataset_images(recipe.data), lambda message: None)
    options = BenchOptions(recipe.bench.batches, timing, threads)
    result = measure(subjects, options, around, command=["slimdeploy", "bench", *map(str, models)])
    results.write(output, result)
    return BenchResult(results.without_samples(result))
