"""Training and validation data of a run."""

from __future__ import annotations

from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.data.loader_batches import OwnBatches
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.training.loop import TrainingData
from slimdeploy.toolchain.training.options import TrainOptions


def training_data(dataset: Dataset | OwnBatches, options: TrainOptions) -> TrainingData:
    """Training and validation images, the same in every stage of a run. Of a Dataset, `limit` is taken first,
    then the held-out share. Batches made by the caller are used as they are.
    """
    if isinstance(dataset, OwnBatches):
        return TrainingData(dataset.train, dataset.validation, dataset.preprocessing)
    train, validation = dataset.held_out(options.validation, limit=options.limit)
    if len(train) < 2:
        raise SlimdeployError(
            f"{len(train)} image is left for training, but BN needs 2: lower `validation`, or raise `limit`"
        )
    return TrainingData(train, validation, dataset.preprocessing)
