"""Convert an `nn.Module` to a graph through torch.export. Unsupported parts are refused with their operator
and module path.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.aten import ANY_LAYOUT, LEAVES, POINTWISE, READERS
from slimdeploy.toolchain.networks.aten_shapes import LAYOUTS, ChannelsLast, Constant
from slimdeploy.toolchain.networks.graph import IMAGE_CHANNELS, INPUT, Graph, Node, needed_for
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators.torch_modules import StochasticDepth

SOFTMAX = {
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
}
"""ATen operators that may follow the logits; they are removed, since a classifier returns logits."""
WEIGHT_HOOKS: dict[type, str] = {
    WeightNorm: "remove_weight_norm",
    SpectralNorm: "remove_spectral_norm",
    BasePruningMethod: "prune.remove",
}
"""Hooks that compute weights before each forward pass -> the function of torch.nn.utils that removes them."""
TOLERANCE = 1e-5
"""Largest difference of a logit between the module and its graph, relative to the largest logit. A larger one
is accepted if the difference in float64 is at most its square.
"""


@dataclass(frozen=True)
class Imported:
    """A network, and its largest logit difference to the original, relative to the largest logit."""

    network: GraphNetwork
    relative_error: float


def from_module(module: nn.Module, *, size: int, arch: str = "custom") -> Imported:
    """Convert `module` in eval mode, with its weights, for images (N, 3, size, size).

    `arch` becomes the network's name. Raises SlimdeployError for a module that can't be traced or takes
    another input, for unsupported operators, for weights that are not finite float32, and if the logits
    differ, also with other values of parameters that are all equal, such as a γ of 0.
    A softmax or log-softmax at the end is removed.
    """
    _check_parts(module)
    _check_weights(module)
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        images = torch.randn(2, IMAGE_CHANNELS, size, size, generator=torch.Generator().manual_seed(0))
        if not _logits(module, images).isfinite().all():
            raise SlimdeployError(
                "the module's logits are not finite on random images: are its weights intact?"
            )
        importer = Importer(_traced(module, images), arch)
        with torch.random.fork_rng(devices=()):  # its random weights are replaced
            network = GraphNetwork(importer.graph()).eval()

        def difference() -> float:
            tensors = {**importer.program.constants, **module.state_dict()}
            network.load_state_dict({name: tensors[name] for name in network.state_dict()})
            return _difference(module, network, images, importer.behind)

        with _varied(module):
            if _logits(module, images).isfinite().all():
                difference()
        return Imported(network, difference())
    except NotImplementedError as error:  # of eval()
        raise SlimdeployError(
            "the module was exported by torch.export: give the nn.Module that it was made from"
        ) from error
    finally:
        for part, training in modes:  # one by one: some, such as a frozen BN, may be in eval mode
            part.training = training


def unwrapped(module: nn.Module) -> nn.Module:
    """The module in torch.compile's wrapper or in one of those for several devices."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # of torch.compile
            module = inner
        else:
            return module


