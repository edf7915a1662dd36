"""Installing on a device: what is checked, what is refused, and that the version before is never lost."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from slimdeploy.tests.toolchain.deploy.stores import OPTIONS, leftovers, whole
from slimdeploy.toolchain.deploy import check, device, engine
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.deploy.root import default_root
from slimdeploy.toolchain.deploy.store import KEPT
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.machine.sysfs import read_facts
from slimdeploy.toolchain.runtime import session
from slimdeploy.toolchain.runtime.session import SessionOptions
from slimdeploy.toolchain.runtime.single_image import Latency
from slimdeploy.toolchain.stages import engine as engine_stage

CLI = [sys.executable, "-m", "slimdeploy.toolchain"]


def asking(**values: str) -> DeployOptions:
    return dataclasses.replace(OPTIONS, **values)


@pytest.fixture
def milliseconds(monkeypatch):
    """Let the device take so long for an image, by the model's precision."""
    times = {"fp32": 2.0, "int8": 1.0}
    monkeypatch.setattr(
        check, "time_single_images", lambda opened, seconds: Latency(times[opened.precision], 9.0, 1)
    )
    return times


def test_deploy_takes_the_fastest_model(bundle, store, milliseconds):
    made = device.install(bundle, store, OPTIONS)
    assert (made.version, made.variant, made.backend) == ("0001-net", "int8-cpu", "onnxruntime-cpu")
    assert made.candidates_ms == {"int8-cpu": 1.0, "fp32": 2.0}
    assert made.cpu == str(this_cpu())
    assert made.golden.max_error == 0.0
    assert made.golden.images == 6
    assert made.accuracy.device == made.accuracy.host
    assert made.latency_ms.p50 > 0
    assert made.notes[0] == "not signed"
    assert made.notes[1].startswith("on onnxruntime's CPU provider, not on TensorRT: ")
    assert json.loads((store.current() / "deployment.json").read_text()) == json.loads(
        json.dumps(made.to_json())
    )
    assert not leftovers(store)


def test_int8_that_is_slower_here_is_not_taken(bundle, store, milliseconds):
    milliseconds["int8"] = 3.0
    assert device.install(bundle, store, OPTIONS).variant == "fp32"
    assert device.install(bundle, store, asking(precision="int8")).variant == "int8-cpu"


def test_a_model_that_fails_here_is_not_taken(bundle, store, milliseconds, monkeypatch):
    honest = check.compare
    monkeypatch.setattr(
        check,
        "compare",
        lambda found, expected, precision: honest(found * (1 + (precision == "int8")), expected, precision),
    )
    made = device.install(bundle, store, OPTIONS)
    assert (made.variant, made.candidates_ms) == ("fp32", {"fp32": 2.0})
    assert made.notes[-1].startswith("not used: int8-cpu on onnxruntime-cpu (")
    assert str(this_cpu()) in made.notes[-1]


def test_a_model_that_cannot_be_opened_here_is_not_taken(bundle, store, milliseconds, monkeypatch):
    """Such as one with an operator that this device's older runtime doesn't have."""
    genuine = check.open_session

    def older(path, backend, options):
        if "int8" in path.name:
            raise SlimdeployError(f"{path}: onnxruntime can't load it (no DequantizeLinear(21))")
        return genuine(path, backend, options)

    monkeypatch.setattr(check, "open_session", older)
    made = device.install(bundle, store, OPTIONS)
    assert (made.variant, made.candidates_ms) == ("fp32", {"fp32": 2.0})
    assert made.notes[-1].startswith("not used: ")
    assert made.notes[-1].endswith("onnxruntime can't load it (no DequantizeLinear(21))")


def test_a_model_that_fails_its_trial_is_not_opened(bundle, store, milliseconds, monkeypatch):
    def refused(model, facts, *, batch):
        if "int8" in model.name:
            raise SlimdeployError(f"{model}: the trial run of this unsigned model failed: exit code 1")

    opened, genuine = [], check.open_session
    monkeypatch.setattr(check, "try_model", refused)
    monkeypatch.setattr(
        check, "open_session", lambda path, *rest: opened.append(path.name) or genuine(path, *rest)
    )
    made = device.install(bundle, store, OPTIONS)
    assert (made.variant, opened) == ("fp32", ["fp32.onnx"])
    assert made.notes[-1].endswith("the trial run of this unsigned model failed: exit code 1")


