"""The calibration cache of TensorRT 8 (JetPack 5), which replaces TensorRT's own calibration.

A header with version and algorithm, then one line per tensor: its name, and the scale (threshold ÷ 127) as
eight hexadecimal digits of its float32 (NVIDIA, sampleINT8, "Calibration file"). Used by `trtexec
--onnx=model.onnx --int8 --calib=FILE`, where `model.onnx` is the float32 export.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

HEADER = "TRT-8502-EntropyCalibration2"
"""JetPack 5.1 has TensorRT 8.5.2; trtexec reads a cache for IInt8EntropyCalibrator2."""


def trt8_cache(thresholds: Mapping[str, float]) -> bytes:
    """Content of the cache for the clipping threshold of each tensor."""
    lines = [HEADER]
    for tensor, threshold in thresholds.items():
        scale = threshold / 127 if threshold > 0 else 1.0
        lines.append(f"{tensor}: {struct.pack('>f', scale).hex()}")
    return ("\n".join(lines) + "\n").encode()
