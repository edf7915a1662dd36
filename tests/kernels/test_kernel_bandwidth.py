"""What is counted as moved, and that the measuring runs; the figures mean something on a GPU only."""

import numpy as np
import pytest

from slimdeploy.kernels import bandwidth
from slimdeploy.kernels.classify import Accuracy, TopK
from slimdeploy.kernels.image_layout import ImageLayout
from slimdeploy.kernels.preprocess import Preprocess
from slimdeploy.toolchain.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("kind", "precision", "nbytes"),
    [
        ("nv12", "fp32", 64 * (1920 * 1080 * 3 // 2 + 3 * 224 * 224 * 4)),
        ("rgb", "fp16", 64 * (1920 * 1080 * 3 + 3 * 224 * 224 * 2)),
    ],
)
def test_preprocessing_moves_each_sample_once(fake, kind, precision, nbytes):
    layout = ImageLayout(kind, 1920, 1080, pitch=8192)  # padding is not moved
    kernel = Preprocess(
        fake, layout, Preprocessing(224, (0, 0, 0), (1, 1, 1), (224, 224)), precision=precision
    )
    assert kernel.bytes_moved(64) == nbytes
    kernel.close()


def test_classification_reads_logits_once(fake):
    assert TopK(fake, classes=1000, k=5).bytes_moved(2) == 2 * (4000 + 5 * 8)
    assert Accuracy(fake, classes=10, precision="fp16").bytes_moved(3) == 3 * (20 + 4)


def test_measures_every_kernel_and_frees_what_it_took(fake):
    before = len(fake.buffers)
    found = bandwidth.measure(fake, bandwidth.Workload(2, 32, 24, 8, 10, 3), launches=2)
    assert [row.kernel for row in found] == [
        "preprocess nv12 32×24 → 8 fp32",
        "preprocess nv12 32×24 → 8 fp16",
        "preprocess rgb 32×24 → 8 fp32",
        "preprocess rgb 32×24 → 8 fp16",
        "top 3 of 10",
        "accuracy over 10",
    ]
    for row in found:
        assert row.batch == 2
        assert row.gb_per_s == pytest.approx(row.nbytes / (row.ms / 1000) / 1e9)
        assert row.of_copy > 0
    assert len(fake.buffers) == before


def test_the_copy_copies(device, memory):
    content = np.random.default_rng(0).integers(0, 256, 16 * 3000, np.uint8)
    source, target = memory.to(content), memory.to(np.zeros_like(content))
    bandwidth.Copy(device).queue(source, target, 3000, memory.stream)
    np.testing.assert_array_equal(memory.back(target, content.shape, np.uint8), content)
    source.free()
    target.free()