def test_deployed_model_answers_as_on_the_host(bundle, models, images, store):
    made = device.install(bundle, store, asking(precision="fp32"))
    assert made.variant == "fp32"
    assert made.accuracy.device == 1.0
    opened, version = device.open_deployed(store, SessionOptions(threads=1))
    with opened:
        assert version == made.version
        assert opened.info.class_names == ("class-0", "class-1", "class-2", "class-3")


def test_versions_and_rollback(bundle, other_bundle, store):
    for path in (bundle, other_bundle, bundle, other_bundle):
        device.install(path, store, OPTIONS)
    assert store.active() == ["0002-other", "0003-net", "0004-other"]
    assert len(store.active()) == KEPT
    assert device.rollback(store, OPTIONS).version == "0003-net"
    assert device.rollback(store, OPTIONS).version == "0002-other"
    assert whole(store)
    with pytest.raises(SlimdeployError, match="no version before 0002-other"):
        device.rollback(store, OPTIONS)
    assert device.install(bundle, store, OPTIONS).version == "0005-net"
    assert not leftovers(store)


def test_the_same_bundle_again_is_checked_and_makes_no_version(bundle, other_bundle, store, milliseconds):
    """So that a rollback never leads to what is there already."""
    device.install(other_bundle, store, OPTIONS)
    first = device.install(bundle, store, OPTIONS)
    again = device.install(bundle, store, OPTIONS)
    assert again.version == first.version == "0002-net"
    assert again.notes[-1] == "was deployed already: checked again"
    assert device.install(bundle, store, asking(precision="fp32")).version == "0003-net"
    model = store.current() / "models/fp32.onnx"
    model.write_bytes(b"damaged")  # as an engine is after an update of JetPack
    assert device.install(bundle, store, asking(precision="fp32")).version == "0004-net"
    assert store.active() == ["0001-other", "0002-net", "0004-net"]
    assert whole(store)


def test_no_rollback_to_what_this_device_would_not_install_today(bundle, other_bundle, store):
    device.install(bundle, store, OPTIONS)
    device.install(other_bundle, store, OPTIONS)
    store.allowed_signers.write_text("me ssh-ed25519 AAAA\n")
    with pytest.raises(SlimdeployError, match=r"0001-net was installed without .*allowed_signers requires"):
        device.rollback(store, OPTIONS)
    assert store.current().name == "0002-other"


def test_rollback_to_a_damaged_version(bundle, other_bundle, store):
    device.install(bundle, store, OPTIONS)
    device.install(other_bundle, store, OPTIONS)
    golden = store.versions / "0001-net/golden/fp32.f32"
    golden.write_bytes(b"x" * golden.stat().st_size)
    with pytest.raises(SlimdeployError, match="has changed since"):
        device.rollback(store, OPTIONS)
    assert store.current().name == "0002-other"


def test_rollback_before_anything(store):
    for call in (lambda: device.rollback(store, OPTIONS), store.current):
        with pytest.raises(SlimdeployError, match="nothing is deployed"):
            call()
    assert not store.root.exists()


def spoil(monkeypatch, change):
    """Let the device compute something else than the host did."""
    original = check.compute_logits
    monkeypatch.setattr(check, "compute_logits", lambda *a, **k: change(original(*a, **k)))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "change",
    [lambda x: x * 1.2, lambda x: x[:, ::-1], lambda x: x * np.nan, lambda x: np.zeros_like(x)],
    ids=["scaled", "classes swapped", "nan", "zeros"],
)
def test_golden_run_that_fails_keeps_the_old_version(
    bundle, other_bundle, store, monkeypatch, change, precision
):
    device.install(other_bundle, store, OPTIONS)
    spoil(monkeypatch, change)
    with pytest.raises(CheckFailed, match="golden outputs differ"):
        device.install(bundle, store, asking(precision=precision))
    assert store.active() == ["0001-other"]
    assert whole(store)
    assert not leftovers(store)


def test_evaluation_that_fails_keeps_the_old_version(bundle, store, monkeypatch):
    spoil(monkeypatch, lambda x: x if len(x) == 6 else -x)  # 6 golden images, 24 to evaluate
    with pytest.raises(CheckFailed, match=r"of the images correct, .* on the host"):
        device.install(bundle, store, OPTIONS)
    assert store.active() == []


@pytest.mark.parametrize("factor", [1 + 5e-4, 1 - 5e-4])
def test_small_differences_pass(bundle, store, monkeypatch, factor):
    spoil(monkeypatch, lambda x: x * np.float32(factor))
    made = device.install(bundle, store, asking(precision="fp32"))
    assert 0 < made.golden.max_error < made.golden.tolerance


