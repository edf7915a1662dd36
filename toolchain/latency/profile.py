"""Time of each layer of an ONNX network, from onnxruntime's profiler."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import layer_of_nodes
from slimdeploy.toolchain.runtime.onnx_file import read_onnx

if TYPE_CHECKING:
    import onnxruntime

RUNS = 20
OTHER = ""
"""In place of a layer's name: no layer has this one."""
_KERNEL = re.compile(r"(?:fused )?(.+)_kernel_time")
"""Fusion adds `fused ` to the names of linear layers."""
_PART = re.compile(r"[./]|_token_|_nchwc")
"""What follows the name of a node of the network in the names of its ONNX nodes (`….sigmoid`, `….out.dq`),
and in those that onnxruntime gives them: `….out_nchwc`, `…/QuickGeluFusion/`, `…_token_N`.
"""
_REWRITTEN = re.compile(r"(?:Gelu|HardSigmoid|Mul)(?:(?:_token)?_\d+)?")
"""The names that the parts of a GELU or Hardswish get, whatever the name of the node; they run right after
its layer.
"""


def layer_times(path: Path, graph: Graph, *, batch: int, threads: int | None = None) -> dict[str, float]:
    """Median ms of each layer of `graph`, exported to `path`, over RUNS runs of `batch` random images on the
    CPU.

    Keys are the convolutions and the classifier by their names in the network, and OTHER for the rest
    (pooling, sums, reordering). An activation, or a sum fused into a convolution, counts as part of it.
    """
    read_onnx(path)
    with tempfile.TemporaryDirectory() as folder:
        session = profiling_session(str(path), Path(folder), threads=threads)
        image = session.get_inputs()[0]
        random = np.random.default_rng(0)
        images = random.random((batch, *image.shape[1:]), dtype=np.float32)
        for _ in range(RUNS + 2):  # the first two warm up
            session.run(None, {image.name: images})
        events = end_profile(session)
    return sum_by_layer(events, graph, skip=2)


def profiling_session(
    model: str | bytes, folder: Path, *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU that records a profile in `folder` until `end_profile`; it can be used
    afterwards.
    """
    import onnxruntime

    from slimdeploy.toolchain.runtime.onnxruntime import thread_count

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_profiling = 3, True
    options.profile_file_prefix = str(folder / "profile")
    options.intra_op_num_threads = thread_count(threads)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def end_profile(session: onnxruntime.InferenceSession) -> list[dict[str, Any]]:
    """The events since the session was opened."""
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def sum_by_layer(events: list[dict[str, Any]], graph: Graph, *, skip: int = 0) -> dict[str, float]:
    """Median ms by layer of `graph` from the events of a profile, without the first `skip` runs."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node":
            times[event["name"]].append(event["dur"] / 1000)
    layers: dict[str, float] = defaultdict(float)
    owners = dict.fromkeys((node.name for node in graph.nodes), OTHER) | layer_of_nodes(graph)
    layer = OTHER
    for name, runs in times.items():  # in the order of execution
        if node := _KERNEL.fullmatch(name):
            if not _REWRITTEN.fullmatch(node[1]):
                layer = layer_of(node[1], owners)
            layers[layer] += float(np.median(runs[skip:]))
    return dict(layers)


def layer_of(node: str, owners: Mapping[str, str]) -> str:
    """The layer of an ONNX node: that of the node of the network that its name begins with; of several, the
    longest. OTHER for nodes that onnxruntime inserted (`Transpose_token_75`).
    """
    ends = [len(node), *(part.start() for part in reversed([*_PART.finditer(node)]))]
    return next((owners[node[:end]] for end in ends if node[:end] in owners), OTHER)
