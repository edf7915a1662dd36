"""Everything that needs an NVIDIA GPU: tests, kernels, and original and pruned network on every backend.

    python -m slimdeploy.benchmarks.gpu_check
    python -m slimdeploy.benchmarks.gpu_check --original A.safetensors --pruned B.safetensors --data cifar10

Writes one JSON file into `benchmarks/results/`. Missing libraries are listed; failures are listed too, and
the exit code is then 1. Nothing is downloaded.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from slimdeploy.benchmarks import gpu_models, gpu_targets, gpu_tests
from slimdeploy.benchmarks.gpu_models import LeftOut
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.commands.flags import flags
from slimdeploy.toolchain.errors import SlimdeployError, missing_library
from slimdeploy.toolchain.measure import conditions, results
from slimdeploy.toolchain.measure.bench import find_surroundings, measure
from slimdeploy.toolchain.measure.nvml import find_nvml
from slimdeploy.toolchain.measure.options import MeasureOptions
from slimdeploy.toolchain.measure.subjects import Subject
from slimdeploy.toolchain.runtime.device import open_device

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 8, 64, 256)
PARTS = ("tests", "kernels", *gpu_models.BACKENDS_MEASURED)
PATH = click.Path(path_type=Path)


@dataclass
class Findings:
    """The results of the check so far."""

    tests: dict[str, Any] | None = None
    kernels: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    layers_ms: float | None = None
    """Sum of the GPU times of the layers of the pruned FP16 engine at batch 1."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """Missing libraries, and the commands that install them."""
    failures: list[dict[str, str]] = field(default_factory=list)

    def attempt(self, what: str, step: Callable[[], None]) -> None:
        """Run `step` and continue: a missing library is recorded in `left_out`, a SlimdeployError in
        `failures`.
        """
        log(what)
        try:
            step()
        except ModuleNotFoundError as error:
            missing = missing_library(error)
            if missing is None:
                raise
            self.left_out.append({"what": what, "why": str(missing)})
        except LeftOut as error:
            self.left_out.append({"what": what, "why": str(error)})
        except SlimdeployError as error:
            self.failures.append({"what": what, "why": str(error)})


@click.command()
@click.option(
    "--original", type=click.Path(path_type=Path), help="Checkpoint [default: one trained on digits]."
)
@click.option("--pruned", type=click.Path(path_type=Path), help="The pruned version of the original.")
@click.option("--data", default="digits", show_default=True, help="The data that they were trained on.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@flags(
    MeasureOptions,
    but=("limit", "threads"),
    defaults={"batches": BATCHES, "seconds": 2.0, "launches": 3, "ci": 0.1},
    into="timing",
)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True,
              help="Run only this part. Repeatable. [default: all]")  # fmt: skip
@click.option("-o", "--output", type=PATH, help="[default: a file in benchmarks/results/]")
def main(
    original: Path | None, pruned: Path | None, data: str, data_dir: Path, timing: MeasureOptions,
    parts: tuple[str, ...], output: Path | None,
) -> None:  # fmt: skip
    """Check and measure everything that needs an NVIDIA GPU."""
    try:
        name = gpu_name()
    except SlimdeployError as error:
        log(f"gpu-check: no NVIDIA GPU: {error}")
        sys.exit(error.exit_code)
    found = Findings()
    path = output or RESULTS / f"{_slug(name)}-{datetime.date.today():%Y-%m-%d}.json"

    def save() -> dict[str, Any]:
        document = report(found)
        results.write(path, document)
        return document

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slimdeploy-gpu-check-")))
        wanted = parts or PARTS
        if "tests" in wanted:
            found.attempt("GPU tests and kernels against their references", lambda: run_tests(found))
        if "kernels" in wanted:
            found.attempt("bandwidth of the kernels", lambda: measure_kernels(found))
        pair = gpu_models.Pair(original, pruned, data, data_dir)
        if backends := set(wanted) & set(gpu_models.BACKENDS_MEASURED):
            found.attempt(
                "original and pruned network", lambda: benchmark(found, pair, work, timing, backends, save)
            )
    document = save()
    log(f"written: {path}")
    for entry in found.left_out:
        log(f"left out: {entry['what']}: {entry['why']}")
    for target in document["targets"]:
        log(f"{'reached' if target['reached'] else 'not reached'}: {target['what']}: {target['value']:.3g}")
    for entry in found.failures:
        log(f"failed: {entry['what']}: {entry['why']}")
    sys.exit(1 if found.failures else 0)


def gpu_name() -> str:
    """Name of the GPU from its driver; raises SlimdeployError if there is none."""
    try:
        device = open_device()
    except SlimdeployError:
        with suppress(ModuleNotFoundError):
            import torch

            if torch.cuda.is_available():  # a GPU without pycuda and cuda-python: torch can still be measured
                return torch.cuda.get_device_name()
        raise
    name = device.name
    device.close()
    return name


def run_tests(found: Findings) -> None:
    """The tests marked `gpu` and those of the kernels, in a separate process."""
    root = Path(__file__).parents[1]
    folders = [root / "tests" / name for name in ("gpu", "kernels") if (root / "tests" / name).is_dir()]
    if not folders:
        raise LeftOut("this installation contains no tests: run it from a checkout")
    found.tests = gpu_tests.run(folders)
    if found.tests["failed"]:
        raise SlimdeployError(", ".join(found.tests["failed"]))


def measure_kernels(found: Findings) -> None:
    from slimdeploy.kernels import bandwidth

    try:
        device = open_device()
    except SlimdeployError as error:
        raise LeftOut(str(error)) from error
    try:
        found.kernels = [asdict(one) for one in bandwidth.measure(device)]
    finally:
        device.close()


def benchmark(
    found: Findings,
    pair: gpu_models.Pair,
    work: Path,
    options: MeasureOptions,
    backends: Collection[str],
    save: Callable[[], object],
) -> None:
    """Original and pruned network side by side, on these backends, in every available precision, all
    interleaved. `save` is called after each batch size: the GPU may be gone before the last.
    """
    models = gpu_models.prepare(pair, work)
    contests = gpu_models.contests(models, backends)
    able: dict[str, list[Subject]] = {}

    def open_one(name: str, opening: Future[list[Subject]]) -> None:
        able[name] = opening.result()

    with ThreadPoolExecutor(len(contests)) as pool:
        for name, opening in [(one.name, pool.submit(one.openable)) for one in contests]:
            found.attempt(name, functools.partial(open_one, name, opening))
    subjects, around = list(itertools.chain(*able.values())), find_surroundings(None, log)
    for batch in options.batches if able else ():
        result = measure(subjects, replace(options, batches=(batch,)), around, command=sys.argv)
        add_result(found, list(able), results.without_samples(result))
        save()
    if "tensorrt" in backends:
        found.attempt("layer times of the engine", lambda: _time_layers(found, models))


def add_result(found: Findings, names: list[str], result: dict[str, Any]) -> None:
    """Add the rows of a measurement at one batch size, of an original and a pruned network for each name, and
    their comparisons. What is compared across backends is left out.
    """
    each = [name for name in names for _ in gpu_models.ROLES]
    pruned = [one for one in result["comparisons"] if one["model"] == "pruned"]
    found.rows += [{"contest": name, **row} for name, row in zip(each, result["rows"], strict=True)]
    found.comparisons += [{"contest": name, **one} for name, one in zip(names, pruned, strict=True)]


def _time_layers(found: Findings, models: gpu_models.Models) -> None:
    from slimdeploy.toolchain.runtime.session import SessionOptions
    from slimdeploy.toolchain.runtime.tensorrt import open_session

    gpu_models.check_equipped("tensorrt")
    with open_session(models.engine("pruned", "fp16"), SessionOptions()) as session:
        found.layers_ms = sum(session.layer_ms(1).values())


def report(found: Findings) -> dict[str, Any]:
    """The result, as schemas/gpu-check-1.json describes it."""
    return results.document(
        "gpu-check",
        machine=machine(),
        command=" ".join(["python -m slimdeploy.benchmarks.gpu_check", *sys.argv[1:]]),
        **asdict(found),
        targets=gpu_targets.judge(found.rows, found.comparisons, found.kernels, found.layers_ms),
    )


def machine() -> dict[str, Any]:
    """This machine with its GPU, if the driver names it."""
    nvml = find_nvml()
    return conditions.machine() | ({"gpu": nvml.machine()} if nvml else {})


def log(message: str) -> None:
    click.echo(message, err=True)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    run_program(main, "gpu_check")
