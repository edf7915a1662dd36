"""The training loop: what it learns, what it writes, and that a resumed run is the same run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import PREPROCESSING, learnable_split, random_network
from torch import nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.resnet import ResNet, build_network
from slimdeploy.toolchain.networks.spec import network_spec
from slimdeploy.toolchain.training import loop
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.history import history_path, read_history, tensorboard_path
from slimdeploy.toolchain.training.loop import TrainingData, build_optimizer, fit
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.state import state_path

DATA = TrainingData(learnable_split(20), learnable_split(6, seed=1), PREPROCESSING)
OPTIONS = TrainOptions(epochs=4, batch_size=16, lr=0.05, sparsity=1e-2, crop_pad=1, precision="fp32")
SPEC = network_spec("tiny", stem="cifar", classes=3)


def _fit(
    output: Path, options: TrainOptions = OPTIONS, *, resume: bool = False, network: ResNet | None = None
) -> tuple[ResNet, list[EpochRecord]]:
    network = network or build_network(SPEC, seed=options.seed)
    setup = options.to_json()
    history = fit(network, DATA, options, output=output, device="cpu", setup=setup, resume=resume)
    return network, history


def _untimed(history: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, images_per_second=0.0) for record in history]


def _same(one: ResNet, other: ResNet) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


class Stopped(Exception):
    """What takes the place of a crash."""


def _stop_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int, steps: int = 1) -> None:
    """From now on a run breaks off in the middle of that epoch (counted from 1)."""
    step, done = loop._Run._step, [0]

    def stopping(self: loop._Run, *arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        done[0] += 1
        if done[0] > (epoch - 1) * len(self.batches) + steps:
            raise Stopped
        return step(self, *arguments)

    monkeypatch.setattr(loop._Run, "_step", stopping)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_it_learns(tmp_path: Path, schedule: str) -> None:
    network, history = _fit(
        tmp_path / "x", replace(OPTIONS, epochs=8, lr=0.1, sparsity=0.0, schedule=schedule)
    )
    assert history[-1].val_accuracy > 0.9
    assert history[-1].train_loss < history[0].train_loss / 2
    assert evaluate_network(network, DATA.validation, PREPROCESSING, device="cpu").accuracy > 0.9


def test_the_same_seed_trains_the_same_network_and_another_another(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one, history = _fit(tmp_path / "one")
    torch.manual_seed(2)
    same, again = _fit(tmp_path / "same")
    assert _same(one, same)
    assert _untimed(history) == _untimed(again)
    other, _ = _fit(tmp_path / "other", replace(OPTIONS, seed=1), network=build_network(SPEC, seed=0))
    assert not _same(one, other)


@pytest.mark.parametrize(("epoch", "patience"), [(1, None), (2, None), (4, None), (3, 4)])
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, patience: int | None
) -> None:
    options = replace(OPTIONS, patience=patience)
    expected, history = _fit(tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        _stop_in_epoch(patch, epoch)
        with pytest.raises(Stopped):
            _fit(tmp_path / "broken", options)
    assert len(read_history(tmp_path / "broken")) == epoch - 1, "at most the running epoch is lost"
    torch.manual_seed(99)  # a new process would stand elsewhere
    resumed, whole = _fit(tmp_path / "broken", options, resume=True)
    assert _same(expected, resumed)
    assert _untimed(whole) == _untimed(history)
    assert _untimed(read_history(tmp_path / "broken")) == _untimed(history)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    expected, history = _fit(tmp_path / "x")
    again, same = _fit(tmp_path / "x", resume=True)
    assert _same(expected, again)
    assert same == history, "not even the times: nothing ran"


def test_resume_without_a_state_starts_at_the_beginning(tmp_path: Path) -> None:
    _, history = _fit(tmp_path / "x", resume=True)
    assert [record.epoch for record in history] == [1, 2, 3, 4]


def test_history_holds_what_it_says(tmp_path: Path) -> None:
    network, history = _fit(tmp_path / "run.safetensors", replace(OPTIONS, sparsity=0.4))
    assert history_path(tmp_path / "run.safetensors").name == "run.history.jsonl"
    assert read_history(tmp_path / "run.safetensors") == history
    last = history[-1]
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    found = evaluate_network(network, DATA.validation, PREPROCESSING, device="cpu")
    assert (last.val_accuracy, last.val_loss) == (found.accuracy, found.loss)
    prunable = [m.weight for name, m in network.named_modules() if name.endswith(("bn1", "bn2"))]
    gammas = torch.cat(prunable)
    assert last.zero_share == pytest.approx(float((gammas == 0).float().mean()))
    assert 0 < last.zero_share < 1
    assert last.lr == pytest.approx(0.05 * (1 - 12 / 13) / 0.8), "the rate of the last of 12 steps"
    assert all(record.images_per_second > 0 for record in history)
    assert read_history(tmp_path / "never") == []


def test_tensorboard_holds_curves_and_histograms(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run.safetensors"
    _, history = _fit(output)
    events = EventAccumulator(str(tensorboard_path(output)), {"histograms": 0, "scalars": 0})
    events.Reload()
    for tag, field in {
        "train/loss": "train_loss", "train/acc": "train_accuracy", "val/loss": "val_loss",
        "val/acc": "val_accuracy", "lr": "lr", "gamma/zero_share": "zero_share",
        "images_per_second": "images_per_second",
    }.items():  # fmt: skip
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        assert written == [(r.epoch, pytest.approx(getattr(r, field), rel=1e-6)) for r in history], tag
    gamma = events.Histograms("gamma")
    assert [event.step for event in gamma] == [1, 2, 3, 4]
    assert gamma[0].histogram_value.num == 8 + 2 * (4 + 6 + 8 + 8), "stem, c1 and c2 of every block"


def test_weight_decay_spares_scales_and_biases() -> None:
    network = random_network(SPEC)
    optimizer = build_optimizer(network, replace(OPTIONS, weight_decay=0.1, lr=1.0, momentum=0.0))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        decays = name == "fc.weight" or "conv" in name or "downsample.0" in name
        expected = before[name] * (0.9 if decays else 1.0)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def _one_step(options: TrainOptions) -> tuple[ResNet, loop._Run]:
    network = random_network(SPEC).train()
    run = loop._Run(network, DATA, options, "cpu")
    images, labels = next(run.batches.epoch(0))
    for group in run.optimizer.param_groups:
        group["lr"] = options.lr
    run._step(images, labels)
    return network, run


def test_the_proximal_step_follows_the_optimisers_own(tmp_path: Path) -> None:
    options = replace(OPTIONS, sparsity=0.02, momentum=0.9, lr=0.1)
    plain, run = _one_step(replace(options, sparsity=0.0))
    sparse, sparse_run = _one_step(options)
    threshold = 0.02 * 0.1 / (1 - 0.9)
    assert len(run.scales) == 9
    for without, found in zip(run.scales, sparse_run.scales, strict=True):
        expected = torch.sign(without) * torch.clamp(without.abs() - threshold, min=0)
        torch.testing.assert_close(found, expected)
    for (name, a), (_, b) in zip(plain.named_parameters(), sparse.named_parameters(), strict=True):
        if not any(b is scale for scale in sparse_run.scales):
            assert torch.equal(a, b), f"{name} isn't penalised"


def test_the_subgradient_goes_through_the_optimiser() -> None:
    options = replace(OPTIONS, sparsity=0.02, sparsity_step="subgradient", momentum=0.0, lr=0.1)
    before = [
        scale.detach().clone() for scale in loop._Run(random_network(SPEC), DATA, options, "cpu").scales
    ]
    _, plain = _one_step(replace(options, sparsity=0.0))
    _, sparse = _one_step(options)
    for old, without, found in zip(before, plain.scales, sparse.scales, strict=True):
        torch.testing.assert_close(found, without - 0.1 * 0.02 * torch.sign(old))


@pytest.mark.parametrize(("step", "zeros"), [("proximal", True), ("subgradient", False)])
def test_only_the_proximal_step_makes_exact_zeros(tmp_path: Path, step: str, zeros: bool) -> None:
    _, history = _fit(tmp_path / "x", replace(OPTIONS, sparsity=0.4, sparsity_step=step))
    assert (history[-1].zero_share > 0) is zeros


def test_bfloat16_trains_too(tmp_path: Path) -> None:
    network, history = _fit(tmp_path / "x", replace(OPTIONS, epochs=1, precision="bf16"))
    _, exact = _fit(tmp_path / "y", replace(OPTIONS, epochs=1))
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert history[0].train_loss != exact[0].train_loss, "it must really have been rounded"
    assert history[0].train_loss == pytest.approx(exact[0].train_loss, rel=0.05)


def test_label_smoothing_raises_the_least_loss(tmp_path: Path) -> None:
    network = random_network(SPEC).train()
    images, labels = next(loop._Run(network, DATA, OPTIONS, "cpu").batches.epoch(0))
    smooth, _ = loop._Run(network, DATA, replace(OPTIONS, label_smoothing=0.3), "cpu")._step(images, labels)
    network = random_network(SPEC).train().to(memory_format=torch.channels_last)
    log_p = torch.log_softmax(network(images), 1)
    by_hand = -(0.7 * log_p.gather(1, labels[:, None])[:, 0] + 0.3 * log_p.mean(1)).mean()
    assert float(smooth) == pytest.approx(float(by_hand.detach()), rel=1e-4)


def _poison(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """The network's γ are infinite in the middle of that epoch."""
    step, done = loop._Run._step, [0]

    def poisoned(self: loop._Run, *arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        done[0] += 1
        if done[0] == (epoch - 1) * len(self.batches) + 2:
            with torch.no_grad():
                self.network.batchnorm("bn1").weight.fill_(math.inf)
        return step(self, *arguments)

    monkeypatch.setattr(loop._Run, "_step", poisoned)


def test_a_loss_that_is_no_number_ends_the_run_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, epoch=1)
    with pytest.raises(
        SlimdeployError, match=r"^the loss is nan at epoch 1, step 2 \(lr 0\.0385\): lower --lr$"
    ):
        _fit(tmp_path / "first")
    assert not state_path(tmp_path / "first").exists()


