"""Runs the command blocks of the pages named, of all pages without a name, and prints what each took:

    python tests/docs_run.py [NAME.md…]

Each page has a folder of its own that holds what docs_given.py makes. Exit code 1 where a block failed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import warm_command
from docs_blocks import PAGES, Block, command_blocks
from docs_given import given

LIMIT_S = 600


def run_block(block: Block, folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    """Execute the block in `folder`, where nothing lies in the way of what it writes; the outcome and what it
    printed. All of its processes are ended after LIMIT_S.
    """
    for output in re.findall(r"(?:-o|--output) ([\w./-]+)", block.script):
        for file in (folder / output, folder / f"{output}.json"):
            if file.is_file():
                file.unlink()
    environment = environment | {
        "HOME": str(folder), "SLIMDEPLOY_HOME": str(folder / "device"), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-e", "-o", "pipefail", "-c", block.script],
        cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        text = process.communicate(timeout=LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"FAILED: not finished in {LIMIT_S} s", process.communicate()[0]
    return ("FAILED" if process.returncode else "ran"), text


def main() -> int:
    names = [page.name for page in PAGES]
    wanted, failed = sys.argv[1:] or names, 0
    if unknown := sorted(set(wanted) - set(names)):
        sys.exit(f"no page is called {', '.join(unknown)}: {', '.join(names)}")
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
                outcome, text = run_block(block, folder, environment)
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
