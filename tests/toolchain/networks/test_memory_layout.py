"""Networks are placed in the fast layout, and get right gradients in it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import layer_sweep
import torch
from processes import process_environment
from torch import nn

from slimdeploy.toolchain.networks.memory_layout import needs_contiguous, place


def test_every_layer_that_pruning_can_leave_has_right_gradients() -> None:
    # Threads that wait asleep leave the core to the others where there are more threads than cores.
    environment = {**process_environment(), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(Path(layer_sweep.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "all layers tried\n"), done.stderr


def _channels_last(layer: nn.Conv2d) -> bool:
    images = torch.randn(2, layer.in_channels, 6, 6).to(memory_format=torch.channels_last)
    return layer(images).is_contiguous(memory_format=torch.channels_last)


def test_only_the_layers_in_need_leave_channels_last() -> None:
    few, many = nn.Conv2d(15, 8, 1, stride=2), nn.Conv2d(16, 8, 1, stride=2)
    wide, plain = nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(4, 8, 1)
    place(nn.Sequential(few, many, wide, plain), "cpu")
    assert [needs_contiguous(layer) for layer in (few, many, wide, plain)] == [True, False, False, False]
    assert [_channels_last(layer) for layer in (few, many, wide, plain)] == [False, True, True, True]


def test_placing_again_or_a_copy_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2))
    for _ in range(2):
        network = copy.deepcopy(place(network, "cpu"))
    layer = network[0]
    assert isinstance(layer, nn.Conv2d)
    assert len(layer._forward_pre_hooks) == 1
    assert not _channels_last(layer)
