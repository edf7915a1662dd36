"""A package that is installed adds to the tables: the one of docs/architecture.md is, with pip."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from processes import process_environment
from torch import nn

import slimdeploy
from slimdeploy.calibrate.thresholds import METHODS
from slimdeploy.tests.toolchain.networks.example_modules import Function
from slimdeploy.toolchain import registry
from slimdeploy.toolchain.data.dataset import SOURCES
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency.backend import BACKENDS
from slimdeploy.toolchain.networks.architectures import ARCHITECTURES
from slimdeploy.toolchain.networks.aten import READERS
from slimdeploy.toolchain.networks.operators import OPERATORS
from slimdeploy.toolchain.pruning.criterion import CRITERIA

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "nuclear-criterion"
version = "1.0"

{entry_points}
"criterion.broken" = "nuclear_criterion_broken:missing"
"criterion.no-criterion" = "nuclear_criterion:np"
"criterion.gamma" = "nuclear_criterion:nuclear"
"kriterion.x" = "nuclear_criterion:nuclear"

{others}

[tool.setuptools]
py-modules = ["nuclear_criterion", "nuclear_criterion_broken", "one_of_each"]
"""

ONE_OF_EACH = """\
import numpy as np

from slimdeploy.toolchain.data.dataset import Dataset, Split
from slimdeploy.toolchain.networks.graph import Graph, Node
from slimdeploy.toolchain.networks.operators.activation import Activation
from slimdeploy.toolchain.preprocessing import Preprocessing

rounded = Activation("round", np.round, "Round")


def read_round(at, node):
    return at.add(node, "round", at.value(node, 0))


def small(classes):
    sides = {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1]}
    return Graph((
        Node("conv", "conv", ("images",), {"in": 3, "out": 8, "groups": 1, "bias": True, **sides}),
        Node("act", "round", ("conv",)),
        Node("pool", "adaptive_avg_pool", ("act",), {"size": [1, 1]}),
        Node("flat", "flatten", ("pool",), {"positions": 1}),
        Node("fc", "linear", ("flat",), {"in": 8, "out": classes, "bias": True}),
    ), {"arch": "small"})


def noise(argument, options):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    split = Split(images, np.arange(40) % 2)
    return Dataset(("a", "b"), split, split, Preprocessing(16, (0.5,) * 3, (0.25,) * 3))


def half(histogram, steps):
    return histogram.largest / 2


def still(options):
    raise AssertionError("opened")
"""
PARTS = {
    "operator": ("round", "rounded"),
    "aten": ("round", "read_round"),
    "arch": ("small", "small"),
    "data": ("noise", "noise"),
    "method": ("half", "half"),
    "backend": ("still", "still"),
}
"""Kind -> the entry's name, and the object in `one_of_each`."""
OTHERS = "\n".join(
    f'"{kind}.{name}" = "one_of_each:{part}"\n"{kind}.broken" = "nuclear_criterion_broken:missing"'
    for kind, (name, part) in PARTS.items()
)
TABLES = {
    table.kind: table for table in (OPERATORS, READERS, ARCHITECTURES, SOURCES, METHODS, BACKENDS, CRITERIA)
}


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of the page, and some mistakes beside it, are installed."""
    source, target = tmp_path_factory.mktemp("nuclear"), tmp_path_factory.mktemp("installed")
    page = (Path(slimdeploy.__file__).parent / "docs" / "architecture.md").read_text().split("## Plugins")[1]
    (entry_points,) = re.findall(r"```toml\n(.*?)\n```", page, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (source / "pyproject.toml").write_text(PROJECT.format(entry_points=entry_points, others=OTHERS))
    (source / "nuclear_criterion.py").write_text(code)
    (source / "one_of_each.py").write_text(ONE_OF_EACH)
    (source / "nuclear_criterion_broken.py").write_text("import no_such_library\n")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*install, "--no-deps", "--target", str(target), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is on the path of this process alone."""
    monkeypatch.syspath_prepend(str(plugin))
    _forget()
    for table in TABLES.values():
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    yield
    _forget()


def _forget() -> None:
    importlib.invalidate_caches()
    registry._plugins.cache_clear()
    registry._entry_points.cache_clear()


