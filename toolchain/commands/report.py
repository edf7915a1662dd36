"""`slimdeploy report`"""

from __future__ import annotations

from pathlib import Path

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.formatting import facts_table
from slimdeploy.toolchain.paths import InputPath, OutputPath


@command("report")
@click.argument("paths", type=InputPath(), nargs=-1, required=True, metavar="RUN | CHECKPOINTS… BENCH")
@click.option(
    "--format", "kind", type=click.Choice(["html", "md"]),
    help="One HTML page, or Markdown with its charts as SVG and PNG. [default: md for --output NAME.md, else "
    "html]",
)  # fmt: skip
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    help="File to write. [default: report.html or .md, in RUN or beside BENCH]",
)
@click.option("--force", is_flag=True, help="Replace the output where it exists.")
def report(paths: tuple[Path, ...], kind: str | None, output: Path | None, force: bool) -> Output:
    """Write a report of RUN, the output folder of `slimdeploy run` or `slimdeploy sweep`.

    For stages that were run one by one, name the checkpoints and the result of `bench`: slimdeploy report
    sparse.safetensors pruned.safetensors final.safetensors bench.json
    """
    from slimdeploy.toolchain.report.write import report_stage

    kind = kind or ("md" if output and output.suffix.lower() == ".md" else "html")
    result = report_stage(paths, format=kind, output=output, force=force)
    written = result.files
    rows = [("report", str(written[0])), ("bytes", f"{written[0].stat().st_size:,}")]
    if len(written) > 1:
        rows.append(("beside it", f"{len(written) - 1} images in {written[1].parent}"))
    return Output(result.to_json(), facts_table(rows))
