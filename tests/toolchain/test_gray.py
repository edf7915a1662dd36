"""Networks for gray images: one channel from the training data to the device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

import slimdeploy
from slimdeploy.toolchain.channel_values import joined
from slimdeploy.toolchain.data.batches import Normalise
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, Split
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import grayscale
from slimdeploy.toolchain.models.checkpoint import load_checkpoint, save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.preprocessing_options import PreprocessingOptions
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.training.pretrained import read_weights

MODEL = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=16):
        super().__init__(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(36 * width, 10), nn.LogSoftmax(1),
        )
"""
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
GRAY = Preprocessing(16, (0.3,), (0.4,), channels="gray")


def _net(width: int = 16) -> nn.Module:
    found: dict[str, type[nn.Module]] = {}
    exec(MODEL, found)
    torch.manual_seed(0)
    return found["Net"](width)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "mnist.py"
    path.write_text(MODEL)
    return path


def test_gray_is_that_of_pil() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        grayscale(colours)[..., 0], np.asarray(Image.fromarray(colours).convert("L"))
    )
    levels = np.arange(256, dtype=np.uint8)[:, None]
    np.testing.assert_array_equal(grayscale(levels.repeat(3, 1)), levels)


def test_training_and_deployment_normalise_alike() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    by_numpy = normalise(images, GRAY)
    assert by_numpy.shape == (3, 1, 16, 16)
    expected = (np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in images]) / 255 - 0.3) / 0.4
    np.testing.assert_allclose(by_numpy[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(Normalise(GRAY, "cpu")(torch.from_numpy(images)), by_numpy, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.1, 0.2, 0.3), "channels": "gray"}, "mean must be one number for gray images, not"),
        ({"mean": (0.1,), "channels": "rgb"}, "mean must be three numbers for rgb images, not"),
        ({"mean": (0.1,), "std": (0.1, 0.2, 0.3)}, "std must be one number for gray images, not"),
        ({"std": (0.1, 0.2)}, r"std must be three numbers, or one for gray images, not \(0.1, 0.2\)"),
        ({"channels": "grey"}, "unknown channels 'grey'"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SlimdeployError, match=message):
        PreprocessingOptions(**options)  # type: ignore[arg-type]


def test_one_number_means_gray() -> None:
    assert PreprocessingOptions(mean=0.13).channels == "gray"
    chosen = PreprocessingOptions(mean=(0.13,), preprocessing="imagenet")
    assert (chosen.channels, chosen.statistics) == ("gray", ((0.13,), None))
    with pytest.raises(SlimdeployError, match=r"3 channels; channels is gray .one number as mean or std"):
        chosen.for_network("net", 3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mean", ".1", "net"], ["--mean", ".1", "net"]),
        (["--mean", ".1", ".2", ".3", "net"], ["--mean", ".1 .2 .3", "net"]),
        (["--mean", ".1", ".2", ".3", "4"], ["--mean", ".1 .2 .3", "4"]),
        (["--mean=.1", ".2", ".3", "--std"], ["--mean=.1 .2 .3", "--std"]),
        (["--size", "1", "2"], ["--size", "1", "2"]),
    ],
)
def test_numbers_of_an_option_are_joined(words: list[str], expected: list[str]) -> None:
    assert joined(words, ["--mean", "--std"]) == expected


def test_a_module_for_gray_images_is_imported() -> None:
    module = _net()
    network = from_module(module, size=16).network
    assert network.graph.image_channels == 1
    assert Graph.from_json(json.loads(json.dumps(network.graph.to_json()))) == network.graph
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(network(images).log_softmax(1), module.eval()(images))
    for channels in (2, "1"):
        with pytest.raises(SlimdeployError, match="images have 3 channels, or 1"):
            Graph.from_json({**network.graph.to_json(), "image_channels": channels})
    with pytest.raises(SlimdeployError, match="takes images with 1 channel, but the preprocessing makes 3"):
        ModelInfo(network.graph, Preprocessing(16, (0.5,) * 3, (0.5,) * 3), tuple("0123456789"))


