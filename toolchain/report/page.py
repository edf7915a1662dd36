"""A report as one HTML page without external files."""

from __future__ import annotations

import base64
import io
import itertools
import string
from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

from slimdeploy.toolchain.report import svg
from slimdeploy.toolchain.report.content import Report, Rows, Section, Thumbnail
from slimdeploy.toolchain.report.headline import Figure
from slimdeploy.toolchain.report.svg import Chart

NBSP = "\u00a0"
SLIM = 4
"""Maximum number of columns on a phone."""


def html_page(report: Report) -> str:
    """The whole page."""
    template = string.Template((resources.files(__package__) / "template.html").read_text(encoding="utf-8"))
    body = [f"<h1>{escape(report.title)}</h1>"]
    if report.summary:
        body.append(f'<p class="summary">{escape(report.summary)}</p>')
    if report.figures:
        body.append(f'<ul class="figures">{"".join(map(_large, report.figures))}</ul>')
    body += [f'<p class="muted">{escape(line)}</p>' for line in report.lead]
    for narrow, group in itertools.groupby(report.sections, key=lambda section: section.narrow):
        sections = "".join(map(_section, group))
        body.append(f'<div class="pair">{sections}</div>' if narrow else sections)
    return template.substitute(
        title=escape(report.title), body="\n".join(body), style=svg.STYLE, light=svg.LIGHT, dark=svg.DARK
    )


def _large(figure: Figure) -> str:
    doubt = f"<small>{escape(figure.doubt)}</small>" if figure.doubt else ""
    return f"<li><strong>{escape(figure.value)}</strong> {escape(figure.what)}{doubt}</li>"


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
    parts += [f'<p class="warn">{escape(text)}</p>' for text in section.warnings]
    if section.table:
        parts.append(_table(section.table))
    if section.charts:
        parts.append(f'<div class="charts">{"".join(_figure(chart) for chart in section.charts)}</div>')
    if section.thumbnails:
        parts.append(f'<ul class="images">{"".join(_image(one) for one in section.thumbnails)}</ul>')
    if section.code:
        parts.append(f'<pre tabindex="0">{escape(section.code)}</pre>')
    anchor = section.title.lower().replace(" ", "-")
    return f'<section id="{escape(anchor)}">{"".join(parts)}</section>'


def _figure(chart: Chart) -> str:
    header, rows = chart.table
    note = f"<small>{escape(chart.note)}</small>" if chart.note else ""
    return (
        f'<figure id="{chart.key}"><figcaption>{escape(chart.title)}{note}</figcaption>{chart.svg}'
        f'<div class="tip" role="status"></div>'
        f"<details><summary>As a table</summary>{_table([header, *rows])}</details></figure>"
    )


def _table(rows: Rows) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        words = [cells[0], *(map(_unbroken, cells[1:]) if tag == "td" else cells[1:])]
        return f"<tr>{''.join(f'<{tag}>{escape(word)}</{tag}>' for word in words)}</tr>"

    head, *rest = rows
    body = "".join(row(cells, "td") for cells in rest)
    # Wide tables scroll inside their box, also by keyboard; narrow ones are made to fit.
    slim = ' class="slim"' if len(head) <= SLIM else ""
    table = f"<table{slim}><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _unbroken(cell: str) -> str:
    """Keep a number with its unit on one line; a part in brackets may be on its own line."""
    return cell.replace(" ", NBSP).replace(f"{NBSP}(", " (")


def _image(thumbnail: Thumbnail) -> str:
    data = base64.b64encode(png(thumbnail.image)).decode()
    caption = escape(thumbnail.caption)
    return f'<li><img alt="{caption}" src="data:image/png;base64,{data}">{caption}</li>'


def png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
