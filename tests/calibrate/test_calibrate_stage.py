from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import onnx
import pytest
from calibrate_examples import CHANNELS, PREPROCESSING, ChannelConfig, make_example
from onnx import numpy_helper

from slimdeploy.calibrate import measure, speed
from slimdeploy.calibrate.options import CalibrateOptions, calibration_data
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import Dataset, Split
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError
from slimdeploy.toolchain.library import quantize as stage
from slimdeploy.toolchain.library.quantize import quantize
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.models.model_info import METADATA_KEY
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import open_session
from slimdeploy.toolchain.runtime.single_image import Latency

FAST = CalibrateOptions(method="percentile", threads=1, max_drop=100, timing_seconds=0.01)


def run(example, folder, *, options=FAST, name="int8.onnx", data=None, **given):
    model = folder / "model.onnx"
    if not model.exists():
        example.save(model)
    return quantize(model, data=data or example.data(), options=options, output=folder / name, **given)


def change(example, **parts):
    return dataclasses.replace(example.data(), **parts)


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_what_is_written_runs_and_describes_itself(bottleneck, tmp_path, target):
    result = run(bottleneck, tmp_path, options=dataclasses.replace(FAST, target=target))
    with open_session(tmp_path / "int8.onnx") as session:
        assert (session.precision, session.input_shape) == ("int8", (3, 16, 16))
        assert session.info is not None
        assert session.info.preprocessing == PREPROCESSING
        assert session.run(np.zeros((2, 3, 16, 16), np.float32)).shape == (2, 5)
    described = json.loads(artifacts.sidecar(tmp_path / "int8.onnx").read_text())
    assert described["sha256"] == artifacts.sha256_file(tmp_path / "int8.onnx")
    assert described["parent_sha256"] == artifacts.sha256_file(tmp_path / "model.onnx")
    assert (described["precision"], described["method"], described["target"]) == (
        "int8",
        "percentile",
        target,
    )
    assert described["thresholds"]["images"] > 0
    assert described["parity"] == result.parity.to_json()
    assert described["parity"]["images"] == 48


@pytest.mark.parametrize(
    "options",
    [{"target": "cpu"}, {"target": "tensorrt"}, {"target": "tensorrt", "compute": "fp16"}],
    ids=["cpu", "tensorrt", "tensorrt-fp16"],
)
def test_what_is_reported_is_what_the_file_computes_in_its_users_session(bottleneck, tmp_path, options):
    result = run(bottleneck, tmp_path, options=dataclasses.replace(FAST, **options))
    data = bottleneck.data()
    with open_session(tmp_path / "int8.onnx") as session:
        batch = normalise(data.test.images, data.preprocessing)
        assert result.parity.accuracy == (session.run(batch).argmax(1) == data.test.labels).mean()


def test_the_speed_here_is_told_for_a_cpu(bottleneck, tmp_path, monkeypatch):
    assert run(bottleneck, tmp_path, options=FAST).to_json()["latency_ms"] is None
    times = iter([2.0, 3.0] * 3)
    monkeypatch.setattr(speed, "time_single_images", lambda session, seconds: Latency(next(times), 9.0, 1))
    options = dataclasses.replace(FAST, target="cpu")
    found = run(bottleneck, tmp_path, options=options, name="cpu.onnx").to_json()["latency_ms"]
    assert (found["float32"], found["quantised"], found["slower"]) == (2.0, 3.0, True)
    assert found["cpu"] == str(this_cpu())
    assert "latency_ms" not in json.loads(artifacts.sidecar(tmp_path / "cpu.onnx").read_text())


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_widths_that_are_no_multiples_of_4(tmp_path, monkeypatch, target):
    """onnxruntime's own layout loses the inner activations of such channels."""
    blocks = (10, 11), (34, 11), (31, 39), (33, 39), (27, 7), (16, 7), (9, 19), (34, 19)
    monkeypatch.setitem(CHANNELS, "resnet18", ChannelConfig(11, blocks))
    example = make_example("resnet18")
    assert run(example, tmp_path, options=dataclasses.replace(FAST, target=target)).onnx


def test_auto_tries_every_method(bottleneck, tmp_path):
    result = run(bottleneck, tmp_path, options=dataclasses.replace(FAST, method="auto"))
    assert set(result.methods) == {"minmax", "percentile", "entropy", "mse"}
    assert result.method in result.methods