def test_asking_for_what_is_not_there(bundle, store):
    with pytest.raises(SlimdeployError, match="no fp16 model; it has fp32, int8-cpu"):
        device.install(bundle, store, asking(precision="fp16"))
    with pytest.raises(SlimdeployError, match="unknown backend 'torch'; known: tensorrt, onnxruntime"):
        device.install(bundle, store, asking(backend="torch"))
    with pytest.raises(SlimdeployError, match=r"cannot read .*none"):
        device.install(bundle.with_name("none"), store, OPTIONS)


@pytest.fixture
def tensorrt(monkeypatch, models):
    """A device with TensorRT, as deploy sees it: an engine is the ONNX file under another name."""

    def build_here(onnx: Path, output: Path, options) -> SimpleNamespace:
        built.append(options)
        shutil.copy(onnx, output)
        return SimpleNamespace(path=output, audit=SimpleNamespace(failed="conv1 is FP32, INT8 was asked for"))

    built: list = []
    monkeypatch.setattr(engine, "_why_no_tensorrt", lambda: None)
    monkeypatch.setattr(engine_stage, "build_here", build_here)
    module = "slimdeploy.toolchain.runtime.onnxruntime"
    monkeypatch.setitem(session.BACKENDS, "tensorrt", (module, (".engine",)))
    return built


def test_engine_is_built_where_there_is_tensorrt(bundle, other_bundle, store, tensorrt):
    facts = dataclasses.replace(read_facts(), free_mb=900.0)
    made = device.install(bundle, store, OPTIONS, facts=facts)
    assert (made.variant, made.runtime, made.model) == ("fp32", "tensorrt", "fp32.engine")
    assert (tensorrt[0].batch, tensorrt[0].workspace_mb) == ((1, 8, 8), 450)
    assert "conv1 is FP32, INT8 was asked for" in made.notes
    with device.open_deployed(store, SessionOptions(threads=1))[0] as opened:
        assert opened.input_shape == (3, 16, 16)
    device.install(other_bundle, store, OPTIONS)
    assert device.rollback(store, OPTIONS).version == "0001-net"


def test_engine_that_cannot_be_built_keeps_the_old_version(
    bundle, other_bundle, store, tensorrt, monkeypatch
):
    device.install(bundle, store, OPTIONS)

    def fail(*arguments) -> None:
        raise SlimdeployError("TensorRT can't build it: out of memory")

    monkeypatch.setattr(engine_stage, "build_here", fail)
    with pytest.raises(SlimdeployError, match="out of memory"):
        device.install(other_bundle, store, OPTIONS)
    assert store.active() == ["0001-net"]
    assert not leftovers(store)
    assert device.install(bundle, store, asking(backend="onnxruntime")).backend == "onnxruntime-cpu"


def test_tensorrt_asked_for_and_not_there(bundle, store, monkeypatch):
    monkeypatch.setattr(engine, "_why_no_tensorrt", lambda: "no GPU")
    with pytest.raises(SlimdeployError, match="backend tensorrt: no GPU"):
        device.install(bundle, store, asking(backend="tensorrt"))


def test_too_little_memory(bundle, store):
    facts = dataclasses.replace(read_facts(), free_mb=10.0)
    with pytest.raises(SlimdeployError, match="10 MiB of memory are free"):
        device.install(bundle, store, OPTIONS, facts=facts)


def test_too_little_disk(bundle, store, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(device.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(SlimdeployError, match="1 MiB free; free space or choose another root"):
        device.install(bundle, store, OPTIONS)


def test_one_deploy_at_a_time(bundle, store):
    with (
        store.lock(),
        pytest.raises(SlimdeployError, match=f"{store.root} is in use by process {os.getpid()}"),
    ):
        device.install(bundle, store, OPTIONS)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"versions": ["../../x"]}', '{"versions": [1]}', '{"versions": "x"}']
)
def test_damaged_list_of_versions(bundle, store, content):
    store.root.mkdir()
    (store.root / "active.json").write_text(content)
    with pytest.raises(SlimdeployError, match=r"active\.json"):
        device.install(bundle, store, OPTIONS)


def test_model_changed_on_the_device(bundle, store):
    device.install(bundle, store, OPTIONS)
    path = store.current() / "deployment.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "model_sha256": "0" * 64}))
    with pytest.raises(SlimdeployError, match="has changed since it was deployed"):
        device.open_deployed(store, SessionOptions())
    path.write_text("{}")
    with pytest.raises(SlimdeployError, match="is damaged"):
        device.open_deployed(store, SessionOptions())


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("SLIMDEPLOY_HOME", str(tmp_path))
    assert default_root() == tmp_path
