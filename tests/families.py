"""A small network of each family that torchvision's classifiers are of: what tests of any CNN work on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from family_modules import (
    CLASSES,
    Cbam,
    ConvNextV2,
    Coordinates,
    Custom,
    GlobalContext,
    Inception,
    LocalResponse,
    PlainShortcuts,
    Senet,
    SplitAttention,
    WrittenOut,
)
from torch import nn

from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.torchvision import import_torchvision

SIZE = 32
tv = import_torchvision().models


def _mobilenet_v3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    block = functools.partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    settings = [block(16, 3, 32, 16, True, "RE", 1), block(16, 5, 48, 24, True, "HS", 2),
                block(24, 5, 48, 24, False, "HS", 1)]  # fmt: skip
    return tv.MobileNetV3(settings, 40, num_classes=CLASSES)


def _efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import MBConvConfig

    settings = [MBConvConfig(1, 3, 1, 32, 16, 1, 1.0, 1.0), MBConvConfig(4, 3, 2, 16, 24, 2, 1.0, 1.0)]
    return tv.EfficientNet(settings, dropout=0.2, num_classes=CLASSES, last_channel=48)


def _regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams

    parameters = BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25)
    return tv.RegNet(parameters, num_classes=CLASSES)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    settings = [CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 2)]
    return tv.ConvNeXt(settings, layer_scale=0.5, num_classes=CLASSES)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
    "resnext": lambda: tv.ResNet(
        tv.resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, groups=8, width_per_group=4
    ),
    "vgg": lambda: tv.VGG(tv.vgg.make_layers([16, "M", 24, "M"], batch_norm=False), num_classes=CLASSES),
    "vgg_bn": lambda: tv.VGG(tv.vgg.make_layers([16, "M", 24, "M"], batch_norm=True), num_classes=CLASSES),
    "mobilenet_v2": lambda: tv.MobileNetV2(
        CLASSES, inverted_residual_setting=[[1, 16, 1, 1], [4, 24, 2, 2], [4, 32, 1, 2]], width_mult=0.5
    ),
    "mobilenet_v3": _mobilenet_v3,
    "efficientnet": _efficientnet,
    "regnet_y": _regnet,
    "densenet": lambda: tv.DenseNet(8, (2, 2), 16, num_classes=CLASSES),
    "squeezenet": lambda: tv.SqueezeNet("1_1", num_classes=CLASSES),
    "inception": Inception,
    "convnext": _convnext,
    "custom": Custom,
    "senet": Senet,
    "plain_shortcuts": PlainShortcuts,
    "cbam": Cbam,
    "split_attention": SplitAttention,
    "global_context": GlobalContext,
    "coordinates": Coordinates,
    "written_out": WrittenOut,
    "local_response": LocalResponse,
    "convnext_v2": ConvNextV2,
    "shufflenet": lambda: tv.ShuffleNetV2([1, 2, 1], [16, 32, 48, 64, 96], num_classes=CLASSES),
}


@functools.cache
def family(name: str) -> GraphNetwork:
    """The network, imported, with every parameter and statistic at random; not to be changed."""
    torch.manual_seed(0)
    module = FAMILIES[name]()
    if name.startswith("vgg"):  # 4,096 hidden units would take seconds
        module.classifier = nn.Sequential(
            nn.Linear(24 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, CLASSES)
        )
    network = from_module(module, size=SIZE, arch=name).network
    generator = torch.Generator().manual_seed(1)
    for key, tensor in network.state_dict().items():
        if tensor.dim() == 1 and not key.endswith("num_batches_tracked"):
            low = 0.5 if key.endswith("running_var") else -1.0
            tensor.uniform_(low, 1.0, generator=generator)
    return network
