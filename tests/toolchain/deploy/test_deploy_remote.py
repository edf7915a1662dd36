"""Deploying over a real SSH connection: an sshd on the loopback, and behind it an environment without
torch.
"""

from __future__ import annotations

import dataclasses
import fcntl
import getpass
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import slimdeploy
from slimdeploy.toolchain.deploy import remote
from slimdeploy.toolchain.deploy.remote import RemoteOptions, deploy_to_hosts, read_hosts
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive

CLI = [sys.executable, "-m", "slimdeploy.toolchain", "deploy"]
REPOSITORY = Path(slimdeploy.__file__).resolve().parent

pytestmark = pytest.mark.xdist_group("sshd")  # one worker makes the second environment
PROXY = """
import os, socket, sys, threading
port, counter, limit, cuts = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
link = socket.create_connection(("127.0.0.1", port))
def back():
    while data := link.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
sent = 0
while data := os.read(0, 4096):
    link.sendall(data)
    sent += len(data)
    if sent > limit:
        done = os.path.getsize(counter) if os.path.exists(counter) else 0
        if done < cuts:
            open(counter, "a").write("x")
            os._exit(1)
link.shutdown(socket.SHUT_WR)
threading.Event().wait(20)
"""


def only_the_package(folder: str, names: list[str]) -> list[str]:
    """For copytree: leave out what is not installed (and may be large)."""
    if Path(folder) != REPOSITORY:
        return [name for name in names if name == "__pycache__"]
    return [name for name in names if name.startswith(".") or name in ("tests", "data", "runs", "build")]


def make_environment(place: Path, source: Path) -> None:
    """A virtual environment with slimdeploy installed as a device installs it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(REPOSITORY, source, ignore=only_the_package)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [place / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*pip, f"{source}[device,cpu]"], capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip(f"no package index in reach: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (place / "complete").touch()


@pytest.fixture(scope="session")
def device_python(request, tmp_path_factory) -> Path:
    """The Python of a second environment, with what the extras `device` and `cpu` bring and nothing else.

    Kept in pytest's cache: it is made anew when setup.cfg changes.
    """
    key = hashlib.sha256((REPOSITORY / "setup.cfg").read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = Path(request.config.cache.mkdir("device-environment")) / key
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # against another test process
        if not (place / "complete").exists():
            make_environment(place, tmp_path_factory.mktemp("source") / "slimdeploy")
    return place / "bin/python"


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """Folder with an SSH client configuration for the host `device`, an sshd of its own behind it."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None or not shutil.which("ssh"):
        pytest.skip("no sshd or ssh here (apt install openssh-server openssh-client)")
    folder = tmp_path_factory.mktemp("ssh")
    (folder / "home").mkdir()
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, where root runs it
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile none\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"SetEnv HOME={folder}/home\n"
    )
    public = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}device {public}")
    (folder / "proxy.py").write_text(PROXY)
    common = (
        f"HostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\nIdentityFile {folder}/user\n"
        f"IdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\nStrictHostKeyChecking yes\n"
    )
    proxy = f"ProxyCommand {sys.executable} {folder}/proxy.py {port} {folder}/cuts"
    stranger = common.replace(f"{folder}/user\n", f"{folder}/host\n")
    (folder / "config").write_text(
        f"Host device nickname\n{common}\nHost flaky\n{common}{proxy} 60000 2\n"
        f"\nHost dead\n{common}{proxy} 3000 999\n"
        f"\nHost stranger\n{stranger}\nHost closed\n{common.replace(f'Port {port}', 'Port 1')}"
    )
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    else:
        pytest.fail(f"sshd doesn't start: {(folder / 'log').read_text()}")
    yield folder
    process.terminate()
    process.wait()


