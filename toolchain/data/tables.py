"""Labels in tables: CSV or TSV files that name image files and the class of each."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import class_name

TABLE_ENDINGS = {".csv": ",", ".tsv": "\t"}
"""File extension -> column separator."""
FILE_COLUMNS = ("file", "path", "image", "filename", "file_name", "image_path", "filepath")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "set", "subset")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
               "test": "test", "testing": "test"}  # fmt: skip

_Splits = dict[str, dict[str, list[str]]]


def read_tables(path: Path) -> _Splits:
    """Split -> class -> files, from a table with a split column, or a folder with one table per split.

    Files are relative to the folder of their table. Raises SlimdeployError for an unreadable table, missing
    columns, and a file with two labels.
    """
    found: _Splits = {}
    known: dict[str, str] = {}
    for split, file, label in _all_rows(path):
        if known.setdefault(file, label) != label:
            raise SlimdeployError(f"{path}: {file} has two labels, {known[file]!r} and {label!r}")
        found.setdefault(split, {}).setdefault(label, []).append(file)
    for split in ("train", "test"):
        if split not in found and not (split == "test" and "val" in found):
            raise SlimdeployError(f"{path}: no row belongs to the {split} split")
    return found


def _all_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Split, file and label of every row."""
    if not path.is_dir():
        yield from _rows(path, None)
        return
    for table in sorted(path.iterdir()):
        if table.suffix.lower() in TABLE_ENDINGS and table.stem in SPLIT_NAMES:
            yield from _rows(table, SPLIT_NAMES[table.stem])


def _rows(table: Path, split: str | None) -> Iterator[tuple[str, str, str]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=TABLE_ENDINGS[table.suffix.lower()])
            columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            of_file, of_label = (_column(table, columns, names) for names in (FILE_COLUMNS, LABEL_COLUMNS))
            of_split = None if split else _column(table, columns, SPLIT_COLUMNS)
            for row in reader:
                own = split or SPLIT_NAMES.get((row[of_split] or "").strip().lower(), "")
                name, label = (row[of_file] or "").strip(), (row[of_label] or "").strip()
                if not (own and name and label):
                    raise SlimdeployError(
                        f"{table}, line {reader.line_num}: expected a file, a label"
                        f"{'' if split else ' and a split (train, val or test)'}"
                    )
                yield own, str(table.parent / name), class_name(label)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SlimdeployError(f"{table} is not a readable table: {reason}") from error


def _column(table: Path, columns: dict[str, str], names: tuple[str, ...]) -> str:
    for name in names:
        if name in columns:
            return columns[name]
    there = ", ".join(columns) or "none"
    raise SlimdeployError(
        f"{table} has no column {names[0]!r} (or {', '.join(names[1:])}); its columns are {there}"
    )
