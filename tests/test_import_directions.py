"""Which modules and folders of the package may import which."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from package_files import ROOT, modules


def _imports(file: Path, module: str, *, lazy: bool) -> set[str]:
    """Modules of the package that `file` imports: at its top, or with `lazy` anywhere; not those for type
    checking alone.
    """
    known, found = modules(), set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            return
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            target = name if name in known else name.rpartition(".")[0]
            if target in known and target != module:
                found.add(target)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def test_no_import_goes_in_a_circle() -> None:
    graph = {name: _imports(file, name, lazy=False) for name, file in modules().items()}
    assert sum(map(len, graph.values())) > 100, "the imports were not found"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular imports: {' → '.join(error.args[1])}")


T = "slimdeploy.toolchain."


LAYERS = (
    "benchmarks.peers",
    "benchmarks",
    "toolchain.commands",
    "toolchain.sweep",
    "toolchain.pipeline",
    "toolchain.report",
    "toolchain.deploy",
    "toolchain.stages",
    "toolchain.library",
    "toolchain.training",
    "toolchain.pruning",
    "toolchain.latency",
    "calibrate",
    "toolchain.export",
    "toolchain.measure",
    "kernels",
    "toolchain.runtime.devices",
    "toolchain.runtime",
    "toolchain.data",
    "toolchain.models",
    "toolchain.networks.architectures",
    "toolchain.networks",
    "toolchain.networks.operators",
    "toolchain.machine",
    "toolchain.recipes",
    "toolchain",
    "",
)
"""The folders, top first. A folder imports only from those below it, in functions too: no two folders import
each other, and `toolchain` never imports the laboratory.
"""


def _files_with_peers() -> dict[str, Path]:
    peers = (ROOT / "benchmarks/peers").glob("*.py")
    return {**modules(), **{f"slimdeploy.benchmarks.peers.{file.stem}": file for file in peers}}


def _folder(file: Path) -> str:
    return ".".join(file.parent.relative_to(ROOT).parts)


def test_a_folder_imports_only_from_those_below_it() -> None:
    files = _files_with_peers()
    assert {_folder(file) for file in files.values()} == set(LAYERS)
    wrong = [
        f"{name} imports {target}"
        for name, file in files.items()
        for target in _imports(file, name, lazy=True)
        if LAYERS.index(_folder(files[target])) < LAYERS.index(_folder(file))
    ]
    assert not wrong


def test_the_networks_know_nothing_of_the_data() -> None:
    for name, file in modules().items():
        if name.startswith(T + "networks"):
            imported = _imports(file, name, lazy=True)
            below = (T + "errors", T + "registry")
            assert all(i.startswith(T + "networks") or i in below for i in imported), name
