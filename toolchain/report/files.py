"""Write a report: one HTML page, or Markdown with charts as SVG and PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.report.content import Report, Rows
from slimdeploy.toolchain.report.page import html_page, png

SCALE = 4
"""PNGs are 1600 pixels wide: 300 dpi at 13.5 cm."""


def write_html(report: Report, output: Path) -> None:
    artifacts.write_bytes(output, html_page(report).encode())


def write_markdown(report: Report, output: Path, *, force: bool) -> list[Path]:
    """Write the Markdown file, and beside it a folder `<stem>-charts` with each chart as SVG and PNG.

    Returns all written files. Raises SlimdeployError if one of them exists, unless `force`, and
    ModuleNotFoundError without resvg_py, which renders the PNGs.
    """
    import resvg_py

    folder = output.with_name(f"{output.stem}-charts")
    written = {}
    for chart in report.charts():
        drawing = chart.standalone()
        image = bytes(resvg_py.svg_to_bytes(svg_string=drawing, zoom=SCALE))
        for suffix, content in ((".svg", drawing.encode()), (".png", image)):
            written[folder / f"{chart.key}{suffix}"] = content
    for number, thumbnail in enumerate(t for section in report.sections for t in section.thumbnails):
        written[folder / f"image-{number:02}.png"] = png(thumbnail.image)
    written[output] = markdown(report, folder.name).encode()
    for path in written:
        artifacts.check_output(path, force=force)
    for path, content in written.items():
        artifacts.write_bytes(path, content)
    return [output, *written][:-1]


def markdown(report: Report, folder: str) -> str:
    """The report as Markdown, with the charts in `folder`."""
    lines, number = [f"# {report.title}", ""], 0
    if report.summary:
        lines += [f"**{report.summary}**", ""]
    lines += report.lead
    for section in report.sections:
        lines += ["", f"## {section.title}", ""]
        for text in (*section.paragraphs, *(f"**{warning}**" for warning in section.warnings)):
            lines += [text, ""]
        if section.table:
            lines += [*_table(section.table), ""]
        for chart in section.charts:
            lines += [
                f"![{chart.title}]({folder}/{chart.key}.png)",
                "",
                f"*{chart.title}.* {chart.note}".rstrip(),
                "",
            ]
        for thumbnail in section.thumbnails:
            lines += [f"![{thumbnail.caption}]({folder}/image-{number:02}.png) {thumbnail.caption}", ""]
            number += 1
        if section.code:
            lines += ["```bash", section.code, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Rows) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        escaped = [cell.replace("|", "\\|") for cell in cells]
        return f"| {' | '.join(escaped)} |"

    head, *rest = rows
    return [line(head), line(["---", *["---:"] * (len(head) - 1)]), *(line(cells) for cells in rest)]
