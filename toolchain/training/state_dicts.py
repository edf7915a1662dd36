"""Read any weights file as a state dict with the network's own names, without the prefixes of wrappers."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.file_kinds import PYTORCH, kind_of
from slimdeploy.toolchain.models.checkpoint import read_safetensors
from slimdeploy.toolchain.networks.architectures.resnet import RESNETS
from slimdeploy.toolchain.progress import log

PREFERRED = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Keys of the state dict in files that also contain an average of the weights, a teacher or an optimiser."""
_SECONDARY = re.compile(r"ema|teacher|momentum|target|encoder_k|swa|average")
_WRAPPER = re.compile(r"(module|model|_orig_mod|net|network)\.")
_LISTED = 6


def read_state_dict(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header (of safetensors) and tensors of `path`, named as in the file.

    The file type is identified by its content. Pickles are read with weights_only. Raises SlimdeployError if
    the file contains no state dict, or can't be read safely.
    """
    if kind_of(path) != PYTORCH:
        return read_safetensors(path)
    candidates = dict(_state_dicts(_unpickled(path), ""))
    if not candidates:
        raise SlimdeployError(f"{path} contains no state dict: save the network's state_dict() alone")
    ranked = sorted(candidates, key=lambda key: (bool(_SECONDARY.search(key)), _preference(key)))
    chosen, *others = ranked
    if others:
        log(f"{path}: using the weights under {chosen!r}, not those under {', '.join(map(repr, others))}")
    _check_ordinary(candidates[chosen], path)
    return {}, candidates[chosen]


def unwrapped(
    tensors: dict[str, Tensor], names: Collection[str], classifier: str, path: Path
) -> dict[str, Tensor]:
    """The tensors of a network with the parameter names `names`: prefixes (`module.`, `model.`, `backbone.`,
    `_orig_mod.`, `module.encoder_q.` …) and tensors of other modules are removed. The layer `classifier` may
    be part of a sequence, e.g. `fc.1` after a dropout, or be missing.

    Raises SlimdeployError with the expected and the found names if there is no such network.
    """
    prefix = _prefix(tensors, names, path)
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if left := len(tensors) - len(own):
        log(f"{path}: {left} tensors outside of {prefix!r} are ignored")
    if f"{classifier}.weight" in own:
        return own
    inside = re.compile(rf"{re.escape(classifier)}\.(.+\.)?weight")
    layers = [n for n, t in own.items() if inside.fullmatch(n) and t.dim() == 2]
    found = {n: t for n, t in own.items() if not n.startswith(f"{classifier}.")}
    if len(layers) == 1:
        layer = layers[0].removesuffix("weight")
        found |= {n.replace(layer, f"{classifier}.", 1): t for n, t in own.items() if n.startswith(layer)}
    else:
        there = f"{len(layers)} layers" if layers else "nothing"
        log(f"{path} has {there} instead of the classifier {classifier}")
    return found


def recognised_resnet(tensors: dict[str, Tensor], path: Path) -> tuple[str, bool]:
    """The ResNet that the tensors belong to, by its blocks, and whether its stem is ImageNet's 7×7."""
    pivots = ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")
    prefix = _prefix(tensors, pivots, path)
    names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
    blocks = {m[1] for name in names if (m := re.match(r"(layer\d\.\d+)\.", name))}
    depths = tuple(sum(block.startswith(f"layer{i}.") for block in blocks) for i in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in names
    for arch in RESNETS.values():
        if (arch.depths, arch.bottleneck) == (depths, bottleneck):
            log(f"{path}: recognised {arch.name} by its blocks")
            return arch.name, tensors[prefix + "conv1.weight"].shape[-1] == 7
    kind = "bottleneck" if bottleneck else "basic"
    raise SlimdeployError(f"{path}: no known ResNet has {depths} {kind} blocks; name the network with `arch`")


def without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrapper names that prefix every tensor name."""
    while tensors and (found := _WRAPPER.match(next(iter(tensors)))):
        if not all(name.startswith(found[0]) for name in tensors):
            break
        tensors = {name.removeprefix(found[0]): t for name, t in tensors.items()}
    return tensors


def _prefix(tensors: dict[str, Tensor], names: Collection[str], path: Path) -> str:
    """The prefix of the network's names; if the file contains several networks, that of the main one."""
    first = next(iter(names))
    candidates = [name.removesuffix(first) for name in tensors if name.endswith(first)]
    counts = {p: sum(p + name in tensors for name in names) for p in candidates}
    best = max(counts.values(), default=0)
    if best < len(names) / 2:
        some = list(names)[:3]
        raise SlimdeployError(
            f"{path} contains another network (`arch`): expected {', '.join(some)}, …; found "
            f"{listed(tensors)}"
        )
    whole = sorted(
        (p for p in counts if counts[p] == best), key=lambda p: (bool(_SECONDARY.search(p)), len(p))
    )
    if len(whole) > 1:
        log(f"{path}: using the network {whole[0]!r}, not {', '.join(map(repr, whole[1:]))}")
    return whole[0]


def listed(tensors: dict[str, Tensor]) -> str:
    """The first few names."""
    names = list(tensors)
    return ", ".join(names[:_LISTED]) + (f", … ({len(names)} in all)" if len(names) > _LISTED else "")


def _preference(key: str) -> int:
    first = key.split("/")[0]
    return PREFERRED.index(first) if first in PREFERRED else len(PREFERRED)


def _state_dicts(content: Any, key: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Key (`a/b` if nested) -> each dict of tensors that contains a convolution."""
    if not isinstance(content, dict) or depth > 3:
        return
    tensors = {name: t for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if any(t.dim() == 4 for t in tensors.values()):
        yield key, tensors
        return
    for name, value in content.items():
        yield from _state_dicts(value, f"{key}/{name}".lstrip("/"), depth + 1)


def _check_ordinary(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise SlimdeployError for a tensor that no float32 network can take over."""
    for name, tensor in tensors.items():
        kind = "quantised" if tensor.is_quantized else "complex" if tensor.is_complex() else None
        if tensor.layout != torch.strided:
            kind = "sparse"
        if kind:
            raise SlimdeployError(f"{path}: {name} is a {kind} tensor: save dense floating-point weights")


def _unpickled(path: Path) -> Any:
    how = "save the network's state_dict() alone: torch.save(network.state_dict(), 'weights.pth')"
    if _is_torchscript(path):
        raise SlimdeployError(
            f"{path} is a TorchScript archive, which is a program: "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth') writes its state dict"
        )
    _check_sums(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"is a pickle with {found[1]}" if found else "is not a state dict"
        raise SlimdeployError(f"{path} {what}, which can't be read safely; {how}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        raise SlimdeployError(
            f"{path} is damaged or not a state dict that can be read safely; {how}"
        ) from error


def _is_torchscript(path: Path) -> bool:
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    return False


def _check_sums(path: Path) -> None:
    """Warn where a checksum in the archive doesn't fit: torch doesn't look at them."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if (wrong := archive.testzip()) is not None:
            log(f"warning: {path} is damaged, or was saved without checksums: that of {wrong} doesn't fit")


def _harmless() -> list[Any]:
    """Objects that training scripts save beside the weights, and that execute nothing when loaded."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [argparse.Namespace, *((scalar, name) for name in names), np.dtype, *dtypes]
