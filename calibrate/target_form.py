"""The INT8 form of a network for a target: what `calibrate` writes, and what latency tables time."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from slimdeploy.calibrate.batch_folding import fold_batch
from slimdeploy.calibrate.classifier import Classifier
from slimdeploy.calibrate.passes import pad_image_channels
from slimdeploy.calibrate.qdq import FORMS, QdqOptions, insert_qdq
from slimdeploy.toolchain.runtime.onnx_file import REDUCED_RANGE


def prepare(source: Classifier, target: str) -> Classifier:
    """The float network before its Q/DQ pairs are inserted."""
    return pad_image_channels(source) if target == "cpu" else source


def quantise(
    prepared: Classifier,
    thresholds: Mapping[str, float],
    *,
    options: QdqOptions,
    float_layers: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """The network from `prepare` with Q/DQ pairs, in the form for `options.target`."""
    made = insert_qdq(prepared, thresholds, options=options, float_layers=float_layers)
    return fold_batch(made) if options.target == "cpu" else made


def form_facts(target: str) -> dict[str, str]:
    """Entries for the metadata of a quantised file."""
    return {"target": target, REDUCED_RANGE: str(FORMS[target].reduced_range)}
