"""An environment made on a device over a real SSH connection, from wheels that lie here."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import slimdeploy
from slimdeploy.tests.toolchain.deploy.over_ssh import write_python
from slimdeploy.toolchain.deploy import bootstrap
from slimdeploy.toolchain.deploy.remote import RemoteOptions, deploy_to_hosts
from slimdeploy.toolchain.deploy.wheel import write_wheel
from slimdeploy.toolchain.errors import SlimdeployError

pytestmark = pytest.mark.xdist_group("sshd")

INSTALLED = "home/.local/lib/slimdeploy"


@pytest.fixture
def options(sshd, device_wheels, tmp_path):
    """A device without anything, to be made an environment of wheels."""
    shutil.rmtree(sshd / "home", ignore_errors=True)
    (sshd / "home").mkdir()
    yield RemoteOptions(
        arguments=(f"--root={tmp_path}/store", "--seconds=0.05"),
        ssh_config=str(sshd / "config"),
        bootstrap=True,
        wheels=str(device_wheels),
    )
    write_python(sshd)


def environments(sshd: Path) -> set[str]:
    return {path.name for path in (sshd / INSTALLED).glob("*") if path.suffix != ".lock"}


@pytest.mark.slow
def test_bootstrap_then_deploy(bundle, options, sshd, tmp_path):
    """Made once, found there the second time, and what `deploy` runs without being told where it is."""
    told = []
    (first,) = deploy_to_hosts(bundle, ["device"], options, tell=told.append)
    assert first.error is None
    assert first.environment["made"] is True
    assert first.environment["extras"] == ["device", "cpu"]
    assert Path(first.environment["path"]) == (sshd / INSTALLED / "current").resolve()
    assert first.deployment.version == "0001-net"
    assert "torch" not in first.deployment.document["versions"]
    assert len(told) == 2
    assert "installing slimdeploy[device,cpu]" in told[0]
    command = sshd / "home/.local/bin/slimdeploy"
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"slimdeploy, version {slimdeploy.__version__}\n"
    _check_wheel(Path(first.environment["path"]) / "bin/python", tmp_path)

    (second,) = deploy_to_hosts(None, ["device"], options)
    assert (second.error, second.deployment, second.connections) == (None, None, 0)
    assert second.environment == {**second.environment, "made": False, "path": first.environment["path"]}
    later = dataclasses.replace(options, bootstrap=False, wheels=None)
    assert deploy_to_hosts(bundle, ["device"], later)[0].error is None
    assert environments(sshd) == {"current", Path(first.environment["path"]).name}


def _check_wheel(python: Path, folder: Path) -> None:
    """What was installed by pip makes the same wheel as the checkout that it was made from."""
    (folder / "again").mkdir()
    script = "from slimdeploy.toolchain.deploy.wheel import *; write_wheel(Path('again'))"
    subprocess.run([python, "-I", "-c", script], cwd=folder, check=True)
    wheel = write_wheel(folder)
    assert (folder / "again" / wheel.name).read_bytes() == wheel.read_bytes()


INSTALL = "run sudo apt install python3 python3-venv there"


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("echo python3: not found >&2; exit 127", f"no python3 there: {INSTALL}"),
        (
            "echo no ensurepip >&2; exit 1",
            f"python3 there can't create virtual environments (no ensurepip): {INSTALL}",
        ),
        ("echo 3 8", "Python 3.8 there, slimdeploy needs 3.10: on a Jetson, JetPack 6 has it"),
    ],
)
def test_a_python_that_will_not_do(options, sshd, python, message):
    write_python(sshd, python)
    (result,) = deploy_to_hosts(None, ["device"], options)
    assert result.error == message
    assert environments(sshd) == set()


@pytest.mark.slow
def test_a_step_that_fails_leaves_nothing(options, sshd, tmp_path):
    """No wheel of onnxruntime among those brought: pip's own words, what to do, and no environment."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/else-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("else.py", "")
    before = sshd / INSTALLED / "before"
    before.mkdir(parents=True)
    (sshd / INSTALLED / "current").symlink_to(before)
    (result,) = deploy_to_hosts(
        None, ["device"], dataclasses.replace(options, wheels=str(tmp_path / "wheels"))
    )
    assert result.error.startswith("ERROR: No matching distribution found for ")
    assert result.error.endswith("see pip download in docs/jetson.md")
    assert "\n" not in result.error
    assert environments(sshd) == {"before", "current"}
    assert (sshd / INSTALLED / "current").resolve() == before
    assert list((sshd / "home/.cache/slimdeploy/incoming").iterdir()) == []


def test_a_folder_without_wheels(options, tmp_path):
    with pytest.raises(SlimdeployError, match="contains no wheel: fill it with pip download"):
        deploy_to_hosts(None, ["device"], dataclasses.replace(options, wheels=str(tmp_path)))


def test_doctor_says_why_no_model_could_run():
    finding = {"name": "onnxruntime", "status": "missing", "detail": "not installed", "mend": "pip install x"}
    found = {"doctor": {"findings": [{"name": "CPU", "status": "ok", "detail": ""}, finding]}}
    assert bootstrap._missing(found) == "doctor there: onnxruntime, not installed: pip install x"
    assert bootstrap._missing({"doctor": {"findings": [{**finding, "status": "warning"}]}}) is None


def test_command_line(options, sshd, tmp_path):
    cli = [sys.executable, "-m", "slimdeploy.toolchain", "deploy"]

    def error(*words: object) -> str:
        done = subprocess.run([*cli, *map(str, words)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        return done.stderr

    assert "--bootstrap needs --host" in error("--bootstrap")
    assert "--wheels needs --bootstrap" in error("x.slim.tar", "--wheels", tmp_path, "--host", "device")
    rollback = error("--bootstrap", "--rollback", "--host", "device")
    assert "--bootstrap cannot be used with a rollback" in rollback
    write_python(sshd, "echo 3 8")
    words = ["--bootstrap", "--host", "device", "--ssh-config", options.ssh_config, "--json"]
    done = subprocess.run([*cli, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (result,) = json.loads(done.stdout)["hosts"]
    assert (result["environment"], result["error"][:10]) == (None, "Python 3.8")


@pytest.mark.parametrize("deployed", [False, True])
def test_a_bare_python_is_examined(tmp_path, deployed):
    """With the standard library only, as on a device on which nothing was installed by pip or apt."""
    if deployed:
        (tmp_path / "store").mkdir()
    with zipfile.ZipFile(write_wheel(tmp_path)) as wheel:
        wheel.extractall(tmp_path / "wheel")
    environment = {"PYTHONPATH": str(tmp_path / "wheel"), "SLIMDEPLOY_HOME": str(tmp_path / "store")}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", bootstrap._PROBE],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert ran.stderr == ""
    found = {each["name"]: each["detail"] for each in json.loads(ran.stdout)["doctor"]["findings"]}
    assert found["deployed"].startswith("unknown: No module named" if deployed else "nothing yet")