def test_ranges_are_reused_and_stale_ones_refused(bottleneck, tmp_path, monkeypatch):
    ranges = tmp_path / "ranges.json"
    run(bottleneck, tmp_path, ranges=ranges)
    before = ranges.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure", lambda *a, **k: pytest.fail("measured again"))
        run(bottleneck, tmp_path, ranges=ranges, name="again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "int8.onnx").read_bytes()
    fewer = change(bottleneck, ranges=Split(bottleneck.images[:10], bottleneck.labels[:10]))
    with pytest.raises(SlimdeployError, match=r"stale.*48 other images.*--force"):
        run(bottleneck, tmp_path, ranges=ranges, name="other.onnx", data=fewer)
    assert not (tmp_path / "other.onnx").exists()
    assert ranges.read_bytes() == before
    run(bottleneck, tmp_path, ranges=ranges, name="other.onnx", data=fewer, force=True)
    assert json.loads(ranges.read_text())["images"] == 10


def test_a_changed_model_makes_its_ranges_stale(bottleneck, tmp_path):
    run(bottleneck, tmp_path, ranges=tmp_path / "ranges.json")
    changed = onnx.load(tmp_path / "model.onnx")
    changed.doc_string = "another export"
    onnx.save(changed, tmp_path / "model.onnx")
    with pytest.raises(SlimdeployError, match="it belongs to another model"):
        run(bottleneck, tmp_path, ranges=tmp_path / "ranges.json", name="other.onnx")


def test_the_trt8_cache_names_every_tensor(bottleneck, tmp_path):
    run(bottleneck, tmp_path, trt8=tmp_path / "int8.cache")
    lines = (tmp_path / "int8.cache").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines[1:]] == bottleneck.source.activations


def test_too_large_a_drop_on_the_test_images_writes_nothing(bottleneck, tmp_path, monkeypatch):
    monkeypatch.setitem(stage.METHODS, "broken", lambda histogram, steps: histogram.largest / 50)
    # Labels by which the float model is always wrong: on those images INT8 can lose nothing.
    wrong = Split(bottleneck.images[48:96], (bottleneck.labels[48:96] + 1) % 5)
    options = dataclasses.replace(FAST, method="broken", max_drop=1.0)
    trt8, data = tmp_path / "cache", change(bottleneck, selection=wrong)
    result = run(bottleneck, tmp_path, options=options, data=data, trt8=trt8)
    assert result.parity.baseline_accuracy == 1.0
    assert result.parity.drop > 1.0
    assert result.onnx is None
    assert result.to_json()["onnx"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_most_sensitive_layers_stay_in_float(tmp_path, monkeypatch):
    """With activations clipped far too low INT8 can't work: layers must go back to float until it does."""
    example = make_example("resnet18")
    monkeypatch.setitem(stage.METHODS, "broken", lambda histogram, steps: histogram.largest / 50)
    options = dataclasses.replace(FAST, method="broken", max_drop=5.0)
    result = run(example, tmp_path, options=options)
    layers = example.source.layers()
    assert result.methods["broken"].drop > 5.0
    assert [s.layer for s in result.sensitivity] != layers
    assert sorted(s.layer for s in result.sensitivity) == sorted(layers)
    assert 0 < len(result.float_layers) <= len(layers)
    ranked = [s.layer for s in result.sensitivity]
    assert set(result.float_layers) == set(ranked[: len(result.float_layers)])
    assert result.precision == "mixed"
    assert set(result.reasons) == set(result.float_layers)
    pattern = (
        r"INT8 everywhere drops [\d.]+ points \(5 allowed\) and has a logit error of [\d.]+%, -?[\d.]+% of it"
    )
    assert all(re.match(pattern, reason) for reason in result.reasons.values()), result.reasons
    if result.onnx:
        assert result.parity.drop <= 5.0
        with open_session(result.onnx) as session:
            assert session.precision == "mixed"


def test_sensitivity_can_be_asked_for(tmp_path):
    example = make_example("resnet18")
    options = dataclasses.replace(FAST, sensitivity=True, sensitivity_images=16)
    result = run(example, tmp_path, options=options)
    gains = [s.gain for s in result.sensitivity]
    assert len(gains) == len(example.source.layers())
    assert gains == sorted(gains, reverse=True)
    assert result.float_layers == ()


def test_layers_kept_on_request(bottleneck, tmp_path):
    result = run(bottleneck, tmp_path, options=dataclasses.replace(FAST, float_layers=("fc", "conv1")))
    assert result.float_layers == ("conv1", "fc")
    assert result.reasons == {"conv1": "asked for", "fc": "asked for"}
    described = json.loads(artifacts.sidecar(tmp_path / "int8.onnx").read_text())
    assert not {"fc", "conv1"} & set(described["quantised_layers"])
    with pytest.raises(SlimdeployError, match=r"unknown layer 'fcc'.*Did you mean 'fc'"):
        run(bottleneck, tmp_path, options=dataclasses.replace(FAST, float_layers=("fcc",)), name="x.onnx")


def test_fp16_compute(bottleneck, tmp_path):
    run(bottleneck, tmp_path, options=dataclasses.replace(FAST, compute="fp16"))
    model = onnx.load(tmp_path / "int8.onnx")
    kinds = {c.name: c.data_type for c in model.graph.initializer}
    assert kinds["conv1.bias.equalised.fp16"] == onnx.TensorProto.FLOAT16
    assert onnx.TensorProto.FLOAT not in kinds.values()


def test_fp16_compute_needs_opset_19(tmp_path):
    example = make_example("resnet18", opset=17)
    with pytest.raises(SlimdeployError, match="needs opset 19, the model has 17"):
        run(example, tmp_path, options=dataclasses.replace(FAST, compute="fp16"))
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "kl"}, "unknown method 'kl'"),
        ({"target": "gpu"}, "unknown target 'gpu'; known: tensorrt, cpu"),
        ({"compute": "bf16"}, "unknown compute 'bf16'"),
        ({"compute": "fp16", "target": "cpu"}, "compute fp16 needs target tensorrt"),
    ],
)
def test_options_that_cannot_be(given, message):
    with pytest.raises(SlimdeployError, match=message):
        CalibrateOptions(**given)


