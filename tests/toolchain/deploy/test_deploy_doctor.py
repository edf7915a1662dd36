"""Doctor: each thing missing is found, with the command that mends it; 1 where the main job can't run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slimdeploy.tests.toolchain.deploy.stores import OPTIONS
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy import machine as machines
from slimdeploy.toolchain.deploy.device import install
from slimdeploy.toolchain.deploy.doctor import examine, report, works
from slimdeploy.toolchain.deploy.doctor_runtimes import HOST_EXTRAS, HOST_LIBRARIES, NEEDED_BY
from slimdeploy.toolchain.deploy.environment import Needs, needs
from slimdeploy.toolchain.deploy.findings import MISSING, NOTE, OK, WARNING, Finding
from slimdeploy.toolchain.deploy.machine import Library, Machine, this_machine
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import ONNXRUNTIME_ON_GPU
from slimdeploy.toolchain.machine.cpu import Cpu
from slimdeploy.toolchain.machine.sysfs import read_facts
from slimdeploy.toolchain.runtime.providers import library_error

ALL = {
    name: Library("10.3.0" if name == "tensorrt" else "1.0")
    for name in (
        "torch", "torchvision", "onnx", "onnxruntime", "safetensors", "PIL", "sklearn", "uvicorn",
        "starlette", "prometheus_client", "tensorrt", "pycuda", *HOST_LIBRARIES, *NEEDED_BY, *HOST_EXTRAS,
    )
}  # fmt: skip
JETSON = dataclasses.replace(
    read_facts(Path("/nowhere")), model="NVIDIA Jetson Orin Nano", l4t="36.4.3", jetpack="6.1 or 6.2",
    free_mb=6000.0, memory_mb=7600.0, swap_mb=3800.0,
    power_mode="2 MAXN_SUPER", power_modes=("0 15W", "2 MAXN_SUPER"),
)  # fmt: skip
PC = dataclasses.replace(JETSON, model=None, l4t=None)


def hide(program):
    """A `program` lookup that finds all but one."""
    return lambda name: None if name == program else f"/usr/bin/{name}"


def machine(*, without=(), libraries=None, **values) -> Machine:
    known = {**ALL, **(libraries or {})}

    def library(name: str) -> Library:
        return Library() if name in without else known.get(name, Library())

    base = Machine(
        role="device", facts=JETSON, library=library,
        packages=frozenset({"onnxruntime"}), providers=("CPUExecutionProvider",), provider_errors={},
        closed_environment=None,
        program=lambda name: f"/usr/bin/{name}", gpu=None, cuda=(12, 6), nvcc="/usr/bin/nvcc",
        disk_free_mb=50_000.0, disk=Path("/"), cpu=Cpu("Cortex-A78AE", "SDOT", overflows=False),
    )  # fmt: skip
    return dataclasses.replace(base, **values)


def found(name: str, findings: list[Finding]) -> Finding:
    (finding,) = [f for f in findings if f.name == name]
    return finding


@pytest.mark.parametrize(
    ("values", "extras", "system_packages"),
    [
        ({}, ("device", "cpu", "cuda"), True),
        ({"nvcc": None}, ("device", "cpu"), True),
        ({"facts": PC}, ("device", "gpu"), False),
        ({"facts": PC, "cuda": None, "nvcc": None}, ("device", "cpu"), False),
    ],
)
def test_what_an_environment_needs(values, extras, system_packages):
    """JetPack's TensorRT on a Jetson, pip's on a workstation with a driver, else onnxruntime."""
    assert needs(machine(**values)) == Needs(extras, system_packages)


def test_a_cpu_without_vnni_is_named():
    finding = found("CPU", examine(machine(cpu=Cpu("Some CPU", "AVX2 without VNNI", overflows=True))))
    assert (finding.status, finding.mend) == (NOTE, None)
    assert finding.detail.startswith("Some CPU, AVX2 without VNNI: INT8 files with weights beyond ±64")


@pytest.mark.parametrize("role", ["host", "device"])
def test_all_is_well(role):
    findings = examine(machine(role=role))
    assert {f.status for f in findings} == {OK}
    assert all(f.mend is None for f in findings)
    assert works(findings)
    assert found("JetPack", findings).detail == "6.1 or 6.2, L4T 36.4.3"


CUDA_MISSING = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
CUDA_PROVIDER = "CUDAExecutionProvider"
CASES = {
    "TensorRT outside of a closed environment": (
        machine(without=("tensorrt",), closed_environment=Path("/home/me/my env")), "TensorRT", WARNING,
        "sudo apt install python3-libnvinfer && python3 -m venv --system-site-packages '/home/me/my env'",
    ),
    "onnxruntime-gpu without CUDA's libraries": (
        machine(providers=(CUDA_PROVIDER,), provider_errors={CUDA_PROVIDER: CUDA_MISSING}),
        "onnxruntime's CUDA provider", WARNING, ONNXRUNTIME_ON_GPU,
    ),
    "onnxruntime for CPUs beside a GPU": (
        machine(facts=PC), "onnxruntime on the GPU", NOTE, ONNXRUNTIME_ON_GPU,
    ),
    "serve's libraries on a host": (
        machine(role="host", without=("anyio",)), "anyio", WARNING, "pip install 'slimdeploy[device]'",
    ),
    "sweep's library on a host": (
        machine(role="host", without=("optuna",)), "optuna", NOTE, "pip install 'slimdeploy[sweep]'",
    ),
    "no runtime at all": (
        machine(without=("tensorrt", "onnxruntime")), "onnxruntime", MISSING, "pip install 'slimdeploy[cpu]'",
    ),
    "no torch on a host": (
        machine(role="host", without=("torch",)), "torch", MISSING, "pip install 'slimdeploy[host]'",
    ),
    "broken torchvision": (
        machine(role="host", libraries={"torchvision": Library(error="RuntimeError: nms")}),
        "torchvision", MISSING, "pip install --force-reinstall torchvision",
    ),
    "no uvicorn": (machine(without=("uvicorn",)), "uvicorn", WARNING, "pip install 'slimdeploy[device]'"),
    "no TensorRT on a Jetson": (
        machine(without=("tensorrt",)), "TensorRT", WARNING, "sudo apt install python3-libnvinfer",
    ),
    "no TensorRT beside a GPU": (
        machine(without=("tensorrt",), facts=PC),
        "TensorRT", WARNING, "pip install 'slimdeploy[gpu]'",
    ),
    "broken TensorRT": (
        machine(libraries={"tensorrt": Library(error="OSError: libnvinfer.so.10")}),
        "TensorRT", WARNING, "sudo apt install python3-libnvinfer",
    ),
    "TensorRT without pycuda": (
        machine(without=("pycuda",)), "CUDA from Python", WARNING, "pip install 'slimdeploy[cuda]'",
    ),
    "TensorRT that the provider can't use": (
        machine(libraries={"tensorrt": Library("11.4.0")}, providers=("TensorrtExecutionProvider",)),
        "onnxruntime with TensorRT", WARNING, "pip install 'tensorrt>=10.3,<11'",
    ),
    "two onnxruntimes": (
        machine(role="host", packages=frozenset({"onnxruntime", "onnxruntime-gpu"})),
        "onnxruntime", WARNING, ONNXRUNTIME_ON_GPU,
    ),
    "driver that can't be loaded": (machine(cuda=None), "GPU", WARNING, "sudo apt install nvidia-l4t-cuda"),
    "no GPU": (machine(cuda=None, facts=PC), "GPU", NOTE, None),
    "nvcc beside the PATH": (
        machine(nvcc="/usr/local/cuda/bin/nvcc", program=hide("nvcc")),
        "nvcc", NOTE, 'export PATH="/usr/local/cuda/bin:$PATH"',
    ),
    "no nvcc": (machine(nvcc=None), "nvcc", NOTE, "sudo apt install cuda-toolkit"),
    "slow power mode": (
        machine(facts=dataclasses.replace(JETSON, power_mode="0 15W")),
        "power mode", NOTE, "sudo nvpmodel -m 2 && sudo jetson_clocks",
    ),
    "little memory": (
        machine(facts=dataclasses.replace(JETSON, free_mb=500.0)),
        "memory", WARNING, "sudo systemctl isolate multi-user.target",
    ),
    "no swap": (
        machine(facts=dataclasses.replace(JETSON, swap_mb=0.0)), "swap", WARNING,
        "sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile"
        " && sudo swapon /swapfile",
    ),
    "little disk": (machine(disk_free_mb=500.0), "disk", WARNING, "sudo apt clean"),
    "no disk": (machine(disk_free_mb=50.0), "disk", MISSING, "sudo apt clean"),
    "no ssh": (
        machine(program=hide("ssh")), "ssh", WARNING, "sudo apt install openssh-client",
    ),
    "container": (
        machine(facts=dataclasses.replace(JETSON, l4t=None)), "JetPack", WARNING,
        "docker run -v /etc/nv_tegra_release:/etc/nv_tegra_release …",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_case(case):
    examined, name, status, mend = CASES[case]
    findings = examine(examined)
    finding = next(f for f in findings if f.name == name and f.status != OK)
    assert (finding.status, finding.mend) == (status, mend)
    assert works(findings) == (status != MISSING)
    assert report(examined, findings)["ok"] == (status != MISSING)


def test_a_provider_that_cannot_be_loaded_is_not_listed():
    """And the missing library is named."""
    examined = machine(
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
        provider_errors={"CUDAExecutionProvider": CUDA_MISSING},
    )
    findings = examine(examined)
    assert found("onnxruntime providers", findings).detail == "CPU"
    assert found("onnxruntime's CUDA provider", findings).detail.endswith(CUDA_MISSING)


def test_the_linker_names_the_library_that_is_missing(tmp_path):
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    other = tmp_path / "libcublasLt.so.13"
    build = ["gcc", "-shared", "-x", "c", "/dev/null", "-o"]
    subprocess.run([*build, other, f"-Wl,-soname,{other.name}"], check=True)
    link = ["-Wl,--no-as-needed", "-x", "none", other]
    subprocess.run([*build, tmp_path / "provider.so", *link], check=True)
    other.unlink()
    assert library_error(tmp_path / "provider.so") == CUDA_MISSING
    assert library_error(tmp_path / "nothing.so") is not None


def test_the_advice_for_a_closed_environment_opens_it(tmp_path, monkeypatch):
    """Applied, as printed: the environment keeps what is in it and sees the system's packages."""
    place = tmp_path / "my env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (place / "kept").touch()
    monkeypatch.setattr(machines.sys, "prefix", str(place))
    assert machines._closed_environment() == place
    _, _, _, mend = CASES["TensorRT outside of a closed environment"]
    command = mend.split(" && ")[1].replace("/home/me/my env", str(place))
    subprocess.run(command.replace("python3", sys.executable, 1), shell=True, check=True)
    assert machines._closed_environment() is None
    assert (place / "kept").exists()


