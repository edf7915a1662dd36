"""ATen operators, as torch.export writes a program down: what each becomes in a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.registry import Registry

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importing import Importer


@dataclass
class View:
    """A value in another shape, while it is not yet known what for: channels in groups, transposed or not."""

    value: str
    groups: int
    transposed: bool = False


def _argument(node: fx.Node, index: int, default: Any) -> Any:
    found = node.args[index] if len(node.args) > index else default
    return default if found is None else found


def _pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values * 2 if len(values) == 1 else values


def _shape(node: Any) -> list[Any]:
    return list(node.meta["val"].shape)


def _conv(at: Importer, node: fx.Node) -> str:
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


def _batch_norm(at: Importer, node: fx.Node) -> str:
    if _argument(node, 3, None) is None:
        raise at.refused(node, "batch_norm without running statistics isn't supported")
    vector = {"vector": True} if len(_shape(node)) == 2 else {}
    return at.add(
        node, "batchnorm", at.value(node, 0), name=at.module_of(node, 3, "running_mean"),
        channels=_shape(node.args[3])[0], eps=float(_argument(node, 7, 1e-5)),
        momentum=float(_argument(node, 6, 0.1)), affine=_argument(node, 1, None) is not None, **vector,
    )  # fmt: skip


def _linear(at: Importer, node: fx.Node) -> str:
    if len(_shape(node)) != 2:
        raise at.refused(node, "linear on an image isn't supported: it must be flattened first")
    out, count = _shape(node.args[1])
    bias = _argument(node, 2, None) is not None
    return at.add(
        node, "linear", at.value(node, 0), name=at.module_of(node, 1), **{"in": count, "out": out}, bias=bias
    )


def _activation(operator: str) -> Callable[[Importer, fx.Node], str]:
    def read(at: Importer, node: fx.Node) -> str:
        return at.add(node, operator, at.value(node, 0))

    return read


def _clamp(at: Importer, node: fx.Node) -> str:
    low, high = _argument(node, 1, None), _argument(node, 2, None)
    if low != 0 or high not in (None, 6):
        raise at.refused(node, f"a clamp to {low} … {high} isn't supported")
    return at.add(node, "relu" if high is None else "relu6", at.value(node, 0))


def _hardtanh(at: Importer, node: fx.Node) -> str:
    if (_argument(node, 1, -1), _argument(node, 2, 1)) != (0, 6):
        raise at.refused(node, "hardtanh is supported from 0 to 6 (ReLU6) only")
    return at.add(node, "relu6", at.value(node, 0))


def _leaky_relu(at: Importer, node: fx.Node) -> str:
    return at.add(node, "leaky_relu", at.value(node, 0), slope=float(_argument(node, 1, 0.01)))


def _gelu(at: Importer, node: fx.Node) -> str:
    if node.kwargs.get("approximate", "none") != "none":
        raise at.refused(node, "gelu is supported without approximation only")
    return at.add(node, "gelu", at.value(node, 0))


def _elementwise(operator: str) -> Callable[[Importer, fx.Node], str]:
    def read(at: Importer, node: fx.Node) -> str:
        if not isinstance(node.args[1], fx.Node) or node.kwargs.get("alpha", 1) != 1:
            raise at.refused(node, f"{operator} of a number isn't supported")
        return at.add(node, operator, at.value(node, 0), at.value(node, 1))

    return read


def _cat(at: Importer, node: fx.Node) -> str:
    if _argument(node, 1, 0) % len(_shape(node)) != 1:
        raise at.refused(node, "cat is supported along the channels only")
    parts = [at.values.get(part) for part in _argument(node, 0, [])]
    names = [part for part in parts if isinstance(part, str)]
    if len(names) != len(parts):
        raise at.refused(node, "cat of something that isn't an image or a vector")
    return at.add(node, "concat", *names)


def _max_pool(at: Importer, node: fx.Node) -> str:
    if _pair(_argument(node, 4, 1)) != [1, 1]:
        raise at.refused(node, "a dilated max_pool2d isn't supported")
    return at.add(
        node, "max_pool", at.value(node, 0), kernel=_pair(node.args[1]), stride=_stride(node),
        padding=_pair(_argument(node, 3, 0)), ceil=bool(_argument(node, 5, False)),
    )  # fmt: skip


def _avg_pool(at: Importer, node: fx.Node) -> str:
    if _argument(node, 6, None) is not None:
        raise at.refused(node, "avg_pool2d with a divisor isn't supported")
    return at.add(
        node, "avg_pool", at.value(node, 0), kernel=_pair(node.args[1]), stride=_stride(node),
        padding=_pair(_argument(node, 3, 0)), ceil=bool(_argument(node, 4, False)),
        count_padding=bool(_argument(node, 5, True)),
    )  # fmt: skip


def _stride(node: fx.Node) -> list[int]:
    return _pair(_argument(node, 2, None) or node.args[1])


def _adaptive_avg_pool(at: Importer, node: fx.Node) -> str:
    return at.add(node, "adaptive_avg_pool", at.value(node, 0), size=[int(n) for n in _shape(node)[2:]])


def _mean(at: Importer, node: fx.Node) -> str:
    shape, axes = _shape(node.args[0]), _argument(node, 1, [])
    if len(shape) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise at.refused(node, f"mean over the axes {list(axes)} isn't supported, only over height and width")
    pooled = at.add(node, "adaptive_avg_pool", at.value(node, 0), size=[1, 1])
    return pooled if _argument(node, 2, False) else at.add(node, "flatten", pooled, positions=1)


def _dropout(at: Importer, node: fx.Node) -> str:
    return at.add(node, "dropout", at.value(node, 0), share=float(_argument(node, 1, 0.5)))


def _same(at: Importer, node: fx.Node) -> Any:
    return at.values[node.args[0]]  # type: ignore[index]


def _reshape(at: Importer, node: fx.Node) -> Any:
    before, after = _shape(node.args[0]), _shape(node)
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, View):
        if found.transposed and len(after) == 4:
            return at.add(node, "channel_shuffle", found.value, groups=found.groups)
    elif len(after) == len(before) and after[1:] == before[1:]:
        return at.value(node, 0)
    elif len(before) == 4 and len(after) == 2:
        return at.add(node, "flatten", at.value(node, 0), positions=int(before[2] * before[3]))
    elif len(before) == 4 and len(after) == 5 and after[3:] == before[2:]:
        return View(at.value(node, 0), int(after[1]))
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    raise at.refused(node, f"aten.{name} from {_told(before)} to {_told(after)} isn't supported")


def _told(shape: list[Any]) -> str:
    return "×".join("N" if i == 0 else str(n) for i, n in enumerate(shape))


def _transpose(at: Importer, node: fx.Node) -> Any:
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, View) and {int(a) for a in node.args[1:]} == {1, 2}:  # type: ignore[arg-type]
        return View(found.value, found.groups, transposed=True)
    raise at.refused(node, "aten.transpose isn't supported")


def _channel_shuffle(at: Importer, node: fx.Node) -> str:
    return at.add(node, "channel_shuffle", at.value(node, 0), groups=int(_argument(node, 1, 1)))


def _pieces(at: Importer, node: fx.Node) -> list[str]:
    if _argument(node, 2, 0) % len(_shape(node.args[0])) != 1:
        raise at.refused(node, "chunk and split are supported along the channels only")
    found, start = [], 0
    for piece in node.meta["val"]:
        stop = start + int(piece.shape[1])
        found.append(at.add(node, "slice", at.value(node, 0), start=start, stop=stop))
        start = stop
    return found


def _slice(at: Importer, node: fx.Node) -> str:
    if _argument(node, 1, 0) != 1 or _argument(node, 4, 1) != 1:
        raise at.refused(node, "slices are supported along the channels only, without a step")
    count = int(_shape(node)[1])
    start = int(_argument(node, 2, 0)) % int(_shape(node.args[0])[1])
    return at.add(node, "slice", at.value(node, 0), start=start, stop=start + count)


def _item(at: Importer, node: fx.Node) -> str:
    return str(at.values[node.args[0]][node.args[1]])  # type: ignore[index]


LEAVES = (
    "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "leakyrelu", "dropout",
    "maxpool", "avgpool", "adaptiveavgpool", "flatten", "identity",
)  # fmt: skip
"""Module classes that are one operator: the node takes the module's own path as its name."""

Reader = Callable[["Importer", fx.Node], Any]
"""Writes a call of an ATen operator down: returns what the call stands for."""
READERS: Registry[Reader] = Registry("aten", Callable)
"""ATen operator, by its name without namespace and underscores (`softplus`) -> how it is written down."""
READERS.update(
    {
        "conv2d": _conv,
        "batch_norm": _batch_norm,
        "linear": _linear,
        **{
            name: _activation(name)
            for name in ("relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
        },
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
)
