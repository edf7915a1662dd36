"""preprocess.cu against the definition in float64, torch and PIL."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from slimdeploy.kernels.image_layout import ImageLayout
from slimdeploy.kernels.preprocess import Preprocess, yuv_to_rgb
from slimdeploy.toolchain.checks import MAX_BATCH
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import fit_pixels
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise

PLAIN = Preprocessing(8, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
"""Leaves values at 0…255."""
TOLERANCE = 0.02
"""Of 255. Weights of rows are rounded to 16 bits: 255 ÷ 65535 in luma at worst, twice that in blue (2.11
U).
"""
TO_RGB = {  # from Y − 16, U − 128, V − 128 in limited range, as the standards' tables print it
    "bt601": np.array([[1.164384, 0, 1.596027], [1.164384, -0.391762, -0.812968], [1.164384, 2.017232, 0]]),
    "bt709": np.array([[1.164384, 0, 1.792741], [1.164384, -0.213249, -0.532909], [1.164384, 2.112402, 0]]),
}


def triangle(samples, size, extent=None):
    """The resize of one axis as a (size, samples) matrix, straight from its definition."""
    scale = (extent or samples) / size
    centre = (np.arange(size)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(samples) + 0.5 - centre) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def resized(plane, size, extent=(None, None)):
    """(H, W, C) → (C, size, size) float64; `size` may be (width, height)."""
    width, height = size if isinstance(size, tuple) else (size, size)
    rows, columns = triangle(plane.shape[0], height, extent[0]), triangle(plane.shape[1], width, extent[1])
    return np.einsum("yh,hwc,xw->cyx", rows, plane.astype(np.float64), columns, optimize=True)


def expected(raw, layout, size):
    """(batch, bytes) raw images → (batch, 3, size, size) float64 in 0…255."""

    def samples(image, offset, height, row_bytes, channels):
        rows = [image[offset + y * layout.row_pitch :][:row_bytes] for y in range(height)]
        return np.stack(rows).reshape(height, -1, channels)

    images = []
    for image in raw:
        if layout.format == "nv12":
            width, height = layout.chroma_size
            y = resized(samples(image, 0, layout.height, layout.width, 1), size)
            uv = samples(image, layout.chroma_at, height, 2 * width, 2)
            uv = resized(uv, size, (layout.height / 2, layout.width / 2))
            yuv = np.concatenate([y - 16, uv - 128])
            images.append(np.einsum("cd,dyx->cyx", TO_RGB[layout.standard], yuv).clip(0, 255))
        else:
            rgb = resized(samples(image, 0, layout.height, 3 * layout.width, 3), size)
            images.append(rgb[::-1] if layout.format == "bgr" else rgb)
    return np.stack(images)


def run(device, memory, raw, layout, preprocessing, precision="fp32", offset=0):
    """The kernel's (batch, 3, size, size); the bytes after the output must stay as they were."""
    kernel = Preprocess(device, layout, preprocessing, precision=precision)
    batch, guard = len(raw), 64
    needed = layout.stride * (batch - 1) + layout.nbytes
    images = memory.to(raw.reshape(-1)[:needed], offset)
    output = memory.to(np.full(kernel.output_bytes(batch) + guard, 0x5A, np.uint8))
    try:
        kernel.queue(images, output, batch, memory.stream)
        content = memory.back(output, (output.nbytes,), np.uint8)
    finally:
        kernel.close()
        images.free()
        output.free()
    assert (content[-guard:] == 0x5A).all()
    dtype = np.float32 if precision == "fp32" else np.float16
    return content[:-guard].view(dtype).reshape(batch, *preprocessing.image_shape)


def plain(size):
    """The whole image as a square."""
    return Preprocessing(size, PLAIN.mean, PLAIN.std, (size, size))


def noise(layout, batch=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, layout.stride), np.uint8)


