"""What the package promises to the machines that it is installed on."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from package_files import ROOT, modules, package_folders

import slimdeploy
from slimdeploy.toolchain.cli import COMMANDS
from slimdeploy.toolchain.errors import INSTALL_COMMANDS, missing_library

OPTIONAL = (
    "torch",
    "torchvision",
    "tensorrt",
    "pycuda",
    "onnxruntime",
    "safetensors",
    "sklearn",
    "PIL",
)
NAMED_FOR = {"cuda_python": "cuda"}  # where the module has another name than what it imports
DISTRIBUTIONS = {
    "PIL": "pillow",
    "pynvml": "nvidia-ml-py",
    "sklearn": "scikit-learn",
}  # where the import has another name


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def requirements() -> dict[str, set[str]]:
    """Extra -> the distributions that it brings; `""` for what is always installed."""
    setup = _setup()
    sections = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    return {
        extra: {
            re.split(r"[><=;\[ ]", line)[0] for line in text.split("\n") if line and not line.startswith("#")
        }
        for extra, text in sections.items()
    }


def test_setup_lists_every_package() -> None:
    listed = _setup()["options"]["packages"].split()
    folders = {".".join(["slimdeploy", *folder.relative_to(ROOT).parts]) for folder in package_folders()}
    assert len(listed) == len(set(listed))
    assert set(listed) == folders


def test_setup_lists_every_data_file() -> None:
    """Whatever isn't Python inside a package is installed only if `package_data` says so."""
    listed = set()
    for package, patterns in _setup()["options.package_data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns.split():
            found = list(folder.glob(pattern))
            assert found, f"{package}: nothing matches {pattern}"
            listed.update(found)
    endings = (".json", ".toml", ".cu", ".cuh", ".html", ".jinja", ".css", ".service")
    needed = {
        file
        for folder in package_folders()
        if folder != ROOT
        for file in folder.iterdir()
        if file.suffix in endings
    }
    assert needed <= listed, f"not installed: {sorted(str(f.relative_to(ROOT)) for f in needed - listed)}"


def test_the_base_is_light() -> None:
    assert requirements()[""] <= {"click", "filelock", "numpy", "rich", "tomli"}


def test_constraints_pin_everything_that_the_tests_install() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    wanted = requirements()
    needed = wanted[""] | wanted["host"] | wanted["cpu"] | wanted["sweep"] | wanted["test"]
    assert needed - {"tomli"} <= pinned  # tomli is for Python 3.10, which the pins aren't made with
    assert {"torch==2.13.0", "torchvision==0.28.0"} <= set(lines)


@pytest.mark.parametrize("library", sorted(INSTALL_COMMANDS))
def test_the_command_named_for_a_missing_library_installs_it(library: str) -> None:
    extra = re.search(r"pip install 'slimdeploy\[(\w+)\]'", INSTALL_COMMANDS[library])
    assert extra, INSTALL_COMMANDS[library]
    distribution = DISTRIBUTIONS.get(library, library).replace("_", "-")
    assert any(name.startswith(distribution) for name in requirements()[extra[1]])
    error = missing_library(ModuleNotFoundError("", name=f"{library}.inner"))
    assert str(error) == f"this needs {library}, which is not installed: {INSTALL_COMMANDS[library]}"


BASE_IMPORTS = {"click", "filelock", "numpy", "rich", "tomli", "tomllib"}
"""tomllib is in Python from 3.11 on."""
OTHER_TOOLS = {"modelopt", "pillow_heif", "torch_pruning"}
"""Compared with, or used where they are."""


def test_every_library_that_is_imported_can_be_named_where_it_is_missing() -> None:
    imported = set()
    for file in modules().values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    ours = {"slimdeploy", *(file.stem for file in (ROOT / "benchmarks/peers").glob("*.py"))}
    assert imported - ours - set(sys.stdlib_module_names) - BASE_IMPORTS - OTHER_TOOLS <= set(
        INSTALL_COMMANDS
    )


def test_other_missing_modules_are_not_explained_away() -> None:
    assert missing_library(ModuleNotFoundError("", name="slimdeploy.typo")) is None
    assert missing_library(ModuleNotFoundError("")) is None


HELP = """
import sys
import blocking
blocking.block(*sys.argv[1].split(",")) if sys.argv[1] else None
from slimdeploy.toolchain.cli import main
sys.argv = ["slimdeploy", *sys.argv[2:]]
try:
    main()
finally:
    heavy = {"torch", "torchvision", "numpy", "rich", "onnx", "onnxruntime", "PIL"}
    loaded = heavy & set(sys.modules)
    print(",".join(sorted(loaded)), file=sys.stderr)
"""


@pytest.mark.parametrize("blocked", ["", "torch,numpy,rich,onnx,onnxruntime"])
def test_help_and_version_import_nothing_heavy(fresh_python: Callable, blocked: str) -> None:
    helped = fresh_python(HELP, blocked, "--help")
    assert (helped.exit_code, helped.err.strip()) == (0, ""), helped.err
    assert all(f"\n  {name} " in helped.out for name in COMMANDS)
    told = fresh_python(HELP, blocked, "--version")
    assert (told.exit_code, told.out.strip()) == (0, f"slimdeploy, version {slimdeploy.__version__}")
    assert _setup()["metadata"]["version"] == "attr: slimdeploy.__version__"


IMPORT_ALL = """
import importlib, json, sys
import blocking
blocking.block(*sys.argv[1].split(","))
missing, broken = {}, {}
for name in sys.argv[2].split(","):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing[name] = (error.name or "").split(".")[0]
    except Exception as error:
        broken[name] = repr(error)
print(json.dumps({"missing": missing, "broken": broken}))
"""


def _for_the_device() -> list[str]:
    packages = (
        "toolchain.runtime",
        "toolchain.measure",
        "toolchain.latency",
        "toolchain.machine",
        "toolchain.deploy",
        "kernels",
        "benchmarks.gpu_",
        "benchmarks.interval_check",
        "benchmarks.serve_load",
    )
    starts = tuple(f"slimdeploy.{name}" for name in packages)
    return [name for name in modules() if name.startswith(starts)]


def test_what_runs_on_the_device_imports_without_the_host_libraries(fresh_python: Callable) -> None:
    """Only a module that is named for a library may need it, and it fails by that library's name."""
    ran = fresh_python(IMPORT_ALL, ",".join(OPTIONAL), ",".join(_for_the_device()))
    assert ran.exit_code == 0, ran.err
    found = ran.json
    assert found["broken"] == {}
    for module, library in found["missing"].items():
        own = module.rsplit(".", 1)[1].removesuffix("_device")
        assert library in INSTALL_COMMANDS
        backends = ("slimdeploy.toolchain.runtime.", "slimdeploy.toolchain.latency.")
        assert module.startswith(backends), f"{module} needs {library}"
        assert library == NAMED_FOR.get(own, own) or own == "torch", f"{module} needs {library}"
    assert "slimdeploy.toolchain.runtime.torch" in found["missing"], "nothing was blocked"


def test_a_network_can_be_described_without_torch(fresh_python: Callable) -> None:
    ran = fresh_python(HELP, "torch,onnx,onnxruntime", "summary", "--arch", "resnet18", "--json")
    assert ran.exit_code == 0, ran.err
    assert ran.json["arch"] == "resnet18"


def test_a_missing_library_is_one_line(fresh_python: Callable, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    ran = fresh_python(HELP, "torch", "prune", str(tmp_path / "x.safetensors"), "--ratio", "0.5", "-o", "y")
    assert ran.exit_code == 2
    line = f"slimdeploy: this needs torch, which is not installed: {INSTALL_COMMANDS['torch']}"
    assert ran.err.splitlines()[0] == line
    assert "Traceback" not in ran.err


def test_serve_without_its_extra_is_one_line(fresh_python: Callable) -> None:
    ran = fresh_python(HELP, "anyio,h11,prometheus_client,starlette,uvicorn", "serve", "--model", "x.onnx")
    assert ran.exit_code == 2
    line = ran.err.splitlines()[0]
    assert line.startswith("slimdeploy: this needs ")
    assert line.endswith(", which is not installed: pip install 'slimdeploy[device]'")
