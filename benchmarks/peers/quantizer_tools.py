"""Run one quantiser in its own process, to measure its memory; called by quantizers.py.

    python benchmarks/peers/quantizer_tools.py TOOL MODEL.onnx IMAGES.npy OUTPUT.onnx

IMAGES contains network input, (N, 3, H, W) float32. Prints JSON: `seconds` from the first image to the
written file, `cpu_seconds` of all threads, `peak_mib` of the process. Other tools run without importing
slimdeploy, which their environment may lack.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BATCH = 32
Tool = Callable[[Path, np.ndarray, Path], None]
TOOLS: dict[str, Tool] = {}


def tool(name: str) -> Callable[[Tool], Tool]:
    def register(function: Tool) -> Tool:
        TOOLS[name] = function
        return function

    return register


def _slimdeploy(target: str, method: str) -> Tool:
    def run(model: Path, images: np.ndarray, output: Path) -> None:
        import onnx

        from slimdeploy.calibrate.classifier import read_classifier
        from slimdeploy.calibrate.equalisation import equalise
        from slimdeploy.calibrate.measure import measure
        from slimdeploy.calibrate.options import CalibrateOptions
        from slimdeploy.calibrate.quantiser import Quantiser

        source = read_classifier(model)
        widths, histograms = measure(source, lambda: _batches(images))
        quantiser = Quantiser(equalise(source, widths), histograms, CalibrateOptions(target=target))
        onnx.save(quantiser.model(method, frozenset()), output)

    return run


for _target in ("cpu", "tensorrt"):
    for _method in ("minmax", "percentile", "entropy", "mse"):
        TOOLS[f"slimdeploy {_target} {_method}"] = _slimdeploy(_target, _method)


class _Reader:
    """The images for onnxruntime's calibration."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._feeds = iter([{name: batch} for batch in _batches(images)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@tool("onnxruntime quantize_static, defaults")
def onnxruntime_defaults(model: Path, images: np.ndarray, output: Path) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(str(model), str(output), _Reader("images", images))


@tool("onnxruntime quantize_static, unsigned per channel")
def onnxruntime_unsigned(model: Path, images: np.ndarray, output: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(model), str(output), _Reader("images", images), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


@tool("onnxruntime quantize_static, set up for TensorRT")
def onnxruntime_tensorrt(model: Path, images: np.ndarray, output: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    weighted = ["Conv", "Gemm"]
    quantize_static(
        str(model), str(output), _Reader("images", images), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": weighted,
            "QDQOpTypePerChannelSupportToAxis": {"Conv": 0, "Gemm": 0},
        },
    )  # fmt: skip


def _modelopt(method: str) -> Tool:
    def run(model: Path, images: np.ndarray, output: Path) -> None:
        from modelopt.onnx.quantization import quantize

        quantize(
            str(model), quantize_mode="int8", calibration_data={"images": images},
            calibration_method=method, calibration_eps=["cpu"], output_path=str(output),
            high_precision_dtype="fp32",
        )  # fmt: skip

    return run


for _method in ("entropy", "max"):
    TOOLS[f"nvidia-modelopt {_method}"] = _modelopt(_method)


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), BATCH):
        yield np.ascontiguousarray(images[start : start + BATCH])


def main(name: str, model: str, images: str, output: str) -> None:
    loaded = np.load(images)
    started, cpu = time.perf_counter(), time.process_time()
    TOOLS[name](Path(model), loaded, Path(output))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
