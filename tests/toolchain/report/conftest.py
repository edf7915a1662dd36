"""A run and a sweep, made once, and their pages."""

from __future__ import annotations

import pytest

from slimdeploy.tests.toolchain.report import sweep_example
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.pipeline.recipe import find_recipe, load_recipe
from slimdeploy.toolchain.pipeline.run import run_recipe
from slimdeploy.toolchain.report.write import report_stage

SETTINGS = (
    "data.size=8", "network.arch='tiny-basic'", "train.epochs=2", "train.limit=64", "train.sparsity=5.0",
    "finetune.epochs=1", "finetune.limit=64", "prune.recalibration_images=32", "prune.statistics_images=32",
    "prune.ratio=0.7", "prune.align=1", "export.parity_images=32",
    "calibrate.images=64", "calibrate.timing_seconds=0.1",
    "bench.seconds=0.01", "bench.launches=2", "bench.batch=[1,4]",
)  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The stages on 64 digits: nothing learnt, but every file is there and real."""
    folder = tmp_path_factory.mktemp("run")
    run_recipe(load_recipe(find_recipe("digits"), SETTINGS), folder, device="cpu", threads=1)
    return folder


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """A `sweep.json` as the command writes it, its figures made up."""
    folder = tmp_path_factory.mktemp("sweep")
    results.write(folder / "sweep.json", sweep_example.document())
    return folder


@pytest.fixture(scope="session")
def sweep_page(sweep):
    (written,) = report_stage([sweep], format="html", output=None).files
    return written


@pytest.fixture(scope="session")
def page(run):
    (written,) = report_stage([run], format="html", output=None).files
    return written
