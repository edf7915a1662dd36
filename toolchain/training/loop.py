"""The training loop: one for sparse training and for fine-tuning."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimdeploy.toolchain.data.batches import TrainingBatches
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import Preprocessing
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.progress import log, progress_bar
from slimdeploy.toolchain.training.averaging import WeightAverage
from slimdeploy.toolchain.training.batch_memory import attempt_step, is_out_of_memory, out_of_memory
from slimdeploy.toolchain.training.batchnorm import synchronise
from slimdeploy.toolchain.training.compiling import compile_errors_explained, compiled
from slimdeploy.toolchain.training.distillation import Teacher
from slimdeploy.toolchain.training.distributed import ALONE, Ranks, peers_explained
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.history import TensorBoardLog, write_history
from slimdeploy.toolchain.training.interruption import resumable, workers_explained
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.precision import resolve_precision
from slimdeploy.toolchain.training.setup import build_optimizer, build_penalty, learning_rate
from slimdeploy.toolchain.training.sparsity import zero_share
from slimdeploy.toolchain.training.state import TrainingState, load_state, part, save_state, state_path
from slimdeploy.toolchain.training.step import Objective, TrainingStep


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and what it is steered by; the test split isn't here."""

    train: Split
    validation: Split
    preprocessing: Preprocessing


def fit(
    network: GraphNetwork,
    data: TrainingData,
    options: TrainOptions,
    *,
    output: Path,
    device: str,
    setup: dict[str, Any],
    resume: bool = False,
    ranks: Ranks = ALONE,
    teacher: Teacher | None = None,
) -> list[EpochRecord]:
    """Train `network` in place and return the history; its state is saved beside `output` after every epoch.

    With `options.ema` it ends as the average of its weights, with `options.patience` as it was at its best.

    `setup` identifies the run: with `resume`, a state of another set-up is refused. Raises SlimdeployError
    where the loss stops being a number or another process of the run ends; the state of the last whole epoch
    stays then. Of several `ranks` the first writes, and all return the same.
    """
    place(network, device)
    synchronise(network, ranks)
    run = _Run(network, data, options, device, ranks, teacher)
    state = TrainingState(setup)
    if resume and state_path(output).exists():
        state = load_state(state_path(output), setup, network, run.optimizer, run.extra())
        run.restore(state.extra)
        log(f"resuming after epoch {state.epochs_done} of {options.epochs}")
        if ranks.main:
            write_history(output, state.history)  # it may have been killed between the two
    ranks.check_same(
        state.epochs_done,
        f"not all processes see {state_path(output)}: put it in a folder that all machines share",
    )
    writes = TensorBoardLog(output, epochs_done=state.epochs_done) if ranks.main else nullcontext()
    with writes as board:
        while state.epochs_done < options.epochs and not _out_of_patience(state.history, options.patience):
            with peers_explained(), compile_errors_explained(), workers_explained(state.epochs_done):
                record = run.epoch(state.epochs_done)
            state.history.append(record)
            if options.patience and record.val_accuracy >= max(r.val_accuracy for r in state.history):
                state.best = {name: t.detach().clone() for name, t in run.judged.state_dict().items()}
            if board:
                _keep(output, state, run, board)
                log(_line(record, options.epochs))
    network.load_state_dict(state.best if state.best is not None else run.judged.state_dict())
    return state.history


def _keep(output: Path, state: TrainingState, run: _Run, board: TensorBoardLog) -> None:
    """Write what the last epoch brought. Raises SlimdeployError where it can't be; what was written before
    stays.
    """
    state.extra = run.extra()
    try:
        # In this order: of what a killed run has written too much, TensorBoard drops it, and the history is
        # written again.
        board.add(state.history[-1], run.penalty.scales)
        save_state(state_path(output), state, run.network, run.optimizer)
        write_history(output, state.history)
    except SlimdeployError as error:
        raise resumable(error, state.epochs_done - 1) from error