@st.composite
def cases(draw):
    sizes = st.one_of(st.integers(1, 40), st.sampled_from([64, 97, 333, 1500]))
    width, height = draw(sizes), draw(sizes)
    kind = draw(st.sampled_from(["rgb", "bgr", "nv12"]))
    tight = ImageLayout(kind, width, height)
    pitch = tight.row_bytes + draw(st.sampled_from([0, 0, 1, 5, 8, -tight.row_bytes % 8]))
    chroma = pitch * height + draw(st.sampled_from([0, 0, 3, pitch])) if kind == "nv12" else None
    padded = ImageLayout(kind, width, height, pitch, chroma_offset=chroma)
    stride = padded.stride + draw(st.sampled_from([0, 0, 7, 16]))
    standard = draw(st.sampled_from(["bt601", "bt709"]))
    layout = ImageLayout(kind, width, height, pitch, stride, chroma, standard)
    return layout, draw(st.integers(1, 33)), draw(st.integers(1, 3)), draw(st.sampled_from([0, 0, 1, 4]))


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 99), fp16=st.booleans())
def test_any_layout_and_size_matches_the_definition(device, memory, case, seed, fp16):
    layout, size, batch, offset = case
    raw = noise(layout, batch, seed)
    got = run(device, memory, raw, layout, plain(size), "fp16" if fp16 else "fp32", offset)
    np.testing.assert_allclose(got, expected(raw, layout, size), rtol=2**-11 if fp16 else 0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(1, 1, 1), (1, 1, 9), (2, 1, 3), (9000, 2, 2), (3, 9000, 2), (5, 5, 90), (333, 7, 333), (1024, 512, 64)],
)
@pytest.mark.parametrize("kind", ["rgb", "nv12"])
def test_extreme_scales(device, memory, width, height, size, kind):
    layout = ImageLayout(kind, width, height)
    raw = noise(layout)
    got = run(device, memory, raw, layout, plain(size))
    np.testing.assert_allclose(got, expected(raw, layout, size), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(320, 180, 56), (50, 70, 64), (32, 32, 32), (640, 480, 31)]
)
def test_agrees_with_torch_and_pil(device, memory, width, height, size):
    layout = ImageLayout("rgb", width, height)
    image = noise(layout).reshape(height, width, 3)
    got = run(device, memory, image[None], layout, plain(size))[0]
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    by_torch = torch.nn.functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)[
        0
    ].numpy()
    np.testing.assert_allclose(got, by_torch, rtol=0, atol=TOLERANCE)
    by_pil = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR), np.float64)
    # PIL rounds to whole numbers after each of the two passes.
    assert np.abs(got - by_pil.transpose(2, 0, 1)).max() <= 1.01


