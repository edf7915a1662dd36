"""The last part of the stage `export`: build an engine from an ONNX file, or check that it can be built. No
torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.engine import Engine, export_engine
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.export.tensorrt import Plan, build_plan
from slimdeploy.toolchain.progress import progress_bar
from slimdeploy.toolchain.runtime.device import open_device
from slimdeploy.toolchain.runtime.tensorrt_callbacks import Progress

ENGINE_SUFFIX = ".engine"


@dataclass(frozen=True)
class EngineJob:
    """What to do with an ONNX file: build it for this machine's GPU, check that it builds, or both."""

    options: EngineOptions
    build: bool
    check: bool


@dataclass(frozen=True)
class EngineResult:
    """The result of an EngineJob."""

    check: Plan | None
    engine: Engine | None

    @property
    def failed(self) -> str | None:
        """Why the engine differs from the ONNX file; None if it doesn't."""
        failed = self.engine.audit.failed if self.engine else None
        return f"{self.engine.path}: {failed}" if self.engine and failed else None

    def to_json(self) -> dict[str, Any]:
        """The keys `engine` and `trt_check` of the command's result."""
        check = None
        if self.check:
            check = {
                "builds": True,
                "tensorrt": self.check.tensorrt,
                "precision": self.check.facts.precision,
                "batch": list(self.check.batch),
                "layers": self.check.layers,
                "plan_bytes": len(self.check.content),
                "build_seconds": round(self.check.seconds, 2),
            }
        return {"engine": self.engine.to_json() if self.engine else None, "trt_check": check}


def engine_stage(onnx: Path, output: Path, job: EngineJob, *, force: bool = False) -> EngineResult:
    """Check and build `onnx` according to `job`; the engine is written to `output`.

    Raises SlimdeployError if TensorRT, a GPU or NVIDIA's wheels for the check are missing, or, with
    TensorRT's message, if the file can't be built. An engine that fails its audit is kept.
    """
    if job.build:
        check_engine_output(onnx, output, force=force)
    check = check_builds(onnx, job.options) if job.check else None
    return EngineResult(check, build_here(onnx, output, job.options) if job.build else None)


def check_engine_output(onnx: Path, output: Path, *, force: bool) -> None:
    """Raises SlimdeployError if the engine would replace its own source, or exists and not `force`."""
    if output.resolve() == onnx.resolve():
        raise SlimdeployError(f"{output} would be the ONNX file and the engine: name another `output`")
    artifacts.check_output(output, force=force)


def check_machine(job: EngineJob) -> None:
    """Check before any work: raises ModuleNotFoundError or SlimdeployError if this machine can't do `job`."""
    if job.build:
        import tensorrt  # noqa: F401  # named in the error where it is missing

        open_device().close()
    for option, asked, lacking in (
        (
            "version_compatible",
            job.options.version_compatible,
            "TensorRT's lean runtime is not in its wheels",
        ),
        ("dla", job.options.dla is not None, "there is no DLA"),
    ):
        if job.check and asked:
            raise SlimdeployError(
                f"`{option}` can't be checked without a GPU ({lacking}): leave it out of `trt_check`"
            )


def check_builds(onnx: Path, options: EngineOptions) -> Plan:
    """Parse and build `onnx` with NVIDIA's parser and builder on the CPU. The plan can't be run."""
    from slimdeploy.toolchain.export import trt_cpu

    trt = trt_cpu.load()
    with _progress() as progress:
        return build_plan(trt, onnx, options, progress=progress)


def build_here(onnx: Path, output: Path, options: EngineOptions) -> Engine:
    """Build `onnx` for this machine's GPU, audit it and save it to `output`."""
    import tensorrt as trt

    device = open_device()
    try:
        with _progress() as progress:
            return export_engine(trt, onnx, output, options, device=device, progress=progress)
    finally:
        device.close()


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Show TensorRT's build phases as a progress bar: it advances with the outermost phase, and names the
    current one.
    """
    with contextlib.ExitStack() as stack:
        outermost, done_before = "", 0
        advance: Callable[..., None] | None = None

        def report(phase: str, done: int, total: int) -> None:
            nonlocal advance, outermost, done_before
            if advance is None:
                advance, outermost = stack.enter_context(progress_bar(phase, total=total)), phase
            if phase == outermost:
                advance(done - done_before)
                done_before = done
            else:
                advance(0, f"{phase} {done}/{total}")

        yield report