def test_help_lists_what_the_package_brings(plugin: Path) -> None:
    """In a process that can't import torch: the name is known without importing anything."""
    code = """import blocking, sys; blocking.block('torch')
from slimdeploy.toolchain.cli import cli
for command in sys.argv[1:]: cli.main([command, '--help'], standalone_mode=False)"""
    environment = process_environment()
    environment["PYTHONPATH"] += os.pathsep + str(plugin)
    own = [part for part in environment["PYTHONPATH"].split(os.pathsep) if not part.endswith("subprocesses")]
    setup = f"import sys; sys.path.append({str(Path(__file__).parents[1] / 'subprocesses')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + code, "prune", "calibrate", "lut"], capture_output=True, text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(own)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for option, own, added in (
        ("criterion", "gamma", "nuclear"),
        ("method", "minmax", "half"),
        ("backend", "onnxruntime", "still"),
    ):
        assert re.search(rf"--{option} .*{own}.*\b{added}\b", shown)


@pytest.mark.usefixtures("installed")
def test_prune_uses_it(slimdeploy_command: Callable, tmp_path: Path) -> None:
    checkpoint, output = tiny.write_checkpoint(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    ran = slimdeploy_command(
        "prune", checkpoint, "--criterion", "nuclear", "--ratio", 0.4, "--align", 1, "-o", output, "--json"
    )
    assert ran.exit_code == 0, ran.err
    assert ran.json["params"]["after"] < ran.json["params"]["before"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"the package nuclear-criterion can't be loaded \(ModuleNotFoundError: .*no_such_library"),
        ("no-criterion", r"can't be loaded \(TypeError: nuclear_criterion:np is a module, not a Criterion\)"),
    ],
)
def test_one_that_cannot_be_loaded_is_one_line_and_names_the_package(name: str, message: str) -> None:
    with pytest.raises(SlimdeployError, match=message):
        CRITERIA.find(name)


@pytest.mark.usefixtures("installed")
def test_others_are_not_disturbed(capfd: pytest.CaptureFixture[str]) -> None:
    assert CRITERIA.find("gamma").needs_gamma, "slimdeploy's own goes before a plugin's of the same name"
    usable = CRITERIA.usable()
    assert "nuclear" in usable
    assert not {"broken", "no-criterion"} & set(usable)
    said = capfd.readouterr().err
    assert said.count("\n! the criterion") == 2
    assert (
        "ignored 'kriterion.x' of the package nuclear-criterion: plugins are named KIND.NAME, the kinds"
        in said
    )


def test_every_kind_is_tried_here() -> None:
    assert {*PARTS, "criterion"} == set(registry.KINDS) == set(TABLES)


@pytest.mark.usefixtures("installed")
def test_one_of_each_kind_is_used(slimdeploy_command: Callable, tmp_path: Path) -> None:
    """An architecture with an operator, both of the package, trains on its data and is quantised its way."""
    assert all(name in TABLES[kind] for kind, (name, _) in PARTS.items())
    data = slimdeploy.load_data("noise")
    trained = slimdeploy.train("small", data=data, epochs=1, batch_size=8)
    assert {node.operator for node in trained.network.graph.nodes} >= {"round", "conv"}
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), Function(torch.round), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    own = slimdeploy.from_module(nn.Sequential(*module, nn.Linear(4, 2)), size=16)
    assert "round" in {node.operator for node in own.network.graph.nodes}
    onnx = slimdeploy.export(
        trained.checkpoint, output=tmp_path / "a.onnx", data=slimdeploy.load_data("noise")
    )
    found = slimdeploy.quantize(
        onnx.onnx,
        data=slimdeploy.load_data("noise"),
        output=tmp_path / "b.onnx",
        method="half",
        max_drop=100.0,
    )
    assert found.method == "half"
    table = tmp_path / "t.json"
    ran = slimdeploy_command("lut", "--arch", "small", "--size", 16, "--backend", "still", "-o", table)
    assert ran.exit_code == 1
    assert "opened" in ran.err, "the backend is the package's"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("arch", "summary --arch broken"),
        ("data", "train --data broken -o OUT"),
        ("backend", "lut --arch resnet18 --backend broken -o OUT"),
        ("criterion", "prune CHECKPOINT --criterion broken --ratio 0.5 -o OUT"),
    ],
)
def test_a_broken_one_breaks_only_what_names_it(
    slimdeploy_command: Callable, tmp_path: Path, kind: str, arguments: str
) -> None:
    checkpoint, output = tiny.write_checkpoint(tmp_path / "a.safetensors"), tmp_path / "out"
    words = {"CHECKPOINT": checkpoint, "OUT": output}
    ran = slimdeploy_command(*(words.get(word, word) for word in arguments.split()))
    assert (ran.exit_code, output.exists()) == (2, False)
    assert f"the {kind} 'broken' of the package nuclear-criterion can't be loaded" in ran.error
    assert slimdeploy_command("summary", checkpoint, "--json").exit_code == 0
