"""From any `nn.Module` to a graph, through torch.export; what a graph can't say is refused by operator and
module path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.graph import IMAGE_CHANNELS, INPUT, Graph, Node
from slimdeploy.toolchain.networks.module import GraphNetwork

TOLERANCE = 1e-5
"""Largest difference of a logit between the module and its graph, relative to the largest logit."""


@dataclass(frozen=True)
class Imported:
    """A network, and the largest difference of its logits to the original's, relative to the largest."""

    network: GraphNetwork
    relative_error: float


def from_module(module: nn.Module, *, size: int, arch: str = "custom") -> Imported:
    """The network that computes what `module` does in eval mode, with its weights, for images
    (N, 3, size, size).

    `arch` is what to call it. Raises SlimdeployError for a module that can't be traced or takes another
    input, for an operator that a graph can't say, and where the two differ.
    """
    was_training = module.training
    module.eval()
    try:
        images = torch.randn(2, IMAGE_CHANNELS, size, size, generator=torch.Generator().manual_seed(0))
        expected = _logits(module, images)
        graph = _Importer(_traced(module, images), arch).graph()
        network = GraphNetwork(graph).eval()
        tensors = module.state_dict()
        network.load_state_dict({name: tensors[name] for name in network.state_dict()})
        return Imported(network, _difference(expected, network, images))
    finally:
        module.train(was_training)


@torch.no_grad()
def _logits(module: nn.Module, images: Tensor) -> Tensor:
    try:
        found = module(images)
    except Exception as error:  # whatever a foreign forward raises
        raise SlimdeployError(
            f"the module doesn't take images {tuple(images.shape)}: {_first_line(error)}"
        ) from error
    if not isinstance(found, Tensor):
        count = f"{len(found)} outputs" if isinstance(found, tuple | list | dict) else type(found).__name__
        raise SlimdeployError(f"the module gives {count}; a classifier gives one tensor of logits")
    if found.dim() != 2:
        raise SlimdeployError(
            f"the module gives {tuple(found.shape)}; a classifier gives (N, classes) logits"
        )
    return found


