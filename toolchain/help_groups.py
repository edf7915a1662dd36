"""`--help` with the options in groups."""

from __future__ import annotations

from typing import Any

import click

_SHARED = {
    "Network": ("arch", "arguments", "stem", "weights"),
    "Data": (
        "data", "data_dir", "size", "stream", "skip_unreadable", "preprocessing", "resize", "interpolation",
        "mean", "std", "channels", "limit",
    ),
    "Machine": ("device", "threads", "precision", "compile", "seed"),
    "Output": ("output", "force", "resume", "as_json", "debug"),
}  # fmt: skip
"""Heading -> options shared by several commands."""
_HEADING = {name: heading for heading, names in _SHARED.items() for name in names}


class GroupedOption(click.Option):
    """An option of a dataclass, with the heading from its declaration."""

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the options of `command`: in groups if declarations give headings, else in one list."""
    params = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    grouped = any(isinstance(param, GroupedOption) and param.heading for param in params)
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if record := param.get_help_record(ctx):
            sections.setdefault(_heading(param) if grouped else "Options", []).append(record)
    for heading, records in sections.items():
        with formatter.section(heading):
            formatter.write_dl(records)


def _heading(param: click.Option) -> str:
    return _HEADING.get(param.name or "") or getattr(param, "heading", "") or "Output"
