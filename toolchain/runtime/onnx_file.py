"""Reader and validator of ONNX files, used by every command before a runtime opens the file.

It needs no library: a device may have no `onnx`. Refused are files that don't match their sidecar, files with
external data (a runtime would open any path named in them), incomplete or non-finite constants and, in a file
with slimdeploy's description, unknown operators, inconsistent shapes and too large activations.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.checks import MAX_BATCH
from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.file_kinds import ONNX, refuse_other_kind
from slimdeploy.toolchain.models.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.runtime.onnx_graph import FLOAT16, Graph, read_graph
from slimdeploy.toolchain.runtime.onnx_shapes import activation_shapes
from slimdeploy.toolchain.runtime.protobuf import DamagedError, Message, integer, nested, text

PRECISIONS = ("fp32", "fp16", "int8", "mixed")
TARGETS = ("any", "cpu", "tensorrt")
"""Key of the INT8 form: each form suits another runtime."""
MAX_FILE_BYTES = 2 << 30  # protobuf's own limit for one message
REDUCED_RANGE = "reduced_range"
"""Metadata key: `True` if INT8 weights are so small that 16-bit sums can't overflow on any CPU."""
_WEIGHTED = ("Conv", "Gemm", "MatMul")

# Message -> field number -> message: every path from a model to a tensor (onnx.proto, IR version 10).
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Training": {1: "Graph", 2: "Graph"},
    "Tensor": {},
}
_MAX_DEPTH = 32
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a Tensor


@dataclass(frozen=True)
class OnnxFacts:
    """The facts about an ONNX file that bundles and engine builds need."""

    opset: int
    metadata: dict[str, str]
    """The model's `metadata_props`."""
    layers: dict[str, str]
    """Name of each Conv, Gemm and MatMul -> its requested precision: `fp32`, `fp16` or `int8`."""
    half: bool
    """Whether any tensor is FP16, including the scales of Q/DQ."""
    largest: int = 0
    """Elements of the largest activation for one image; 0 for a file not written by slimdeploy."""

    @property
    def quantised(self) -> bool:
        return "int8" in self.layers.values()

    @property
    def can_overflow(self) -> bool:
        """Whether results may differ on CPUs that add two neighbouring products (u8 × s8) in 16 bits."""
        return self.quantised and self.metadata.get(REDUCED_RANGE) != "True"

    @property
    def precision(self) -> str:
        """The precision in the metadata, or else of the layers: `fp32`, `fp16`, `int8` or `mixed`."""
        if "precision" in self.metadata:
            return self.metadata["precision"]
        asked = set(self.layers.values())
        return asked.pop() if len(asked) == 1 else "mixed" if asked else "fp32"


def read_onnx(path: Path) -> OnnxFacts:
    """Read the opset, metadata and precisions of an ONNX file.

    Raises SlimdeployError if the file is missing, isn't ONNX, or is unsafe for a runtime.
    """
    refuse_other_kind(path, ONNX)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if len(content) > MAX_FILE_BYTES:
                raise SlimdeployError(f"{path} is too large: maximum {MAX_FILE_BYTES >> 30} GiB")
            facts = parse_onnx(content, source=str(path))
        artifacts.read_sidecar(path)
        return facts
    except (FileNotFoundError, IsADirectoryError):
        raise artifacts.missing(path, "model") from None
    except OSError as error:
        raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # mmap of nothing
        raise SlimdeployError(f"{path} is not an ONNX file, or is damaged (it is empty)") from error


def parse_onnx(content: bytes | mmap.mmap, *, source: str) -> OnnxFacts:
    """Read the content of a file; `source` names it in errors."""
    message = Message(content, 0, len(content))
    try:
        if _points_outside(message, "Model", 0):
            raise SlimdeployError(
                f"{source}: its weights are in other files (external data): "
                "slimdeploy export writes a single file"
            )
        return _read_model(message, source)
    except DamagedError as error:
        raise SlimdeployError(f"{source} is not an ONNX file, or is damaged ({shorten(error)})") from error