@pytest.mark.parametrize(
    "in_colours",
    [
        lambda gray: gray.repeat(1, 3, 1, 1),
        lambda gray: ((gray - 0.13) / 0.31).repeat(1, 3, 1, 1),
        lambda gray: gray.expand(-1, 3, -1, -1),
        lambda gray: torch.cat([gray] * 3, 1),
        lambda gray: (gray - MEAN) / 0.22,
    ],
)
def test_gray_images_repeated_for_a_colour_network(
    in_colours: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """As people reuse a network that was trained on photos."""

    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(8, 4),
            )  # fmt: skip

        def forward(self, gray: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(in_colours(gray))
            return found

    module, images = Repeating().eval(), torch.randn(2, 1, 16, 16)
    network = from_module(module, size=16, image_channels=1).network
    assert network.graph.image_channels == 1
    torch.testing.assert_close(network(images), module(images))


class _Expanding(nn.Module):
    """Takes images with one channel and with three."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 10),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(images.expand(-1, 3, -1, -1))
        return found


def test_a_module_for_gray_and_colour_images_takes_the_chosen_ones() -> None:
    module = _Expanding()
    assert slimdeploy.from_module(module, size=16).network.graph.image_channels == 3
    assert slimdeploy.from_module(module, preprocessing=GRAY).network.graph.image_channels == 1
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8)
    split = Split(images, np.arange(20) % 10)
    dataset = Dataset(tuple("0123456789"), split, split, GRAY)
    for result in (
        slimdeploy.train(module, data=dataset, epochs=1, batch_size=4),
        slimdeploy.prune(module, data=dataset, ratio=0.5, align=1),
    ):
        assert result.checkpoint.info.graph.image_channels == 1


def test_a_module_that_takes_no_images_of_the_size_is_refused_with_both_reasons() -> None:
    with pytest.raises(
        SlimdeployError,
        match=r"images \(2, 3, 20, 20\) \(RuntimeError: .*, nor \(2, 1, 20, 20\) \(RuntimeError: "
        r"mat1 and mat2 shapes .*; size is 20",
    ):
        from_module(_net(), size=20)


def test_a_module_that_makes_one_channel_by_view_is_for_gray_images() -> None:
    """Colour images would be three times as many for it."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(x.view(-1, 1, 16, 16))
            return found

    assert from_module(Viewing(), size=16).network.graph.image_channels == 1


def test_a_colour_network_has_the_description_that_it_had() -> None:
    assert "image_channels" not in build_graph("resnet18").to_json()


def test_the_library_prunes_and_exports_with_batches_of_ones_own(tmp_path: Path) -> None:
    module, generator = _net(), torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(20, 1, 16, 16, generator=generator), torch.randint(0, 10, (20,), generator=generator))
        for _ in range(4)
    ]
    result = slimdeploy.prune(module, data=batches, test=batches, size=16, ratio=0.5, align=1)
    assert result.network(batches[0][0]).shape == (20, 10)
    assert result.checkpoint.info.preprocessing == Preprocessing(16, (0.0,), (1.0,), channels="gray")
    exported = slimdeploy.export(result.checkpoint, data=batches, output=tmp_path / "net.onnx")
    shape = onnx.load(exported.onnx).graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim[1:]] == [1, 16, 16]
    with pytest.raises(
        SlimdeployError, match="yields images of 3 × 16 × 16, but the network takes 1 × 16 × 16"
    ):
        slimdeploy.prune(
            module, data=[(torch.randn(2, 3, 16, 16), torch.zeros(2).long())], size=16, ratio=0.5
        )


def test_quantize_refuses_data_with_the_preprocessing_of_another_network(tmp_path: Path) -> None:
    """They ended in onnxruntime's error for colour images, and in wrong ranges for another mean."""
    start = slimdeploy.from_module(_net(), preprocessing=GRAY, class_names=list("0123456789"))
    own = slimdeploy.load_data(DataOptions("digits").fed_to(GRAY))
    slimdeploy.export(start, data=own, output=tmp_path / "net.onnx")
    for other in ({}, {"mean": 0.5, "std": 0.5}):
        data = slimdeploy.load_data(DataOptions("digits", **other))  # type: ignore[arg-type]
        with pytest.raises(SlimdeployError, match=r"made with .* but .*net.onnx takes .*gray; mean 0.3, std"):
            slimdeploy.quantize(tmp_path / "net.onnx", data=data, output=tmp_path / "int8.onnx")


def test_gray_arrays_make_a_split() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    for given in (images, images[..., None]):
        np.testing.assert_array_equal(Split(given, np.zeros(5, int)).stored, images[..., None].repeat(3, -1))