class _Run:
    """Everything that an epoch needs, set up once."""

    def __init__(
        self,
        network: GraphNetwork,
        data: TrainingData,
        options: TrainOptions,
        device: str,
        ranks: Ranks,
        teacher: Teacher | None,
    ) -> None:
        self.network, self.data, self.options, self.device = network, data, options, device
        self.ranks = ranks
        self.precision = resolve_precision(options.precision, device)
        self.batches = TrainingBatches(
            data.train,
            data.preprocessing,
            batch_size=options.batch_size,
            augmentation=options.augmentations,
            classes=network.graph.classes,
            device=device,
            seed=options.seed,
            rank=ranks.rank,
            ranks=ranks.size,
        )
        self.optimizer = build_optimizer(network, options)
        self.penalty = build_penalty(network, options, steps_per_epoch=len(self.batches))
        model = compiled(network, device=device, processes=ranks.size) if options.compile else network
        objective = Objective(options, teacher, data.preprocessing)
        self.step = TrainingStep(
            ranks.wrap(model),
            self.optimizer,
            objective,
            self.penalty,
            precision=self.precision,
            device=device,
            weight=self.batches.weight,
        )
        self.average = WeightAverage(network, options.ema) if options.ema else None

    @property
    def judged(self) -> GraphNetwork:
        """The network that is validated and kept: the average of the weights where there is one."""
        return self.average.network if self.average else self.network

    def extra(self) -> dict[str, Tensor]:
        """What the options in force keep beside network and optimiser."""
        average = self.average.state() if self.average else {}
        return {**self.step.state(), **{f"average.{name}": t for name, t in average.items()}}

    def restore(self, extra: dict[str, Tensor]) -> None:
        """Go on from `extra`."""
        self.step.restore(extra)
        if self.average:
            self.average.restore(part(extra, "average."))

    def epoch(self, index: int) -> EpochRecord:
        """Train one epoch and validate."""
        started = time.perf_counter()
        trained_on = None
        try:
            trained_on = self._train(index)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if trained_on is None:
            raise self._out_of_memory(index)
        losses, correct = trained_on
        self._check_finite(losses, index)
        mean_loss = losses.mean().item()  # waits for the device, so the time below is the real one
        seconds = time.perf_counter() - started
        validation = evaluate_network(
            self.judged,
            self.data.validation,
            self.data.preprocessing,
            device=self.device,
            precision=self.precision,
            ranks=self.ranks,
        )
        trained = len(losses) * self.batches.batch_size
        return EpochRecord(
            epoch=index + 1,
            lr=self.optimizer.param_groups[0]["lr"],
            train_loss=mean_loss,
            train_accuracy=correct.item() / trained,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            zero_share=zero_share(self.penalty.scales),
            images_per_second=trained / seconds,
            strength=self.penalty.strength,
        )

    def _train(self, index: int) -> tuple[Tensor, Tensor]:
        """Take the steps of an epoch; returns the loss of each, and how many images were told right, both
        over all processes and on the device; of mixed images the class of the larger share counts.
        """
        steps = len(self.batches)
        losses = torch.zeros(steps, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.network.train()
        with progress_bar(f"epoch {index + 1}/{self.options.epochs}", total=steps) as advance:
            for step, (images, labels) in enumerate(self.batches.epoch(index)):
                number = index * steps + step
                self._set_lr(number)
                losses[step], logits = self.step(images, labels, number)
                if self.average:
                    self.average.update(number)
                correct += (logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum()
                advance(1)
        return self.ranks.sum(losses).div_(self.ranks.size), self.ranks.sum(correct)

    def _set_lr(self, number: int) -> None:
        rate = learning_rate(self.options, number, steps_per_epoch=len(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _out_of_memory(self, index: int) -> SlimdeployError:
        def attempt(batch_size: int) -> None:
            images = -(-batch_size // self.ranks.size)
            attempt_step(self.step, self.network, images, size=self.data.preprocessing.size)

        return out_of_memory(self.batches.batch_size, attempt, force=index > 0)

    def _check_finite(self, losses: Tensor, index: int) -> None:
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step = int(bad[0])
            self._set_lr(index * len(self.batches) + step)
            lr = self.optimizer.param_groups[0]["lr"]
            # Not --resume: the state goes on with the same rate only, and would end here again.
            again = " and start again with --force" if index else ""
            raise SlimdeployError(
                f"the loss is {losses[step].item()} at epoch {index + 1}, step {step + 1} (lr {lr:.3g}): "
                f"lower --lr{again}"
            )


def _out_of_patience(history: list[EpochRecord], patience: int | None) -> bool:
    if not patience or not history:
        return False
    best = max(range(len(history)), key=lambda i: (history[i].val_accuracy, i))
    return len(history) - 1 - best >= patience


def _line(record: EpochRecord, epochs: int) -> str:
    width = int(math.log10(max(epochs, 1))) + 1
    zeros = f" · λ {record.strength:.1e}" if record.strength else ""
    zeros += f" · γ at zero {record.zero_share:.1%}" if record.zero_share else ""
    return (
        f"epoch {record.epoch:>{width}}/{epochs} · loss {record.train_loss:.3f} · "
        f"train {record.train_accuracy:.1%} · val {record.val_accuracy:.1%}{zeros} · "
        f"{record.images_per_second:,.0f} images/s"
    )