def _traced(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # torch.export has some twenty classes of its own
        raise SlimdeployError(
            "torch.export can't trace the module (does its forward branch on the values of a tensor?): "
            f"{_first_line(error)}"
        ) from error


@torch.no_grad()
def _difference(expected: Tensor, network: GraphNetwork, images: Tensor) -> float:
    found = network(images)
    error = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
    if not error <= TOLERANCE:
        raise SlimdeployError(f"the imported network's logits differ from the module's by {error:.1e}")
    return float(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@dataclass
class _View:
    """A value in another shape, while it is not yet known what for: channels in groups, transposed or not."""

    value: str
    groups: int
    transposed: bool = False


@dataclass
class _Importer:
    """Walks a traced program and writes down each operator as a node."""

    program: torch.export.ExportedProgram
    arch: str
    nodes: list[Node] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """What each node of the program stands for: a value's name, a _View, or a list of names."""

    def __post_init__(self) -> None:
        signature = self.program.graph_signature
        self.tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.used: set[str] = set()

    def graph(self) -> Graph:
        output = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.tensors.get(node.name, INPUT)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                output = node.args[0][0]
        assert isinstance(output, fx.Node)
        wanted, made = self.values[output], self.nodes
        if not isinstance(wanted, str):
            raise SlimdeployError("the module's output isn't computed from the images")
        needed = {wanted}
        for node in reversed(made):
            if node.name in needed:
                needed.update(node.inputs)
        return Graph(tuple(node for node in made if node.name in needed), {"arch": self.arch})

    def _call(self, node: fx.Node) -> None:
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):
            return  # arithmetic on sizes, checks: nothing that computes with pixels
        target = getattr(node.target, "__name__", str(node.target))
        name = target.partition(".")[0].rstrip("_")
        reader = _READERS.get(name)
        if reader is None:
            raise self.refused(node, f"aten.{name} isn't supported")
        self.values[node] = reader(self, node)

    def refused(self, node: fx.Node, why: str) -> SlimdeployError:
        """The error that names the module in which `node` is."""
        return SlimdeployError(f"{self._path(node) or 'the module'}: {why}")

    def _path(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]) if stack else ""

    def add(self, node: fx.Node, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Write a node down under a name of its own; returns it."""
        wanted = name or self._free_name(node, operator)
        if wanted in self.used:
            raise self.refused(node, f"{wanted} is called twice: shared weights aren't supported")
        self.used.add(wanted)
        self.nodes.append(Node(wanted, operator, inputs, attributes))
        return wanted

    def _free_name(self, node: fx.Node, operator: str) -> str:
        path, stack = self._path(node), list((node.meta.get("nn_module_stack") or {}).values())
        module = str(stack[-1][1]) if stack else ""
        own = module.rpartition(".")[2].lower().replace("2d", "")
        base = path if path and own in _LEAVES else f"{path}.{operator}" if path else operator
        number = 1
        while (f"{base}.{number}" if number > 1 else base) in self.used:
            number += 1
        return f"{base}.{number}" if number > 1 else base

    def value(self, node: fx.Node, index: int) -> str:
        """The value that argument `index` names."""
        argument = node.args[index]
        found = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if not isinstance(found, str):
            raise self.refused(node, f"{node.target} of something that isn't an image or a vector")
        if isinstance(argument, fx.Node) and argument.name in self.tensors:
            raise self.refused(node, f"{node.target} of the parameter {found} isn't supported")
        return str(found)

    def module_of(self, node: fx.Node, index: int, part: str = "weight") -> str:
        """The module whose tensor argument `index` is."""
        argument = node.args[index]
        name = self.tensors.get(argument.name, "") if isinstance(argument, fx.Node) else ""
        if not name.endswith(f".{part}"):
            raise self.refused(node, f"{node.target} without a parameter of its own called {part}")
        return name.removesuffix(f".{part}")


def _argument(node: fx.Node, index: int, default: Any) -> Any:
    found = node.args[index] if len(node.args) > index else default
    return default if found is None else found


def _pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values * 2 if len(values) == 1 else values


def _shape(node: Any) -> list[Any]:
    return list(node.meta["val"].shape)


def _conv(at: _Importer, node: fx.Node) -> str:
    weight = node.args[1]
    out, per_group, *kernel = _shape(weight)
    stride, padding = _pair(_argument(node, 3, 1)), _argument(node, 4, 0)
    dilation, groups = _pair(_argument(node, 5, 1)), int(_argument(node, 6, 1))
    if padding == "same" and all(k % 2 for k in kernel):
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    elif isinstance(padding, str):
        if padding != "valid":
            raise at.refused(node, f"padding {padding!r} isn't supported")
        padding = [0, 0]
    bias = _argument(node, 2, None) is not None
    channels = {"in": per_group * groups, "out": out}
    return at.add(
        node, "conv", at.value(node, 0), name=at.module_of(node, 1), **channels, kernel=list(kernel),
        stride=stride, padding=_pair(padding), dilation=dilation, groups=groups, bias=bias,
    )  # fmt: skip


def _batch_norm(at: _Importer, node: fx.Node) -> str:
    if _argument(node, 3, None) is None:
        raise at.refused(node, "batch_norm without running statistics isn't supported")
    vector = {"vector": True} if len(_shape(node)) == 2 else {}
    return at.add(
        node, "batchnorm", at.value(node, 0), name=at.module_of(node, 3, "running_mean"),
        channels=_shape(node.args[3])[0], eps=float(_argument(node, 7, 1e-5)),
        momentum=float(_argument(node, 6, 0.1)), affine=_argument(node, 1, None) is not None, **vector,
    )  # fmt: skip


def _linear(at: _Importer, node: fx.Node) -> str:
    if len(_shape(node)) != 2:
        raise at.refused(node, "linear on an image isn't supported: it must be flattened first")
    out, count = _shape(node.args[1])
    bias = _argument(node, 2, None) is not None
    return at.add(
        node, "linear", at.value(node, 0), name=at.module_of(node, 1), **{"in": count, "out": out}, bias=bias
    )


def _activation(operator: str) -> Callable[[_Importer, fx.Node], str]:
    def read(at: _Importer, node: fx.Node) -> str:
        return at.add(node, operator, at.value(node, 0))

    return read


def _clamp(at: _Importer, node: fx.Node) -> str:
    low, high = _argument(node, 1, None), _argument(node, 2, None)
    if low != 0 or high not in (None, 6):
        raise at.refused(node, f"a clamp to {low} … {high} isn't supported")
    return at.add(node, "relu" if high is None else "relu6", at.value(node, 0))


def _hardtanh(at: _Importer, node: fx.Node) -> str:
    if (_argument(node, 1, -1), _argument(node, 2, 1)) != (0, 6):
        raise at.refused(node, "hardtanh is supported from 0 to 6 (ReLU6) only")
    return at.add(node, "relu6", at.value(node, 0))


def _leaky_relu(at: _Importer, node: fx.Node) -> str:
    return at.add(node, "leaky_relu", at.value(node, 0), slope=float(_argument(node, 1, 0.01)))


def _gelu(at: _Importer, node: fx.Node) -> str:
    if node.kwargs.get("approximate", "none") != "none":
        raise at.refused(node, "gelu is supported without approximation only")
    return at.add(node, "gelu", at.value(node, 0))


def _elementwise(operator: str) -> Callable[[_Importer, fx.Node], str]:
    def read(at: _Importer, node: fx.Node) -> str:
        if not isinstance(node.args[1], fx.Node) or node.kwargs.get("alpha", 1) != 1:
            raise at.refused(node, f"{operator} of a number isn't supported")
        return at.add(node, operator, at.value(node, 0), at.value(node, 1))

    return read


def _cat(at: _Importer, node: fx.Node) -> str:
    if _argument(node, 1, 0) % len(_shape(node)) != 1:
        raise at.refused(node, "cat is supported along the channels only")
    parts = [at.values.get(part) for part in _argument(node, 0, [])]
    names = [part for part in parts if isinstance(part, str)]
    if len(names) != len(parts):
        raise at.refused(node, "cat of something that isn't an image or a vector")
    return at.add(node, "concat", *names)


def _max_pool(at: _Importer, node: fx.Node) -> str:
    if _pair(_argument(node, 4, 1)) != [1, 1]:
        raise at.refused(node, "a dilated max_pool2d isn't supported")
    return at.add(
        node, "max_pool", at.value(node, 0), kernel=_pair(node.args[1]), stride=_stride(node),
        padding=_pair(_argument(node, 3, 0)), ceil=bool(_argument(node, 5, False)),
    )  # fmt: skip


def _avg_pool(at: _Importer, node: fx.Node) -> str:
    if _argument(node, 6, None) is not None:
        raise at.refused(node, "avg_pool2d with a divisor isn't supported")
    return at.add(
        node, "avg_pool", at.value(node, 0), kernel=_pair(node.args[1]), stride=_stride(node),
        padding=_pair(_argument(node, 3, 0)), ceil=bool(_argument(node, 4, False)),
        count_padding=bool(_argument(node, 5, True)),
    )  # fmt: skip


def _stride(node: fx.Node) -> list[int]:
    return _pair(_argument(node, 2, None) or node.args[1])


def _adaptive_avg_pool(at: _Importer, node: fx.Node) -> str:
    return at.add(node, "adaptive_avg_pool", at.value(node, 0), size=[int(n) for n in _shape(node)[2:]])


def _mean(at: _Importer, node: fx.Node) -> str:
    shape, axes = _shape(node.args[0]), _argument(node, 1, [])
    if len(shape) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise at.refused(node, f"mean over the axes {list(axes)} isn't supported, only over height and width")
    pooled = at.add(node, "adaptive_avg_pool", at.value(node, 0), size=[1, 1])
    return pooled if _argument(node, 2, False) else at.add(node, "flatten", pooled, positions=1)


def _dropout(at: _Importer, node: fx.Node) -> str:
    return at.add(node, "dropout", at.value(node, 0), share=float(_argument(node, 1, 0.5)))


def _same(at: _Importer, node: fx.Node) -> Any:
    return at.values[node.args[0]]  # type: ignore[index]


def _reshape(at: _Importer, node: fx.Node) -> Any:
    before, after = _shape(node.args[0]), _shape(node)
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, _View):
        if found.transposed and len(after) == 4:
            return at.add(node, "channel_shuffle", found.value, groups=found.groups)
    elif len(after) == len(before) and after[1:] == before[1:]:
        return at.value(node, 0)
    elif len(before) == 4 and len(after) == 2:
        return at.add(node, "flatten", at.value(node, 0), positions=int(before[2] * before[3]))
    elif len(before) == 4 and len(after) == 5 and after[3:] == before[2:]:
        return _View(at.value(node, 0), int(after[1]))
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    raise at.refused(node, f"aten.{name} from {_told(before)} to {_told(after)} isn't supported")


def _told(shape: list[Any]) -> str:
    return "×".join("N" if i == 0 else str(n) for i, n in enumerate(shape))


def _transpose(at: _Importer, node: fx.Node) -> Any:
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, _View) and {int(a) for a in node.args[1:]} == {1, 2}:  # type: ignore[arg-type]
        return _View(found.value, found.groups, transposed=True)
    raise at.refused(node, "aten.transpose isn't supported")


def _channel_shuffle(at: _Importer, node: fx.Node) -> str:
    return at.add(node, "channel_shuffle", at.value(node, 0), groups=int(_argument(node, 1, 1)))


def _pieces(at: _Importer, node: fx.Node) -> list[str]:
    if _argument(node, 2, 0) % len(_shape(node.args[0])) != 1:
        raise at.refused(node, "chunk and split are supported along the channels only")
    found, start = [], 0
    for piece in node.meta["val"]:
        stop = start + int(piece.shape[1])
        found.append(at.add(node, "slice", at.value(node, 0), start=start, stop=stop))
        start = stop
    return found


def _slice(at: _Importer, node: fx.Node) -> str:
    if _argument(node, 1, 0) != 1 or _argument(node, 4, 1) != 1:
        raise at.refused(node, "slices are supported along the channels only, without a step")
    count = int(_shape(node)[1])
    start = int(_argument(node, 2, 0)) % int(_shape(node.args[0])[1])
    return at.add(node, "slice", at.value(node, 0), start=start, stop=start + count)


def _item(at: _Importer, node: fx.Node) -> str:
    return str(at.values[node.args[0]][node.args[1]])  # type: ignore[index]


_LEAVES = (
    "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "leakyrelu", "dropout",
    "maxpool", "avgpool", "adaptiveavgpool", "flatten", "identity",
)  # fmt: skip
"""Module classes that are one operator: the node takes the module's own path as its name."""

_READERS: dict[str, Callable[[_Importer, fx.Node], Any]] = {
    "conv2d": _conv,
    "batch_norm": _batch_norm,
    "linear": _linear,
    **{name: _activation(name) for name in ("relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")},
    "relu6": _activation("relu6"),
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "leaky_relu": _leaky_relu,
    "gelu": _gelu,
    "add": _elementwise("add"),
    "mul": _elementwise("multiply"),
    "cat": _cat,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "mean": _mean,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "transpose": _transpose,
    "channel_shuffle": _channel_shuffle,
    "chunk": _pieces,
    "split": _pieces,
    "split_with_sizes": _pieces,
    "slice": _slice,
    "getitem": _item,
    "contiguous": _same,
    "clone": _same,
    "alias": _same,
    "detach": _same,
}
"""ATen operator, functional or in place -> how it is written down."""


def register_reader(operator: str, reader: Callable[[_Importer, fx.Node], Any]) -> None:
    """Make an ATen operator known by its name without namespace and underscores (`softplus`)."""
    _READERS[operator] = reader
