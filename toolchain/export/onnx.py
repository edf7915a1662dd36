"""Write a torch network as ONNX: BN folded, its description in the metadata."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.graph import build_graph
from slimdeploy.toolchain.export.options import DEFAULT_OPSET
from slimdeploy.toolchain.models.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.networks.graph import INPUT, Node
from slimdeploy.toolchain.networks.module import GraphNetwork

__all__ = ["INPUT", "build_onnx", "folded_parameters"]


def build_onnx(network: GraphNetwork, info: ModelInfo, *, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The ONNX model of `network`: input `images` (N, C, size, size) float32, output `logits` (N, classes).

    `info` is stored in the model's metadata. Raises SlimdeployError for weights that are NaN or infinite.
    """
    model = build_graph(
        network.graph,
        info.preprocessing.size,
        parameters=lambda node, bn: folded_parameters(network, node, bn),
        opset=opset,
    )
    helper.set_model_props(model, {METADATA_KEY: info.to_json(), "precision": "fp32"})
    onnx.checker.check_model(model, full_check=True)
    return model


@torch.no_grad()
def folded_parameters(network: GraphNetwork, node: Node, bn: Node | None) -> dict[str, np.ndarray]:
    """The tensors of `node` in float32. For a convolution or linear layer: weight (O, …) and bias (O,) with
    `bn` folded in.

    Raises SlimdeployError for values that are NaN or infinite in float32.
    """
    tensors = network.tensors(node.name)
    if node.operator in ("conv", "linear"):
        weight = tensors["weight"].double()
        bias = tensors["bias"].double() if "bias" in tensors else torch.zeros(len(weight)).double()
        if bn:
            scale, shift = _scale_and_shift(network.tensors(bn.name), float(bn.attributes["eps"]))
            weight, bias = weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias * scale + shift
        tensors = {"weight": weight, "bias": bias}
    found = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
    for name, values in found.items():
        if not np.isfinite(values).all():
            folded = f" with {bn.name} folded in" if bn else ""
            raise SlimdeployError(f"{node.name}.{name}{folded} contains NaN or infinite values")
    return found


def _scale_and_shift(batchnorm: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """BN in eval mode as x·scale + shift, (C,) float64 each."""
    scale = torch.rsqrt(batchnorm["running_var"].double() + eps)
    if "weight" in batchnorm:
        scale = scale * batchnorm["weight"].double()
    shift = -batchnorm["running_mean"].double() * scale
    return scale, shift + batchnorm["bias"].double() if "bias" in batchnorm else shift
