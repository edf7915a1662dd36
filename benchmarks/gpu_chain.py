"""The reference table on a GPU that is available for half an hour: a bare machine without network, and calls
of less than ten minutes each.

    python -m slimdeploy.benchmarks.gpu_chain list
    python -m slimdeploy.benchmarks.gpu_chain pack cifar10-jpeg wheels -o parts
    python -m slimdeploy.benchmarks.gpu_chain join parts --work /tmp/chain
    python -m slimdeploy.benchmarks.gpu_chain run --work /tmp/chain -o results

The first two run on this machine. `join` runs on the GPU machine, once per part; `run` there, repeatedly.
`run` runs the pieces one after the other, the most important first, for `--minutes`; the same command
continues where it stopped. The results are two JSON files: `gpu-chain.json`, one row per piece, and
`gpu-check.json`.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from slimdeploy.benchmarks import gpu_chain_parts, gpu_check, gpu_targets
from slimdeploy.benchmarks.gpu_chain_pieces import FULL, GPU_CHECK, TINY, Piece, pieces
from slimdeploy.benchmarks.gpu_chain_schedule import run_all
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.launch import cpu_count
from slimdeploy.toolchain.measure import results

PATH = click.Path(path_type=Path)
GRACE_S = 30.0
"""Maximum time for a stopped training to write its state, in seconds."""
INTERRUPTED = (-signal.SIGINT, 130)
"""Return codes of a process that Ctrl-C has ended."""
COLUMNS = {
    "piece": "name",
    "seconds": "wall time of its last call",
    "error": "the error of a failed piece, whose other columns are empty",
    "accuracy": "test accuracy, 0 to 1, of the written checkpoint",
    "params": "parameters of that checkpoint",
    "macs": "multiply-accumulates per image",
    "epochs": "epochs trained",
    "images_per_second": "training, augmentation included",
    "command": "what ran",
}


@click.group()
def main() -> None:
    """Measure the reference table in pieces on a GPU that is available for a short time."""


@main.command("list")
@click.option("--work", type=PATH, help="Mark the pieces that are done in this folder.")
def list_pieces(work: Path | None) -> None:
    """Print the pieces, the most important first, and the files to bring along."""
    for piece in pieces(FULL):
        done = work is not None and _record(work, piece).is_file()
        click.echo(f"{'done' if done else '':4} {piece.minutes:4g} min  {piece.name}")
    click.echo(gpu_chain_parts.SHOPPING_LIST)


@main.command()
@click.argument("paths", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the parts.")
@click.option("--part-mib", type=click.IntRange(1), default=60, show_default=True)
def pack(paths: tuple[Path, ...], output: Path, part_mib: int) -> None:
    """Pack files, folders and slimdeploy's wheel into parts that are copied one by one."""
    for part in gpu_chain_parts.pack(paths, output, part_mib << 20):
        click.echo(part)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=PATH, required=True, help="Where the chain runs.")
def join(folder: Path, work: Path) -> None:
    """Register the parts in FOLDER; when all are complete, unpack them and install the wheels."""
    missing = gpu_chain_parts.join(folder, work)
    click.echo(f"missing: {', '.join(missing)}" if missing else f"complete: {work}")


@main.command()
@click.argument("result", type=click.Path(path_type=Path, exists=True))
def table(result: Path) -> None:
    """Print the accuracies of a gpu-chain.json as a Markdown table."""
    click.echo("| piece | test accuracy | parameters | MACs |\n|---|---|---|---|")
    for one in results.read(result, "table")["rows"]:
        if one["accuracy"] is not None:
            params, macs = (f"{one[key] / 1e6:.2f} M" if one[key] else "" for key in ("params", "macs"))
            click.echo(f"| {one['piece']} | {one['accuracy']:.2%} | {params} | {macs} |")