@pytest.mark.parametrize("kind", ["rgb", "bgr", "nv12"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("width", "height", "size", "resize"),
    [(333, 500, 56, 64), (500, 333, 56, 56), (64, 47, 40, 47), (90, 61, 33, (37, 50)), (30, 20, 48, 57)],
)
def test_the_centre_of_the_resized_image_as_the_host_takes_it(
    device, memory, width, height, size, resize, channels, kind
):
    mean, std = (0.3, 0.4, 0.5), (0.21, 0.22, 0.23)
    preprocessing = Preprocessing(size, mean, std, resize, channels=channels)
    layout = ImageLayout(kind, width, height)
    raw = noise(layout, 2)
    got = run(device, memory, raw, layout, preprocessing)
    to = preprocessing.geometry.resized(width, height)
    left, top = preprocessing.geometry.crop(*to)
    whole = expected(raw, layout, to)[:, :, top : top + size, left : left + size]
    wanted = (whole / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    wanted = wanted[:, ::-1] if channels == "bgr" else wanted
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE / 255 / min(std))
    if kind == "rgb":
        pixels = fit_pixels(raw.reshape(2, height, width, 3), preprocessing.geometry)
        assert np.abs(got - normalise(pixels, preprocessing)).max() <= 1.01 / 255 / min(std)


@settings(max_examples=30, deadline=None)
@given(case=cases(), seed=st.integers(0, 99), fp16=st.booleans())
def test_gray_is_the_sum_of_the_colours(device, memory, case, seed, fp16):
    layout, size, batch, offset = case
    preprocessing = Preprocessing(size, (0.25,), (0.5,), (size, size), channels="gray")
    raw = noise(layout, batch, seed)
    got = run(device, memory, raw, layout, preprocessing, "fp16" if fp16 else "fp32", offset)
    gray = np.einsum("c,ncyx->nyx", (0.299, 0.587, 0.114), expected(raw, layout, size))[:, None]
    wanted = (gray / 255 - 0.25) / 0.5
    np.testing.assert_allclose(got, wanted, rtol=2**-11 if fp16 else 0, atol=1e-3 if fp16 else 2e-4)
    if layout.format == "rgb" and size == layout.width == layout.height and layout.pitch == 3 * size:
        pixels = raw[:, : layout.nbytes].reshape(batch, size, size, 3)
        assert np.abs(got - normalise(pixels, preprocessing)).max() <= 0.51 / 255 / 0.5 + 1e-3


def test_what_only_the_host_does_is_refused(fake):
    layout = ImageLayout("rgb", 90, 60)
    with pytest.raises(SlimdeployError, match="the CUDA kernel resizes bilinear, not bicubic: use the host"):
        Preprocess(fake, layout, Preprocessing(8, (0,) * 3, (1,) * 3, 9, "bicubic"))
    with pytest.raises(SlimdeployError, match="adds no black around an image: 30×20 is less than 24×24"):
        Preprocess(fake, layout, Preprocessing(24, (0,) * 3, (1,) * 3, 20))


def test_normalises_per_channel(device, memory):
    layout = ImageLayout("bgr", 4, 4)
    blue_green_red = np.broadcast_to(np.uint8([51, 102, 204]), (1, 4, 4, 3))
    preprocessing = Preprocessing(4, (0.5, 0.25, 0.125), (0.5, 0.2, 0.1))
    got = run(device, memory, blue_green_red, layout, preprocessing)[0]
    for channel, value in enumerate([(0.8 - 0.5) / 0.5, (0.4 - 0.25) / 0.2, (0.2 - 0.125) / 0.1]):
        np.testing.assert_allclose(got[channel], value, rtol=1e-6)


def test_nv12_colours_worked_by_hand(device, memory):
    """Black, white and the standard's own blue: Y = 41, U = 240, V = 110 is (0, 0, 255) in BT.601."""
    layout = ImageLayout("nv12", 2, 2, standard="bt601")
    for yuv, rgb in [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((41, 240, 110), (0, 0, 255)),
    ]:
        raw = np.uint8([[yuv[0]] * 4 + [yuv[1], yuv[2]]])
        got = run(device, memory, raw, layout, plain(2))[0]
        assert np.abs(got - np.reshape(rgb, (3, 1, 1))).max() < 1


def test_full_range_matches_pil(device, memory):
    yuv = np.random.default_rng(1).integers(0, 256, (200, 3), np.uint8)
    layout = ImageLayout("nv12", 2, 2, standard="bt601", full_range=True)
    raw = np.column_stack([np.repeat(yuv[:, :1], 4, axis=1), yuv[:, 1:]])
    got = run(device, memory, raw, layout, plain(1)).reshape(-1, 3)
    by_pil = (
        np.asarray(Image.fromarray(yuv[:, None], "YCbCr").convert("RGB")).reshape(-1, 3).astype(np.float64)
    )
    assert np.abs(got - by_pil).max() <= 1.01  # PIL's table is rounded


def test_the_order_of_threads_does_not_matter(fake, memory, device, monkeypatch):
    """A result that depends on it would be a race."""
    for layout in (ImageLayout("rgb", 150, 40), ImageLayout("nv12", 70, 90), ImageLayout("rgb", 3000, 3)):
        raw = noise(layout)
        monkeypatch.delenv("SLIMDEPLOY_REVERSED", raising=False)
        forwards = run(device, memory, raw, layout, plain(20))
        monkeypatch.setenv("SLIMDEPLOY_REVERSED", "1")
        np.testing.assert_array_equal(forwards, run(device, memory, raw, layout, plain(20)))


def test_can_be_captured_and_launched_again(device, memory):
    layout = ImageLayout("rgb", 12, 12)
    kernel = Preprocess(device, layout, plain(6))
    first, second = noise(layout, seed=1), noise(layout, seed=2)
    images, output = memory.to(first), memory.to(np.zeros(kernel.output_bytes(1), np.uint8))
    graph = device.capture(memory.stream, lambda: kernel.queue(images, output, 1, memory.stream))
    for raw in (first, second):
        device.upload(images.whole, raw, memory.stream)
        graph.launch(memory.stream)
        got = memory.back(output, (1, 3, 6, 6), np.float32)
        np.testing.assert_allclose(got, expected(raw, layout, 6), atol=TOLERANCE)
    graph.free()
    kernel.close()
    kernel.close()


def test_frees_its_tables(fake):
    before = len(fake.buffers)
    kernel = Preprocess(fake, ImageLayout("nv12", 8, 8), plain(4))
    assert len(fake.buffers) == before + 4
    kernel.close()
    assert len(fake.buffers) == before


def test_white_stays_white_in_every_standard():
    for standard in TO_RGB:
        for full_range, white in ((False, (235, 128, 128, 1)), (True, (255, 128, 128, 1))):
            np.testing.assert_allclose(yuv_to_rgb(standard, full_range=full_range) @ white, 255, rtol=1e-5)


def test_the_largest_batch_that_options_allow_can_be_launched(fake, monkeypatch):
    """The fake refuses what a driver refuses; running all these blocks on a CPU would take half a minute."""
    kernel = Preprocess(fake, ImageLayout("rgb", 1, 1), plain(1))
    images, output = fake.allocate(3 * MAX_BATCH), fake.allocate(12 * MAX_BATCH)
    launched = []
    monkeypatch.setattr(fake, "enqueue", lambda handle, work: launched.append(work))
    kernel.queue(images, output, MAX_BATCH, fake.stream())
    assert len(launched) == 1
    kernel.close()
    images.free()
    output.free()


@pytest.mark.parametrize("batch", [0, MAX_BATCH + 1])
def test_refuses_batches_that_no_grid_holds(fake, batch):
    kernel = Preprocess(fake, ImageLayout("rgb", 1, 1), plain(1))
    images, output = fake.allocate(3 * batch), fake.allocate(12 * batch)
    with pytest.raises(SlimdeployError, match=r"batch must be at (least 1|most 65535), not"):
        kernel.queue(images, output, batch, fake.stream())
    kernel.close()
    images.free()
    output.free()


def test_refuses_buffers_that_are_too_small(fake):
    kernel = Preprocess(fake, ImageLayout("rgb", 4, 4), plain(2))
    images, output = fake.allocate(95), fake.allocate(96)
    with pytest.raises(
        SlimdeployError, match="2 images need 96 bytes in and 96 out; the buffers have 95 and 96"
    ):
        kernel.queue(images, output, 2, fake.stream())
    kernel.close()
    images.free()
    output.free()
    with pytest.raises(SlimdeployError, match="network input is fp32 or fp16, not 'int8'"):
        Preprocess(fake, ImageLayout("rgb", 4, 4), plain(2), precision="int8")
