"""Signatures: who signed is known, and where a device asks for one, nothing else is installed."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest

from slimdeploy.tests.toolchain.deploy.stores import OPTIONS
from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy import device, signature
from slimdeploy.toolchain.errors import SlimdeployError


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    if not shutil.which("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed (apt install openssh-client)")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    public = (folder / "ours.pub").read_text().split()[:2]
    (folder / "allowed").write_text(f"release@example.org {' '.join(public)}\n")
    return folder


def test_signed(models, images, keys, tmp_path):
    path, again = tmp_path / "s.slim.tar", tmp_path / "again/s.slim.tar"
    for target in (path, again):
        bundles.write_bundle(target, [models["fp32"]], images, signing_key=keys / "ours")
    assert path.read_bytes() == again.read_bytes()
    found = bundles.read_bundle(path)
    assert signature.verify(found.content, found.signature, keys / "allowed") == "release@example.org"
    with pytest.raises(SlimdeployError, match="the bundle was changed"):
        signature.verify(found.content + b" ", found.signature, keys / "allowed")


def test_signed_by_somebody_else(models, images, keys, tmp_path):
    path = tmp_path / "s.slim.tar"
    bundles.write_bundle(path, [models["fp32"]], images, signing_key=keys / "theirs")
    found = bundles.read_bundle(path)
    with pytest.raises(SlimdeployError, match="signer is not in"):
        signature.verify(found.content, found.signature, keys / "allowed")


def test_signature_for_another_purpose(keys, tmp_path):
    (tmp_path / "m").write_bytes(b"content")
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", keys / "ours", "-n", "file", tmp_path / "m"], check=True
    )
    with pytest.raises(SlimdeployError, match=r"not valid|not in"):
        signature.verify(b"content", (tmp_path / "m.sig").read_bytes(), keys / "allowed")


def test_key_that_is_missing(models, images, tmp_path):
    with pytest.raises(SlimdeployError, match="no signing key"):
        bundles.write_bundle(tmp_path / "s.slim.tar", [models["fp32"]], images, signing_key=tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_signature_once_asked_for_holds(models, images, keys, bundle, store, tmp_path):
    signed = tmp_path / "signed.slim.tar"
    bundles.write_bundle(signed, [models["fp32"]], images, signing_key=keys / "ours")
    assert device.install(signed, store, OPTIONS).notes[0].startswith("the signature was not checked")
    strict = dataclasses.replace(OPTIONS, allowed_signers=keys / "allowed")
    with pytest.raises(SlimdeployError, match="is not signed"):
        device.install(bundle, store, strict)
    assert device.install(signed, store, strict).signer == "release@example.org"
    with pytest.raises(SlimdeployError, match="is not signed"):
        device.install(bundle, store, OPTIONS)
    assert store.current().name == "0002-signed"
