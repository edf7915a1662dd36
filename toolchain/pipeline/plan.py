"""The stages of a recipe, in order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.package import package
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.models.named_networks import parse_arguments
from slimdeploy.toolchain.pipeline.bench import bench_stage
from slimdeploy.toolchain.pipeline.int8 import calibrate_final
from slimdeploy.toolchain.pipeline.recipe import TRAINED, Recipe
from slimdeploy.toolchain.pipeline.stage import Stage
from slimdeploy.toolchain.pipeline.table import table_stage
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.report.write import FORMATS, report_stage
from slimdeploy.toolchain.stages.export import export_stage
from slimdeploy.toolchain.stages.prune import prune_stage
from slimdeploy.toolchain.stages.train import finetune_stage, train_stage
from slimdeploy.toolchain.training.options import TrainOptions


@dataclass(frozen=True)
class Job:
    """A recipe, its folder, and the machine that runs it."""

    recipe: Recipe
    images: dict[str, Any]
    """Identifies the images and their preprocessing, wherever they are: each stage loads them itself."""
    folder: Path
    device: str
    threads: int | None

    def checkpoint(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def onnx(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def data(self) -> list[Any]:
        """The inputs of a stage that reads images."""
        return [self.images]


def plan(job: Job) -> list[Stage]:
    """The stages of the recipe, in order."""
    recipe = job.recipe
    comparisons = [
        _prune(job, f"compare-{ratio:g}", recipe.prune.at_ratio(ratio)) for ratio in recipe.compare_ratios
    ]
    stages = [
        _train(job),
        *comparisons,
        _prune(job, "pruned", recipe.prune),
        _finetune(job),
        _export(job, "original", "train", _in_fp32(recipe.export)),
        _export(job, "final", "finetune", recipe.export),
    ]
    if recipe.calibrate:
        stages.append(_calibrate(job))
    models = [stage for stage in stages if stage.output.endswith(".onnx")]
    stages.append(_bench(job, models))
    stages.append(_table(job, stages))
    if recipe.package:
        stages.append(_package(job, models[1:]))
    if recipe.report:
        stages.append(_report(job, stages))
    return stages


def _train(job: Job) -> Stage:
    network, options, output = job.recipe.network, job.recipe.train, job.checkpoint("sparse")
    return Stage(
        "train",
        "train",
        output.name,
        (),
        [job.data(), network.facts(), training_inputs(options)],
        lambda resume, _: train_stage(
            arch=network.arch,
            arguments=parse_arguments(network.arg),
            stem=network.stem,
            weights=Path(network.weights) if network.weights else None,
            data=job.recipe.data,
            options=options,
            output=output,
            device=job.device,
            resume=resume,
            force=True,
        ),
    )


def _prune(job: Job, name: str, options: PruneOptions) -> Stage:
    output = job.checkpoint(name)
    return Stage(
        name,
        "prune",
        output.name,
        ("train",),
        [job.data(), _with_contents(asdict(options), "latency_table")],
        lambda *_: prune_stage(
            job.checkpoint("sparse"),
            options=options,
            output=output,
            data=job.recipe.data,
            device=job.device,
            force=True,
        ),
    )


def _finetune(job: Job) -> Stage:
    options, output = job.recipe.finetune, job.checkpoint("final")
    reads: tuple[str, ...] = ("pruned",)
    known = training_inputs(options)
    if options.teacher == TRAINED:
        options = replace(options, teacher=str(job.checkpoint("sparse")))
        reads += ("train",)
    return Stage(
        "finetune",
        "finetune",
        output.name,
        reads,
        [job.data(), known],
        lambda resume, _: finetune_stage(
            job.checkpoint("pruned"),
            data=job.recipe.data,
            options=options,
            output=output,
            device=job.device,
            resume=resume,
            force=True,
        ),
    )


def training_inputs(options: TrainOptions) -> dict[str, Any]:
    """The inputs of training."""
    known = options.to_json()
    return known if options.teacher == TRAINED else _with_contents(known, "teacher")


def _with_contents(options: dict[str, Any], *files: str) -> dict[str, Any]:
    """`options` with the SHA-256 of these files instead of their paths."""
    return {
        name: artifacts.sha256_file(value) if name in files and value else value
        for name, value in options.items()
    }


def _export(job: Job, name: str, parent: str, options: ExportOptions) -> Stage:
    checkpoint = job.checkpoint("sparse" if parent == "train" else "final")
    output = job.onnx(name)
    return Stage(
        f"export-{name}",
        "export",
        output.name,
        (parent,),
        [job.data(), asdict(options)],
        lambda *_: export_stage(checkpoint, options=options, output=output, data=job.recipe.data, force=True),
    )


def _in_fp32(options: ExportOptions) -> ExportOptions:
    """Always FP32 for the original, the baseline of the speed-ups."""
    return replace(options, precision="fp32", target=ExportOptions.target)


def _calibrate(job: Job) -> Stage:
    choice, output = job.recipe.calibrate, job.onnx("final.int8")
    assert choice is not None
    return Stage(
        "calibrate",
        "calibrate",
        output.name,
        ("export-final",),
        [job.data(), asdict(choice)],
        lambda *_: calibrate_final(
            job.onnx("final"), choice, job.recipe.data, output=output, threads=job.threads
        ),
    )


def _bench(job: Job, models: list[Stage]) -> Stage:
    output = job.folder / "bench.json"
    files = [job.folder / stage.output for stage in models]
    threads = job.recipe.bench.threads or job.threads
    return Stage(
        "bench",
        "bench",
        output.name,
        tuple(stage.name for stage in models),
        [asdict(job.recipe.bench), threads],
        lambda *_: bench_stage(job.recipe, files, output, threads),
    )


def _table(job: Job, before: list[Stage]) -> Stage:
    recipe, output = job.recipe, job.folder / "table.json"
    limit = recipe.train.limit
    return Stage(
        "table",
        "bench",
        output.name,
        tuple(stage.name for stage in before),
        [recipe.name, str(recipe.network), recipe.data.name, limit],
        lambda _, results: table_stage(recipe, results, output),
    )


def _package(job: Job, models: list[Stage]) -> Stage:
    choice, output = job.recipe.package, job.folder / "final.slim.tar"
    assert choice is not None
    files = [job.folder / stage.output for stage in models]
    return Stage(
        "package",
        "package",
        output.name,
        tuple(stage.name for stage in models),
        [job.data(), _with_contents(asdict(choice), "ranges", "signing_key")],
        lambda *_: package(
            files,
            data=job.recipe.data,
            options=choice,
            output=output,
            force=True,
        ),
    )


def _report(job: Job, before: list[Stage]) -> Stage:
    choice = job.recipe.report
    assert choice is not None
    output = job.folder / f"report{FORMATS[choice.format]}"
    return Stage(
        "report",
        "report",
        output.name,
        tuple(stage.name for stage in before if stage.command != "package"),
        [asdict(choice)],
        lambda *_: report_stage([job.folder], format=choice.format, output=output, force=True),
    )
