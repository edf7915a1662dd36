"""The training loop: what it learns, what it writes, and that a resumed run is the same run."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PREPROCESSING, random_network
from tiny_runs import DATA, OPTIONS, SPEC, STEPS, Stopped
from tiny_runs import at_step as _at_step
from tiny_runs import run as _fit
from tiny_runs import same as _same
from tiny_runs import stop as _stop
from tiny_runs import untimed as _untimed
from torch import nn

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.feed import LoaderFeed
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.training import loop
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.history import history_path, read_history, tensorboard_path
from slimdeploy.toolchain.training.options import EpochRecord
from slimdeploy.toolchain.training.state import state_path


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


def test_the_loss_of_an_epoch_is_the_mean_over_its_images() -> None:
    """A loader's last batch may be smaller."""
    (images, labels), *_ = plain_batches(DATA.train, PREPROCESSING, batch_size=60, device="cpu")
    batches = [(images[::2], labels[::2]), (images[1:5], labels[1:5])]
    network = build_network(SPEC, seed=0)
    losses = [nn.functional.cross_entropy(copy.deepcopy(network).train()(x), y).item() for x, y in batches]
    data = replace(DATA, train=LoaderFeed(batches, "cpu", shape=(3, 16, 16), classes=3))
    _, (record,) = loop.fit(network, data, replace(OPTIONS, epochs=1, lr=1e-9, sparsity=0.0), device="cpu")
    assert abs(losses[0] - losses[1]) > 0.01
    assert record.train_loss == pytest.approx((30 * losses[0] + 4 * losses[1]) / 34, rel=1e-4)


@pytest.mark.parametrize(("epoch", "patience"), [(1, None), (2, None), (4, None), (3, 4)])
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(
    tmp_path: Path, epoch: int, patience: int | None
) -> None:
    options = replace(OPTIONS, patience=patience)
    expected, history = _fit(tmp_path / "whole", options)
    with _at_step((epoch - 1) * STEPS + 2, _stop), pytest.raises(Stopped):
        _fit(tmp_path / "broken", options)
    assert len(read_history(tmp_path / "broken")) == epoch - 1, "at most the running epoch is lost"
    torch.manual_seed(99)  # a new process would stand elsewhere
    resumed, whole = _fit(tmp_path / "broken", options, resume=True)
    assert _same(expected, resumed)
    assert _untimed(whole) == _untimed(history)
    assert _untimed(read_history(tmp_path / "broken")) == _untimed(history)


def test_dropout_depends_on_the_seed_alone_and_goes_on_with_a_resumed_run(tmp_path: Path) -> None:
    """And the caller's random numbers stay as they were."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3),
    )  # fmt: skip
    start, options = from_module(module.eval(), size=16).network, replace(OPTIONS, epochs=2)
    torch.manual_seed(1)
    first, history = _fit(tmp_path / "first", options, network=copy.deepcopy(start))
    following = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), following)
    with _at_step(STEPS + 2, _stop), pytest.raises(Stopped):
        _fit(tmp_path / "second", options, network=copy.deepcopy(start))
    second, resumed = _fit(tmp_path / "second", options, network=copy.deepcopy(start), resume=True)
    assert _same(first, second)
    assert _untimed(resumed) == _untimed(history)
    other, _ = _fit(tmp_path / "other", replace(options, seed=5), network=copy.deepcopy(start))
    assert not _same(first, other)


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
    assert read_history(tmp_path / "run.safetensors") == history
    last = history[-1]
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    found = evaluate_network(network, DATA.validation, PREPROCESSING, device="cpu")
    assert (last.val_accuracy, last.val_loss) == (found.accuracy, found.loss)
    gammas = torch.cat(_scales(network))
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
        "gamma/lambda": "strength", "macs": "macs",
        "images_per_second": "images_per_second",
    }.items():  # fmt: skip
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        assert written == [(r.epoch, pytest.approx(getattr(r, field), rel=1e-6)) for r in history], tag
    gamma = events.Histograms("gamma")
    assert [event.step for event in gamma] == [1, 2, 3, 4]
    assert gamma[0].histogram_value.num == 8 + 2 * (4 + 6 + 8 + 8), "stem, c1 and c2 of every block"


def _one_step(folder: Path, **changes: Any) -> tuple[GraphNetwork, EpochRecord]:
    """A random network after one step on all training images, in any order but not augmented."""
    one_step = {
        "epochs": 1,
        "batch_size": len(DATA.train),
        "schedule": "constant",
        "crop_pad": 0,
        "flip": False,
    }
    options = replace(OPTIONS, **{**one_step, "sparsity": 0.0, "lr": 0.1, **changes})
    network, (record,) = _fit(
        folder / f"{len(list(folder.iterdir()))}", options, network=random_network(SPEC)
    )
    return network, record


def test_weight_decay_spares_scales_and_biases(tmp_path: Path) -> None:
    before = dict(random_network(SPEC).named_parameters())
    plain = dict(_one_step(tmp_path, momentum=0.0, weight_decay=0.0)[0].named_parameters())
    decayed, _ = _one_step(tmp_path, momentum=0.0, weight_decay=0.5)
    for name, parameter in decayed.named_parameters():
        decays = name == "fc.weight" or "conv" in name or "downsample.0" in name
        expected = plain[name] - (0.1 * 0.5 * before[name] if decays else 0)
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-5, msg=name)


def _scales(network: GraphNetwork) -> list[torch.Tensor]:
    """γ of the prunable channels: stem, c1 and c2 of every block."""
    found = [m.weight.detach() for name, m in network.named_modules() if name.endswith(("bn1", "bn2"))]
    assert len(found) == 9
    return found


def test_the_proximal_step_follows_the_optimisers_own(tmp_path: Path) -> None:
    plain, _ = _one_step(tmp_path, momentum=0.9)
    sparse, record = _one_step(tmp_path, momentum=0.9, sparsity=0.02)
    threshold = 0.02 * 0.1 / (1 - 0.9)
    for without, found in zip(_scales(plain), _scales(sparse), strict=True):
        expected = torch.sign(without) * torch.clamp(without.abs() - threshold, min=0)
        torch.testing.assert_close(found, expected)
    gammas = torch.cat(_scales(sparse))
    assert record.zero_share == pytest.approx(float((gammas == 0).float().mean()))
    assert record.zero_share > 0
    penalised = {
        id(scale) for scale in (m.weight for n, m in sparse.named_modules() if n.endswith(("bn1", "bn2")))
    }
    for (name, a), (_, b) in zip(plain.named_parameters(), sparse.named_parameters(), strict=True):
        assert id(b) in penalised or torch.equal(a, b), f"{name} isn't penalised"


def test_the_subgradient_goes_through_the_optimiser(tmp_path: Path) -> None:
    before = _scales(random_network(SPEC))
    plain, _ = _one_step(tmp_path, momentum=0.0)
    sparse, _ = _one_step(tmp_path, momentum=0.0, sparsity=0.02, sparsity_step="subgradient")
    for old, without, found in zip(before, _scales(plain), _scales(sparse), strict=True):
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


def test_label_smoothing_is_in_the_loss(tmp_path: Path) -> None:
    images, labels = next(plain_batches(DATA.train, PREPROCESSING, batch_size=60, device="cpu"))
    with torch.no_grad():
        log_p = torch.log_softmax(random_network(SPEC).train()(images), 1)
    of_the_label = log_p.gather(1, labels[:, None])[:, 0]
    for smoothing in (0.0, 0.3):
        by_hand = -((1 - smoothing) * of_the_label + smoothing * log_p.mean(1)).mean()
        _, record = _one_step(tmp_path, label_smoothing=smoothing)
        assert record.train_loss == pytest.approx(float(by_hand), rel=1e-4)


def _poison(optimizer: torch.optim.Optimizer) -> None:
    """The step ends with infinite γ, so the next loss is no number."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.dim() == 1:
                parameter.grad.fill_(math.inf)


