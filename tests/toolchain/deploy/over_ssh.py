"""A device over a real SSH connection: an sshd on the loopback, behind it an environment without torch."""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import slimdeploy
from slimdeploy.tests.ssh_server import find_sshd, ssh_server
from slimdeploy.toolchain.deploy.remote import RemoteOptions
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.deploy.wheel import write_wheel

REPOSITORY = Path(slimdeploy.__file__).resolve().parent

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


def make_environment(place: Path, folder: Path) -> None:
    """A virtual environment with slimdeploy installed as a device installs it."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [place / "bin/python", "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    command = [*pip, f"{write_wheel(folder)}[device,cpu]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip(f"no package index in reach: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (place / "complete").touch()


@pytest.fixture(scope="session")
def device_python(request, tmp_path_factory) -> Path:
    """The Python of a second environment, with what the extras `device` and `cpu` bring and nothing else.

    Kept in pytest's cache: it is made anew when what those bring changes.
    """
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    extras = setup["options.extras_require"]
    brought = [setup["options"]["install_requires"], extras["device"], extras["cpu"], sys.version]
    key = hashlib.sha256(repr(brought).encode()).hexdigest()[:12]
    place = Path(request.config.cache.mkdir("device-environment")) / key
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # against another test process
        if not (place / "complete").exists():
            make_environment(place, tmp_path_factory.mktemp("wheel"))
    return place / "bin/python"


@pytest.fixture(scope="session")
def device_wheels(device_python, tmp_path_factory) -> Path:
    """A folder with wheels of all that `device_python` has, packed from what is installed there."""
    folder = tmp_path_factory.mktemp("wheels")
    (site,) = device_python.parent.parent.glob("lib/python3*/site-packages")
    for found in importlib.metadata.distributions(path=[str(site)]):
        if found.metadata["Name"] in ("pip", "setuptools", "slimdeploy"):
            continue
        tag = (found.read_text("WHEEL") or "").rpartition("Tag: ")[2].split()[0]
        name = found.metadata["Name"].replace("-", "_")
        with zipfile.ZipFile(folder / f"{name}-{found.version}-{tag}.whl", "w") as wheel:
            for file in found.files or ():
                if file.parts[0] != ".." and "__pycache__" not in file.parts:
                    wheel.write(file.locate(), str(file))
    return folder


def write_python(folder: Path, script: str = f'exec {sys._base_executable} "$@"') -> None:
    """What `python3` is on the device."""
    (folder / "bin/python3").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/python3").chmod(0o755)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """Folder with an SSH client configuration for the host `device`, an sshd of its own behind it."""
    if find_sshd() is None or not shutil.which("ssh"):
        pytest.skip("no sshd or ssh here (apt install openssh-server openssh-client)")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("home", "bin"):
        (folder / name).mkdir()
    write_python(folder)
    (folder / "proxy.py").write_text(PROXY)
    path = f"{folder}/bin:{os.environ['PATH']}"
    with ssh_server(folder, {"HOME": f"{folder}/home", "PATH": path, "PIP_NO_COMPILE": "1"}) as port:
        device = (folder / "config").read_text()
        common = device.partition("\n")[2]
        proxy = f"ProxyCommand {sys.executable} {folder}/proxy.py {port} {folder}/cuts"
        (folder / "config").write_text(
            f"{device.replace('Host device', 'Host device nickname')}\nHost flaky\n{common}{proxy} 60000 2\n"
            f"\nHost dead\n{common}{proxy} 3000 999\n"
            f"\nHost stranger\n{common.replace(f'{folder}/user', f'{folder}/host')}"
            f"\nHost closed\n{common.replace(f'Port {port}', 'Port 1')}"
        )
        yield folder


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
    options = RemoteOptions(
        arguments=(f"--root={root}", "--seconds=0.05"), ssh_config=str(sshd / "config"),
        remote_command=command, retry_s=0.01,
    )  # fmt: skip
    return options, Store(root)
