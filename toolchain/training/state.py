"""The state of an unfinished run: a safetensors file beside the checkpoint, from which `--resume` goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import read_safetensors
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training.options import EpochRecord

HEADER_KEY = "slimdeploy-training"


@dataclass
class TrainingState:
    """Where a run stands after an epoch."""

    setup: dict[str, Any]
    """What the run was started with; another set-up can't go on from here."""
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    """Weights of the epoch with the best validation accuracy, kept only with early stopping."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """What else the options in force keep: the average of the weights, the loss scale, the steering of λ."""

    @property
    def epochs_done(self) -> int:
        return len(self.history)


def state_path(output: Path) -> Path:
    """Where the state of the run that writes `output` is kept."""
    return output.with_name(output.name + ".state")


def save_state(
    path: Path, state: TrainingState, network: GraphNetwork, optimizer: torch.optim.Optimizer
) -> None:
    """Write the state atomically."""
    tensors = {f"network.{name}": t for name, t in network.state_dict().items()}
    tensors |= {f"best.{name}": t for name, t in (state.best or {}).items()}
    tensors |= {f"extra.{name}": t for name, t in state.extra.items()}
    tensors |= {f"momentum.{i}": t for i, t in enumerate(_momenta(optimizer)) if t is not None}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {
        "setup": state.setup,
        "history": [record.to_json() for record in state.history],
        "digest": _digest(tensors),
    }
    artifacts.write_bytes(path, safetensors.torch.save(tensors, {HEADER_KEY: json.dumps(header)}))


def load_state(
    path: Path,
    setup: dict[str, Any],
    network: GraphNetwork,
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Tensor] | None = None,
) -> TrainingState:
    """Restore `network` and `optimizer` from the file, whose `extra` must have the names and shapes of the
    one given.

    Raises SlimdeployError where it is damaged or belongs to a run with another set-up; nothing is changed
    then.
    """
    header, tensors = read_safetensors(path)
    damaged = SlimdeployError(f"{path} is not a readable training state: delete it to start again")
    try:
        document = json.loads(header[HEADER_KEY])
        history = [EpochRecord(**record) for record in document["history"]]
        if document["digest"] != _digest(tensors):
            raise damaged
        _check_setup(path, document["setup"], setup)
    except (KeyError, ValueError, TypeError) as error:
        raise damaged from error
    own, kept = part(tensors, "network."), part(tensors, "extra.")
    if _shapes(own) != _shapes(network.state_dict()) or _shapes(kept) != _shapes(extra or {}):
        raise damaged
    network.load_state_dict(own)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        if f"momentum.{i}" in tensors:
            momentum = tensors[f"momentum.{i}"].to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = momentum.to(memory_format=_format_of(parameter))
    return TrainingState(document["setup"], history, part(tensors, "best.") or None, kept)


def _digest(tensors: dict[str, Tensor]) -> str:
    """Hash of all names and bytes: safetensors itself doesn't notice a bit that has changed."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_setup(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in dict.fromkeys([*wanted, *stored]):  # in this order: another size has another mean, too
        if stored.get(key) != wanted.get(key):
            if key == "images":
                raise SlimdeployError(
                    f"{path} belongs to a run on other images: the data has changed; delete it to start again"
                )
            raise SlimdeployError(
                f"{path} belongs to a run with {key} = {stored.get(key)!r}, "
                f"this one has {wanted.get(key)!r}: give the same options, or delete it to start again"
            )


def _momenta(optimizer: torch.optim.Optimizer) -> list[Tensor | None]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [optimizer.state[p].get("momentum_buffer") for p in parameters]


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _format_of(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