def test_a_loss_that_is_no_number_ends_the_run_and_says_where(tmp_path: Path) -> None:
    message = r"^the loss is nan at epoch 1, step 2 \(lr 0\.0385\): lower lr$"
    with _at_step(1, _poison), pytest.raises(SlimdeployError, match=message):
        _fit(tmp_path / "first")
    assert not state_path(tmp_path / "first").exists()


def test_a_later_one_keeps_the_last_whole_epoch(tmp_path: Path) -> None:
    message = r"^the loss is nan at epoch 3, step 2 \(lr .*\): lower lr and start again with force$"
    with _at_step(2 * STEPS + 1, _poison), pytest.raises(SlimdeployError, match=message):
        _fit(tmp_path / "later")
    assert len(read_history(tmp_path / "later")) == 2
    assert state_path(tmp_path / "later").exists()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_nor_is_a_network_kept_that_the_last_step_has_made_infinite(tmp_path: Path, ema: float) -> None:
    """The loss of each step is computed before it: that of the last one is finite."""
    with _at_step(STEPS, _poison), pytest.raises(SlimdeployError) as raised:
        _fit(tmp_path / "x", replace(OPTIONS, epochs=1, ema=ema))
    assert str(raised.value) == "the validation loss is nan after epoch 1 (lr 0.0156): lower lr"
    assert not history_path(tmp_path / "x").exists()
    unvalidated = replace(DATA, validation=None)
    with _at_step(STEPS, _poison), pytest.raises(SlimdeployError, match=r"^the weights are not finite after"):
        loop.fit(build_network(SPEC, seed=0), unvalidated, replace(OPTIONS, epochs=1, ema=ema), device="cpu")


def _with_validation(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[GraphNetwork]:
    """Epoch i validates with accuracies[i]; returns the networks as they were then."""
    epoch, networks = loop._Run.epoch, []

    def told(self: loop._Run, index: int) -> EpochRecord:
        record = epoch(self, index)
        copy = GraphNetwork(self.learner.network.graph)
        copy.load_state_dict(self.learner.network.state_dict())
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


def test_an_equal_accuracy_does_not_prolong_the_run_but_its_network_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = _with_validation(monkeypatch, [0.5, 1.0, 1.0, 1.0, 1.0])
    network, history = _fit(tmp_path / "x", replace(OPTIONS, epochs=5, patience=2))
    assert len(history) == 4
    assert _same(network, networks[3])


def test_without_patience_the_last_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = _with_validation(monkeypatch, [0.9, 0.1])
    network, _ = _fit(tmp_path / "x", replace(OPTIONS, epochs=2))
    assert _same(network, networks[1])


def test_a_crash_while_the_state_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = _fit(tmp_path / "whole")
    written: list[Path] = []
    write = artifacts.write_bytes

    def half(path: Path, content: bytes) -> None:
        if path.suffix == ".state":
            written.append(path)
            if len(written) == 3:
                path.with_name(".left-over.tmp").write_bytes(content[: len(content) // 2])
                raise Stopped
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_bytes", half)
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


def test_no_two_outputs_share_a_history() -> None:
    names = ("run.safetensors", "lr0.1", "lr0.01.safetensors")
    found = [(history_path(Path(name)).name, tensorboard_path(Path(name)).name) for name in names]
    assert found == [
        ("run.history.jsonl", "run.tensorboard"),
        ("lr0.1.history.jsonl", "lr0.1.tensorboard"),
        ("lr0.01.history.jsonl", "lr0.01.tensorboard"),
    ]
