"""Accuracy and loss of one model, in this process."""

from __future__ import annotations

from slimdeploy.benchmarks.accuracy import Evaluation, evaluate
from slimdeploy.benchmarks.images import LoadImages, images_for
from slimdeploy.benchmarks.subjects import Subject
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.preprocess import normalise

BATCH = 64


def evaluate_model(subject: Subject, load: LoadImages) -> tuple[Evaluation, str, str]:
    """Run the model over all images that `load` gives; returns what came of it, its backend and precision.

    Raises SlimdeployError where the model can't be opened, doesn't say how to feed it, or knows other
    classes.
    """
    with subject.opener() as session:
        info = session.info
        if info is None:
            raise SlimdeployError(
                f"{subject.model} doesn't say how its images are normalised; files that slimdeploy wrote do"
            )
        data = images_for(info.preprocessing, info.class_names, subject.model, load)
        found = evaluate(
            lambda images: session.run(normalise(images, info.preprocessing)),
            data.images,
            data.labels,
            batch=BATCH,
        )
        return found, session.backend, session.precision
