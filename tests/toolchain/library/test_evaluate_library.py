"""`slimdeploy.evaluate`: networks and files, datasets and batches, with one result."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

import slimdeploy
from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import Dataset, Split
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.preprocessing import Preprocessing

SIZE = tiny.PREPROCESSING.size
TEST = tiny.learnable_split(8, seed=1)
DATASET = Dataset(tiny.CLASSES, tiny.learnable_split(8), TEST, tiny.PREPROCESSING)
BATCHES = list(plain_batches(TEST, tiny.PREPROCESSING, batch_size=5, device="cpu"))


@pytest.fixture(scope="module")
def checkpoint() -> slimdeploy.Checkpoint:
    network = tiny.random_network(build_graph("tiny", stem="cifar", classes=3))
    return slimdeploy.from_module(network, preprocessing=tiny.PREPROCESSING, class_names=tiny.CLASSES)


@pytest.fixture(scope="module")
def files(checkpoint: slimdeploy.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    saved, onnx = folder / "a.safetensors", folder / "a.onnx"
    slimdeploy.save(checkpoint, path=saved)
    slimdeploy.export(checkpoint, output=onnx, data=BATCHES)
    return {"torch-cpu": saved, "onnxruntime-cpu": onnx}


def test_a_network_its_module_and_its_files_do_the_same(
    checkpoint: slimdeploy.Checkpoint, files: dict[str, Path]
) -> None:
    expected = slimdeploy.evaluate(checkpoint, data=DATASET)
    assert (expected.images, expected.backend, expected.model) == (24, "torch-cpu", "tiny")
    assert expected.to_json()["confusion"] == expected.evaluation.confusion.tolist()
    others = [slimdeploy.evaluate(checkpoint.network, data=DATASET)]
    others += [slimdeploy.evaluate(checkpoint.network, data=BATCHES, size=SIZE)]
    for backend, path in files.items():
        for data in (DATASET, BATCHES):
            others.append(slimdeploy.evaluate(path, data=data))
            assert (others[-1].backend, others[-1].model) == (backend, str(path))
    for found in others:
        assert found.accuracy == expected.accuracy
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert slimdeploy.evaluate(str(files["onnxruntime-cpu"]), data=DATASET, limit=6).images == 6


def test_the_network_stays_as_it_is(checkpoint: slimdeploy.Checkpoint) -> None:
    network = checkpoint.network.train()
    slimdeploy.evaluate(network, data=DATASET)
    assert network.training
    network.eval()


def test_threads_are_those_of_the_caller_again(
    checkpoint: slimdeploy.Checkpoint, files: dict[str, Path]
) -> None:
    before = torch.get_num_threads()
    for model in (checkpoint, files["torch-cpu"]):
        slimdeploy.evaluate(model, data=DATASET, threads=before + 1)
        assert torch.get_num_threads() == before


OTHER = Dataset(tiny.CLASSES, TEST, TEST, Preprocessing(SIZE, (0.1, 0.1, 0.1), (1, 1, 1)))
TWO = Dataset(tiny.CLASSES[:2], *[Split(TEST.stored, TEST.labels % 2)] * 2, tiny.PREPROCESSING)


@pytest.mark.parametrize(
    ("model", "keywords", "message"),
    [
        ("onnxruntime-cpu", {"data": OTHER}, "the images of data are made with .* and .*a.onnx takes"),
        ("onnxruntime-cpu", {"data": TWO}, "has other classes"),
        ("onnxruntime-cpu", {}, "doesn't say what data it was trained on: pass data"),
        ("onnxruntime-cpu", {"data": BATCHES, "size": SIZE}, "^size is for a module"),
        ("onnxruntime-cpu", {"data": BATCHES, "limit": 3}, "^limit needs a dataset"),
        ("onnxruntime-cpu", {"data": BATCHES, "accuracy_only": True}, "accuracy_only counts on the GPU"),
        ("onnxruntime-cpu", {"data": BATCHES, "backend": "torch"}, "torch opens .safetensors files"),
        ("onnxruntime-cpu", {"data": iter(BATCHES)}, "^data can be iterated only once"),
        (
            "onnxruntime-cpu",
            {"data": [(torch.zeros(2, 3, SIZE, SIZE), torch.tensor([0, 9]))]},
            "^data contains the label 9, but the network has 3 classes",
        ),
        ("network", {"data": TWO}, "^the network has 3 classes, data has 2"),
        ("network", {"data": BATCHES, "backend": "tensorrt"}, "^backend tensorrt runs a file"),
        ("network", {"data": "digitz"}, "unknown data 'digitz'"),
    ],
)
def test_errors_name_the_parameter(
    checkpoint: slimdeploy.Checkpoint,
    files: dict[str, Path],
    model: str,
    keywords: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(slimdeploy.SlimdeployError, match=message):
        slimdeploy.evaluate(files.get(model, checkpoint), **keywords)
