"""The command `deploy` on the device itself."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.xdist_group("test_deploy_device")  # one worker makes what they share


def test_command_line(bundle, store, monkeypatch, slimdeploy_command):
    monkeypatch.setenv("SLIMDEPLOY_HOME", str(store.root))
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> str:
        ran = slimdeploy_command("deploy", *arguments, "--seconds", "0.05")
        assert ran.exit_code == 0, ran.err
        return ran.out

    assert json.loads(call(bundle, "--precision", "int8", "--json"))["version"] == "0001-net"
    said = call(bundle, "--precision", "fp32")
    assert "fp32 on onnxruntime-cpu" in said
    assert "0002-net" in said
    assert "back to 0001-net" in call("--rollback")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give one of BUNDLE, --rollback and --bootstrap"),
        ("BUNDLE --rollback", "give one of BUNDLE, --rollback and --bootstrap"),
        ("nowhere.slim.tar", "cannot read nowhere.slim.tar"),
        ("--rollback", "nothing is deployed in "),
        ("--rollback --precision fp32", "--precision needs a bundle"),
        ("BUNDLE --allowed-signers nowhere", "no file of allowed signers at nowhere"),
        ("--rollback --batch 8", "--batch needs a bundle"),
        ("--rollback --allowed-signers BUNDLE", "--allowed-signers needs a bundle"),
        ("BUNDLE --remote-command x", "--remote-command needs --host"),
        ("BUNDLE --wheels BUNDLE", "--wheels needs --bootstrap"),
        ("--bootstrap", "--bootstrap needs --host"),
        ("BUNDLE --batch 0", "--batch must be at least 1, not 0"),
        ("BUNDLE --host x --allowed-signers BUNDLE", "--allowed-signers can be set only on the device"),
        ("--rollback --bootstrap --host x", "--bootstrap cannot be used with a rollback"),
    ],
)
def test_calls_that_are_refused(bundle, store, slimdeploy_command, arguments, message):
    words = [bundle if word == "BUNDLE" else word for word in arguments.split()]
    ran = slimdeploy_command("deploy", *words, "--root", store.root)
    assert (ran.exit_code, ran.err.count("\n")) == (2, 1), ran.err
    assert message in ran.err
    assert not store.root.exists()
