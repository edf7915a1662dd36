"""The state of an unfinished run: what it restores, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import PREPROCESSING, random_images, random_network

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import read_safetensors, save_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.training.distributed import ALONE
from slimdeploy.toolchain.training.learner import Course, Learner
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.state import (
    HEADER_KEY,
    TrainingState,
    check_fits,
    load_state,
    save_state,
    state_path,
)
from slimdeploy.toolchain.training.step import Objective

SPEC = build_graph("tiny", stem="cifar", classes=3)
SETUP = {"lr": 0.1, "epochs": 3, "stage": "train"}
RECORD = EpochRecord(1, 0.1, 1.0, 0.5, 1.1, 0.4, 0.0, 100.0)


def _learner(seed: int = 0) -> Learner:
    options = TrainOptions(ema=0.9, sparsity="auto:0.3", sparse_align=1)
    objective = Objective(options, None, PREPROCESSING)
    course = Course(options, SPEC, objective, steps_per_epoch=3, weight=1.0, device="cpu", ranks=ALONE)
    return Learner(random_network(SPEC, seed), course)


def _trained() -> Learner:
    """A learner after one step, with momentum."""
    learner = _learner()
    learner.take_step(random_images(4), torch.arange(4) % 3, 0)
    return learner


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A state after one epoch."""
    learner = _trained()
    path = state_path(tmp_path / "x.safetensors")
    save_state(path, TrainingState(SETUP, [RECORD], learner.judged_weights()), learner.snapshot())
    return path


def _resume(path: Path, setup: dict[str, object] = SETUP) -> tuple[TrainingState, Learner]:
    """What a run does that goes on from `path`."""
    state, snapshot = load_state(path, setup)
    learner = _learner(seed=1)
    check_fits(path, snapshot, learner.snapshot())
    learner.restore(snapshot)
    return state, learner


def test_everything_comes_back(saved: Path) -> None:
    trained = _trained()
    state, restored = _resume(saved)
    assert state.history == [RECORD]
    assert state.epochs_done == 1
    assert state.best is not None
    expected, found = trained.snapshot(), restored.snapshot()
    assert found.extra.keys() == expected.extra.keys()
    assert any(name.startswith("average.") for name in found.extra)
    assert any(name.startswith("penalty.going.") for name in found.extra)
    assert all(torch.equal(tensor, expected.extra[name]) for name, tensor in found.extra.items())
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, restored.network.state_dict()[name])
        assert torch.equal(trained.judged.state_dict()[name], state.best.tensors[name])
    assert found.momenta.keys() == expected.momenta.keys() == dict(trained.network.named_parameters()).keys()
    for name, momentum in found.momenta.items():
        assert torch.equal(momentum, expected.momenta[name])
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
    advice = "give the same options, or delete it to start again"
    with pytest.raises(SlimdeployError, match=f"^{re.escape(f'{saved} {message}: {advice}')}$"):
        load_state(saved, setup)


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


def _other_graph(path: Path) -> str:
    header, tensors = read_safetensors(path)
    document = json.loads(header[HEADER_KEY])
    document["graphs"]["network"] = build_graph("tiny-deep", stem="cifar", classes=3).to_json()
    path.write_bytes(safetensors.torch.save(tensors, {HEADER_KEY: json.dumps(document)}))
    return f"{path} is not a readable training state: delete it to start again"


SPOILT = [
    _other_graph,
    _cut,
    _garbage,
    _of_another_kind,
    _without_tensors,
    _without_extra,
    _one_bit,
    _other_history,
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_damaged_states_are_refused(saved: Path, spoil) -> None:
    message = spoil(saved)
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}"):
        _resume(saved)


def test_a_checkpoint_is_no_state(saved: Path, tmp_path: Path) -> None:
    from tiny import model_info

    save_checkpoint(saved, random_network(SPEC), model_info(SPEC))
    with pytest.raises(SlimdeployError, match="is not a readable training state"):
        _resume(saved)