def test_the_whole_chain(slimdeploy_command: Callable[..., Any], model_file: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        done = slimdeploy_command(*arguments, "--json")
        assert done.exit_code == 0, done.err
        return done.json  # type: ignore[no-any-return]

    trained, pruned, final, exported, quantised, bundle = (
        tmp_path / name
        for name in ("t.safetensors", "p.safetensors", "f.safetensors", "f.onnx", "q.onnx", "b.slim")
    )
    run(
        "train", "--arch", f"{model_file}:Net", "--data", "digits", "--epochs", 4, "--lr", 0.02, "-o", trained
    )
    preprocessing = load_checkpoint(trained).info.preprocessing
    assert (preprocessing.channels, preprocessing.image_shape) == ("gray", (1, 16, 16))
    run("prune", trained, "--ratio", 0.5, "--align", 1, "--data", "digits", "-o", pruned)
    run("finetune", pruned, "--epochs", 1, "--teacher", trained, "-o", final)
    run("export", final, "--data", "digits", "-o", exported)
    run("calibrate", exported, "--data", "digits", "--max-drop", 100, "-o", quantised)
    accuracy = [run("evaluate", model, "--data", "digits")["accuracy"] for model in (final, exported)]
    assert accuracy[0] == accuracy[1] > 0.5
    run("package", exported, quantised, "--data", "digits", "-o", bundle)
    deployed = run("deploy", bundle, "--root", tmp_path / "root")
    assert deployed["golden"]["top1_agreement"] == 1


def test_a_built_in_network_for_gray_images(slimdeploy_command: Callable[..., Any], tmp_path: Path) -> None:
    """Trained, and read again from its tensors alone, as after `torch.save`."""
    arch = ("--arch", "tiny-basic")
    options = ("--data", "digits", "--epochs", 1, "--channels", "gray", "-o")
    done = slimdeploy_command("train", *arch, *options, tmp_path / "t.safetensors")
    assert done.exit_code == 0, done.err
    assert "16×16, gray; mean 0.3055, std 0.3189, of the training data" in done.err
    found = load_checkpoint(tmp_path / "t.safetensors")
    assert found.network.conv1.weight.shape[1] == found.info.graph.image_channels == 1
    torch.save(found.network.state_dict(), tmp_path / "t.pth")
    weights = read_weights(tmp_path / "t.pth", arch="tiny-basic", stem="cifar-pool")
    assert weights.network.graph == found.info.graph
    assert weights.prepared(DataOptions("digits")).channels == "gray"
    for start in (weights, read_weights(tmp_path / "t.safetensors")):
        with pytest.raises(SlimdeployError, match="takes images with 1 channel; channels is rgb"):
            start.prepared(DataOptions("digits", channels="rgb"))


def test_a_network_and_images_that_do_not_fit(
    slimdeploy_command: Callable[..., Any], model_file: Path, tmp_path: Path
) -> None:
    new = ("-o", tmp_path / "t.safetensors")
    for command in (["train", "--data", "digits", "--arch"], ["import", "--size", 16]):
        done = slimdeploy_command(*command, f"{model_file}:Net", "--channels", "rgb", *new)
        assert (done.exit_code, done.err.count("takes images with 1 channel; --channels is rgb")) == (2, 1)
    done = slimdeploy_command("import", f"{model_file}:Net", *new)
    assert "nor (2, 1, 224, 224) (RuntimeError: mat1" in done.err
    done = slimdeploy_command("import", f"{model_file}:Net", "--size", 16, "--mean", ".1", ".2", *new)
    assert "Invalid value for '--mean': '.1 .2' is not three numbers, or one for gray images" in done.err
    done = slimdeploy_command("import", f"{model_file}:Net", "--size", 16, "--mean", "0.1307", *new)
    assert "gray; mean 0.1307, std 1, the default unless an option overrides it" in done.err
    colour = build_network(build_graph("tiny-basic", classes=10), seed=0)
    info = ModelInfo(colour.graph, Preprocessing(16, (0.5,) * 3, (0.5,) * 3), tuple("0123456789"))
    save_checkpoint(tmp_path / "teacher.safetensors", colour, info)
    done = slimdeploy_command(
        "train", "--arch", f"{model_file}:Net", "--data", "digits", "--epochs", 1,
        "--teacher", tmp_path / "teacher.safetensors", "-o", tmp_path / "s.safetensors",
    )  # fmt: skip
    assert "teacher.safetensors takes rgb images, the student gray" in done.err


def test_an_engine_of_ones_own_with_one_channel_is_timed(
    slimdeploy_command: Callable[..., Any], tmp_path: Path
) -> None:
    """An ONNX file without slimdeploy's description: its input decides."""
    for channels, code in ((1, 0), (2, 2)):
        path = tmp_path / f"{channels}.onnx"
        onnx.save(_foreign(channels), path)
        done = slimdeploy_command("bench", path, "--batch", 1, "--seconds", 0.05, "--launches", 2)
        assert done.exit_code == code, done.err
    assert "the model takes images with 2 channels: slimdeploy has 3, or 1" in done.err


def _foreign(channels: int) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, 4, 4])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels])
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "foreign", [image], [logits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
