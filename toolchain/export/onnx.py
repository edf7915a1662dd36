"""Writes a torch network as ONNX: BN folded into the convolutions, its description in the metadata."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper
from torch import nn

from slimdeploy.toolchain.export.graph import INPUT, build_graph
from slimdeploy.toolchain.export.options import DEFAULT_OPSET
from slimdeploy.toolchain.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.networks.resnet import ResNet

__all__ = ["INPUT", "build_onnx", "fold_batchnorm"]


def build_onnx(network: ResNet, info: ModelInfo, *, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The ONNX model of `network`: input `images` (N, 3, size, size) float32, output `logits` (N, classes).

    `info` travels in the model's metadata.
    """
    model = build_graph(
        network.spec,
        info.preprocessing.size,
        conv=lambda conv: fold_batchnorm(network.conv(conv.name), network.batchnorm(conv.batchnorm)),
        classifier=(network.fc.weight.detach().cpu().numpy(), network.fc.bias.detach().cpu().numpy()),
        opset=opset,
    )
    helper.set_model_props(model, {METADATA_KEY: info.to_json(), "precision": "fp32"})
    onnx.checker.check_model(model, full_check=True)
    return model


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """Weight (O, I, k, k) and bias (O,) of the convolution that computes `conv` then `bn` in eval mode."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    with torch.no_grad():
        scale = torch.rsqrt(bn.running_var.double() + bn.eps)
        if bn.affine:
            scale = scale * bn.weight.double()
        bias = -bn.running_mean.double() * scale
        if bn.affine:
            bias = bias + bn.bias.double()
        weight = conv.weight.double() * scale[:, None, None, None]
    return weight.float().cpu().numpy(), bias.float().cpu().numpy()
