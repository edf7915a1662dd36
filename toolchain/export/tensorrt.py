"""Build a TensorRT plan from an ONNX file: network → config → plan.

The precision is that of the ONNX file (FP16 tensors, Q/DQ pairs): strongly typed on TensorRT 10 and 11.
Builder flags are used only for versions without strong typing. `trt` is the `tensorrt` module: on a GPU,
NVIDIA's bindings without a GPU, or a fake for tests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.engine_options import HARDWARE_LEVELS, EngineOptions
from slimdeploy.toolchain.runtime.capabilities import Capabilities, capabilities
from slimdeploy.toolchain.runtime.onnx_file import OnnxFacts, read_onnx
from slimdeploy.toolchain.runtime.tensorrt_callbacks import (
    Progress,
    error_log,
    one_line,
    progress_monitor,
    start,
)


@dataclass(frozen=True)
class Plan:
    """A built engine, not yet saved."""

    content: bytes
    facts: OnnxFacts
    tensorrt: str
    typing: str
    """`strong`, or `flags` if precisions were only allowed, not required."""
    layers: int
    """Number of layers before fusion."""
    batch: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    seconds: float
    timing_cache: bytes


def build_plan(
    trt: ModuleType,
    onnx: Path,
    options: EngineOptions,
    *,
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> Plan:
    """Parse `onnx` and build it for the GPU of this machine.

    Raises SlimdeployError with TensorRT's message if the parser or the builder fails, and for options that
    this TensorRT or this machine doesn't support.
    """
    able = capabilities(trt.__version__)
    facts = read_onnx(onnx)
    if able.highest_opset is not None and facts.opset > able.highest_opset:
        raise SlimdeployError(
            f"{onnx}: opset {facts.opset}; TensorRT {trt.__version__} reads up to {able.highest_opset}: "
            f"export again with `opset` {able.highest_opset}"
        )
    build = _Build(trt, able, onnx, facts, options, timing_cache, progress)
    if not able.strongly_typed:
        return build.run(strong=False)
    try:
        return build.run(strong=True)
    except SlimdeployError:
        if not able.typing_incomplete:
            raise
        return build.run(strong=False)


@dataclass(frozen=True)
class _Build:
    """One ONNX file during the build, strongly typed or by flags."""

    trt: ModuleType
    able: Capabilities
    onnx: Path
    facts: OnnxFacts
    options: EngineOptions
    timing_cache: bytes
    progress: Progress | None

    def run(self, *, strong: bool) -> Plan:
        started = time.perf_counter()
        log = error_log(self.trt)
        builder = start(self.trt.Builder, log)
        network = self.parse(builder, log, strong=strong)
        config = self.configure(builder, network, strong=strong)
        monitor = progress_monitor(self.trt, self.progress) if self.progress and self.able.progress else None
        if monitor:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor and monitor.interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise SlimdeployError(f"{self.onnx}: TensorRT can't build the engine: {log.last_error()}")
        cache = config.get_timing_cache()
        return Plan(
            content=bytes(plan),
            facts=self.facts,
            tensorrt=self.trt.__version__,
            typing="strong" if strong else "flags",
            layers=network.num_layers,
            batch=self.options.batch,
            input_shape=tuple(network.get_input(0).shape)[1:],
            seconds=time.perf_counter() - started,
            timing_cache=bytes(cache.serialize()) if cache else b"",
        )

    def parse(self, builder: Any, log: Any, *, strong: bool) -> Any:
        flags = self.trt.NetworkDefinitionCreationFlag
        asked = 1 << int(flags.STRONGLY_TYPED) if strong else 0
        if self.able.explicit_batch_flag:
            asked |= 1 << int(flags.EXPLICIT_BATCH)
        network = builder.create_network(asked)
        parser = self.trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(self.onnx)):
            errors = [one_line(parser.get_error(i)) for i in range(parser.num_errors)]
            raise SlimdeployError(f"{self.onnx}: TensorRT can't parse the file: {'; '.join(errors)}")
        if network.num_inputs != 1 or len(network.get_input(0).shape) != 4:
            raise SlimdeployError(f"{self.onnx}: not an image classifier (one 4-D input)")
        return network

    def configure(self, builder: Any, network: Any, *, strong: bool) -> Any:
        trt, options = self.trt, self.options
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # needed by the audit
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
        if not strong:
            if self.facts.half:
                config.set_flag(trt.BuilderFlag.FP16)
            if self.facts.quantised:
                config.set_flag(trt.BuilderFlag.INT8)
        self._set_levels(config)
        self._set_dla(builder, config)
        self._set_profile(builder, network, config)
        # TensorRT refuses a cache that is damaged or from another machine: then start with an empty one.
        known = config.create_timing_cache(self.timing_cache)
        if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return config

    def _set_levels(self, config: Any) -> None:
        trt, options = self.trt, self.options
        level = options.hardware_compatible
        if options.optimization_level is not None or options.version_compatible or level:
            self._need(self.able.builder_levels, "optimisation levels and compatible plans")
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if level:
            if level == "same-capability":
                self._need(self.able.same_capability_plans, "plans for all GPUs of one compute capability")
            config.hardware_compatibility_level = getattr(
                trt.HardwareCompatibilityLevel, HARDWARE_LEVELS[level]
            )

    def _set_dla(self, builder: Any, config: Any) -> None:
        if self.options.dla is None:
            return
        if self.options.dla >= builder.num_DLA_cores:
            raise SlimdeployError(
                f"DLA core {self.options.dla}: this device has {builder.num_DLA_cores or 'none'}"
            )
        config.default_device_type = self.trt.DeviceType.DLA
        config.DLA_core = self.options.dla
        config.set_flag(self.trt.BuilderFlag.GPU_FALLBACK)

    def _set_profile(self, builder: Any, network: Any, config: Any) -> None:
        image = network.get_input(0)
        batch, *size = image.shape
        if any(side < 0 for side in size):
            raise SlimdeployError(f"{self.onnx}: the image size must be fixed, not {tuple(image.shape)}")
        if batch >= 0:
            if self.options.batch != (batch, batch, batch):
                raise SlimdeployError(f"{self.onnx} is for batches of {batch} only: pass `batch` {batch}")
            return
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *((n, *size) for n in self.options.batch))
        config.add_optimization_profile(profile)

    def _need(self, able: bool, what: str) -> None:
        if not able:
            raise SlimdeployError(f"TensorRT {self.trt.__version__} has no {what}")