@pytest.mark.parametrize("part", ["ranges", "selection", "test"])
def test_unusable_images(bottleneck, tmp_path, part):
    none = Split(bottleneck.images[:0], bottleneck.labels[:0])
    with pytest.raises(SlimdeployError, match="no images to"):
        run(bottleneck, tmp_path, data=change(bottleneck, **{part: none}))
    small = Split(bottleneck.images[:4, :12], bottleneck.labels[:4])
    with pytest.raises(SlimdeployError, match=r"the images are 16×12, but .*model\.onnx takes 16×16"):
        run(bottleneck, tmp_path, data=change(bottleneck, **{part: small}))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_nan_is_traced_to_its_layer(bottleneck, tmp_path):
    model = onnx.load(bottleneck.save(tmp_path / "model.onnx"))
    weight = next(c for c in model.graph.initializer if c.name == "layer2.0.conv2.weight")
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = 3e38
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        SlimdeployError,
        match=r"activations of layer2\.[01]\.conv[12] contain NaN or "
        "infinity",
    ):
        run(bottleneck, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_nothing_is_overwritten(bottleneck, tmp_path):
    for name in ("int8.onnx", "cache"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SlimdeployError, match=f"{name} exists"):
            run(bottleneck, tmp_path, trt8=tmp_path / "cache")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_a_model_that_is_far_worse_than_it_states_is_not_quantised(bottleneck, tmp_path):
    model = onnx.load(bottleneck.save(tmp_path / "model.onnx"))
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps(json.loads(entry.value) | {"metrics": {"accuracy": {"test": 1.0}}})
    onnx.save(model, tmp_path / "model.onnx")
    test = bottleneck.data().test
    wrong = Split(test.images, (test.labels + 1) % 5)
    with pytest.raises(CheckFailed, match=r"the file states 100\.0% on the test split: it is damaged"):
        run(bottleneck, tmp_path, data=change(bottleneck, test=wrong, of_training=True))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert run(bottleneck, tmp_path, data=change(bottleneck, test=wrong)).onnx  # other images may be harder


def test_no_image_is_used_twice():
    images = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    train = Split(images, np.arange(200) % 2)
    dataset = Dataset(("a", "b"), train, Split(images[:7], np.arange(7) % 2), PREPROCESSING)
    data = calibration_data(dataset, images=100, selection_images=10)
    used = [set(part.images[:, 0, 0, 0].tolist()) for part in (data.ranges, data.selection)]
    assert not used[0] & used[1]
    assert [len(u) for u in used] == [100, 10]
    assert len(data.test) == 7
