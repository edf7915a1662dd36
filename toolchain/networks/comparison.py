"""Compare an imported network with the module that it was made from."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.importer import ENDINGS, Importer
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators.batchnorm import COUNTER

TOLERANCE = 1e-5
"""Largest difference of a logit between the module and its graph, relative to the largest logit. A larger one
is accepted if the difference in float64 is at most its square.
"""


class Comparison:
    """Of `network`, which `importer` made, with `module`, from which it takes the weights."""

    def __init__(self, module: nn.Module, importer: Importer, network: GraphNetwork) -> None:
        self._module, self._network = module, network
        self._constants, self._ending = importer.constants, ENDINGS.get(importer.ending)

    def relative_error(self, images: Tensor, expected: Tensor) -> float:
        """Give the network the module's weights, and return the largest difference to the logits `expected`,
        relative to the largest logit. Raises SlimdeployError if it is too large.
        """
        self._take(self._network, self._module)
        error = self._error(self._network, images, expected)
        if not error <= TOLERANCE and not self._same_in_float64(images):
            raise SlimdeployError(f"the imported network's logits differ from the module's by {error:.1e}")
        return error

    @torch.no_grad()
    def differs_at_another_size(self, images: Tensor) -> bool:
        """Whether both take images larger than `images` and return other logits for them: the program has
        numbers that the module computes of the size, such as the kernel of avg_pool2d(x, x.shape[2:]).
        """
        size = (
            images.shape[-1] + images.shape[-1] // 2
        )  # twice the size would hide it in means of equal parts
        larger = torch.randn(*images.shape[:2], size, size, generator=torch.Generator().manual_seed(0))
        try:
            self._network.graph.shapes(size)
            with unchanged(self._module):  # it may keep a table for these images
                expected = self._module(larger)
            error = self._error(self._network, larger, expected)
        except Exception:  # whatever a foreign forward raises
            return False
        return not error <= TOLERANCE and not self._same_in_float64(larger)

    def _take(self, network: GraphNetwork, module: nn.Module) -> None:
        """Give `network` the weights of `module`: those that are computed are computed in its precision."""
        buffers = dict(module.named_buffers(remove_duplicate=False))  # those that aren't saved, too
        tensors = self._constants.tensors(module.state_dict() | buffers)
        own = network.state_dict()
        # A module of one's own that calls batch_norm may lack them.
        counters = {name: own[name] for name in own if name.endswith(COUNTER)}
        network.load_state_dict({name: (counters | tensors)[name] for name in own})

    @torch.no_grad()
    def _same_in_float64(self, images: Tensor) -> bool:
        """Whether the logits differ by rounding only, which some networks amplify."""
        network = copy.deepcopy(self._network).double()
        try:
            module = copy.deepcopy(self._module).double()
            expected = module(images.double())
            self._take(network, module)
        except Exception:  # whatever a foreign forward raises, for example for its own float32 constants
            return False
        return self._error(network, images.double(), expected) <= TOLERANCE**2

    @torch.no_grad()
    def _error(self, network: GraphNetwork, images: Tensor, expected: Tensor) -> float:
        found = network(images)
        if self._ending:
            found = self._ending(found)
        return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
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
    finally:
        for own, before in owners:
            for name in own.keys() - before.keys():
                del own[name]
            own.update(before)
        for tensor, values in tensors:
            if not torch.equal(tensor, values):
                tensor.data.copy_(values)


@contextlib.contextmanager
def varied(module: nn.Module) -> Iterator[None]:
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
