"""The checkpoint: one safetensors file that is enough to rebuild its network. No pickle is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.file_kinds import CHECKPOINT, refuse_other_kind
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.cost import parameter_count
from slimdeploy.toolchain.networks.module import GraphNetwork

HEADER_KEY = "slimdeploy"


@dataclass(frozen=True)
class Checkpoint:
    """A network with its description. `sha256` is the hash of the file that it was read from."""

    network: GraphNetwork
    info: ModelInfo
    sha256: str


def save_checkpoint(path: Path, network: GraphNetwork, info: ModelInfo) -> str:
    """Write `network` and `info` to `path` atomically; returns the file's SHA-256.

    Raises SlimdeployError for weights that `load_checkpoint` would refuse.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SlimdeployError(f"{path}: {name} contains NaN or infinite values; not written")
    artifacts.write_bytes(path, safetensors.torch.save(tensors, {HEADER_KEY: info.to_json()}))
    return artifacts.sha256_file(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Rebuild the network from the file.

    Raises SlimdeployError if the file is missing, isn't a slimdeploy checkpoint, or is damaged.
    """
    header, tensors = read_safetensors(path)
    if HEADER_KEY not in header:
        raise SlimdeployError(
            f"{path}: a safetensors file without a slimdeploy header; convert it with: "
            f"slimdeploy train --weights {path} --arch … --epochs 0"
        )
    info = ModelInfo.from_json(header[HEADER_KEY], str(path))
    # Before any of it is allocated: a damaged header can ask for a network of any size.
    if parameter_count(info.graph) > sum(tensor.numel() for tensor in tensors.values()):
        raise SlimdeployError(f"{path}: it describes a larger network than it contains")
    network = GraphNetwork(info.graph)
    load_state(network, tensors, source=str(path))
    return Checkpoint(network.eval(), info, artifacts.sha256_file(path))


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header metadata and tensors of a safetensors file; raises SlimdeployError if it isn't one."""
    if not path.is_file():
        raise artifacts.missing(path, "checkpoint")
    refuse_other_kind(path, CHECKPOINT)
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            names = file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise SlimdeployError(f"{path} is not a safetensors file, or is damaged ({error})") from error


def load_state(network: GraphNetwork, tensors: dict[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `network`, by name; raises SlimdeployError at the first name or shape that differs,
    or at the first value that is not finite or a negative variance.
    """
    own = network.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise SlimdeployError(f"{source}: {name} is missing")
        if tensors[name].shape != tensor.shape:
            raise SlimdeployError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise SlimdeployError(f"{source}: {name} contains NaN or infinite values")
        if name.endswith("running_var") and (tensors[name] < 0).any():
            raise SlimdeployError(f"{source}: {name} contains negative variances")
    if extra := sorted(set(tensors) - set(own)):
        raise SlimdeployError(f"{source}: {extra[0]} is not part of a {network.graph.arch}")
    network.load_state_dict(tensors)
