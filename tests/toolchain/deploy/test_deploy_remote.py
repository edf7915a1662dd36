"""Deploying over a real SSH connection: an sshd on the loopback, and behind it an environment without
torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimdeploy.toolchain.deploy import remote, transfer
from slimdeploy.toolchain.deploy.remote import RemoteOptions, deploy_to_hosts, read_hosts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive

CLI = [sys.executable, "-m", "slimdeploy.toolchain", "deploy"]

pytestmark = pytest.mark.xdist_group("sshd")  # one worker makes the second environment


def incoming(sshd: Path) -> list[Path]:
    return list((sshd / "home/.cache/slimdeploy/incoming").iterdir())


def test_no_torch_on_the_device(device_python):
    script = (
        "import importlib.util as u; print([m for m in ('torch', 'torchvision', 'onnx') if u.find_spec(m)])"
    )
    done = subprocess.run([device_python, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    installed = device_python.with_name("slimdeploy")
    done = subprocess.run([installed, "doctor", "--json"], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["role"] == "device"
    assert done.returncode == 0, done.stdout


def test_deploy(bundle, device, sshd):
    options, store = device
    (result,) = deploy_to_hosts(bundle, ["device"], options)
    assert result.error is None
    assert result.deployment.version == "0001-net"
    assert result.deployment.max_error <= 1e-5
    assert "torch" not in result.deployment.document["versions"]
    assert store.active() == ["0001-net"]
    assert incoming(sshd) == []


def test_two_names_of_one_device(bundle, device):
    """Neither spoils the other's copy; who comes second is told so, or finds the first one done."""
    options, store = device
    errors = [result.error for result in deploy_to_hosts(bundle, ["device", "nickname"], options)]
    assert None in errors
    assert all(error is None or "is in use by process" in error for error in errors)
    assert store.active()


def test_connection_cut_in_mid_copy(bundle, device, sshd):
    """Cut twice after 60 kB of the 110 kB: the copy goes on where it was."""
    options, store = device
    (result,) = deploy_to_hosts(bundle, ["flaky"], options)
    assert result.error is None
    assert (sshd / "cuts").read_text() == "xx"
    assert result.connections == 3
    assert store.active() == ["0001-net"]


def test_connection_that_never_holds(bundle, device, sshd):
    options, store = device
    (result,) = deploy_to_hosts(bundle, ["dead"], options)
    assert result.error.startswith("ssh: ")
    assert result.deployment is None
    assert store.active() == []


def test_copy_is_taken_up_where_an_earlier_run_left_it(bundle, device, sshd):
    options, _ = device
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    place = sshd / "home/.cache/slimdeploy/incoming" / f"{transfer.sender_of('device')}-{digest}"
    place.parent.mkdir(parents=True)
    place.write_bytes(bundle.read_bytes())
    assert deploy_to_hosts(bundle, ["device"], options)[0].connections == 0
    place.write_bytes(bundle.read_bytes() + b"x")  # longer than the bundle: begun anew
    assert deploy_to_hosts(bundle, ["device"], options)[0].error is None
    place.write_bytes(bundle.read_bytes()[:-9] + b"y")
    (result,) = deploy_to_hosts(bundle, ["device"], options)
    assert "copy was damaged" in result.error
    assert not place.exists()
    assert deploy_to_hosts(bundle, ["device"], options)[0].error is None


def test_what_a_killed_deploy_left_is_removed_by_the_next(bundle, device, sshd):
    """Another bundle of this machine, and what anybody left a day ago; not what another one is copying."""
    options, _ = device
    folder = sshd / "home/.cache/slimdeploy/incoming"
    folder.mkdir(parents=True)
    own, old, others = (
        folder / name for name in (f"{transfer.sender_of('device')}-0000", "ab-1111", "cd-2222")
    )
    for path in (own, old, others):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    assert deploy_to_hosts(bundle, ["device"], options)[0].error is None
    assert incoming(sshd) == [others]


def test_two_deploys_from_here_to_one_host_at_once(bundle, device):
    """The second one ends with one line; both appended to one file for ever before."""
    options, _ = device
    with exclusive(transfer.locks() / transfer.sender_of("device"), "it"):
        (result,) = deploy_to_hosts(bundle, ["device"], options)
    assert result.error == f"host device is in use by process {os.getpid()}: wait for it to end"


def test_a_disk_without_room_for_the_copy(bundle, device, sshd, monkeypatch):
    options, store = device
    monkeypatch.setattr(transfer, "DISK_MARGIN", 1 << 50)
    (result,) = deploy_to_hosts(bundle, ["device"], options)
    assert re.fullmatch(
        r"not enough disk space for the copy: \d+ MiB needed, \d+ MiB free in .* there", result.error
    )
    assert incoming(sshd) == []
    assert store.active() == []


def test_start_files_that_print_are_not_taken_for_answers(bundle, device, sshd):
    """bash reads .bashrc for commands over SSH too."""
    options, store = device
    (sshd / "home/.bashrc").write_text("echo Welcome; printf 7\n")
    command = ["ssh", "-F", options.ssh_config, "device", "true"]
    if subprocess.run(command, capture_output=True, check=True).stdout != b"Welcome\n7":
        pytest.skip("this user's shell reads no .bashrc")
    (result,) = deploy_to_hosts(bundle, ["device"], options)
    assert result.error is None
    assert store.active() == ["0001-net"]


