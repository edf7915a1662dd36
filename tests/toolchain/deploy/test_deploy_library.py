"""`slimdeploy.deploy` and `slimdeploy.rollback`, here and over SSH."""

from __future__ import annotations

import json

import pytest

import slimdeploy
from slimdeploy.toolchain.deploy import remote
from slimdeploy.toolchain.deploy.remote_deployment import read_deployment
from slimdeploy.toolchain.errors import SlimdeployError


def test_here_and_back_again(bundle, store):
    first = slimdeploy.deploy(bundle, root=store.root, precision="fp32", threads=1, seconds=0.01)
    assert (first.deployment.version, first.deployment.variant) == ("0001-net", "fp32")
    assert first.deployment.accuracy.device == 1.0
    assert first.failed is None
    document = json.loads(json.dumps(first.to_json()))
    assert (document["version"], document["servers"]) == ("0001-net", [])
    options = slimdeploy.DeployOptions(precision="int8", threads=1, seconds=0.01)
    assert slimdeploy.deploy(bundle, root=str(store.root), options=options).deployment.version == "0002-net"
    back = slimdeploy.rollback(root=store.root, threads=1, seconds=0.01)
    assert back.restored.version == "0001-net"
    with pytest.raises(SlimdeployError, match=r"^nothing was installed on this device: see"):
        _ = back.deployment
    with pytest.raises(SlimdeployError, match=r"^nothing was rolled back on this device"):
        _ = first.restored
    assert back.to_json()["golden"]["max_error"] == 0.0
    assert store.active() == ["0001-net"]


@pytest.mark.xdist_group("sshd")
def test_over_ssh(bundle, device):
    """One device that is reached and one that isn't: the results of both."""
    options, store = device
    reach = {"ssh_config": options.ssh_config, "remote_command": options.remote_command}
    told = []
    result = slimdeploy.deploy(
        bundle, hosts=["device", "stranger"], root=store.root, seconds=0.05, **reach, progress=told.append
    )
    done, lost = result.hosts
    assert (done.deployment.version, done.deployment.backend) == ("0001-net", "onnxruntime-cpu")
    assert done.deployment.p50_ms > 0
    assert "Permission denied" in lost.error
    assert result.failed == "1 of 2 hosts failed"
    assert [entry["host"] for entry in result.to_json()["hosts"]] == ["device", "stranger"]
    assert len(told) == 2
    assert store.active() == ["0001-net"]


def test_what_the_devices_are_told(bundle, monkeypatch):
    """Options that aren't their defaults, and of a rollback none that goes with a bundle."""
    seen = []
    monkeypatch.setattr(
        "slimdeploy.toolchain.deploy.deploy.deploy_to_hosts",
        lambda bundle, hosts, options, tell: seen.append((bundle, hosts, options.arguments)) or [],
    )
    slimdeploy.deploy(str(bundle), hosts="nano", root="~/models", batch=4, precision="int8")
    slimdeploy.deploy(bundle, hosts=["one", "two"])
    slimdeploy.rollback(hosts=["one"], threads=2)
    assert seen == [
        (bundle, ["nano"], ("--root=~/models", "--precision=int8", "--batch=4")),
        (bundle, ["one", "two"], ()),
        (None, ["one"], ("--threads=2",)),
    ]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"batch": 0}, "^batch must be at least 1, not 0"),
        ({"precision": "fp8"}, "^unknown precision 'fp8'; known: fp32"),
        ({"bootstrap": True}, "^bootstrap needs hosts"),
        ({"wheels": "x"}, "^wheels needs bootstrap"),
        (
            {"bootstrap": True, "remote_command": "x", "hosts": ["a"]},
            "^remote_command cannot be used",
        ),
        ({"hosts": ["a"], "allowed_signers": "x"}, "^allowed_signers can be set only"),
        ({"hosts": ["-oProxyCommand=x"]}, "is not a host"),
        ({"batch": 1, "options": slimdeploy.DeployOptions()}, "^give options or batch, not both"),
        ({"bootstrap": True, "ssh": slimdeploy.SshOptions()}, "^give ssh or bootstrap, not both"),
    ],
)
def test_errors_name_the_parameter(bundle, store, keywords, message):
    with pytest.raises(SlimdeployError, match=message):
        slimdeploy.deploy(bundle, root=store.root, **keywords)
    assert not store.root.exists()


def test_without_a_bundle(store):
    for keywords in ({}, {"hosts": ["a"]}):
        with pytest.raises(SlimdeployError, match=r"^bundle is needed"):
            slimdeploy.deploy(None, root=store.root, **keywords)


@pytest.mark.parametrize(
    "answer",
    ["", "[]", "1", '{"version": 1, "golden": {"max_error": 0}}', '{"version": "1", "golden": {}}',
     '{"version": "1", "golden": {"max_error": 0}, "latency_ms": []}',
     '{"version": "1", "golden": {"max_error": 0}, "variant": 3}'],
)  # fmt: skip
def test_an_answer_that_is_no_deployment(answer):
    with pytest.raises(SlimdeployError, match="which is no deployment's JSON"):
        read_deployment(answer)
    assert read_deployment('{"version": "1", "golden": {"max_error": 0}}').p50_ms is None


def test_the_flag_in_a_hosts_error(bundle, monkeypatch, slimdeploy_command):
    """What the library says of `remote_command` is --remote-command on the command line."""

    def lost(self, bundle, digest, payload):
        return remote.HostResult("a", 0.0, problem=SlimdeployError("say where with `remote_command`"))

    monkeypatch.setattr(remote._Remote, "deploy", lost)
    monkeypatch.setattr(remote.shutil, "which", lambda name: name)
    ran = slimdeploy_command("deploy", bundle, "--host", "a", "--json")
    assert ran.exit_code == 1
    assert ran.json["hosts"][0]["error"] == "say where with --remote-command"
