"""Convert an `nn.Module` to a graph through torch.export. Unsupported parts are refused with their operator
and module path.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.comparison import Comparison, unchanged, varied
from slimdeploy.toolchain.networks.graph import IMAGE_CHANNELS
from slimdeploy.toolchain.networks.importer import Importer
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators.torch_modules import StochasticDepth

SIGMOID_REMOVED = (
    "the sigmoid at the end is removed: probabilities are now those of softmax, and training and accuracy "
    "are for one class per image"
)


@dataclass(frozen=True)
class Imported:
    """A network, and its largest logit difference to the original, relative to the largest logit. `remarks`
    tell what the user should know of the conversion.
    """

    network: GraphNetwork
    relative_error: float
    remarks: tuple[str, ...] = ()


def from_module(module: nn.Module, *, size: int, arch: str = "custom", image_channels: int = 3) -> Imported:
    """Convert `module` in eval mode, with its weights, for images (N, image_channels, size, size), or for
    those of another number of channels, 1 or 3, if it takes only these.

    `arch` becomes the network's name. Raises SlimdeployError for a module that can't be traced or takes
    another input, for unsupported operators, for weights that are not finite float32, and if the logits
    differ, also with other values of parameters that are all equal, such as a γ of 0.
    A softmax, log-softmax or sigmoid at the end is removed.
    """
    _check_parts(module)
    _check_weights(module)
    with unchanged(module):
        try:
            module.eval()
        except NotImplementedError as error:
            raise SlimdeployError(
                "the module was exported by torch.export: give the nn.Module that it was made from"
            ) from error
        images, found = _accepted(module, size, image_channels)
        expected = _logits(found)
        if not expected.isfinite().all():
            raise SlimdeployError(
                "the module's logits are not finite on random images: are its weights intact?"
            )
        importer = Importer(_traced(module, images), arch)
        with torch.random.fork_rng(devices=()):  # its random weights are replaced
            network = GraphNetwork(importer.graph()).eval()
        network.graph.shapes(size)  # refuses what no later command could run, such as GroupNorm of a vector

        comparison = Comparison(module, importer, network)
        with varied(module):
            logits = _logits(_run(module, images))
            if logits.isfinite().all():
                comparison.relative_error(images, logits)
                if comparison.differs_at_another_size(images):
                    network.graph = replace(network.graph, origin={**network.graph.origin, "size": size})
        return Imported(network, comparison.relative_error(images, expected), tuple(_remarks(importer)))


def _remarks(importer: Importer) -> Iterator[str]:
    if importer.ending == "sigmoid":
        yield SIGMOID_REMOVED
    if computed := importer.constants.computed():
        yield (
            f"{_some(computed)}: the module computes the values in every forward pass (weight "
            "standardisation, for example); the imported network has the results as plain weights"
        )
    if copied := importer.constants.copied():
        yield (
            f"{_some(copied)}: the module uses the values several times; the imported network has a copy for "
            "each use, and training changes each on its own"
        )


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


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
        if part._backward_hooks or part._backward_pre_hooks:
            raise SlimdeployError(
                f"{name or 'the module'} has backward hooks, which can't be traced: remove them first"
            )


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
def _accepted(module: nn.Module, size: int, wanted: int) -> tuple[Tensor, object]:
    """Random images (2, channels, size, size) that the module takes, with `wanted` channels if it takes both,
    and what it returns for them.
    """
    refusals: dict[tuple[int, ...], Exception] = {}
    for channels in sorted(IMAGE_CHANNELS, key=lambda n: n != wanted):
        images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
        try:
            found = module(images)
            if isinstance(found, Tensor) and len(found) != len(images):  # x.view(-1, 1, 28, 28)
                raise ValueError(f"it returns {tuple(found.shape)}")
        except Exception as error:  # whatever a foreign forward raises
            refusals[tuple(images.shape)] = error
        else:
            return images, found
    reasons = ", nor ".join(f"{shape} ({_first_line(error)})" for shape, error in refusals.items())
    raise SlimdeployError(f"the module doesn't accept images {reasons}; `size` is {size}") from next(
        iter(refusals.values())
    )


@torch.no_grad()
def _run(module: nn.Module, images: Tensor) -> object:
    try:
        return module(images)
    except Exception as error:  # whatever a foreign forward raises
        raise SlimdeployError(
            f"the module doesn't accept images {tuple(images.shape)}: {_first_line(error)}"
        ) from error


def _logits(found: object) -> Tensor:
    """`found`, which a module returns; raises SlimdeployError if it isn't (N, classes) logits."""
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
        raise SlimdeployError(
            "the module returns one value x per image; expected a logit for each class: wrap it in a module "
            "that returns torch.cat([-x / 2, x / 2], 1), which has the probabilities of sigmoid(x)"
        )
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


@torch.no_grad()  # else a `with torch.no_grad()` in the module becomes an operator around its part
def _traced(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    try:
        with _visible_stochastic_depth(module), _quiet():
            return torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # torch.export has some twenty classes of its own
        raise SlimdeployError(
            "torch.export can't trace the module (does its forward branch on the values of a tensor?): "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
