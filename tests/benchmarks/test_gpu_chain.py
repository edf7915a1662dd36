"""The chain for a borrowed GPU, in tiny sizes on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from processes import process_environment

from slimdeploy.benchmarks import gpu_chain, gpu_chain_parts, gpu_check
from slimdeploy.benchmarks.gpu_chain_pieces import FULL, TINY, Piece, Scale, pieces
from slimdeploy.benchmarks.gpu_chain_schedule import run_all
from slimdeploy.benchmarks.peers import torch_pruning_cut
from slimdeploy.toolchain.cli import cli
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results


@pytest.mark.parametrize("scale", [FULL, TINY])
def test_pieces_fit_together(scale: Scale) -> None:
    """Each comes after what it reads, fits into a call, and is a command line that its command takes."""
    chain = pieces(scale)
    names = [piece.name for piece in chain]
    assert len(names) == len(set(names))
    for i, piece in enumerate(chain):
        assert set(piece.needs) <= set(names[:i])
        read = {word for word in piece.words[1:] if word.endswith((".safetensors", ".onnx"))}
        if piece.words[-2] == "-o":
            read.discard(piece.words[-1])
        written = {one.words[-1] for one in chain[:i]}
        assert read <= written, piece.name
        assert piece.minutes <= 8.5
        _parse(piece)


def _parse(piece: Piece) -> None:
    """Raises click's UsageError where the command has no such option."""
    words = list(piece.words)
    scripts = {gpu_check.__name__: gpu_check.main, torch_pruning_cut.__name__: torch_pruning_cut.main}
    if piece.module in scripts:
        scripts[piece.module].make_context(piece.module, words)
        return
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None
    command.make_context(words[0], [*words[1:], "--json", "--force"])


def test_parts_travel_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/noise").write_bytes(random.Random(0).randbytes(1_000_000))
    parts = list(gpu_chain_parts.pack([tmp_path / "data"], tmp_path / "parts", 1 << 20))
    assert [part.name for part in parts] == ["part-000", "part-001", "parts.json"]
    first, second = (part.read_bytes() for part in parts[:2])
    work = tmp_path / "work"
    parts[1].unlink()
    assert gpu_chain_parts.join(tmp_path / "parts", work) == ["part-001"]
    parts[0].unlink()
    parts[1].write_bytes(second[:-1] + b"x")
    with pytest.raises(SlimdeployError, match=r"part-001 differs from its SHA-256 in parts\.json"):
        gpu_chain_parts.join(tmp_path / "parts", work)
    parts[1].write_bytes(second)
    assert gpu_chain_parts.join(tmp_path / "parts", work) == []
    assert (work / "data/noise").read_bytes() == (tmp_path / "data/noise").read_bytes()
    assert (work / "site/slimdeploy/benchmarks/gpu_chain.py").is_file()
    assert len(first) == 1 << 20


def test_pieces_run_at_once_but_what_is_timed_runs_alone() -> None:
    """At most three trainings; each piece after what it needs; nothing beside a piece that runs alone."""
    chain = [
        *(Piece(f"train-{i}", 1, ("train",)) for i in range(4)),
        Piece("check", 1, ("check",), needs=("train-0",), alone=True),
        Piece("tuned", 1, ("finetune",), needs=("train-1",)),
    ]
    running: set[str] = set()
    finished: list[str] = []
    beside: dict[str, set[str]] = {}
    lock = threading.Lock()

    def do(piece: Piece) -> str:
        with lock:
            assert set(piece.needs) <= set(finished)
            for name in running:
                beside[name].add(piece.name)
            beside[piece.name] = set(running)
            running.add(piece.name)
        time.sleep(0.05)
        with lock:
            running.remove(piece.name)
            finished.append(piece.name)
        return "done"

    told: list[str] = []
    run_all(chain, do, lambda piece, said: told.append(f"{piece.name}: {said}"), 6)
    assert sorted(told) == sorted(f"{piece.name}: done" for piece in chain)
    assert beside["check"] == set()
    assert "train-3" not in beside["train-0"] & beside["train-1"] & beside["train-2"]
    assert {"train-1", "train-2"} <= beside["train-0"]


def test_what_does_not_fit_into_the_time_is_left_for_the_next_call(tmp_path: Path) -> None:
    piece = Piece("slow", 5.0, ("export", "x.safetensors", "-o", "x.onnx"))
    assert (
        gpu_chain.do(piece, tmp_path, time.monotonic() + 60) == "not begun: it takes 5 min, and 1.0 are left"
    )
    needy = Piece("needy", 0.0, ("export",), needs=("slow",))
    assert gpu_chain.do(needy, tmp_path, time.monotonic() + 60) == "left out, it needs slow"


