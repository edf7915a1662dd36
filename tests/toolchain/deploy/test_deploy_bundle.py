"""Bundles: the same bytes each time, and nothing that was changed gets through."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy import bundle_manifest as manifest
from slimdeploy.toolchain.deploy import container
from slimdeploy.toolchain.deploy.samples import Images, images_for, noise_images
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError


def unpack(path: Path, folder: Path) -> manifest.BundleManifest:
    found = bundles.read_bundle(path)
    bundles.unpack(found, folder)
    return found.manifest


def test_same_input_same_bytes(models, images, bundle, tmp_path):
    again = tmp_path / "net.slim.tar"
    bundles.write_bundle(again, [models["fp32"], models["int8"]], images)
    assert again.read_bytes() == bundle.read_bytes()


def test_round_trip(models, images, bundle, tmp_path):
    found = unpack(bundle, tmp_path / "out")
    assert [v.id for v in found.variants] == ["fp32", "int8-cpu"]
    assert found.variants[0].accuracy == 1.0
    assert (tmp_path / "out/models/fp32.onnx").read_bytes() == models["fp32"].read_bytes()
    np.testing.assert_array_equal(bundles.golden_images(tmp_path / "out", found), images.golden)
    pictures, labels = bundles.evaluation_set(tmp_path / "out", found)
    np.testing.assert_array_equal(pictures, images.evaluation)
    np.testing.assert_array_equal(labels, images.labels)
    assert found.info.provenance[-1]["stage"] == "package"
    assert bundles.read_folder(tmp_path / "out") == found


def test_any_tar_program_lists_it(bundle):
    with tarfile.open(bundle) as archive:
        names = archive.getnames()
        assert all(m.isreg() and (m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in archive)
    assert names[0] == "manifest.json"
    assert "models/int8-cpu.onnx" in names


def test_header_is_what_tarfile_writes():
    info = tarfile.TarInfo("models/fp32.onnx")
    info.size = 12345
    parsed = tarfile.TarInfo.frombuf(container.member_header(info.name, info.size), "ascii", "strict")
    assert (parsed.name, parsed.size, parsed.type, parsed.mode) == (info.name, 12345, tarfile.REGTYPE, 0o644)


def test_noise_bundle_says_so(models, tmp_path):
    path = tmp_path / "noise.slim.tar"
    made = bundles.write_bundle(path, [models["fp32"]], noise_images(models["fp32"], 3))
    assert (made.golden_images, made.evaluation_images) == (3, 0)
    assert made.info.provenance[-1]["images"].startswith("noise")
    assert made.variants[0].accuracy is None
    assert len(bundles.evaluation_set(tmp_path, made)[0]) == 0


def test_images_of_the_data_that_the_model_was_trained_on(tmp_path, make_model):
    trained = {"stage": "train", "data": {"name": "digits", "data_dir": "data", "size": None}}
    model = make_model(tmp_path / "digits.onnx", classes=10, provenance=(trained,))
    chosen = images_for(model, None, golden=10, evaluation=30)
    assert chosen.source == "digits, test split, seed 0"
    assert chosen.golden.shape == (10, 16, 16, 3)
    assert np.bincount(chosen.labels).tolist() == [3] * 10
    assert len(images_for(model, None, golden=1, evaluation=0).evaluation) == 0


def test_model_that_does_not_say_its_data(models):
    assert images_for(models["fp32"], None, golden=2, evaluation=30).source == "noise, seed 0"


def test_changed_after_unpacking(bundle, tmp_path):
    found = unpack(bundle, tmp_path / "out")
    model = tmp_path / "out" / found.variants[0].model
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(SlimdeployError, match="has changed since"):
        bundles.read_folder(tmp_path / "out")


def test_models_of_two_networks(models, images, tmp_path):
    with pytest.raises(SlimdeployError, match="already has a model in fp32"):
        bundles.write_bundle(tmp_path / "x.slim.tar", [models["fp32"], models["other"]], images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": [4] * 17}, "its network differs from"),
        ({"provenance": ({"stage": "export", "parent": "2"},)}, "its checkpoint differs from"),
    ],
)
def test_two_networks_are_not_one_in_two_precisions(models, images, tmp_path, make_model, change, said):
    first = make_model(tmp_path / "a.onnx", provenance=({"stage": "export", "parent": "1"},))
    change = {"provenance": ({"stage": "export", "parent": "1"},), **change}
    second = onnx.load(make_model(tmp_path / "b.onnx", **change))
    next(entry for entry in second.metadata_props if entry.key == "precision").value = "int8"
    onnx.save(second, tmp_path / "b.onnx")
    with pytest.raises(SlimdeployError, match=said):
        bundles.write_bundle(tmp_path / "x.slim.tar", [first, tmp_path / "b.onnx"], images)
    assert not (tmp_path / "x.slim.tar").exists()


def test_a_model_that_is_far_worse_than_it_says_is_not_packed(tmp_path, make_model):
    """Random weights that carry an accuracy of 50 % over ten classes."""
    trained = {"stage": "train", "data": {"name": "digits", "data_dir": "data", "size": None}}
    model = make_model(tmp_path / "digits.onnx", classes=10, provenance=(trained,))
    chosen = images_for(model, None, golden=2, evaluation=100)
    assert chosen.of_training
    with pytest.raises(CheckFailed, match=r"but the file states 50\.0% on the test split: it is damaged"):
        bundles.write_bundle(tmp_path / "x.slim.tar", [model], chosen)
    assert not (tmp_path / "x.slim.tar").exists()
    other = replace(chosen, of_training=False)  # images of one's own may be harder
    assert bundles.write_bundle(tmp_path / "x.slim.tar", [model], other).variants[0].accuracy < 0.4


def test_images_of_another_size(models, tmp_path):
    wrong = Images(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0), "zeros")
    with pytest.raises(SlimdeployError, match="takes images of 16×16 pixels, the data has 8×8"):
        bundles.write_bundle(tmp_path / "x.slim.tar", [models["fp32"]], wrong)


def test_labels_beyond_the_classes(models, tmp_path):
    zeros = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(SlimdeployError, match="has 4 classes, but the data has more"):
        bundles.write_bundle(
            tmp_path / "x.slim.tar", [models["fp32"]], Images(zeros, zeros, np.array([4]), "zeros")
        )
