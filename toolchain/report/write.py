"""The stage `report`: write the report of a run, a sweep, or separate stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency.profile import layer_times
from slimdeploy.toolchain.report import files
from slimdeploy.toolchain.report.content import Report, run_report
from slimdeploy.toolchain.report.predictions import Predictions, predict
from slimdeploy.toolchain.report.run import Run, read_run
from slimdeploy.toolchain.report.stage_files import read_stage_files
from slimdeploy.toolchain.report.sweep import FILE as SWEEP_FILE
from slimdeploy.toolchain.report.sweep import sweep_report

FORMATS = {"html": ".html", "md": ".md"}
LAYER_BATCH = 64


@dataclass(frozen=True)
class ReportResult:
    """The written files, the report itself first."""

    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        return {"report": str(self.files[0]), "files": [str(path) for path in self.files]}


def report_stage(
    paths: Sequence[Path], *, format: str, output: Path | None = None, force: bool = False
) -> ReportResult:
    """Write the report of a run or sweep in a folder, by default to `<folder>/report.html` or `.md`; or of
    separate stages, from checkpoints and a `bench` result, by default beside the latter.

    Raises SlimdeployError for a folder without a finished run or sweep, files that don't belong together, or
    an existing output (the default output of a folder is replaced, since it can be created again).
    """
    folder = paths[0] if len(paths) == 1 and not paths[0].is_file() else None
    if output is None:
        place = folder or next((path.parent for path in paths if path.suffix == ".json"), Path())
        output, force = place / f"report{FORMATS[format]}", force or folder is not None
    artifacts.check_output(output, force=force)
    if folder and (folder / SWEEP_FILE).is_file():
        report = sweep_report(folder)
    else:
        report = build_report(read_run(folder) if folder else read_stage_files(paths))
    if format == "md":
        return ReportResult(tuple(files.write_markdown(report, output, force=force)))
    files.write_html(report, output)
    return ReportResult((output,))


def build_report(run: Run) -> Report:
    """Classify the run's test images with both networks, and measure the time of their layers."""
    predictions: Predictions | str
    try:
        predictions = predict(run.onnx, run.final.info)
    except (
        SlimdeployError
    ) as error:  # the data may be missing or on another machine: write the rest of the report
        predictions = str(error)
    times = None
    if all(path.is_file() for path in run.onnx.values()):
        times = {
            name: layer_times(run.onnx[name], model.info.graph, batch=LAYER_BATCH)
            for name, model in (("original", run.original), ("final", run.final))
        }
    return run_report(run, predictions=predictions, layer_times=times, layer_batch=LAYER_BATCH)