def carried_info(path: Path, facts: OnnxFacts) -> ModelInfo:
    """The description of the network in an ONNX file; raises SlimdeployError if slimdeploy didn't write the
    file.
    """
    if METADATA_KEY not in facts.metadata:
        raise SlimdeployError(
            f"{path}: it contains no classes and preprocessing: create it with slimdeploy export"
        )
    return ModelInfo.from_json(facts.metadata[METADATA_KEY], str(path))


def _points_outside(message: Message, kind: str, depth: int) -> bool:
    """Whether any tensor in a message of `kind` mentions external data."""
    if depth > _MAX_DEPTH:
        raise DamagedError("nested too deep")
    children, found = _CHILDREN[kind], False
    for number, value in message.fields():
        if kind == "Tensor":
            found |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
        elif number in children:
            found |= _points_outside(nested(value), children[number], depth + 1)
    return found


def _read_model(model: Message, source: str) -> OnnxFacts:
    opset, metadata, graph, foreign = 0, dict[str, str](), None, False
    for number, value in model.fields():
        if number == 7:
            graph = read_graph(nested(value))
        elif number == 8:  # opset_import
            entry = dict(nested(value).fields())
            if not text(entry.get(1)):  # the default domain
                opset = integer(entry.get(2))
        elif number == 14:  # metadata_props
            entry = dict(nested(value).fields())
            metadata[text(entry.get(1))] = text(entry.get(2))
        elif number in (20, 25):  # training_info, functions
            foreign = True
    if graph is None or not opset:
        raise DamagedError("it contains no graph")
    layers, half = _precisions(graph)
    largest = 0
    if METADATA_KEY in metadata:
        if foreign:
            raise DamagedError("it contains functions or training steps, which slimdeploy doesn't write")
        largest = _check_own(graph, metadata, source)
    return OnnxFacts(opset, metadata, layers, half, largest)


def _check_own(graph: Graph, metadata: dict[str, str], source: str) -> int:
    """Check the graph of a file against its description; returns the size of its largest activation."""
    info = ModelInfo.from_json(metadata[METADATA_KEY], source)
    for key, known in (("precision", PRECISIONS), ("target", TARGETS)):
        if metadata.get(key, known[0]) not in known:
            raise DamagedError(f"{key} {metadata[key][:40]!r}; known: {', '.join(known)}")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise DamagedError("not one input and one output")
    (image,), ((output, logits),) = graph.inputs.values(), graph.outputs.items()
    described = info.preprocessing.image_shape
    if image[1:] != described or not 0 <= image[0] <= MAX_BATCH:
        raise DamagedError(f"an input of {_by(image[1:])} values; its description says {_by(described)}")
    shapes = activation_shapes(graph, (1, *image[1:]))
    if shapes.get(output, ())[1:] != (info.graph.classes,) or logits[1:] != (info.graph.classes,):
        wanted = info.graph.classes
        raise DamagedError(f"an output of {_by(logits[1:])} values; its description says {wanted}")
    return max(math.prod(shape) for shape in shapes.values())


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "no"


def _precisions(graph: Graph) -> tuple[dict[str, str], bool]:
    """The precision of each layer with weights, and whether any constant is FP16."""
    half = {name for name, constant in graph.constants.items() if constant.type == FLOAT16}
    dequantised = {out for node in graph.nodes if node.operator == "DequantizeLinear" for out in node.outputs}
    layers = {}
    for node in graph.nodes:
        if node.operator in _WEIGHTED:
            if len(node.inputs) < 2:
                raise DamagedError(f"a {node.operator} without weights")
            if node.inputs[0] in dequantised:
                layers[node.name] = "int8"
            else:
                layers[node.name] = "fp16" if node.inputs[1] in half else "fp32"
    return layers, bool(half)
