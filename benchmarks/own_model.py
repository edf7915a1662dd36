"""A user's torchvision ResNet-18, from its state dict to a deployed classifier, with the commands printed in
docs/own-model.md: number of commands, duration, and comparison of the classifiers.

    python benchmarks/own_model.py --work runs/own-model

Photos of four shapes are drawn, and the network is trained on them with plain torchvision code; this part
isn't measured. Then all commands in the sections of the page are run, one section after the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.torchvision import import_torchvision

PAGE = Path(__file__).parents[1] / "docs/own-model.md"
SECTIONS = ("To a device", "Prune and quantise it too", "As one")
CLASSES = {"cross": (170, 60, 60), "disc": (60, 160, 70), "ring": (60, 80, 180), "triangle": (180, 160, 60)}
"""Name -> typical colour, so that a short training tells them apart."""
SIZE = 96
"""Image side for training: smaller for speed. The photos are classified at 224."""


def draw_photos(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """`folder/{train,test}/<class>/<number>.jpg`, `count` per class: a shape at a random position on a noisy
    grey background, in varied colours, sizes and formats.
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                _photo(name, rng).save(folder / split / name / f"{number}.jpg", quality=92)


def _photo(name: str, rng: np.random.Generator) -> Image.Image:
    width, height = rng.integers(230, 420, 2).tolist()
    ground, colour = rng.integers(40, 216), np.array(CLASSES[name]) + rng.integers(-50, 51, 3)
    noise = rng.normal(0, 18, (height, width, 3))
    image = Image.fromarray((ground + noise).clip(0, 255).astype(np.uint8))
    side = int(min(width, height) * rng.uniform(0.35, 0.6))
    left, top = rng.integers(0, width - side), rng.integers(0, height - side)
    box, fill, draw = (left, top, left + side, top + side), tuple(colour.tolist()), ImageDraw.Draw(image)
    if name == "disc":
        draw.ellipse(box, fill=fill)
    elif name == "ring":
        draw.ellipse(box, outline=fill, width=side // 6)
    elif name == "triangle":
        draw.polygon([(left, top + side), (left + side, top + side), (left + side // 2, top)], fill=fill)
    else:
        draw.line((left, top, left + side, top + side), fill=fill, width=side // 6)
        draw.line((left, top + side, left + side, top), fill=fill, width=side // 6)
    return image


def train_with_torchvision(photos: Path, output: Path, *, epochs: int) -> None:
    """Train a ResNet-18 as torchvision's reference does, smaller, and save its state dict."""
    vision = import_torchvision()
    t = vision.transforms
    transform = t.Compose(
        [
            t.RandomResizedCrop(SIZE, scale=(0.5, 1)),
            t.RandomHorizontalFlip(),
            t.ToTensor(),
            t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.manual_seed(0)
    data = vision.datasets.ImageFolder(photos / "train", transform)
    network = vision.models.resnet18(num_classes=len(data.classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for images, labels in torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
    save_weights(network, output)


def save_weights(network: nn.Module, output: Path) -> None:
    """The state dict in Lightning's format."""
    torch.save({"state_dict": {f"model.{name}": t for name, t in network.state_dict().items()}}, output)


@torch.no_grad()
def torchvision_probabilities(photos: Path, weights: Path) -> dict[str, np.ndarray]:
    """File -> (classes,): the probabilities from torchvision's pipeline for each test photo."""
    vision = import_torchvision()
    t = vision.transforms
    transform = t.Compose(
        [
            t.Resize(256),
            t.CenterCrop(224),
            t.ToTensor(),
            t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    state = torch.load(weights, weights_only=True)["state_dict"]
    network: nn.Module = vision.models.resnet18(num_classes=len(CLASSES))
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    network.eval()
    data = vision.datasets.ImageFolder(photos / "test", transform)
    return {
        path: network(image[None]).softmax(1)[0].numpy()
        for (path, _), (image, _) in zip(data.samples, data, strict=True)
    }


def printed_commands(section: str) -> list[str]:
    """The commands in a section of docs/own-model.md, as printed."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [line.strip() for line in text.splitlines() if line.startswith("    slimdeploy ")]


@dataclass(frozen=True)
class Difference:
    """Difference between the deployed classifier and torchvision's: files with another top-1 class, and the
    largest difference of a probability. `correct`: files that the deployed classifier classifies correctly.
    """

    files: int
    correct: int
    other_top: int
    probability: float


def difference(expected: dict[str, np.ndarray], answers: list[dict[str, object]], root: Path) -> Difference:
    """`answers`: the results of `classify --json`, of files below `root`."""
    found = {}
    for answer in answers:
        probabilities = np.zeros(len(CLASSES))
        for one in answer["top"]:  # type: ignore[attr-defined]
            probabilities[one["index"]] = one["probability"]
        found[str(root / str(answer["image"]))] = probabilities
    assert found.keys() == expected.keys()
    correct = sum(list(CLASSES)[one.argmax()] == Path(path).parent.name for path, one in found.items())
    other = sum(found[path].argmax() != wanted.argmax() for path, wanted in expected.items())
    largest = max(np.abs(found[path] - wanted).max() for path, wanted in expected.items())
    return Difference(len(found), correct, int(other), float(largest))


def run(command: str, folder: Path) -> tuple[float, str]:
    """Run a printed command in `folder`, whose subfolder `device` represents the device; returns seconds and
    output.
    """
    started = time.perf_counter()
    done = subprocess.run(
        command.replace("slimdeploy", f"{sys.executable} -m slimdeploy.toolchain", 1), shell=True,
        cwd=folder, env=os.environ | {"SLIMDEPLOY_HOME": str(folder / "device")},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return time.perf_counter() - started, done.stdout


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option(
    "--photos", default=45, show_default=True, help="Training photos per class; a third of that for the test."
)
@click.option("--epochs", default=10, show_default=True, help="Epochs of the training with torchvision.")
def main(work: Path, photos: int, epochs: int) -> None:
    """Create the photos and the weights, run the printed commands, and compare."""
    work = work.resolve()
    work.mkdir(parents=True)
    draw_photos(work / "photos", train=photos, test=photos // 3)
    train_with_torchvision(work / "photos", work / "weights.ckpt", epochs=epochs)
    expected = torchvision_probabilities(work / "photos", work / "weights.ckpt")
    for section in SECTIONS:
        total = 0.0
        for command in printed_commands(section):
            seconds, _ = run(command, work)
            total += seconds
            print(f"{seconds:6.1f} s  {command}", flush=True)
        print(f"{section}: {len(printed_commands(section))} commands, {total / 60:.1f} minutes")
        _, text = run(f"slimdeploy classify photos/test --top {len(CLASSES)} --json", work)
        print(difference(expected, json.loads(text)["results"], work))


if __name__ == "__main__":
    run_program(main, "own_model")
