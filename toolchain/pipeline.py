"""`slimdeploy run`: all stages of a recipe in order, into one folder.

    RUN/sparse.safetensors        trained with the L1 penalty on γ
    RUN/pruned-<ratio>.safetensors
    RUN/final.safetensors         the recipe's ratio, fine-tuned
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy import __version__
from slimdeploy.benchmarks import results
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import Dataset, load_dataset
from slimdeploy.toolchain.export.stage import export_stage
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.stage import prune_stage
from slimdeploy.toolchain.recipe import Recipe
from slimdeploy.toolchain.run_table import result_table
from slimdeploy.toolchain.training.stage import finetune_stage, train_stage
from slimdeploy.toolchain.training.state import state_path

StageResult = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """Where everything lies, what each stage reported, and the result as a `table` document."""

    folder: Path
    stages: dict[str, StageResult]
    table: dict[str, Any]


def run_recipe(recipe: Recipe, folder: Path, *, device: str, threads: int | None = None) -> RunResult:
    """Carry out `recipe` in `folder`; stages that are done and unchanged are skipped.

    Raises SlimdeployError as the stages do.
    """
    stages = Stages(folder)
    data = {"data": recipe.data.to_json(), "content": _digest(load_dataset(recipe.data))}
    sparse, final = folder / "sparse.safetensors", folder / "final.safetensors"

    def train(resume: bool) -> StageResult:
        return train_stage(
            arch=recipe.network.arch,
            stem=recipe.network.stem,
            data=recipe.data,
            options=recipe.train,
            output=sparse,
            device=device,
            resume=resume,
            force=True,
        ).to_json()

    stages.do("train", sparse, [data, asdict(recipe.network), recipe.train.to_json()], train)
    pruned = {}
    for ratio in sorted({*recipe.compare_ratios, recipe.prune.ratio}):
        options = PruneOptions(**{**asdict(recipe.prune), "ratio": ratio})
        pruned[ratio] = folder / f"pruned-{ratio:g}.safetensors"
        stages.do(
            f"prune-{ratio:g}",
            pruned[ratio],
            [data, asdict(options), stages.sha256("train")],
            lambda _, options=options: prune_stage(
                sparse,
                options=options,
                output=pruned[options.ratio],
                data=recipe.data,
                device=device,
                force=True,
            ).to_json(),
        )
    parent = pruned[recipe.prune.ratio]
    stages.do(
        "finetune",
        final,
        [data, recipe.finetune.to_json(), stages.sha256(f"prune-{recipe.prune.ratio:g}")],
        lambda resume: finetune_stage(
            parent,
            data=recipe.data,
            options=recipe.finetune,
            output=final,
            device=device,
            resume=resume,
            force=True,
        ).to_json(),
    )
    models = []
    for name, checkpoint, stage in (("original", sparse, "train"), ("final", final, "finetune")):
        models.append(folder / f"{name}.onnx")
        stages.do(
            f"export-{name}",
            models[-1],
            [data, asdict(recipe.export), stages.sha256(stage)],
            lambda _, checkpoint=checkpoint, output=models[-1]: export_stage(
                checkpoint, options=recipe.export, output=output, data=recipe.data, force=True
            ).to_json(),
        )
    stages.do(
        "bench",
        folder / "bench.json",
        [asdict(recipe.bench), threads, stages.sha256("export-original"), stages.sha256("export-final")],
        lambda _: _bench(recipe, models, folder / "bench.json", threads),
    )
    table = result_table(recipe, stages.results)
    results.write(folder / "table.json", table)
    return RunResult(folder, stages.results, table)


class Stages:
    """The stages done so far in a run folder, kept in its `run.json`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run.json"
        self._known: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._known = artifacts.read_json(self._path, "record of a run")
        self.results: dict[str, StageResult] = {}

    def do(self, name: str, output: Path, inputs: list[Any], work: Callable[[bool], StageResult]) -> None:
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
            log(f"{name} …")
            self._record(name, {"inputs": key})
            result = work(same and state_path(output).exists())
            known = {"inputs": key, "sha256": artifacts.sha256_file(output), "result": result}
            self._record(name, known)
        self.results[name] = known["result"]

    def sha256(self, name: str) -> str:
        """Hash of what stage `name` wrote."""
        return self._known[name]["sha256"]

    def _record(self, name: str, entry: dict[str, Any]) -> None:
        self._known[name] = entry
        artifacts.write_json(self._path, self._known)


def _bench(recipe: Recipe, models: list[Path], output: Path, threads: int | None) -> StageResult:
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
    return results.without_samples(result)


def _digest(dataset: Dataset) -> str:
    """Hash of all images and labels."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()