def _check_parts(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise SlimdeployError("the module is TorchScript: give the nn.Module that it was made from")
    for name, part in module.named_modules():
        label = name or "the module"
        if is_parametrized(part):
            raise SlimdeployError(
                f"{label} is parametrized (weight_norm, spectral_norm, …): make its weights plain with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
        for kind, remedy in WEIGHT_HOOKS.items():
            if any(isinstance(hook, kind) for hook in part._forward_pre_hooks.values()):
                raise SlimdeployError(
                    f"{label} computes its weights in a hook: make them plain with torch.nn.utils.{remedy}"
                )
        if part._backward_hooks or part._backward_pre_hooks:
            raise SlimdeployError(f"{label} has backward hooks, which can't be traced: remove them first")


def _check_weights(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if name.endswith("_extra_state"):  # any object, and no weight
            continue
        if not isinstance(tensor, Tensor) or tensor.is_quantized:
            raise SlimdeployError(f"the module's {name} is quantised: give the module before quantisation")
        if is_lazy(tensor):
            raise SlimdeployError(f"the module's {name} has no shape yet: call the module on images once")
        if tensor.is_meta:
            raise SlimdeployError(f"the module's {name} is on the meta device, without values")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise SlimdeployError(f"the module's {name} is {kind}: convert the module with .float()")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SlimdeployError(f"the module's {name} contains NaN or infinite values")


@torch.no_grad()
def _logits(module: nn.Module, images: Tensor) -> Tensor:
    try:
        found = module(images)
    except Exception as error:  # whatever a foreign forward raises
        raise SlimdeployError(
            f"the module doesn't accept images {tuple(images.shape)}, with 3 channels: {_first_line(error)}"
        ) from error
    if not isinstance(found, Tensor):
        if isinstance(found, dict):
            given = f"dict ({', '.join(map(str, found))})"
        else:
            given = type(found).__name__
            given += f" of {len(found)} outputs" if isinstance(found, tuple | list) else ""
        raise SlimdeployError(
            f"the module returns a {given}; expected one tensor of logits: wrap it in a module that returns "
            "only these"
        )
    if found.dim() != 2:
        raise SlimdeployError(f"the module returns {tuple(found.shape)}; expected (N, classes) logits")
    if found.shape[1] < 2:
        raise SlimdeployError("the module returns one value per image; expected a logit for each class")
    return found


@contextlib.contextmanager
def _visible_stochastic_depth(module: nn.Module) -> Iterator[None]:
    """Replace the StochasticDepth of torchvision and timm by slimdeploy's own while tracing: torch.export
    omits theirs, because they do nothing in eval mode.
    """
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent._modules.items()  # a shared one has several names
        if type(child).__name__ in ("StochasticDepth", "DropPath") and getattr(child, "mode", "row") == "row"
    ]
    try:
        for parent, name, child in found:
            share = getattr(child, "p", None) or getattr(child, "drop_prob", None) or 0.0
            setattr(parent, name, StochasticDepth(float(share)).eval())
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what torch.export logs and prints about a module that it can't trace: whole graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _traced(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    try:
        with _visible_stochastic_depth(module), _quiet():
            return torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # torch.export has some twenty classes of its own
        raise SlimdeployError(
            "torch.export can't trace the module (does its forward branch on the values of a tensor?): "
            f"{_first_line(error)}"
        ) from error


@contextlib.contextmanager
def _varied(module: nn.Module) -> Iterator[None]:
    """Replace parameters whose values are all equal, as before training, by random ones: a branch that is
    scaled by 0 (the last γ of a block) or 1e-6 (ConvNeXt's layer scale) would not be compared.
    """
    random = torch.Generator().manual_seed(0)
    found = [
        (p, p.data)
        for p in module.parameters()
        if p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all())
    ]
    try:
        for parameter, values in found:
            parameter.data = torch.empty_like(values).uniform_(0.5, 1.5, generator=random)
        yield
    finally:
        for parameter, values in found:
            parameter.data = values


@torch.no_grad()
def _difference(
    module: nn.Module, network: GraphNetwork, images: Tensor, behind: Callable[..., Tensor] | None
) -> float:
    error = _relative_error(_logits(module, images), network, images, behind)
    if not error <= TOLERANCE and not _same_in_float64(module, network, images, behind):
        raise SlimdeployError(f"the imported network's logits differ from the module's by {error:.1e}")
    return error


def _relative_error(
    expected: Tensor, network: nn.Module, images: Tensor, behind: Callable[..., Tensor] | None
) -> float:
    found = network(images)
    if behind:
        found = behind(found, dim=1)
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _same_in_float64(
    module: nn.Module, network: nn.Module, images: Tensor, behind: Callable[..., Tensor] | None
) -> bool:
    """Whether the logits differ by rounding only, which some networks amplify."""
    try:
        expected = copy.deepcopy(module).double()(images.double())
    except Exception:  # whatever a foreign forward raises, for example for its own float32 constants
        return False
    return _relative_error(expected, copy.deepcopy(network).double(), images.double(), behind) <= TOLERANCE**2


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@dataclass
class Importer:
    """Walks through a traced program and converts each operator to a node."""

    program: torch.export.ExportedProgram
    arch: str
    nodes: list[Node] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Node of the program -> its value: a name, several names, or a class of aten_shapes."""
    behind: Callable[..., Tensor] | None = None
    """The softmax or log-softmax after the logits."""

    def __post_init__(self) -> None:
        signature = self.program.graph_signature
        self.tensors = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._trained = set(signature.inputs_to_parameters.values())
        self.used: set[str] = set()

    def graph(self) -> Graph:
        output = next(node for node in self.program.graph.nodes if node.op == "output").args[0][0]
        logits = self._logits(output)
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = Constant(self.tensors[node.name]) if node.name in self.tensors else INPUT
            elif node.op == "call_function" and not (node is output and self.behind):
                self._call(node)
        wanted = self.values[logits]
        if not isinstance(wanted, str):
            raise SlimdeployError("the module's output isn't computed from the images")
        return Graph(needed_for(wanted, self.nodes), {"arch": self.arch})

    def _logits(self, output: fx.Node) -> fx.Node:
        """The input of the final softmax, if there is one."""
        function = SOFTMAX.get(self.operator(output))
        if function is None or len(output.args) < 2 or output.args[1] not in (1, -1):
            return output
        self.behind, logits = function, output.args[0]
        assert isinstance(logits, fx.Node)
        return logits

    def _call(self, node: fx.Node) -> None:
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):
            return  # arithmetic on sizes and checks, not on pixels
        name = self.operator(node)
        reader = READERS.get(name)
        if reader is None:
            raise self.refused(node, f"aten.{name} isn't supported")
        inputs = [self.values.get(argument) for argument in node.all_input_nodes]
        kinds = {type(value) for value in inputs if not isinstance(value, Constant)}
        layout = next((one for one in LAYOUTS if one in kinds), None)
        if layout is None or reader in ANY_LAYOUT:
            self.values[node] = reader(self, node)
        elif kinds == {layout} and name in POINTWISE:
            self.values[node] = layout(str(reader(self, node)))
        else:
            raise self.refused(node, f"aten.{name} isn't supported where the channels come last")

    def operator(self, node: fx.Node) -> str:
        """The ATen operator of a call, without namespace, overload and surrounding underscores."""
        return str(getattr(node.target, "__name__", node.target)).partition(".")[0].strip("_")

    def refused(self, node: fx.Node, why: str) -> SlimdeployError:
        """The error for `node`, with the path of its module."""
        return SlimdeployError(f"{self._path(node) or 'the module'}: {why}")

    def class_of_module(self, node: fx.Node) -> str:
        """The class name of the module whose forward calls `node`."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][1]).rpartition(".")[2] if stack else ""

    def _path(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]) if stack else ""

    def add(self, node: fx.Node, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with a unique name; returns the name."""
        wanted = name or self._free_name(node, operator)
        if wanted in self.used:
            raise SlimdeployError(f"{wanted} is called twice: shared weights aren't supported")
        self.used.add(wanted)
        self.nodes.append(Node(wanted, operator, inputs, attributes))
        return wanted

    def _free_name(self, node: fx.Node, operator: str) -> str:
        path, own = self._path(node), self.class_of_module(node).lower().replace("2d", "")
        base = path if path and own in LEAVES else f"{path}.{operator}" if path else operator
        number = 1
        while (f"{base}.{number}" if number > 1 else base) in self.used:
            number += 1
        return f"{base}.{number}" if number > 1 else base

    def value(self, node: fx.Node, index: int) -> str:
        """The value named by argument `index`."""
        argument = node.args[index]
        found = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if isinstance(found, Constant):
            raise self.refused(node, f"{node.target} of the parameter {found.name} isn't supported")
        if isinstance(found, LAYOUTS):
            return found.value
        if not isinstance(found, str):
            raise self.refused(node, f"{node.target} of something that isn't an image or a vector")
        return found

    def channels(self, node: fx.Node) -> int:
        """Number of channels of `node`, which equals that of its first argument."""
        return int(node.meta["val"].shape[-1 if self.has_channels_last(node.args[0]) else 1])

    def has_channels_last(self, argument: Any) -> bool:
        """Whether `argument` of a call is an image in the layout (N, H, W, C)."""
        return isinstance(self.values.get(argument), ChannelsLast)

    def constant(self, argument: Any) -> str:
        """The name of the parameter, buffer or constant given as `argument`."""
        found = self.values[argument]
        assert isinstance(found, Constant)
        return found.name

    def tensor(self, name: str) -> Tensor:
        """The values of a parameter, buffer or constant."""
        found = {**self.program.constants, **self.program.state_dict}[name]
        assert isinstance(found, Tensor)
        return found

    def is_trained(self, name: str) -> bool:
        return name in self._trained

    def module_of(self, node: fx.Node, **parts: int) -> str:
        """The module that owns the tensors given as arguments: name of each in the module -> its index.
        Arguments that are omitted or None don't count.
        """
        owners = set()
        for part, index in parts.items():
            argument = node.args[index] if len(node.args) > index else None
            if argument is None:
                continue
            name = self.tensors.get(argument.name, "") if isinstance(argument, fx.Node) else ""
            if not name.endswith(f".{part}"):
                raise self.refused(node, f"{node.target} without a parameter of its own called {part}")
            owners.add(name.removesuffix(f".{part}"))
        if len(owners) != 1:
            raise self.refused(node, f"{node.target} with parameters of several modules isn't supported")
        return str(owners.pop())
