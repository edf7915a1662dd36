"""Evaluation of one model in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, balanced_subset
from slimdeploy.toolchain.data.of_model import data_of
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.accuracy import Answered, Evaluation, judge
from slimdeploy.toolchain.measure.gpu_accuracy import Count, count_correct
from slimdeploy.toolchain.measure.labelled_images import Images, LoadImages, dataset_images, images_for
from slimdeploy.toolchain.measure.options import EvaluateOptions
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.progress import progress_bar
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session
from slimdeploy.toolchain.runtime.tensorrt import TensorrtSession

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.feed import Batch

BATCH = 64


@dataclass(frozen=True)
class EvaluateResult:
    """The evaluation of `model`: its file, or the name of its architecture."""

    model: str
    backend: str
    precision: str
    class_names: tuple[str, ...]
    evaluation: Evaluation | Count
    """Predictions, errors by class, calibration; only a Count with `accuracy_only`."""

    @property
    def accuracy(self) -> float:
        """Share of correctly classified images, 0…1."""
        return self.evaluation.accuracy

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats; None for a Count."""
        return None if isinstance(self.evaluation, Count) else self.evaluation.loss

    @property
    def images(self) -> int:
        return self.evaluation.images

    def to_json(self) -> dict[str, Any]:
        """The output of `slimdeploy evaluate --json`."""
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            **self.evaluation.to_json(self.class_names),
        }


def evaluate_session(
    session: Session,
    model: str,
    data: DataOptions | Dataset | Iterable[Batch] | None,
    options: EvaluateOptions,
) -> EvaluateResult:
    """Run `session` on test images: those of a dataset, the given batches, or with None those of the data
    that the model was trained on.

    Raises SlimdeployError if the model contains no preprocessing, or if the data has other classes.
    """
    engine = _engine(session, model) if options.accuracy_only else None
    info = session.info
    if info is None:
        raise SlimdeployError(f"{model} contains no preprocessing: export it with slimdeploy")
    found: Evaluation | Count
    if isinstance(data, DataOptions | Dataset) or data is None:
        images = images_for(info.preprocessing, info.class_names, model, _loader(data, info, model, options))
        if engine:
            found = count_correct(engine, images.images, images.labels, info.preprocessing)
        else:
            found = judge(_to_images(session, images, info.preprocessing))
    else:
        if options.accuracy_only or options.limit:
            name = "accuracy_only" if options.accuracy_only else "limit"
            raise SlimdeployError(f"`{name}` needs a dataset, and `data` gives batches")
        found = judge(_to_batches(session, data, info))
    return EvaluateResult(model, session.backend, session.precision, info.class_names, found)


def _loader(
    data: DataOptions | Dataset | None, info: ModelInfo, model: str, options: EvaluateOptions
) -> LoadImages:
    if not isinstance(data, Dataset):
        return dataset_images(data or data_of(info, Path(model)), options.limit)

    def load(wanted: Preprocessing) -> Images:
        if data.preprocessing != wanted:
            raise SlimdeployError(
                f"the images of `data` are made with {data.preprocessing}, and {model} takes {wanted}: pass "
                "DataOptions, which go by the model"
            )
        test = balanced_subset(data.test, options.limit)
        return Images(test.stored, test.labels, data.class_names)

    return load


def _to_images(session: Session, found: Images, preprocessing: Preprocessing) -> Iterator[Answered]:
    """Logits and labels of the images, batch by batch."""
    with progress_bar("evaluating", total=len(found.labels)) as advance:
        for start in range(0, len(found.labels), BATCH):
            part = slice(start, start + BATCH)
            logits = session.run(normalise(found.images[part], preprocessing))
            advance(len(logits))
            yield logits, found.labels[part]


def _to_batches(session: Session, data: Iterable[Batch], info: ModelInfo) -> Iterator[Answered]:
    from slimdeploy.toolchain.data.feed import LoaderFeed  # brings torch, which batches are of

    for images, labels in LoaderFeed(data, "cpu", info.preprocessing.image_shape, len(info.class_names)):
        yield session.run(images.numpy()), labels.numpy()


def _engine(session: Session, model: str) -> TensorrtSession:
    if not isinstance(session, TensorrtSession):
        raise SlimdeployError(
            f"{model}: `accuracy_only` counts on the GPU and needs an engine; this is {session.backend}"
        )
    return session