def test_tensorrt_alone_is_enough_for_a_device():
    findings = examine(machine(without=("onnxruntime",)))
    assert works(findings)
    assert found("onnxruntime", findings).status == NOTE


def test_roles():
    assert this_machine("device").role == "device"
    assert this_machine("host").library("torch").version
    assert this_machine("host").library("a_library_that_is_nowhere") == Library()


def test_a_library_that_breaks_on_import(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise OSError('libx.so:\\n cannot open')")
    (tmp_path / "needs_another.py").write_text("import another_that_is_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    library = this_machine("device").library
    assert library("broken_library").error == "OSError: libx.so: cannot open"
    assert "another_that_is_nowhere" in library("needs_another").error


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "slimdeploy.toolchain", "doctor", "--role", "device"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert (done.returncode == 0) == document["ok"]
    assert {"name", "status", "detail", "mend"} == set(document["findings"][0])
    # Without onnxruntime: the brackets of the command that mends it are shown as they are.
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(name='onnxruntime')")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from slimdeploy.toolchain import cli; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor", "--role", "device"], capture_output=True, text=True,
        check=False,
        env={"COLUMNS": "200", "PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "slimdeploy: this device can't do its main job: onnxruntime\n"
    assert "pip install 'slimdeploy[cpu]'" in done.stdout


def test_what_is_deployed_is_shown_without_hashing_it(bundle, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    monkeypatch.setenv("SLIMDEPLOY_HOME", str(store.root))
    assert this_machine("device").deployed is None
    made = install(bundle, store, OPTIONS)
    monkeypatch.setattr(artifacts, "sha256_file", lambda path: pytest.fail(f"{path} is hashed"))
    here = this_machine("device").deployed
    told = found("deployed", examine(machine(deployed=here)))
    assert told.status == OK
    assert told.detail.startswith(f"{made.version}: ")
    assert told.detail.endswith(f" pixels, {made.variant} on onnxruntime")
    (store.current() / "manifest.json").write_text("{")
    told = found("deployed", examine(machine(deployed=this_machine("device").deployed)))
    assert told.status == WARNING
    assert "the manifest is damaged" in told.detail
