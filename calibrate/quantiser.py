"""All passes together: the quantised model for a method and a set of float layers, and its accuracy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from slimdeploy.calibrate.classifier import Classifier
from slimdeploy.calibrate.comparison import Comparison, compare_logits
from slimdeploy.calibrate.histogram import Histogram
from slimdeploy.calibrate.inference import Network
from slimdeploy.calibrate.options import CalibrateOptions, CalibrationData
from slimdeploy.calibrate.qdq import FORMS, QdqOptions, set_precision
from slimdeploy.calibrate.target_form import form_facts, prepare, quantise
from slimdeploy.calibrate.thresholds import METHODS
from slimdeploy.toolchain.data.dataset import balanced_subset
from slimdeploy.toolchain.export.precision import overflowing_layers, to_fp16
from slimdeploy.toolchain.measure.statistics import Z95

_PREBUILT_WEIGHTS_OPSET = 19
"""From this opset on, weights are stored as INT8. Lower opsets are for TensorRT 8, which needs float weights
with a Q/DQ pair.
"""


class Quantiser:
    """Builds the quantised model for a method and a set of float layers."""

    def __init__(
        self, source: Classifier, histograms: dict[str, Histogram], options: CalibrateOptions
    ) -> None:
        self.source, self.histograms, self.options = source, histograms, options
        self._thresholds: dict[str, dict[str, float]] = {}
        self.prepared = prepare(source, options.target)
        largest = {name: h.largest for name, h in histograms.items()}
        half = options.compute == "fp16"
        self.overflowing = overflowing_layers(source.model, largest) if half else []
        self.qdq = QdqOptions(
            target=options.target,
            half_scales=half,
            float_weights=options.target == "tensorrt" and source.opset < _PREBUILT_WEIGHTS_OPSET,
        )

    def thresholds(self, method: str) -> dict[str, float]:
        if method not in self._thresholds:  # entropy takes seconds, and every trial asks for them
            form, choose = FORMS[self.options.target], METHODS.find(method)
            self._thresholds[method] = {
                name: choose(histogram, form.steps(rectified=self.source.is_rectified(name)))
                for name, histogram in self.histograms.items()
            }
        return self._thresholds[method]

    def model(self, method: str, float_layers: frozenset[str]) -> onnx.ModelProto:
        """The model as it will be written."""
        thresholds = self.thresholds(method)
        made = quantise(self.prepared, thresholds, options=self.qdq, float_layers=float_layers)
        if self.options.compute == "fp16":
            made = to_fp16(made, float_layers=set(self.overflowing))
        made = set_precision(made, self.precision(float_layers), **form_facts(self.options.target))
        onnx.checker.check_model(made, full_check=True)
        return made

    def precision(self, float_layers: frozenset[str]) -> str:
        return "mixed" if float_layers or self.overflowing else "int8"


class Trial:
    """Measures quantised models on the selection images."""

    def __init__(self, quantiser: Quantiser, data: CalibrationData, options: CalibrateOptions) -> None:
        self.quantiser, self.data, self.options = quantiser, data, options
        self.images = data.selection
        self.baseline = self._logits(quantiser.source.model)

    def measure(self, method: str, float_layers: frozenset[str]) -> Comparison:
        logits = self._logits(self.quantiser.model(method, float_layers))
        return compare_logits(self.baseline, logits, self.images.labels)

    def on(self, count: int) -> Trial:
        """The same, with about `count` of the images."""
        return Trial(
            self.quantiser, replace(self.data, selection=balanced_subset(self.images, count)), self.options
        )

    def _logits(self, model: onnx.ModelProto) -> np.ndarray:
        network = Network(model, threads=self.options.threads)
        return network.logits(self.images.images, self.data.preprocessing)


def best_method(methods: dict[str, Comparison]) -> str:
    """The method to use: among those within one standard error of the most accurate, the one with the
    smallest logit error, which is more sensitive than accuracy.
    """
    best = min(methods.values(), key=lambda m: m.drop)
    error = (best.drop_ci95[1] - best.drop_ci95[0]) / (2 * Z95)
    near = {name: m for name, m in methods.items() if m.drop <= best.drop + error}
    return min(near, key=lambda name: near[name].relative_error)
