"""The state of an unfinished run: what it restores, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import random_images, random_network

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import read_safetensors, save_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.setup import build_optimizer
from slimdeploy.toolchain.training.state import HEADER_KEY, TrainingState, load_state, save_state, state_path

SPEC = build_graph("tiny", stem="cifar", classes=3)
SETUP = {"lr": 0.1, "epochs": 3, "stage": "train"}
EXTRA = {"penalty.strength": torch.tensor(0.25), "penalty.going.stem": torch.tensor([1.0, 0.0])}
NO_EXTRA = {name: torch.zeros_like(tensor) for name, tensor in EXTRA.items()}
"""As a fresh run has it."""
RECORD = EpochRecord(1, 0.1, 1.0, 0.5, 1.1, 0.4, 0.0, 100.0)


def _trained() -> tuple[GraphNetwork, torch.optim.SGD]:
    """A network and its optimiser after one step, with momentum."""
    network = place(random_network(SPEC), "cpu").train()
    optimizer = build_optimizer(network, TrainOptions())
    network(random_images(4)).square().mean().backward()
    optimizer.step()
    return network, optimizer


def _fresh() -> tuple[GraphNetwork, torch.optim.SGD]:
    network = place(random_network(SPEC, seed=1), "cpu")
    return network, build_optimizer(network, TrainOptions())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A state after one epoch."""
    network, optimizer = _trained()
    path = state_path(tmp_path / "x.safetensors")
    best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_state(path, TrainingState(SETUP, [RECORD], best, EXTRA), network, optimizer)
    return path


def test_everything_comes_back(saved: Path) -> None:
    network, optimizer = _trained()
    restored, fresh = _fresh()
    state = load_state(saved, SETUP, restored, fresh, NO_EXTRA)
    assert state.history == [RECORD]
    assert state.epochs_done == 1
    assert state.best is not None
    assert state.extra.keys() == EXTRA.keys()
    assert all(torch.equal(tensor, EXTRA[name]) for name, tensor in state.extra.items())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name])
        assert torch.equal(tensor, state.best[name])
    for mine, theirs in zip(network.parameters(), restored.parameters(), strict=True):
        momentum = fresh.state[theirs]["momentum_buffer"]
        assert torch.equal(momentum, optimizer.state[mine]["momentum_buffer"])
        if momentum.dim() == 4:
            assert momentum.is_contiguous(memory_format=torch.channels_last), (
                "the layout that steps are fast in"
            )


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({**SETUP, "lr": 0.2}, "belongs to a run with lr = 0.1, this one has 0.2"),
        ({**SETUP, "stage": "finetune"}, "belongs to a run with stage = 'train', this one has 'finetune'"),
        ({**SETUP, "seed": 1}, "belongs to a run with seed = None, this one has 1"),
    ],
)
def test_another_setup_is_refused_by_its_key(saved: Path, setup: dict[str, object], message: str) -> None:
    network, optimizer = _fresh()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    advice = "give the same options, or delete it to start again"
    with pytest.raises(SlimdeployError, match=f"^{re.escape(f'{saved} {message}: {advice}')}$"):
        load_state(saved, setup, network, optimizer, NO_EXTRA)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not optimizer.state


def _cut(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-100])
    return f"{path} is not a safetensors file, or is damaged ("


def _garbage(path: Path) -> str:
    path.write_bytes(b"\0" * 64)
    return f"{path} is not a safetensors file, or is damaged ("


def _of_another_kind(path: Path) -> str:
    network = random_network(SPEC)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    path.write_bytes(safetensors.torch.save(tensors, {"slimdeploy": "{}"}))
    return f"{path} is not a readable training state: delete it to start again"


def _without_tensors(path: Path) -> str:
    header, _ = read_safetensors(path)
    path.write_bytes(safetensors.torch.save({"network.conv1.weight": torch.zeros(1)}, header))
    return f"{path} is not a readable training state: delete it to start again"


def _one_bit(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    return f"{path} is not a readable training state: delete it to start again"


def _other_history(path: Path) -> str:
    header, tensors = read_safetensors(path)
    document = json.loads(header[HEADER_KEY])
    document["history"] = [{"epoch": 1}]
    path.write_bytes(safetensors.torch.save(tensors, {HEADER_KEY: json.dumps(document)}))
    return f"{path} is not a readable training state: delete it to start again"


def _without_extra(path: Path) -> str:
    header, tensors = read_safetensors(path)
    kept = {name: t for name, t in tensors.items() if not name.startswith("extra.")}
    path.write_bytes(safetensors.torch.save(kept, header))
    return f"{path} is not a readable training state: delete it to start again"


SPOILT = [_cut, _garbage, _of_another_kind, _without_tensors, _without_extra, _one_bit, _other_history]


@pytest.mark.parametrize("spoil", SPOILT)
def test_damaged_states_are_refused(saved: Path, spoil) -> None:
    message = spoil(saved)
    network, optimizer = _fresh()
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}"):
        load_state(saved, SETUP, network, optimizer, NO_EXTRA)


def test_a_checkpoint_is_no_state(saved: Path, tmp_path: Path) -> None:
    from tiny import model_info

    save_checkpoint(saved, random_network(SPEC), model_info(SPEC))
    with pytest.raises(SlimdeployError, match="is not a readable training state"):
        load_state(saved, SETUP, *_fresh(), NO_EXTRA)
