"""What a network costs: parameters, multiply-accumulates and memory, from its spec. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimdeploy.toolchain.networks.layers import Conv, Layers, enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec

MB = 2**20


@dataclass(frozen=True)
class Memory:
    """Megabytes (2^20 bytes) for one float32 image, by torchsummary's convention.

    `activations` counts the output of every module call (convolution, BN, ReLU, pool, block, classifier)
    twice, once for the backward pass; `params` counts weights, biases, γ and β.
    """

    input: float
    activations: float
    params: float

    @property
    def total(self) -> float:
        return self.input + self.activations + self.params


@dataclass(frozen=True)
class Cost:
    """Costs of one network for one image. `padded_macs` counts every width rounded up to `alignment`."""

    params: int
    macs: int
    padded_macs: int
    alignment: int
    module_calls: int
    memory: Memory


def network_cost(spec: NetworkSpec, size: int, *, alignment: int = 8) -> Cost:
    """Cost of `spec` for square images with a side of `size` pixels."""
    layers = enumerate_layers(spec, size)
    calls = _module_outputs(layers)
    params = _params(layers)
    memory = Memory(3 * size * size * 4 / MB, sum(calls) * 4 * 2 / MB, params * 4 / MB)
    return Cost(
        params, _macs(layers.convs(), layers), _padded_macs(layers, alignment), alignment, len(calls), memory
    )


def _params(layers: Layers) -> int:
    return sum(conv.params for conv in layers.convs()) + layers.classes * (layers.classifier_in + 1)


def _macs(convs: list[Conv], layers: Layers) -> int:
    return sum(conv.macs for conv in convs) + layers.classes * layers.classifier_in


def _padded_macs(layers: Layers, alignment: int) -> int:
    """What hardware that works on `alignment` channels at a time computes; the 3 input channels stay 3."""
    padded = [
        replace(
            conv,
            in_channels=conv.in_channels if conv.name == "conv1" else round_up(conv.in_channels, alignment),
            out_channels=round_up(conv.out_channels, alignment),
        )
        for conv in layers.convs()
    ]
    return _macs(padded, layers)


def round_up(width: int, alignment: int) -> int:
    """The least multiple of `alignment` that is at least `width`."""
    return -(-width // alignment) * alignment


def _module_outputs(layers: Layers) -> list[int]:
    """Elements that each module call writes, in torchsummary's sense (containers apart)."""
    calls = _conv_calls(layers.stem)
    if layers.pool_size is not None:
        calls.append(layers.stem.out_channels * layers.pool_size**2)
    for block in layers.blocks:
        for conv in (*block.convs, *([block.shortcut] if block.shortcut else [])):
            calls += _conv_calls(conv)
        # The ReLU after the sum or the projection, and the block itself; a removed identity has no ReLU.
        calls += [block.out_channels * block.out_size**2] * (2 if block.convs or block.shortcut else 1)
    return [*calls, layers.classifier_in, layers.classes]


def _conv_calls(conv: Conv) -> list[int]:
    elements = conv.out_channels * conv.out_size**2
    return [elements] * (3 if conv.relu else 2)
