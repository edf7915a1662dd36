"""The step in every precision: the penalty means the same, loss scaling or not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PREPROCESSING, random_images, random_network
from tiny_runs import OPTIONS, SPEC, STEPS, Stopped, at_step, run, same, stop, untimed

from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.training import learner
from slimdeploy.toolchain.training.distillation import Teacher
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.setup import build_optimizer, build_penalty
from slimdeploy.toolchain.training.sparsity import penalised_scales
from slimdeploy.toolchain.training.step import Objective, TrainingStep

PRECISIONS = ("fp32", "bf16", "fp16")


@pytest.fixture
def fp16_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 on the CPU, which torch emulates and slimdeploy refuses for its slowness."""
    monkeypatch.setattr(learner, "resolve_precision", lambda precision, device: precision)


def _step(network: GraphNetwork, options: TrainOptions) -> TrainingStep:
    penalty = build_penalty(network, options, steps_per_epoch=STEPS)
    objective = Objective(options, None, PREPROCESSING)
    optimizer = build_optimizer(network, options)
    return TrainingStep(
        network, optimizer, objective, penalty, precision=options.precision, device="cpu"
    )  # fmt: skip


def _gammas(network: GraphNetwork) -> torch.Tensor:
    return torch.cat([scale.detach() for scale in penalised_scales(network, "prunable")])


def test_the_loss_of_mixed_labels_by_hand() -> None:
    """Smoothed by 0.3 over 3 classes (½, ½, 0) is (0.45, 0.45, 0.1); of the teacher a quarter."""
    network, images = random_network(SPEC).eval(), random_images(2)
    options = replace(OPTIONS, label_smoothing=0.3, distill=0.25, temperature=1.0)
    objective = Objective(options, Teacher(network, PREPROCESSING, ""), PREPROCESSING)
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]] * 2))
    taught = network(images).detach().softmax(1)
    mixed = -sum(share * math.log(p) for share, p in zip((0.45, 0.45, 0.1), (0.5, 0.25, 0.25), strict=True))
    learnt = (taught * (taught.log() - logits)).sum(1).mean().item()
    loss = objective(logits, images, torch.tensor([[0.5, 0.5, 0.0]] * 2))
    assert loss.item() == pytest.approx(0.75 * mixed + 0.25 * learnt, rel=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_applies_the_same_threshold(precision: str) -> None:
    network = random_network(SPEC).train()
    step = _step(network, replace(OPTIONS, sparsity=0.1, precision=precision))
    shrink, thresholds = step.penalty.after_step, []

    def watched(lr: float, number: int) -> None:
        before = _gammas(network)
        shrink(lr, number)
        threshold = 0.1 * lr / (1 - OPTIONS.momentum)
        expected = torch.sign(before) * torch.clamp(before.abs() - threshold, min=0)
        torch.testing.assert_close(_gammas(network), expected, atol=1e-7, rtol=0)
        thresholds.append(threshold)

    step.penalty.after_step = watched  # type: ignore[method-assign]
    for number in range(6):
        step(random_images(8, seed=number), torch.arange(8) % 3, number)
    assert len(thresholds) == 6
    assert (_gammas(network) == 0).any()


@pytest.mark.usefixtures("fp16_here")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_reaches_the_share_that_is_asked_for(tmp_path: Path, precision: str) -> None:
    options = replace(OPTIONS, epochs=6, sparsity="auto:0.4", sparse_align=1, precision=precision)
    network = random_network(SPEC)  # its γ are spread out, else all arrive at zero together
    channels = len(_gammas(network))
    _, history = run(tmp_path / "x", options, network=network)
    assert int(0.4 * channels) <= round(history[-1].zero_share * channels) < 0.8 * channels


@pytest.mark.parametrize("form", ["proximal", "subgradient"])
def test_the_penalty_does_not_depend_on_the_loss_scale(form: str) -> None:
    images, labels = random_images(8), torch.arange(8) % 3
    moved = []
    for scale in (1.0, 2.0**16):
        network = build_network(SPEC, seed=0).train()
        step = _step(network, replace(OPTIONS, sparsity=0.02, sparsity_step=form, precision="fp32"))
        step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        step(images, labels, 0)
        moved.append(_gammas(network))
    torch.testing.assert_close(moved[0], moved[1], atol=1e-6, rtol=1e-5)
    assert (moved[0] < 1).any()


def test_an_overflow_leaves_the_optimisers_step_out_but_not_the_penalty() -> None:
    network = build_network(SPEC, seed=0).train()
    step = _step(network, replace(OPTIONS, sparsity=0.02, precision="fp32"))
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    step(random_images(8) * 1e4, torch.arange(8) % 3, 0)
    assert step.scaler.get_scale() == 2.0**126, "it takes the scale down"
    penalised = {id(scale) for scale in penalised_scales(network, "prunable")}
    threshold = 0.02 * OPTIONS.lr / (1 - 0.9)
    for name, parameter in network.named_parameters():
        expected = before[name]
        if id(parameter) in penalised:
            expected = torch.sign(expected) * torch.clamp(expected.abs() - threshold, min=0)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_the_momenta_are_zero_after_a_first_step_that_overflowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused SGD allocates them in the step that the scaler skips: memory with anything in it."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: torch.full_like(tensor, math.nan))
    step = _step(build_network(SPEC, seed=0).train(), replace(OPTIONS, precision="fp32"))
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    step(random_images(8) * 1e4, torch.arange(8) % 3, 0)
    assert step.scaler.get_scale() == 2.0**126, "it was skipped"
    momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    assert momenta
    assert not any(momentum.any() for momentum in momenta)


@pytest.mark.usefixtures("fp16_here")
def test_a_resumed_run_keeps_its_loss_scale(tmp_path: Path) -> None:
    options: Any = replace(OPTIONS, epochs=3, precision="fp16")
    expected, history = run(tmp_path / "whole", options)
    with at_step(2 * STEPS - 1, stop), pytest.raises(Stopped):
        run(tmp_path / "broken", options)
    resumed, whole = run(tmp_path / "broken", options, resume=True)
    assert same(expected, resumed)
    assert untimed(whole) == untimed(history)


def test_the_state_of_the_scaler_comes_back() -> None:
    first, second = (_step(build_network(SPEC, seed=0), replace(OPTIONS, precision="fp16")) for _ in "ab")
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 512.0, "_growth_tracker": 7})
    second.restore(first.state())
    assert second.scaler.state_dict() == first.scaler.state_dict()
    assert second.scaler.get_scale() == 512.0
