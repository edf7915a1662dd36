"""`import_torchvision` beside a CPU-only torch, beside a torchvision that was built for the CPU, and without
one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slimdeploy.toolchain.torchvision import import_torchvision

LOAD = """
from slimdeploy.toolchain.torchvision import import_torchvision
first = import_torchvision()
assert import_torchvision() is first
import torchvision
assert torchvision is first
print(first.__version__, hasattr(first.datasets, "CIFAR10"), first.models.resnet18)
"""


def test_it_imports_in_a_fresh_process_and_again(fresh_python: Callable) -> None:
    ran = fresh_python(LOAD)
    assert ran.exit_code == 0, ran.err
    assert "True <function resnet18" in ran.out


# What a torchvision does that was built for the CPU: its library declares the operators as it is loaded.
BUILT_FOR_THE_CPU = """
import torch
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets
"""


def test_a_torchvision_that_declares_its_operators_itself_is_left_alone(
    fresh_python: Callable, tmp_path: Path
) -> None:
    (tmp_path / "torchvision.py").write_text(BUILT_FOR_THE_CPU)
    ran = fresh_python(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from slimdeploy.toolchain.torchvision import import_torchvision\n"
        "print(import_torchvision().__file__)",
        str(tmp_path),
    )
    assert ran.exit_code == 0, ran.err
    assert ran.out.strip() == str(tmp_path / "torchvision.py")


def test_another_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('the disk is on fire')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "torchvision", raising=False)
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        import_torchvision()


def test_a_missing_torchvision_is_named(fresh_python: Callable) -> None:
    ran = fresh_python(
        "import sys, blocking; blocking.block('torchvision')\n"
        "from slimdeploy.toolchain.cli import main\n"
        "sys.argv = ['slimdeploy', 'train', '--arch', 'resnet18', '--data', 'cifar10', '-o', 'x']\n"
        "main()"
    )
    assert ran.exit_code == 2
    assert ran.error == "this needs torchvision, which is not installed: pip install 'slimdeploy[host]'"


def test_a_user_s_file_may_import_it(fresh_python: Callable, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torchvision\n\nbuild = torchvision.models.squeezenet1_1\n")
    ran = fresh_python(
        "import sys\n"
        "from slimdeploy.toolchain.models.named_networks import foreign_module\n"
        "print(type(foreign_module(sys.argv[1] + ':build', classes=4)).__name__)",
        str(tmp_path / "net.py"),
    )
    assert (ran.exit_code, ran.out.strip()) == (0, "SqueezeNet"), ran.err
