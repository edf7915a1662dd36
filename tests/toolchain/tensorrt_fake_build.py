"""The half of the fake TensorRT that builds. A plan is the ONNX file behind a header: how it was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from slimdeploy.tests.toolchain.tensorrt_fake_base import Restricted, new
from slimdeploy.toolchain.runtime.onnx_file import parse_onnx


class Builder(Restricted):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._trt._initialise_cuda(logger)

    @property
    def num_DLA_cores(self) -> int:
        return self._trt._dla_cores

    def create_network(self, flags: int = 0) -> Any:
        known = self._trt._api["NetworkDefinitionCreationFlag"]
        names = {name for i, name in enumerate(known) if flags >> i & 1}
        assert flags < 1 << len(known), "a bit that no flag has"
        assert self._trt._major > 8 or "EXPLICIT_BATCH" in names, "TensorRT 8 needs EXPLICIT_BATCH"
        network = new(self._trt, "INetworkDefinition")
        network._strong = "STRONGLY_TYPED" in names or self._trt._major >= 11
        return network

    def create_builder_config(self) -> Any:
        return new(self._trt, "IBuilderConfig")

    def create_optimization_profile(self) -> Any:
        return new(self._trt, "IOptimizationProfile")

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if network._strong and (self._trt._fails_strongly_typed or config._flags & {"FP16", "INT8"}):
            self._logger.log("error", "Error Code 9: the strongly typed network can't be built")
            return None
        if not network._strong:
            asked = {"INT8": network._facts.quantised, "FP16": network._facts.half}
            missing = {flag for flag, needed in asked.items() if needed} - config._flags
            if missing:
                self._logger.log("error", f"Error Code 4: BuilderFlag {sorted(missing)} is needed")
                return None
        if network.get_input(0).shape[0] < 0 and not config._profiles:
            self._logger.log("error", "Error Code 4: dynamic shapes without an optimization profile")
            return None
        monitor = getattr(config, "_monitor", None)
        if monitor:
            monitor.phase_start("Building engine", None, 2)
            if not (
                monitor.step_complete("Building engine", 0) and monitor.step_complete("Building engine", 1)
            ):
                return None
            monitor.phase_finish("Building engine")
        config._cache._content += b"timed;"
        header = {
            "version": self._trt.__version__, "profile": config._profiles[0] if config._profiles else None,
            "detailed": config._detailed, "flags": sorted(config._flags), "strong": network._strong,
        }  # fmt: skip
        return new(self._trt, "IHostMemory", json.dumps(header).encode() + b"\0" + network._content)


class NetworkDefinition(Restricted):
    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_input(self, index: int) -> Any:
        return new(self._trt, "ITensor", self._model.graph.input[index])


class OnnxParser(Restricted):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[str] = []

    def parse_from_file(self, model: str) -> bool:
        content = Path(model).read_bytes()
        try:
            self._network._model = onnx.load_from_string(content)
            self._network._content = content
            self._network._facts = parse_onnx(content, source=model)
        except Exception as error:
            self._errors.append(f"In node -1 (parse): {error}")
            return False
        unknown = {node.op_type for node in self._network._model.graph.node} & {"NonMaxSuppression"}
        self._errors += [f"In node 0 with name: and operator: {name}: no importer" for name in unknown]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]


class OptimizationProfile(Restricted):
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes = [list(min), list(opt), list(max)]


class TimingCache(Restricted):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return new(self._trt, "IHostMemory", self._content)


DAMAGED, MISMATCHED = b"not a timing cache", b"of another GPU"


class BuilderConfig(Restricted):
    def __init__(self) -> None:
        self._flags = {"TF32"}  # on by default in every version
        self._profiles: list[Any] = []
        self._detailed = False
        self._cache = new(self._trt, "ITimingCache", b"")

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._workspace = (pool.name, pool_size)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        if serialized_timing_cache == DAMAGED:
            return None
        return new(self._trt, "ITimingCache", serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._content == MISMATCHED and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    profiling_verbosity = property(None, lambda self, v: setattr(self, "_detailed", v.name == "DETAILED"))
    progress_monitor = property(None, lambda self, monitor: setattr(self, "_monitor", monitor))
    builder_optimization_level = property(None, lambda self, level: setattr(self, "_level", level))
    hardware_compatibility_level = property(None, lambda self, level: setattr(self, "_hardware", level.name))
    default_device_type = property(None, lambda self, kind: setattr(self, "_device_type", kind.name))
    DLA_core = property(None, lambda self, core: setattr(self, "_dla", core))
