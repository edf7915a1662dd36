"""Convert an `nn.Module` to a graph through torch.export. Unsupported parts are refused with their operator
and module path.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.graph import IMAGE_CHANNELS
from slimdeploy.toolchain.networks.importer import ENDINGS, Importer
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators.batchnorm import COUNTER
from slimdeploy.toolchain.networks.operators.torch_modules import StochasticDepth

TOLERANCE = 1e-5
"""Largest difference of a logit between the module and its graph, relative to the largest logit. A larger one
is accepted if the difference in float64 is at most its square.
"""

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
    with _unchanged(module):
        module.eval()
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

        def take(network: GraphNetwork, module: nn.Module) -> None:
            """Give `network` the weights of `module`."""
            buffers = dict(module.named_buffers(remove_duplicate=False))  # those that aren't saved, too
            tensors = importer.constants.tensors(module.state_dict() | buffers)
            own = network.state_dict()
            # A module of one's own that calls batch_norm may lack them.
            counters = {name: own[name] for name in own if name.endswith(COUNTER)}
            network.load_state_dict({name: (counters | tensors)[name] for name in own})

        ending = ENDINGS.get(importer.ending)

        def difference(expected: Tensor) -> float:
            take(network, module)
            error = _relative_error(expected, network, images, ending)
            if not error <= TOLERANCE and not _same_in_float64(module, network, images, ending, take):
                raise SlimdeployError(
                    f"the imported network's logits differ from the module's by {error:.1e}"
                )
            return error

        with _varied(module):
            varied = _logits(_run(module, images))
            if varied.isfinite().all():
                difference(varied)
                if _differs_at_another_size(module, network, images, ending, take):
                    network.graph = replace(network.graph, origin={**network.graph.origin, "size": size})
        return Imported(network, difference(expected), tuple(_remarks(importer)))


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put everything back afterwards: the attributes of each part, such as its mode or what its first forward
    pass makes (a grid, and a flag that it exists), and the tensors, which a forward may overwrite (a weight
    that it renormalises, a counter).
    """
    owners: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (own, dict(own))
        for part in module.modules()
        for own in (part.__dict__, part._parameters, part._buffers, part._modules)
    ]
    tensors = [
        (tensor, tensor.detach().clone())
        for part in module.modules()
        for own in (part._parameters, part._buffers)
        for tensor in own.values()
        if tensor is not None
    ]
    try:
        yield
    except NotImplementedError as error:  # of eval()
        raise SlimdeployError(
            "the module was exported by torch.export: give the nn.Module that it was made from"
        ) from error
    finally:
        for own, before in owners:
            for name in own.keys() - before.keys():
                del own[name]
            own.update(before)
        for tensor, values in tensors:
            if not torch.equal(tensor, values):
                tensor.data.copy_(values)


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
def _relative_error(
    expected: Tensor, network: nn.Module, images: Tensor, ending: Callable[[Tensor], Tensor] | None
) -> float:
    found = network(images)
    if ending:
        found = ending(found)
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


@torch.no_grad()
def _same_in_float64(
    module: nn.Module,
    network: GraphNetwork,
    images: Tensor,
    ending: Callable[[Tensor], Tensor] | None,
    take: Callable[[GraphNetwork, nn.Module], None],
) -> bool:
    """Whether the logits differ by rounding only, which some networks amplify. `take` gives a network the
    weights of a module: those that are computed are computed in float64 too.
    """
    made = copy.deepcopy(network).double()
    try:
        exact = copy.deepcopy(module).double()
        expected = exact(images.double())
        take(made, exact)
    except Exception:  # whatever a foreign forward raises, for example for its own float32 constants
        return False
    return _relative_error(expected, made, images.double(), ending) <= TOLERANCE**2


@torch.no_grad()
def _differs_at_another_size(
    module: nn.Module,
    network: GraphNetwork,
    images: Tensor,
    ending: Callable[[Tensor], Tensor] | None,
    take: Callable[[GraphNetwork, nn.Module], None],
) -> bool:
    """Whether both take larger images and return other logits for them: the program has numbers that the
    module computes of the size, such as the kernel of avg_pool2d(x, x.shape[2:]).
    """
    size = images.shape[-1] + images.shape[-1] // 2  # twice the size would hide it in means of equal parts
    larger = torch.randn(*images.shape[:2], size, size, generator=torch.Generator().manual_seed(0))
    try:
        network.graph.shapes(size)
        with _unchanged(module):  # it may keep a table for these images
            expected = module(larger)
        error = _relative_error(expected, network, larger, ending)
    except Exception:  # whatever a foreign forward raises
        return False
    return not error <= TOLERANCE and not _same_in_float64(module, network, larger, ending, take)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
