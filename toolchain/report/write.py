"""The stage `report`: the folder of a run or a sweep in, a page out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency.profile import layer_times
from slimdeploy.toolchain.report import files
from slimdeploy.toolchain.report.content import Report, run_report
from slimdeploy.toolchain.report.predictions import Predictions, predict
from slimdeploy.toolchain.report.run import read_run
from slimdeploy.toolchain.report.sweep import FILE as SWEEP_FILE
from slimdeploy.toolchain.report.sweep import sweep_report

FORMATS = {"html": ".html", "md": ".md"}
LAYER_BATCH = 64


@dataclass(frozen=True)
class ReportResult:
    """The files written, the report itself first."""

    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        return {"report": str(self.files[0]), "files": [str(path) for path in self.files]}


def report_stage(
    folder: Path, *, format: str, output: Path | None = None, force: bool = False
) -> ReportResult:
    """Write the report of the run or the sweep in `folder`, by default to `<folder>/report.html` or `.md`.

    Raises SlimdeployError for a folder without a
    finished run or sweep, or an output that exists (the default one is replaced: it is made from the folder
    and nothing else).
    """
    if output is None:
        output, force = folder / f"report{FORMATS[format]}", True
    artifacts.check_output(output, force=force)
    report = sweep_report(folder) if (folder / SWEEP_FILE).is_file() else build_report(folder)
    if format == "md":
        return ReportResult(tuple(files.write_markdown(report, output)))
    files.write_html(report, output)
    return ReportResult((output,))


def build_report(folder: Path) -> Report:
    """Read the run, classify its test images with both networks, and time their layers."""
    run = read_run(folder)
    predictions: Predictions | str
    try:
        predictions = predict(folder, run.final.info)
    except (
        SlimdeployError
    ) as error:  # the data may be gone, or on another machine: the rest is still worth a page
        predictions = str(error)
    times = {
        name: layer_times(folder / f"{name}.onnx", model.info.graph, batch=LAYER_BATCH)
        for name, model in (("original", run.original), ("final", run.final))
    }
    return run_report(run, predictions=predictions, layer_times=times, layer_batch=LAYER_BATCH)