@pytest.fixture
def device(sshd, device_python, tmp_path):
    """Options to reach the device, and its store."""
    parent = tmp_path / "code"
    parent.mkdir()
    (parent / "slimdeploy").symlink_to(REPOSITORY)
    command = f"env PYTHONPATH={parent} {device_python} -m slimdeploy.toolchain"
    root = tmp_path / "device store"  # with a blank: it has to be quoted on its way
    shutil.rmtree(sshd / "home", ignore_errors=True)
    (sshd / "home").mkdir()
    (sshd / "cuts").unlink(missing_ok=True)
    options = RemoteOptions((f"--root={root}", "--seconds=0.05"), sshd / "config", command, retry_s=0.01)
    return options, Store(root)


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
    assert result.deployment["version"] == "0001-net"
    assert result.deployment["golden"]["max_error"] <= 1e-5
    assert "torch" not in result.deployment["versions"]
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
    place = sshd / "home/.cache/slimdeploy/incoming" / f"{remote._sender('device')}-{digest}"
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
    own, old, others = (folder / name for name in (f"{remote._sender('device')}-0000", "ab-1111", "cd-2222"))
    for path in (own, old, others):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    assert deploy_to_hosts(bundle, ["device"], options)[0].error is None
    assert incoming(sshd) == [others]


def test_two_deploys_from_here_to_one_host_at_once(bundle, device):
    """The second one ends with one line; both appended to one file for ever before."""
    options, _ = device
    with exclusive(remote._locks() / remote._sender("device"), "it"):
        (result,) = deploy_to_hosts(bundle, ["device"], options)
    assert result.error == f"host device is in use by process {os.getpid()}: wait for it to end"


def test_a_disk_without_room_for_the_copy(bundle, device, sshd, monkeypatch):
    options, store = device
    monkeypatch.setattr(remote, "DISK_MARGIN", 1 << 50)
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
    odd = dataclasses.replace(options, command=f"printf '%s\\033[2J' {shlex.quote(answer)}; true")
    (result,) = deploy_to_hosts(bundle, ["device"], odd)
    assert "instead of JSON" in result.error
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
    changed = dataclasses.replace(options, ssh_config=tmp_path / "config", attempts=1)
    error = deploy_to_hosts(bundle, ["device"], changed)[0].error
    assert "Host key verification failed" in error
    assert error.endswith(f"run ssh -F {tmp_path}/config device once and compare the key")
    other = (sshd / "user.pub").read_text()
    port = re.search(r"Port (\d+)", text)[1]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {other}")
    error = deploy_to_hosts(bundle, ["device"], changed)[0].error
    assert "It has another host key than before" in error
    assert "ssh-keygen -R" in error
    assert store.active() == []


def test_slimdeploy_that_is_not_there(bundle, device):
    options, _ = device
    (result,) = deploy_to_hosts(
        bundle, ["device"], dataclasses.replace(options, command="slimdeploy-not-here")
    )
    assert "say where it is with --remote-command" in result.error
    assert result.error.endswith("install it there: pip install 'slimdeploy[device,cpu]'")
    (result,) = deploy_to_hosts(bundle, ["device"], dataclasses.replace(options, command="echo"))
    assert "instead of JSON" in result.error


@pytest.mark.parametrize("host", ["-oProxyCommand=touch evil", "", "a b", "a\nb"])
def test_hosts_that_are_none(bundle, host):
    with pytest.raises(SlimdeployError, match="is no host"):
        deploy_to_hosts(bundle, ["device", host], RemoteOptions())


def test_bundle_is_checked_before_anything_is_copied(tmp_path):
    (tmp_path / "x.slim.tar").write_bytes(b"no bundle")
    with pytest.raises(SlimdeployError, match="not a whole bundle"):
        deploy_to_hosts(tmp_path / "x.slim.tar", ["device"], RemoteOptions())


def test_hosts_file(tmp_path):
    (tmp_path / "hosts").write_text("# the lab\nuser@one\n\ntwo  # by the door\n")
    assert read_hosts(tmp_path / "hosts") == ["user@one", "two"]
    (tmp_path / "hosts").write_text("# nobody\n")
    with pytest.raises(SlimdeployError, match="names no host"):
        read_hosts(tmp_path / "hosts")
    with pytest.raises(SlimdeployError, match="no list of hosts at"):
        read_hosts(tmp_path / "none")
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
        options.command,
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
    command = [*CLI, bundle, "--host", "device", "--allowed-signers", "x"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
