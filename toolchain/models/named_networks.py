"""Networks by name: built in, from torchvision or timm, or made by a function in a user's file."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdeploy.toolchain.errors import SlimdeployError, nearest, shorten
from slimdeploy.toolchain.networks.architectures import (
    ARCHITECTURES,
    build_graph,
    is_imported,
    refuse_arguments,
)
from slimdeploy.toolchain.networks.importing import Imported, from_module
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.networks.operators.batchnorm import COUNTER
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.torchvision import import_torchvision


def named_network(
    name: str | None,
    *,
    size: int,
    classes: int | None = None,
    stem: str | None = None,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    image_channels: int = 3,
) -> GraphNetwork:
    """The network called `name` (default: ResNet-50) with random weights, which depend only on `seed`.

    A built-in network is made for images with `image_channels`; an imported one gets them if it takes them.
    `classes` is passed as `num_classes`, to a user's function only if it has a parameter of that name. Raises
    SlimdeployError for an unknown name, a file that fails to run, an unsupported network, and one with
    another number of classes than `classes`.
    """
    if name is None or not is_imported(name):
        refuse_arguments(name, arguments or ())
        graph = build_graph(name, stem=stem, classes=classes or 10, image_channels=image_channels)
        return build_network(graph, seed=seed)
    if stem is not None:
        raise SlimdeployError(f"`stem` is for {', '.join(ARCHITECTURES)}; {name} has its own first layers")
    imported = imported_network(
        name, size=size, classes=classes, arguments=arguments, seed=seed, image_channels=image_channels
    )
    return imported.network


def imported_network(
    name: str,
    *,
    size: int,
    classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
    image_channels: int = 3,
) -> Imported:
    """The imported network called `name` with the state dict `tensors`, or with its own weights, for images
    with `image_channels` if it takes them.

    Raises SlimdeployError like named_network, and for tensors that don't fit, naming the first.
    """
    module = foreign_module(name, classes=classes, arguments=arguments, seed=seed)
    try:
        if tensors is not None:
            _load(module, tensors)
        imported = from_module(module, size=size, arch=name, image_channels=image_channels)
    except SlimdeployError as error:
        raise SlimdeployError(f"{name}: {error.message}") from error
    found = imported.network.graph.classes
    if classes not in (None, found):
        raise SlimdeployError(
            f"{name} gives a network of {found} classes, not {classes}: pass the number in `arguments`, or "
            "change the function"
        )
    for remark in imported.remarks:
        log(f"! {name}: {remark}")
    return imported


def foreign_module(
    name: str, *, classes: int | None = None, arguments: Mapping[str, Any] | None = None, seed: int = 0
) -> nn.Module:
    """The module as it is built; raises SlimdeployError like named_network."""
    source, _, rest = name.rpartition(":")
    given = dict(arguments or {})
    own = given.get("num_classes", classes)
    if classes is not None and own != classes:
        raise SlimdeployError(
            f"`arguments` num_classes={own}: leave it out; the network gets {classes} classes"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source == "torchvision":
            return _of_torchvision(rest, classes, given)
        if source == "timm":
            return _of_timm(rest, classes, given)
        return _of_file(Path(source), rest, classes, given)


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from texts like `width=0.5`: Python literals, anything else a string."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise SlimdeployError(f"`arguments` {text}: write it as name=value, e.g. width=0.5")
        if key in found:
            raise SlimdeployError(f"`arguments` {key} is given twice")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _of_torchvision(name: str, classes: int | None, arguments: dict[str, Any]) -> nn.Module:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise SlimdeployError(f"torchvision has no classifier {name!r}.{nearest(name, known)}")
    if name in ("googlenet", "inception_v3"):  # without it torchvision warns and takes a minute
        arguments = {"init_weights": False, **arguments}
    defaults = {"weights": None, **_counted(classes)}
    return _called(models.get_model, f"torchvision:{name}", name, arguments=defaults | arguments)


def _of_timm(name: str, classes: int | None, arguments: dict[str, Any]) -> nn.Module:
    import_torchvision()  # timm imports it; with a CPU-only torch only this way works
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise SlimdeployError("timm isn't installed: pip install timm") from error
    if not timm.is_model(name):
        raise SlimdeployError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}")
    defaults = {"pretrained": False, **_counted(classes)}
    return _called(timm.create_model, f"timm:{name}", name, arguments=defaults | arguments)


def _of_file(path: Path, function: str, classes: int | None, arguments: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise SlimdeployError(f"no file at {path}: write FILE.py:FUNCTION, torchvision:NAME or timm:NAME")
    name, root = _module_name(path.resolve())
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SlimdeployError(f"{path} is not a Python file")
    import_torchvision()  # the file may import it; with a CPU-only torch only this way works
    user = importlib.util.module_from_spec(spec)
    with _importable(path.resolve().parent, root):
        sys.modules[name] = user  # dataclasses look there
        try:
            spec.loader.exec_module(user)
        except (Exception, SystemExit) as error:  # whatever the user's file raises
            raise SlimdeployError(
                f"{path} can't be imported: {type(error).__name__}: {shorten(error)}"
            ) from error
        build = getattr(user, function, None)
        if not callable(build):
            names = [n for n, value in vars(user).items() if callable(value) and not n.startswith("_")]
            raise SlimdeployError(f"{path} has no function {function!r}.{nearest(function, names)}")
        counted = _counted(classes) if _has_parameter(build, "num_classes") else {}
        return _called(build, f"{path}:{function}", arguments=counted | arguments)


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return False


def _module_name(path: Path) -> tuple[str, Path]:
    """The module's name, and the folder to import it from: that of the file or, in a package, the one that
    contains the outermost package, so that relative imports work.
    """
    root, packages = path.parent, []
    while (root / "__init__.py").is_file():
        packages.append(root.name)
        root = root.parent
    stem = path.stem if packages else f"slimdeploy_user_{path.stem}"
    return ".".join([*reversed(packages), stem]), root


@contextlib.contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Inside, modules in `folders` can be imported, as by a script in that folder."""
    before = list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = before


def _load(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load the tensors into `module`; raises SlimdeployError with the first three that don't fit."""
    own = module.state_dict()
    wrong = [f"{n} is missing" for n in own if n not in tensors and not n.endswith(COUNTER)]
    wrong += [f"{n} isn't part of the network" for n in tensors if n not in own]
    wrong += [
        f"{n} has shape {tuple(tensors[n].shape)}, expected {tuple(tensor.shape)}"
        for n, tensor in own.items()
        if n in tensors and tensors[n].shape != tensor.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise SlimdeployError(f"the weights don't fit: {'; '.join(wrong[:3])}{more}")
    module.load_state_dict(dict(tensors), strict=False)


def _called(
    build: Callable[..., Any], name: str, *positional: Any, arguments: Mapping[str, Any]
) -> nn.Module:
    try:
        module = build(*positional, **arguments)
    except (Exception, SystemExit) as error:  # whatever a foreign builder raises
        lacks = isinstance(error, TypeError) and "missing" in str(error)
        hint = "; give it with `arguments`, as name=value" if lacks else ""
        raise SlimdeployError(
            f"{name} can't be built: {type(error).__name__}: {shorten(error)}{hint}"
        ) from error
    if not isinstance(module, nn.Module):
        raise SlimdeployError(f"{name} gives {type(module).__name__}, not a torch.nn.Module")
    return module


def _counted(classes: int | None) -> dict[str, Any]:
    return {} if classes is None else {"num_classes": classes}
