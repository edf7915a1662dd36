"""The command blocks of README, CONTRIBUTING and docs/, and what is declared beside each of them.

Above a block stands how it is executed (CONTRIBUTING.md, *Commands in the documentation*):

    <!-- run -->                                           as it is printed
    <!-- run: train --epochs 1; bench --seconds 0.1 -->    with these options added to commands of that name
    <!-- not run: needs a Jetson -->                       not at all
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import slimdeploy

ROOT = Path(slimdeploy.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"(\S*/)?(slimdeploy|python3?|pip|pytest|make|torchrun|sudo|curl|ffmpeg|git|nvcc|for|[A-Z_]+=\S+) "
)
DECLARED = re.compile(r"<!-- (not run|run)(?:: (.+))? -->")


@dataclass(frozen=True)
class Block:
    """A block of commands. `run` is None where nothing is declared; `note` is what follows it."""

    page: Path
    line: int
    text: str
    run: bool | None
    note: str

    @property
    def script(self) -> str:
        """What bash executes: the text with the options that the note adds."""
        text = self.text.replace("\\\n", " ")
        for addition in filter(None, (part.strip() for part in self.note.split(";"))):
            name, options = re.split(r" (?=-)", addition, maxsplit=1)
            name = re.escape(name)
            text, count = re.subn(
                rf"(slimdeploy {name}\b|\S+/{name}\.py\b|-m \S+\.{name}\b|-m {name}\b)([^;|&#\n]*)",
                rf"\1\2 {options} ",
                text,
            )
            assert count, f"{self}: no command {name} to add options to"
        return text

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def command_blocks(page: Path) -> list[Block]:
    """The blocks of `page` that hold commands, fenced or indented, in order."""
    found = []
    for line, text, above, language in _blocks(page.read_text().splitlines()):
        if language in ("", "bash", "console") and any(COMMAND.match(one) for one in text.splitlines()):
            declared = DECLARED.fullmatch(above.strip())
            run = None if not declared else declared[1] == "run"
            found.append(Block(page, line, text, run, (declared and declared[2]) or ""))
    return found


def _blocks(lines: list[str]) -> Iterator[tuple[int, str, str, str]]:
    """Line number, text, the last line above and the language, of each fenced or indented block."""
    above, language, inside, start, fence = "", "", [], 0, False
    for number, line in enumerate([*lines, ""], 1):
        opens_or_closes = line.startswith("```")
        indented = line.startswith("    ") and not fence and (bool(inside) or not lines[number - 2].strip())
        if fence and not opens_or_closes:
            inside.append(line)
        elif indented:
            start = start if inside else number
            inside.append(line[4:])
        else:
            if inside and (opens_or_closes or not fence):
                yield start, "\n".join(inside), above, language
                inside, above, language = [], "", ""
            if opens_or_closes:
                fence, language = not fence, line[3:].strip()
                start = number + 1
            elif line.strip():
                above = line
