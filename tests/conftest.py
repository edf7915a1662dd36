"""Fixtures that tests of several folders share."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from slimdeploy.toolchain.errors import SlimdeployError


@dataclass(frozen=True)
class BuiltNetwork:
    """What TensorRT made of an ONNX file: every layer's output types by name, and the plan's size."""

    types: dict[str, tuple[str, ...]]
    """Layer name -> element type of each output, such as `FLOAT`, `HALF` or `INT8`."""
    fed_by: dict[str, str]
    """Layer name -> kind of the layer that its first input comes from, such as `DEQUANTIZE`."""
    plan_bytes: int


@pytest.fixture(scope="session")
def tensorrt_cpu(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """The genuine `tensorrt` module, able to parse and build without a GPU."""
    from slimdeploy.toolchain.export import trt_cpu

    try:
        return trt_cpu.load(tmp_path_factory.mktemp("tensorrt"))
    except SlimdeployError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def trt_builder(tensorrt_cpu: types.ModuleType) -> Callable[[Path], BuiltNetwork]:
    """A function that parses an ONNX file and builds it strongly typed; an assertion fails with the
    parser's own words where it can't.
    """
    trt = tensorrt_cpu
    logger = trt.Logger(trt.Logger.ERROR)

    def build(path: Path) -> BuiltNetwork:
        builder = trt.Builder(logger)
        network = builder.create_network(0)  # TensorRT 11 knows no other than strongly typed networks
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse_from_file(str(path))
        assert parsed, "\n".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        image = network.get_input(0)
        shape = list(image.shape)[1:]
        profile.set_shape(image.name, [1, *shape], [8, *shape], [64, *shape])
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, "parsed, but no plan could be built"
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        outputs = {
            la.name: tuple(la.get_output(i).dtype.name for i in range(la.num_outputs)) for la in layers
        }
        makers = {la.get_output(i).name: la.type.name for la in layers for i in range(la.num_outputs)}
        fed_by = {la.name: makers.get(la.get_input(0).name, "") for la in layers if la.num_inputs}
        return BuiltNetwork(outputs, fed_by, plan.nbytes)

    return build
