"""The training loop, for sparse training and for fine-tuning."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimdeploy.toolchain.data.batches import TrainingBatches
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.feed import LoaderFeed
from slimdeploy.toolchain.data.loader_batches import LoaderBatches
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.gradients import with_gradients
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.progress import log, progress_bar
from slimdeploy.toolchain.training.batch_memory import attempt_step, is_out_of_memory, out_of_memory
from slimdeploy.toolchain.training.compiling import compile_errors_explained
from slimdeploy.toolchain.training.distillation import Teacher
from slimdeploy.toolchain.training.distributed import ALONE, Ranks, peers_explained
from slimdeploy.toolchain.training.evaluation import Evaluation, evaluate_network
from slimdeploy.toolchain.training.history import TensorBoardLog, history_path, write_history
from slimdeploy.toolchain.training.interruption import resumable, workers_explained
from slimdeploy.toolchain.training.learner import Course, Learner
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.setup import learning_rate
from slimdeploy.toolchain.training.shrinking import Shrinking, without_zeros
from slimdeploy.toolchain.training.sparsity import zero_share
from slimdeploy.toolchain.training.state import TrainingState, check_fits, load_state, save_state, state_path
from slimdeploy.toolchain.training.step import Objective


@dataclass(frozen=True)
class TrainingData:
    """Training and validation data of a run, without the test split."""

    train: Split | LoaderFeed
    validation: Split | LoaderFeed | None
    """None only for batches made by the caller."""
    preprocessing: Preprocessing


@with_gradients
def fit(
    network: GraphNetwork,
    data: TrainingData,
    options: TrainOptions,
    *,
    device: str,
    output: Path | None = None,
    setup: dict[str, Any] | None = None,
    resume: bool = False,
    ranks: Ranks = ALONE,
    teacher: Teacher | None = None,
) -> tuple[GraphNetwork, list[EpochRecord]]:
    """Train `network`; returns the trained network and the history. With `output`, state and history are
    saved beside it after every epoch, in place of those of an earlier run.

    The trained network is `network` itself, unless channels were removed during training. With `options.ema`
    it is the average of the weights, with `options.patience` that of the best epoch.

    `setup` identifies the run: `resume` refuses a state of another set-up. Raises SlimdeployError if a loss
    or the weights become NaN or infinite, or if another process of the run ends; the state of the last
    complete epoch is kept. With several `ranks` the first one writes, and all return the same.
    """
    run = _Run(network, data, options, device, ranks, teacher)
    state = TrainingState(setup or {})
    if output and resume and state_path(output).exists():
        state = run.resume(state_path(output), setup or {})
        log(f"resuming after epoch {state.epochs_done} of {options.epochs}")
        if ranks.main:
            write_history(output, state.history)  # the run may have been killed between the two writes
    if output:
        ranks.check_same(
            state.epochs_done,
            f"not all processes see {state_path(output)}: put it in a folder that all machines share",
        )
    writes: AbstractContextManager[TensorBoardLog | None] = nullcontext()
    if output and ranks.main:
        if not state.epochs_done:  # not before: the set-up of the run may fail
            for earlier in (state_path(output), history_path(output)):
                earlier.unlink(missing_ok=True)
        writes = TensorBoardLog(output, epochs_done=state.epochs_done)
    with writes as board:
        while state.epochs_done < options.epochs and not _out_of_patience(state.history, options.patience):
            with peers_explained(), compile_errors_explained(), workers_explained(state.epochs_done):
                record = run.epoch(state.epochs_done)
            state.history.append(record)
            if options.patience and _judged(record) >= max(map(_judged, state.history)):
                state.best = run.learner.judged_weights()
            if output and board:
                _keep(output, state, run, board)
            if ranks.main:
                log(_line(record, options.epochs))
    trained = run.learner.trained(state.best)
    # Without an epoch no γ is zero because of the penalty: the last BN of a new block begins with zeros.
    return without_zeros(trained, options, ranks) if state.history else trained, state.history


def _keep(output: Path, state: TrainingState, run: _Run, board: TensorBoardLog) -> None:
    """Write the results of the last epoch. Raises SlimdeployError if that fails; the previous files
    are kept.
    """
    learner = run.learner
    try:
        # In this order: the history is written again, and TensorBoard drops records of an epoch that a killed
        # run wrote twice.
        board.add(state.history[-1], learner.penalty.scales, removed=learner.removed_scales)
        save_state(state_path(output), state, learner.snapshot())
        write_history(output, state.history)
    except SlimdeployError as error:
        raise resumable(error, state.epochs_done - 1) from error


class _Run:
    """The state of a run in memory. The learner is replaced at each cut."""

    def __init__(
        self,
        network: GraphNetwork,
        data: TrainingData,
        options: TrainOptions,
        device: str,
        ranks: Ranks,
        teacher: Teacher | None,
    ) -> None:
        self.data, self.options, self.device, self.ranks = data, options, device, ranks
        self.batches = _batches(network, data, options, device, ranks)
        course = Course(
            options,
            network.graph,
            Objective(options, teacher, data.preprocessing),
            steps_per_epoch=len(self.batches),
            weight=self.batches.weight,
            device=device,
            ranks=ranks,
        )
        self.learner = Learner(network, course)
        self.shrinking = Shrinking(options, options.epochs * len(self.batches), data.preprocessing.size)

    def resume(self, path: Path, setup: dict[str, Any]) -> TrainingState:
        """Restore the state in `path`, as it was after its last epoch."""
        state, snapshot = load_state(path, setup)
        learner = self.learner
        if snapshot.weights.graph != learner.network.graph:
            learner = Learner(GraphNetwork(snapshot.weights.graph), learner.course)
        check_fits(path, snapshot, learner.snapshot())
        learner.restore(snapshot)
        self.learner = learner
        return state

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
        losses, sizes, correct = trained_on
        self._check_finite(losses, index)
        trained = int(sizes.sum())
        # Synchronises with the device, so that the time below is correct.
        mean_loss = float((losses.double() * sizes).sum() / trained)
        seconds = time.perf_counter() - started
        learner, validation = self.learner, self._validated()
        self._check_result(validation, index)
        return EpochRecord(
            epoch=index + 1,
            lr=learner.lr,
            train_loss=mean_loss,
            train_accuracy=int(correct) / trained,
            val_loss=validation.loss if validation else None,
            val_accuracy=validation.accuracy if validation else None,
            zero_share=zero_share(learner.penalty.scales, removed=learner.removed_scales),
            images_per_second=trained / seconds,
            strength=learner.penalty.strength,
            macs=network_cost(learner.network.graph, self.data.preprocessing.size).macs,
        )

    def _validated(self) -> Evaluation | None:
        if self.data.validation is None:
            return None
        return evaluate_network(
            self.learner.judged,
            self.data.validation,
            self.data.preprocessing,
            device=self.device,
            precision=self.learner.precision,
            ranks=self.ranks,
        )

    def _train(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Run the steps of an epoch. Returns the loss and the number of images of each step, and the number
        of correct predictions, all over all processes and on the device. For mixed images the class with the
        larger share counts.
        """
        steps = len(self.batches)
        losses = torch.zeros(steps, device=self.device)
        sizes = torch.zeros(steps, dtype=torch.int64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.learner.network.train()
        title = f"epoch {index + 1}/{self.options.epochs}"
        with self._random_numbers(index), progress_bar(title, total=steps) as advance:
            for step, (images, labels) in enumerate(self.batches.epoch(index)):
                number = index * steps + step
                self._set_lr(number)
                losses[step], logits = self.learner.take_step(images, labels, number)
                sizes[step] = len(labels)
                correct += (logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum()
                self.learner = self.shrinking.after_step(number, self.learner)
                advance(1)
        losses, sizes, correct = (self.ranks.sum(total) for total in (losses, sizes, correct))
        return losses / self.ranks.size, sizes, correct

    @contextmanager
    def _random_numbers(self, index: int) -> Iterator[None]:
        """Seed dropout in epoch `index` by seed, epoch and process, so that a resumed run draws the same. The
        caller's generators stay as they were.
        """
        devices = [torch.cuda.current_device()] if self.device.startswith("cuda") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((self.options.seed * 1_000_003 + index) * self.ranks.size + self.ranks.rank)
            yield

    def _set_lr(self, number: int) -> None:
        self.learner.lr = learning_rate(self.options, number, steps_per_epoch=len(self.batches))

    def _out_of_memory(self, index: int) -> SlimdeployError:
        def attempt(batch_size: int) -> None:
            images = -(-batch_size // self.ranks.size)
            learner = self.learner
            attempt_step(
                learner.step, learner.network, images, image_shape=self.data.preprocessing.image_shape
            )

        return out_of_memory(self.batches.batch_size, attempt, force=index > 0)

    def _check_finite(self, losses: Tensor, index: int) -> None:
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step = int(bad[0])
            self._set_lr(index * len(self.batches) + step)
            loss = losses[step].item()
            raise self._diverged(f"the loss is {loss} at epoch {index + 1}, step {step + 1}", index)

    def _check_result(self, validation: Evaluation | None, index: int) -> None:
        """Check what the last step has made: the losses of an epoch are those before each step."""
        if validation and not math.isfinite(validation.loss):
            raise self._diverged(f"the validation loss is {validation.loss} after epoch {index + 1}", index)
        if not all(torch.isfinite(tensor).all() for tensor in self.learner.judged.state_dict().values()):
            raise self._diverged(f"the weights are not finite after epoch {index + 1}", index)

    def _diverged(self, what: str, index: int) -> SlimdeployError:
        # Not --resume: the saved state requires the same learning rate, and would fail here again.
        again = " and start again with `force`" if index else ""
        return SlimdeployError(f"{what} (lr {self.learner.lr:.3g}): lower `lr`{again}")


def _batches(
    network: GraphNetwork, data: TrainingData, options: TrainOptions, device: str, ranks: Ranks
) -> TrainingBatches | LoaderBatches:
    if isinstance(data.train, LoaderFeed):
        return LoaderBatches(data.train, least=2 if network.batchnorms() else 1)
    return TrainingBatches(
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


def _judged(record: EpochRecord) -> float:
    """The value that early stopping maximises."""
    assert record.val_accuracy is not None, "patience needs validation images"
    return record.val_accuracy


def _out_of_patience(history: list[EpochRecord], patience: int | None) -> bool:
    if not patience or not history:
        return False
    # The first of the best: one that is as good is not better.
    best = max(range(len(history)), key=lambda i: _judged(history[i]))
    return len(history) - 1 - best >= patience


def _line(record: EpochRecord, epochs: int) -> str:
    width = int(math.log10(max(epochs, 1))) + 1
    validated = "" if record.val_accuracy is None else f" · val {record.val_accuracy:.1%}"
    zeros = f" · λ {record.strength:.1e}" if record.strength else ""
    zeros += f" · γ at zero {record.zero_share:.1%}" if record.zero_share else ""
    return (
        f"epoch {record.epoch:>{width}}/{epochs} · loss {record.train_loss:.3f} · "
        f"train {record.train_accuracy:.1%}{validated}{zeros} · "
        f"{record.images_per_second:,.0f} images/s"
    )