@pytest.mark.slow
def test_the_chain_on_the_cpu(tmp_path: Path) -> None:
    """A training that is stopped goes on; a piece that fails says why; what is done isn't done again."""
    only = [word for each in ("sparse", "sparse-90", "gpu-check-tests") for word in ("--only", each)]
    call = ["run", "--tiny", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out"), *only]
    ran = CliRunner().invoke(gpu_chain.main, [*call, "--minutes", "9"])
    assert ran.exit_code == 0, ran.output
    found = results.read(tmp_path / "out/gpu-chain.json", "table")
    trained, pruned = found["rows"]
    assert (trained["piece"], trained["error"], trained["epochs"]) == ("sparse", None, 1)
    assert 0 < trained["accuracy"] <= 1
    assert pruned["params"] < 3e6
    assert "gpu-check-tests: left out, it needs original, sparse-surgeon-tuned-long-seed-0" in ran.output
    again = CliRunner().invoke(gpu_chain.main, [*call, "--minutes", "9"])
    assert "done in" not in again.output
    wrong = CliRunner().invoke(gpu_chain.main, [*call, "--only", "nothing"])
    assert wrong.exit_code == 2


def test_pieces_that_run_at_once_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], *, env: dict[str, str], **_: object) -> None:
            told.append(env.get("OMP_NUM_THREADS", "all"))

        def communicate(self, timeout: float) -> tuple[str, str]:
            return '{"accuracy": 0.5}', ""

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(gpu_chain, "cpu_count", lambda: 16)
    monkeypatch.setattr(gpu_chain.subprocess, "Popen", Process)
    chain = (Piece("one", 0, ("export",)), Piece("other", 0, ("export",), alone=True))
    monkeypatch.setattr(gpu_chain, "pieces", lambda scale: chain)
    call = ["run", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out"), "--jobs", "5"]
    assert CliRunner().invoke(gpu_chain.main, call).exit_code == 0
    assert told == ["3", "all"]


def test_ctrl_c_ends_the_running_pieces(tmp_path: Path) -> None:
    """They are in sessions of their own, which the terminal's signal doesn't reach, and begin again later."""
    (tmp_path / "sleeping.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    script = f"""
import signal
from slimdeploy.benchmarks import gpu_chain
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from slimdeploy.benchmarks.gpu_chain_pieces import Piece
gpu_chain.pieces = lambda scale: (Piece("slow", 0, ("train",), module="sleeping"),)
gpu_chain.main(["run", "--work", {str(tmp_path)!r}, "-o", {str(tmp_path / "out")!r}])
"""
    environment = os.environ | {"PYTHONPATH": ":".join([str(tmp_path), *filter(None, sys.path)])}
    chain = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < end, "the piece has not begun"
            time.sleep(0.05)
        chain.send_signal(signal.SIGINT)
        assert chain.wait(60) != 0
    finally:
        chain.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (tmp_path / "done/slow.json").exists()


def test_a_failure_is_recorded(tmp_path: Path) -> None:
    piece = Piece("broken", 0.0, ("export", "none.safetensors", "-o", "x.onnx"))
    assert gpu_chain.do(piece, tmp_path, time.monotonic() + 60).startswith("failed, slimdeploy: ")
    record = json.loads((tmp_path / "done/broken.json").read_text())
    assert "none.safetensors" in record["error"]
    assert gpu_chain.row(piece, {"broken": record})["error"] == record["error"]


def test_a_fine_tuned_network_has_the_size_of_the_pruned_one(tmp_path: Path) -> None:
    pruned = {"result": {"params": {"after": 3_940_000}, "macs": {"after": 41_000_000}, "accuracy": None}}
    tuned = {"result": {"accuracy": {"test": 0.944}}, "seconds": 9.0}
    row = gpu_chain.row(Piece("tuned", 1.0, ("finetune",), ("pruned",)), {"pruned": pruned, "tuned": tuned})
    assert (row["params"], row["macs"], row["accuracy"]) == (3_940_000, 41_000_000, 0.944)
    shrunk = {
        "result": {"accuracy": {"test": 0.9}, "removed": {"params": {"after": 5}, "macs": {"after": 7}}}
    }
    trained = gpu_chain.row(Piece("sparse", 1.0, ("train",)), {"sparse": shrunk})
    assert (trained["params"], trained["macs"]) == (5, 7)
    made = results.document("table", command="c", title="t", columns=gpu_chain.COLUMNS, rows=[row])
    results.write(tmp_path / "gpu-chain.json", made)
    said = CliRunner().invoke(gpu_chain.main, ["table", str(tmp_path / "gpu-chain.json")]).output
    assert said.splitlines()[-1] == "| tuned | 94.40% | 3.94 M | 41.00 M |"


def test_gpu_checks_of_parts_become_one() -> None:
    part = {"kernels": [], "rows": [], "comparisons": [], "left_out": [], "failures": []}
    one = {**part, "command": "a", "tests": None, "layers_ms": 0.2, "left_out": [{"what": "x", "why": "y"}]}
    two = {
        **part,
        "command": "b",
        "tests": {"passed": 3},
        "layers_ms": None,
        "failures": [{"what": "z", "why": "w"}],
    }
    whole = gpu_chain.merged([one, two])
    assert (whole["tests"], whole["layers_ms"], whole["command"]) == ({"passed": 3}, 0.2, "a; b")
    assert (len(whole["left_out"]), len(whole["failures"]), whole["targets"]) == (1, 1, [])


def test_a_check_whose_time_is_over_keeps_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done/original.json").write_text('{"error": "stopped"}')
    written = gpu_check.report(gpu_check.Findings(left_out=[{"what": "tensorrt fp16", "why": "none here"}]))
    results.write(tmp_path / "done/gpu-check-graph-result.json", written)
    gpu_chain.write_results(pieces(TINY), tmp_path, tmp_path / "out")
    found = results.read(tmp_path / "out/gpu-check.json", "gpu-check")
    assert found["left_out"] == [{"what": "tensorrt fp16", "why": "none here"}]


def test_an_error_is_one_line(tmp_path: Path) -> None:
    """As of every script of the laboratory."""
    (tmp_path / "x.json").write_text("{}")
    command = [sys.executable, "-m", "slimdeploy.benchmarks.gpu_chain", "table", str(tmp_path / "x.json")]
    ran = subprocess.run(command, capture_output=True, text=True, env=process_environment())
    assert ran.returncode == 2
    assert ran.stderr.startswith("gpu_chain: ")
    assert len(ran.stderr.splitlines()) == 1


def test_the_list_names_what_is_to_be_brought() -> None:
    said = CliRunner().invoke(gpu_chain.main, ["list"]).output
    assert all(piece.name in said for piece in pieces(FULL))
    assert "pip download" in said
    assert importlib.import_module("filelock").__name__ in said
