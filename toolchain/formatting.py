"""Formatting of numbers and tables, the same in all commands."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table


def count(value: float) -> str:
    """`23,513,162`"""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """`23.51 M`, `325.80 M`, `1.30 G`; numbers below a thousand unchanged."""
    for divisor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= divisor:
            return f"{value / divisor:.2f} {unit}"
    return f"{value:g}"


def digits(value: float) -> str:
    """Three significant digits: `8.70`, `12.3`, `127`."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else count(value)


def percent(share: float) -> str:
    """`91.42 %` from 0.9142"""
    return f"{share * 100:.2f} %"


def file_name(path: str) -> str:
    """`final.onnx` from `runs/digits/final.onnx`"""
    return path.rsplit("/", 1)[-1]


_CONTROL = ("Cc", "Cf", "Cs")
"""Unicode categories of control and format characters, and of bytes in file names that aren't UTF-8."""


def printable(text: str) -> str:
    """Make `text` from a file or another machine safe for a terminal: control characters, which could move
    the cursor or change settings, are written as `\\x1b`.
    """

    def shown(c: str) -> str:
        return repr(c)[1:-1] if unicodedata.category(c) in _CONTROL and c not in "\n\t" else c

    return "".join(map(shown, text))


def facts_table(rows: Iterable[tuple[str, str]], *, title: str | None = None) -> Table:
    """A table of two columns: name and value."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*map(escape, row))  # a path may hold [brackets]
    return table


def grid(columns: Iterable[str], rows: Iterable[Iterable[str]], *, title: str | None = None) -> Table:
    """A table with a text column followed by right-aligned columns of numbers."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        # A long name goes on in the next line: cut off, several would look the same.
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))  # a path may hold [brackets]
    return table
