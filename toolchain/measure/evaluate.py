"""The evaluation of one model, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import data_of
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.accuracy import Evaluation, evaluate
from slimdeploy.toolchain.measure.gpu_accuracy import Count, count_correct
from slimdeploy.toolchain.measure.labelled_images import dataset_images, images_for
from slimdeploy.toolchain.measure.subjects import Subject
from slimdeploy.toolchain.progress import progress_bar
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session
from slimdeploy.toolchain.runtime.tensorrt import TensorrtSession

BATCH = 64


@dataclass(frozen=True)
class Evaluated:
    """What came of a model, on which backend in which precision, and the names of its classes."""

    evaluation: Evaluation | Count
    backend: str
    precision: str
    class_names: tuple[str, ...]


def evaluate_model(
    subject: Subject, data: DataOptions | None, *, limit: int | None = None, accuracy_only: bool = False
) -> Evaluated:
    """Run the model over the test split of `data`, or of the data that it was trained on, a class-balanced
    `limit` of it; `accuracy_only` counts on the GPU, which takes an engine.

    Raises SlimdeployError where the model can't be opened or doesn't say how to feed it, and where the data
    isn't its own.
    """
    with subject.opener() as session:
        engine = _engine(session, subject) if accuracy_only else None
        info = session.info
        if info is None:
            raise SlimdeployError(f"{subject.model} doesn't say how to feed it: export it with slimdeploy")
        load = dataset_images(data or data_of(info, Path(subject.model)), limit)
        images = images_for(info.preprocessing, info.class_names, subject.model, load)
        found: Evaluation | Count
        if engine:
            found = count_correct(engine, images.images, images.labels, info.preprocessing)
        else:
            with progress_bar("evaluating", total=len(images.labels)) as advance:

                def predict(batch: np.ndarray) -> np.ndarray:
                    logits = session.run(normalise(batch, info.preprocessing))
                    advance(len(batch))
                    return logits

                found = evaluate(predict, images.images, images.labels, batch=BATCH)
        return Evaluated(found, session.backend, session.precision, info.class_names)


def _engine(session: Session, subject: Subject) -> TensorrtSession:
    if not isinstance(session, TensorrtSession):
        raise SlimdeployError(
            f"{subject.model}: --accuracy-only counts on the GPU, behind an engine; this is {session.backend}"
        )
    return session
