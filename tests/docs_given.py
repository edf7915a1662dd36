"""What the commands of the documentation find in their folder: a checkout's files, images, and small networks
under the names that the pages use.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from docs_blocks import ROOT
from PIL import Image

from slimdeploy.benchmarks import own_model
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures.resnet import ResNet
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.torchvision import import_torchvision

CHAIN = """
slimdeploy train --weights fresh.safetensors --data folder:data/cifar10-jpeg --epochs 1 --batch-size 16 --sparsity 1e-3 -o sparse.safetensors
cp sparse.safetensors net.safetensors
slimdeploy prune sparse.safetensors --ratio 0.3 --align 1 -o pruned.safetensors
slimdeploy finetune pruned.safetensors --epochs 1 --batch-size 16 -o final.safetensors
slimdeploy export sparse.safetensors -o original.onnx
slimdeploy export pruned.safetensors -o pruned.onnx
slimdeploy export final.safetensors -o final.onnx
"""  # noqa: E501


def given(folder: Path, environment: dict[str, str]) -> None:
    """Write it all into `folder`."""
    folder.mkdir()
    for name in ("benchmarks", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    _cifar(folder / "data" / "cifar10-jpeg")
    own_model.draw_photos(folder / "photos", train=6, test=3)
    shutil.copytree(folder / "photos", folder / "PATH")
    shutil.copyfile(folder / "photos" / "test" / "disc" / "0.jpg", folder / "photo.jpg")
    torch.manual_seed(0)
    resnet = import_torchvision().models.resnet18(num_classes=len(own_model.CLASSES))
    own_model.save_weights(resnet, folder / "weights.ckpt")
    _network(folder / "fresh.safetensors")
    _keys(folder)
    subprocess.run(["bash", "-ec", CHAIN], cwd=folder, env=environment, check=True, capture_output=True)


def _keys(home: Path) -> None:
    """An SSH key, and who may sign with it."""
    key = home / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (home / "allowed_signers").write_text(f"me {key.with_suffix('.pub').read_text()}")


def _network(path: Path) -> None:
    """A bottleneck network of 10 classes for 32×32 images, in which there is something to prune."""
    graph = ResNet("small", True, (1, 1, 1, 1), stem_width=16, widths=(16, 16, 32, 32)).graph(classes=10)
    names = tuple(f"class {number}" for number in range(10))
    preprocessing = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_checkpoint(path, build_network(graph, seed=0), ModelInfo(graph, preprocessing, names))


def _cifar(folder: Path) -> None:
    """Images as those of CIFAR-10 lie in a folder: 32×32 JPEG files, each class of a colour of its own."""
    rng = np.random.default_rng(0)
    for number in range(10):
        colour = rng.integers(0, 160, 3)
        for split, count in (("train", 12), ("test", 4)):
            (folder / split / f"class {number}").mkdir(parents=True)
            for image in range(count):
                pixels = (colour + rng.integers(0, 96, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class {number}" / f"{image}.jpg")