def test_a_later_one_keeps_the_last_whole_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, epoch=3)
    message = r"^the loss is nan at epoch 3, step 2 \(lr .*\): lower --lr and start again with --force$"
    with pytest.raises(SlimdeployError, match=message):
        _fit(tmp_path / "later")
    assert len(read_history(tmp_path / "later")) == 2
    assert state_path(tmp_path / "later").exists()


def _with_validation(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[ResNet]:
    """Epoch i validates with accuracies[i]; returns the networks as they were then."""
    epoch, networks = loop._Run.epoch, []

    def told(self: loop._Run, index: int) -> EpochRecord:
        record = epoch(self, index)
        copy = ResNet(self.network.spec)
        copy.load_state_dict(self.network.state_dict())
        networks.append(copy)
        return replace(record, val_accuracy=accuracies[index])

    monkeypatch.setattr(loop._Run, "epoch", told)
    return networks


def test_early_stopping_waits_out_its_patience_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = _with_validation(monkeypatch, [0.5, 0.9, 0.8, 0.7, 0.99, 1.0])
    network, history = _fit(tmp_path / "x", replace(OPTIONS, epochs=6, patience=2))
    assert [record.val_accuracy for record in history] == [0.5, 0.9, 0.8, 0.7]
    assert _same(network, networks[1])


def test_the_best_epoch_is_kept_even_where_patience_never_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = _with_validation(monkeypatch, [0.5, 0.9, 0.8])
    network, history = _fit(tmp_path / "x", replace(OPTIONS, epochs=3, patience=2))
    assert len(history) == 3
    assert _same(network, networks[1])


def test_without_patience_the_last_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = _with_validation(monkeypatch, [0.9, 0.1])
    network, _ = _fit(tmp_path / "x", replace(OPTIONS, epochs=2))
    assert _same(network, networks[1])


def test_a_crash_while_the_state_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = _fit(tmp_path / "whole")
    written: list[Path] = []
    write: Callable[[Path, bytes], None] = loop.save_state.__globals__["artifacts"].write_bytes

    def half(path: Path, content: bytes) -> None:
        if path.suffix == ".state":
            written.append(path)
            if len(written) == 3:
                path.with_name(".left-over.tmp").write_bytes(content[: len(content) // 2])
                raise Stopped
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("slimdeploy.toolchain.artifacts.write_bytes", half)
        with pytest.raises(Stopped):
            _fit(tmp_path / "x")
    resumed, history = _fit(tmp_path / "x", resume=True)
    assert len(history) == 4
    assert _same(expected, resumed)


def test_evaluation_puts_the_training_flag_back() -> None:
    network = random_network(SPEC)
    for training in (True, False):
        evaluate_network(network.train(training), DATA.validation, PREPROCESSING, device="cpu")
        assert network.training is training
        assert all(m.training is training for m in network.modules() if isinstance(m, nn.BatchNorm2d))