@pytest.mark.parametrize("answer", ["{}", "[]", '{"version": "1", "golden": {}}', "nonsense"])
def test_an_odd_answer_is_one_hosts_error(bundle, device, answer):
    """The others' results are kept, and what a device says moves no cursor."""
    options, _ = device
    odd = dataclasses.replace(options, remote_command=f"printf '%s\\033[2J' {shlex.quote(answer)}; true")
    (result,) = deploy_to_hosts(bundle, ["device"], odd)
    assert "which is no deployment's JSON" in result.error
    assert "\x1b" not in result.error


def test_failure_on_the_device_keeps_the_old_version(bundle, device, sshd):
    options, store = device
    deploy_to_hosts(bundle, ["device"], options)
    wrong = dataclasses.replace(options, arguments=(*options.arguments, "--precision=fp16"))
    (result,) = deploy_to_hosts(bundle, ["device"], wrong)
    assert result.error == "the bundle has no fp16 model; it has fp32, int8-cpu"
    assert incoming(sshd) == []  # a refused bundle isn't left there
    assert store.active() == ["0001-net"]


@pytest.mark.parametrize(
    ("host", "message"),
    [("stranger", "Permission denied"), ("closed", "ssh: "), ("nowhere.invalid", "ssh: ")],
)
def test_hosts_that_cannot_be_reached(bundle, device, host, message):
    options, _ = device
    (result,) = deploy_to_hosts(bundle, [host], dataclasses.replace(options, attempts=1))
    assert message in result.error
    assert "\n" not in result.error


def test_unknown_host_key_is_refused(bundle, device, sshd, tmp_path):
    options, store = device
    (tmp_path / "known").write_text("")
    text = (sshd / "config").read_text().replace(f"{sshd}/known_hosts", f"{tmp_path}/known")
    (tmp_path / "config").write_text(text)
    changed = dataclasses.replace(options, ssh_config=str(tmp_path / "config"), attempts=1)
    error = deploy_to_hosts(bundle, ["device"], changed)[0].error
    assert "Host key verification failed" in error
    assert error.endswith(f"run ssh -F {tmp_path}/config device once and compare the key")
    other = (sshd / "user.pub").read_text()
    port = re.search(r"Port (\d+)", text)[1]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {other}")
    error = deploy_to_hosts(bundle, ["device"], changed)[0].error
    assert "Its host key has changed" in error
    assert "ssh-keygen -R" in error
    assert store.active() == []


def test_slimdeploy_that_is_not_there(bundle, device):
    options, _ = device
    (result,) = deploy_to_hosts(
        bundle, ["device"], dataclasses.replace(options, remote_command="slimdeploy-not-here")
    )
    assert result.error.endswith(
        "install slimdeploy there with slimdeploy deploy --bootstrap --host device, or say where it is with "
        "remote_command"
    )
    (result,) = deploy_to_hosts(bundle, ["device"], dataclasses.replace(options, remote_command="echo"))
    assert "which is no deployment's JSON" in result.error


@pytest.mark.parametrize("host", ["-oProxyCommand=touch evil", "", "a b", "a\nb"])
def test_hosts_that_are_none(bundle, host):
    with pytest.raises(SlimdeployError, match="is not a host"):
        deploy_to_hosts(bundle, ["device", host], RemoteOptions())


def test_bundle_is_checked_before_anything_is_copied(tmp_path):
    (tmp_path / "x.slim.tar").write_bytes(b"no bundle")
    with pytest.raises(SlimdeployError, match="not a complete bundle"):
        deploy_to_hosts(tmp_path / "x.slim.tar", ["device"], RemoteOptions())


def test_hosts_file(tmp_path):
    (tmp_path / "hosts").write_text("# the lab\nuser@one\n\ntwo  # by the door\n")
    assert read_hosts(tmp_path / "hosts") == ["user@one", "two"]
    (tmp_path / "hosts").write_text("# nobody\n")
    with pytest.raises(SlimdeployError, match="contains no host"):
        read_hosts(tmp_path / "hosts")
    with pytest.raises(SlimdeployError, match="no list of hosts at"):
        read_hosts(tmp_path / "none")
    (tmp_path / "hosts").write_text("one\nimport torch\n")
    with pytest.raises(SlimdeployError, match=r"hosts, line 2: 'import torch' is not a host"):
        read_hosts(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xff\x00\n")
    with pytest.raises(SlimdeployError, match="not UTF-8 text"):
        read_hosts(tmp_path / "hosts")


def test_no_ssh(bundle, monkeypatch):
    monkeypatch.setattr(remote.shutil, "which", lambda name: None)
    with pytest.raises(SlimdeployError, match="sudo apt install openssh-client"):
        deploy_to_hosts(bundle, ["device"], RemoteOptions())


def test_command_line_many_hosts(bundle, device, sshd, tmp_path):
    options, store = device
    (tmp_path / "hosts").write_text("device\nstranger\n")
    common = [
        "--ssh-config",
        options.ssh_config,
        "--remote-command",
        options.remote_command,
        "--root",
        store.root,
        "--seconds",
        "0.05",
    ]
    command = [*CLI, bundle, "--hosts", tmp_path / "hosts", *common]
    done = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=False)
    hosts = json.loads(done.stdout)["hosts"]
    assert [h["host"] for h in hosts] == ["device", "stranger"]
    assert hosts[0]["deployment"]["version"] == "0001-net"
    assert done.returncode == 1
    assert done.stderr.endswith("slimdeploy: 1 of 2 hosts failed\n")
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert "stranger: ssh: " in done.stdout
    command = [*CLI, bundle, "--host", "device", "--precision", "fp32", *common]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert "fp32 on onnxruntime-cpu" in done.stdout, done.stderr
    command = [*CLI, "--rollback", "--host", "device", *common]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert "0001-net" in done.stdout, done.stderr