@main.command()
@click.option("--work", type=PATH, required=True, help="Folder of the data and the checkpoints.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the two results.")
@click.option(
    "--minutes", type=click.FloatRange(min=0), default=8.5, show_default=True, help="Stop after this time."
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Run N pieces at once, which share the cores; those that time something run alone.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Run only these pieces, e.g. original or 'sparse-*'. Repeatable.",
)
@click.option("--again", is_flag=True, help="Try pieces that failed again.")
@click.option("--tiny", is_flag=True, help="Tiny networks and digits, on any machine.")
def run(
    work: Path, output: Path, minutes: float, jobs: int, only: tuple[str, ...], again: bool, tiny: bool
) -> None:
    """Run the pieces, the most important first, until the time is over."""
    deadline = time.monotonic() + 60 * minutes
    chain = pieces(TINY if tiny else FULL)
    chosen = {name: {piece for piece in chain if fnmatchcase(piece.name, name)} for name in only or ("*",)}
    if unknown := [name for name, found in chosen.items() if not found]:
        raise click.UsageError(f"no piece is called {', '.join(sorted(unknown))}: see list")
    work.mkdir(parents=True, exist_ok=True)

    def done(piece: Piece, said: str) -> None:
        click.echo(f"{piece.name}: {said}", err=True)
        write_results(chain, work, output)

    asked = set().union(*chosen.values())
    wanted = [piece for piece in chain if piece in asked and not _is_done(work, piece, again=again)]
    threads = max(1, cpu_count() // jobs)

    def start(piece: Piece) -> str:
        return do(piece, work, deadline, 0 if piece.alone else threads)

    run_all(wanted, start, done, jobs, stop_all)
    write_results(chain, work, output)


def do(piece: Piece, work: Path, deadline: float, threads: int = 0) -> str:
    """Run one piece on `threads` CPU threads (0: all), or return why it isn't run. Its result or error is
    recorded in `work`.
    """
    left = deadline - time.monotonic()
    lacking = [name for name in piece.needs if "error" in _read(work, name)]
    if lacking:
        return f"left out, it needs {', '.join(lacking)}"
    if left < (GRACE_S if piece.resumes else 60 * piece.minutes):
        return f"not begun: it takes {piece.minutes:g} min, and {max(0, left) / 60:.1f} are left"
    command = [sys.executable, "-m", piece.module, *piece.words, *_how(piece, work)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    limit = left - GRACE_S if piece.resumes else left
    _running.add(process)
    try:
        out, errors = process.communicate(timeout=max(1.0, limit))
    except subprocess.TimeoutExpired:
        _stop(process)
        return "stopped; the next call continues it" if piece.resumes else "stopped: the time was over"
    finally:
        _running.discard(process)
    if process.returncode in INTERRUPTED:
        return "interrupted"
    seconds = round(time.monotonic() - started, 1)
    record = {"seconds": seconds, "command": f"python -m {shlex.join([piece.module, *piece.words])}"}
    try:
        result = _check_result(work, piece) if piece.module == GPU_CHECK else json.loads(out)
    except (ValueError, SlimdeployError):
        said = errors.strip().splitlines() or ["no message"]
        artifacts.write_json(_record(work, piece), {**record, "error": shorten(said[-1])})
        return f"failed, {shorten(said[-1])}"
    artifacts.write_json(_record(work, piece), {**record, "result": result})
    return f"done in {seconds:.0f} s"


def write_results(chain: tuple[Piece, ...], work: Path, output: Path) -> None:
    """The two results so far."""
    done = {piece.name: _read(work, piece.name) for piece in chain if _record(work, piece).is_file()}
    if not done:
        return
    output.mkdir(parents=True, exist_ok=True)
    command = f"python -m slimdeploy.benchmarks.gpu_chain {shlex.join(sys.argv[1:])}"
    document = results.document(
        "table", command=command, machine=gpu_check.machine(),
        title="The reference on a GPU, piece by piece", columns=COLUMNS,
        rows=[row(piece, done) for piece in chain if piece.name in done],
    )  # fmt: skip
    results.write(output / "gpu-chain.json", document)
    # Also of a check whose time was over: it writes its result after each batch size.
    files = [_check_file(work, piece) for piece in chain if piece.module == GPU_CHECK]
    checks = [results.read(path, "gpu-check") for path in files if path.is_file()]
    if checks:
        results.write(output / "gpu-check.json", merged(checks))


def row(piece: Piece, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of a piece. A fine-tuned network has the size of the pruned one; a trained one has a size here
    only if channels were removed during training.
    """
    name, record = piece.name, done[piece.name]
    found = record.get("result") or {}
    accuracy = found.get("accuracy") or {}
    sized = [
        found,
        found.get("removed") or {},
        *(done.get(need, {}).get("result") or {} for need in piece.needs),
    ]
    sizes = {
        key: next((one[key]["after"] for one in sized if isinstance(one.get(key), dict)), None)
        for key in ("params", "macs")
    }
    accuracy = accuracy.get("test", accuracy.get("final")) if isinstance(accuracy, dict) else None
    plain = {key: found.get(key) for key in ("epochs", "images_per_second")}
    told = {"piece": name, "seconds": record.get("seconds"), "error": record.get("error")}
    return {**told, "accuracy": accuracy, **sizes, **plain, "command": record.get("command")}


def merged(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge several partial gpu-check results."""
    whole = dict(checks[0])
    for key in ("kernels", "rows", "comparisons", "left_out", "failures"):
        whole[key] = [each for check in checks for each in check[key]]
    for key in ("tests", "layers_ms"):
        whole[key] = next((check[key] for check in checks if check[key] is not None), None)
    whole["command"] = "; ".join(check["command"] for check in checks)
    judged = gpu_targets.judge(whole["rows"], whole["comparisons"], whole["kernels"], whole["layers_ms"])
    return {**whole, "targets": judged}


def _how(piece: Piece, work: Path) -> list[str]:
    """Arguments added to a piece: the path of its result, and whether to resume."""
    if piece.module == GPU_CHECK:
        return ["-o", str(_check_file(work, piece))]
    if not piece.module.endswith("toolchain"):
        return []
    from slimdeploy.toolchain.training.state import state_path

    resume = piece.resumes and piece.checkpoint and state_path(work / piece.checkpoint).exists()
    return ["--json", "--resume" if resume else "--force"]


_running: set[subprocess.Popen[str]] = set()


def stop_all() -> None:
    """End the running pieces, which Ctrl-C doesn't reach: they are in sessions of their own."""
    for process in list(_running):
        os.killpg(process.pid, signal.SIGINT)


def _stop(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _check_result(work: Path, piece: Piece) -> dict[str, Any]:
    return results.read(_check_file(work, piece), "gpu-check")


def _check_file(work: Path, piece: Piece) -> Path:
    return work.resolve() / "done" / f"{piece.name}-result.json"


def _record(work: Path, piece: Piece) -> Path:
    return work / "done" / f"{piece.name}.json"


def _read(work: Path, name: str) -> dict[str, Any]:
    """The record of a piece; an error if there is none."""
    path = work / "done" / f"{name}.json"
    return artifacts.read_json(path, "record of a piece") if path.is_file() else {"error": "not done"}


def _is_done(work: Path, piece: Piece, *, again: bool) -> bool:
    return _record(work, piece).is_file() and not (again and "error" in _read(work, piece.name))


if __name__ == "__main__":
    run_program(main, "gpu_chain")
