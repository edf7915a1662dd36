"""Callbacks for TensorRT: logger, progress monitor and profiler, as subclasses of its interfaces.

Each is created for the `tensorrt` module in use, which provides the base class.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError

Progress = Callable[[str, int, int], None]
"""Called with a phase of the build, the steps done and the total number of steps."""


def error_log(trt: ModuleType) -> Any:
    """A TensorRT logger that collects errors for the message instead of printing them."""

    class ErrorLog(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(one_line(msg))

        def last_error(self) -> str:
            return self.errors[-1] if self.errors else "no message"

    return ErrorLog()


class CannotStart(SlimdeployError):
    """TensorRT finds no usable CUDA."""


def start(kind: type, log: Any) -> Any:
    """`trt.Builder` or `trt.Runtime` with this logger; raises CannotStart if TensorRT can't initialise CUDA.

    The bindings raise a TypeError ("factory function returned nullptr") there.
    """
    try:
        return kind(log)
    except TypeError as error:
        raise CannotStart(
            f"TensorRT can't start on this GPU ({log.last_error()}): it may need a newer driver, "
            "or more memory; see slimdeploy doctor"
        ) from error


def progress_monitor(trt: ModuleType, report: Progress) -> Any:
    """TensorRT's progress, reported by calls of `report`. Ctrl-C cancels the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self.steps[phase_name])

        def _report(self, phase: str, done: int) -> None:
            try:
                report(phase, done, self.steps[phase])
            except KeyboardInterrupt:  # must not propagate through TensorRT
                self.interrupted = True

    return Monitor()


def layer_profiler(trt: ModuleType) -> Any:
    """A TensorRT profiler. `take` returns the time of each layer in ms since its last call; layers of the
    same name are added.
    """

    class Profiler(trt.IProfiler):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.times: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name] = self.times.get(layer_name, 0.0) + ms

        def take(self) -> dict[str, float]:
            taken, self.times = self.times, {}
            return taken

    return Profiler()


def one_line(message: object) -> str:
    """TensorRT's message without line breaks."""
    return " ".join(str(message).split())
