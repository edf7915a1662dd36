"""The state of an unfinished run: a safetensors file beside the checkpoint, from which `--resume`
continues.
"""

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
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.training.learner import Snapshot, Weights
from slimdeploy.toolchain.training.options import EpochRecord
from slimdeploy.toolchain.training.tensor_names import part

HEADER_KEY = "slimdeploy-training"


@dataclass
class TrainingState:
    """The state of a run after an epoch."""

    setup: dict[str, Any]
    """Identifies the run; a state with another set-up can't be resumed."""
    history: list[EpochRecord] = field(default_factory=list)
    best: Weights | None = None
    """The network of the epoch with the best validation accuracy, saved only with early stopping."""

    @property
    def epochs_done(self) -> int:
        return len(self.history)


def state_path(output: Path) -> Path:
    """The state file of the run that writes `output`."""
    return output.with_name(output.name + ".state")


def save_state(path: Path, state: TrainingState, learner: Snapshot) -> None:
    """Write the state atomically."""
    tensors = {f"network.{name}": t for name, t in learner.weights.tensors.items()}
    tensors |= {f"best.{name}": t for name, t in (state.best.tensors if state.best else {}).items()}
    tensors |= {f"extra.{name}": t for name, t in learner.extra.items()}
    tensors |= {f"momentum.{name}": t for name, t in learner.momenta.items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    graphs = {"network": learner.weights.graph.to_json()}
    if state.best:
        graphs["best"] = state.best.graph.to_json()
    header = {
        "setup": state.setup,
        "history": [record.to_json() for record in state.history],
        "graphs": graphs,
        "digest": _digest(tensors, graphs),
    }
    artifacts.write_bytes(path, safetensors.torch.save(tensors, {HEADER_KEY: json.dumps(header)}))


def load_state(path: Path, setup: dict[str, Any]) -> tuple[TrainingState, Snapshot]:
    """Read the file; raises SlimdeployError if it is damaged or belongs to a run with another set-up."""
    header, tensors = read_safetensors(path)
    damaged = _damaged(path)
    try:
        document = json.loads(header[HEADER_KEY])
        _check_setup(path, document["setup"], setup)
        history = [EpochRecord(**record) for record in document["history"]]
        if document["digest"] != _digest(tensors, document["graphs"]):
            raise damaged
        graphs = {name: Graph.from_json(graph) for name, graph in document["graphs"].items()}
        weights = Weights(graphs["network"], part(tensors, "network."))
    except (KeyError, ValueError, TypeError) as error:
        raise damaged from error
    best = Weights(graphs["best"], part(tensors, "best.")) if "best" in graphs else None
    snapshot = Snapshot(weights, part(tensors, "momentum."), part(tensors, "extra."))
    return TrainingState(document["setup"], history, best), snapshot


def check_fits(path: Path, found: Snapshot, expected: Snapshot) -> None:
    """Raises SlimdeployError if `found`, read from `path`, doesn't have the tensors that a learner of its
    graph needs.
    """
    if _shapes(found.weights.tensors) != _shapes(expected.weights.tensors) or _shapes(found.extra) != _shapes(
        expected.extra
    ):
        raise _damaged(path)


def _damaged(path: Path) -> SlimdeployError:
    return SlimdeployError(f"{path} is not a readable training state: delete it to start again")


def _digest(tensors: dict[str, Tensor], graphs: dict[str, Any]) -> str:
    """Hash of the graphs and of all names and bytes: safetensors itself doesn't detect changed bits."""
    digest = hashlib.sha256(json.dumps(graphs, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_setup(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in dict.fromkeys([*wanted, *stored]):  # in this order: another size also changes the mean
        if stored.get(key) != wanted.get(key):
            if key == "images":
                raise SlimdeployError(
                    f"{path} belongs to a run on other images, because the data has changed: delete it to "
                    "start again"
                )
            raise SlimdeployError(
                f"{path} belongs to a run with {key} = {stored.get(key)!r}, "
                f"this one has {wanted.get(key)!r}: give the same options, or delete it to start again"
            )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
