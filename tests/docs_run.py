"""Runs the command blocks of the pages named, of all pages without a name, and prints what each took:

    python tests/docs_run.py [NAME.md…]

Each page has a folder of its own that holds what docs_given.py makes. Exit code 1 where a block failed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import warm_command
from docs_blocks import PAGES, Block, command_blocks
from docs_given import given

LIMIT_S = 600


def run_block(block: Block, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Execute the block in `folder`, where nothing lies in the way of what it writes."""
    for output in re.findall(r"(?:-o|--output) ([\w./-]+)", block.script):
        for file in (folder / output, folder / f"{output}.json"):
            if file.is_file():
                file.unlink()
    environment = environment | {
        "HOME": str(folder), "SLIMDEPLOY_HOME": str(folder / "device"), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block.script],
        cwd=folder, env=environment, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def main() -> int:
    wanted, failed = sys.argv[1:] or [page.name for page in PAGES], 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        warm_command.installed(Path(scratch, "bin")) as environment,
    ):
        given(Path(scratch, "given"), environment)
        for page in (page for page in PAGES if page.name in wanted):
            folder = Path(shutil.copytree(Path(scratch, "given"), Path(scratch, page.stem)))
            for block in command_blocks(page):
                if not block.run:
                    print(f"  not run   {block}: {block.note}")
                    continue
                started = time.perf_counter()
                try:
                    done = run_block(block, folder, environment)
                    outcome, text = ("FAILED" if done.returncode else "ran"), done.stdout
                except subprocess.TimeoutExpired as expired:
                    outcome, text = f"FAILED: not finished in {LIMIT_S} s", str(expired.stdout)
                print(f"{time.perf_counter() - started:7.1f} s  {block} {outcome}", flush=True)
                if outcome != "ran":
                    failed += 1
                    print(block.script, text[-4000:], sep="\n")
            shutil.rmtree(folder)
    print(f"{failed} blocks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
