"""Classifying files, folders and raw frames: the right answers, and one line for what can't be read."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from slimdeploy.toolchain.data.decoding import decode
from slimdeploy.toolchain.deploy import device
from slimdeploy.toolchain.deploy.classify import Timings, classify_images, open_model
from slimdeploy.toolchain.deploy.http import UPLOADS
from slimdeploy.toolchain.deploy.images import (
    FrameFormat,
    ImageLimits,
    decode_image,
    list_images,
    read_frames,
)
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.deploy.predict import top_classes
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import printable
from slimdeploy.toolchain.preprocessing import Geometry
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

SIZE = 16
CLI = [sys.executable, "-m", "slimdeploy.toolchain", "classify"]
OPTIONS = SessionOptions(threads=1)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_top_classes_by_hand():
    logits = np.log(np.array([[1.0, 2.0, 5.0], [8.0, 1.0, 1.0]], np.float32))
    first, second = top_classes(logits, ("a", "b", "c"), 2)
    assert [(p.label, p.index, round(p.probability, 6)) for p in first] == [("c", 2, 0.625), ("b", 1, 0.25)]
    assert [p.label for p in second] == ["a", "b"]  # of two alike, the first
    assert top_classes(np.array([[1e4, 0.0]], np.float32), ("a", "b"), 9)[0][0].probability == 1.0


def test_every_image_gets_its_own_answer(models, random_images, monkeypatch):
    images = random_images(11)
    with open_session(models["fp32"], options=OPTIONS) as session:
        expected = [
            top_classes(
                session.run(normalise(image[None], session.info.preprocessing)), session.info.class_names, 3
            )[0]
            for image in images
        ]
        sources = [(str(i), lambda image=image: image) for i, image in enumerate(images)]
        timings = Timings()
        run, batches = session.run, []
        monkeypatch.setattr(session, "run", lambda images: batches.append(len(images)) or run(images))
        results = list(classify_images(session, session.info, sources, timings, top=3, batch=4))
    assert [r.image for r in results] == [str(i) for i in range(11)]
    for result, wanted in zip(results, expected, strict=True):
        assert [p.label for p in result.top] == [p.label for p in wanted]
        np.testing.assert_allclose(
            [p.probability for p in result.top], [p.probability for p in wanted], rtol=1e-5
        )
    assert (batches, timings.images) == ([4, 4, 3], 11)


def test_logits_that_are_not_finite_are_an_error_and_the_rest_goes_on(models, random_images, monkeypatch):
    images = zip("ab", random_images(2), strict=True)
    sources = [(name, functools.partial(np.copy, image)) for name, image in images]
    with open_session(models["fp32"], options=OPTIONS) as session:
        run = session.run
        monkeypatch.setattr(session, "run", lambda images: run(images) * [[np.nan], [1]])
        first, second = classify_images(session, session.info, sources, Timings(), top=1, batch=2)
    assert first.to_json() == {"image": "a", "error": "the model computed NaN or infinite logits"}
    assert (second.error, len(second.top)) == (None, 1)


def test_class_names_reach_the_terminal_without_their_control_characters():
    assert printable("\x1b[2Jcat\x9b\u202e\udc80") == r"\x1b[2Jcat\x9b\u202e\udc80"
    assert printable("naïve 猫\n") == "naïve 猫\n"


def test_an_unreadable_image_is_named_and_the_rest_goes_on(models, random_images):
    def broken():
        raise SlimdeployError("no image")

    images = random_images(2)
    sources = [("a", lambda: images[0]), ("b", broken), ("c", lambda: images[1])]
    with open_session(models["fp32"], options=OPTIONS) as session:
        timings = Timings()
        results = list(classify_images(session, session.info, sources, timings, top=1, batch=8))
    assert [r.error for r in results] == [None, "no image", None]
    assert timings.to_json()["images"] == 2


@pytest.mark.parametrize("shape", [(16, 16), (40, 30), (9, 31), (200, 16)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decoded_as_in_training(tmp_path, shape, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path = tmp_path / "image"
    path.write_bytes(encoded(pixels, kind))
    ours = decode_image(path.read_bytes(), "image", geometry=Geometry(SIZE), limits=ImageLimits())
    np.testing.assert_array_equal(ours, decode(path, Geometry(SIZE)))


def test_grey_and_transparent_images():
    grey = Image.new("L", (20, 20), 100)
    clear = Image.new("RGBA", (20, 20), (1, 2, 3, 0))
    for image in (grey, clear, grey.convert("P"), grey.convert("I;16")):
        file = io.BytesIO()
        image.save(file, "PNG")
        assert decode_image(file.getvalue(), "x", geometry=Geometry(SIZE), limits=ImageLimits()).shape == (
            SIZE,
            SIZE,
            3,
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"GIF89a", "not an image"),
        (encoded(np.zeros((8, 8, 3), np.uint8), "EPS"), "in an unsupported format"),
        (encoded(np.zeros((64, 64, 3), np.uint8), "JPEG")[:300], "not a readable image"),
        (encoded(np.zeros((8, 640, 3), np.uint8)), "too narrow"),
        (encoded(np.zeros((400, 400, 3), np.uint8)), "at most 100000 are decoded"),
        (b"x" * 20_001, "at most 20000 are read"),
    ],
)
def test_bad_images(content, message):
    limits = ImageLimits(bytes=20_000, pixels=100_000)
    with pytest.raises(SlimdeployError, match=message) as caught:
        decode_image(content, "upload", geometry=Geometry(SIZE), limits=limits)
    assert str(caught.value).startswith("upload: ")
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
def test_formats(kind):
    content = encoded(np.full((SIZE, SIZE, 3), 128, np.uint8), kind)
    assert decode_image(content, "x", geometry=Geometry(SIZE), limits=ImageLimits()).shape == (SIZE, SIZE, 3)
    limits = ImageLimits(formats=UPLOADS)
    if kind in UPLOADS:
        decode_image(content, "x", geometry=Geometry(SIZE), limits=limits)
    else:
        with pytest.raises(SlimdeployError, match="in an unsupported format"):
            decode_image(content, "x", geometry=Geometry(SIZE), limits=limits)


def test_raw_frames():
    frames = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    read = list(read_frames(io.BytesIO(frames.tobytes()), FrameFormat(SIZE, SIZE), geometry=Geometry(SIZE)))
    np.testing.assert_array_equal(read, frames)
    read = list(
        read_frames(
            io.BytesIO(frames[..., ::-1].tobytes()), FrameFormat(SIZE, SIZE, "bgr"), geometry=Geometry(SIZE)
        )
    )
    np.testing.assert_array_equal(read, frames)
    grey = next(
        read_frames(
            io.BytesIO(frames[0, ..., 0].tobytes()), FrameFormat(SIZE, SIZE, "gray"), geometry=Geometry(SIZE)
        )
    )
    np.testing.assert_array_equal(grey, frames[0, ..., :1].repeat(3, -1))
    small = next(read_frames(io.BytesIO(frames.tobytes()), FrameFormat(SIZE, 2 * SIZE), geometry=Geometry(8)))
    assert small.shape == (8, 8, 3)


def test_frames_through_a_slow_pipe():
    class Slow(io.RawIOBase):
        left = bytes(2 * 4 * 4 * 3)

        def read(self, count=-1):
            part, self.left = self.left[: min(count, 7)], self.left[min(count, 7) :]
            return part

    assert len(list(read_frames(Slow(), FrameFormat(4, 4), geometry=Geometry(4)))) == 2


def test_bad_frames():
    with pytest.raises(SlimdeployError, match="frame 1: 5 bytes, not 48"):
        list(read_frames(io.BytesIO(bytes(53)), FrameFormat(4, 4), geometry=Geometry(4)))
    for text in ("4", "4x", "x4", "-4x4", "4x4x4", "axb"):
        with pytest.raises(SlimdeployError, match="write it as WIDTHxHEIGHT"):
            FrameFormat.parse(text, "rgb")
    with pytest.raises(SlimdeployError, match="1 to 16384"):
        FrameFormat.parse("0x4", "rgb")
    with pytest.raises(SlimdeployError, match="pixels 'yuv'"):
        FrameFormat.parse("4x4", "yuv")


def test_folders_are_searched_in_order(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images((str(tmp_path),))] == ["a.png", "1.JPG", "2.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlimdeployError, match="contains no images"):
        list_images((str(tmp_path / "empty"),))


def test_model_that_says_nothing(models, tmp_path):
    import onnx

    bare = onnx.load(models["fp32"])
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(SlimdeployError, match="contains no classes"):
        open_model(tmp_path / "bare.onnx", tmp_path, OPTIONS)


def test_frames_are_told_as_they_come(models, random_images):
    """The first two lines are there while the stream is still open."""
    command = [*CLI, "-", "--frames", "16x16", "--top", "1", "--model", str(models["fp32"])]
    frames = random_images(3)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for i in range(2):
            process.stdin.write(frames[i].tobytes())
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"frame {i}: ".encode())
        process.stdin.write(frames[2].tobytes()[:-1])
        process.stdin.close()
        rest = process.stdout.read()
    assert rest.startswith(b"frame 2: 767 bytes, not 768")
    assert process.returncode == 1


def test_command_line(bundle, models, random_images, tmp_path):
    store = Store(tmp_path / "store")
    device.install(bundle, store, DeployOptions(seconds=0.01))
    (tmp_path / "images").mkdir()
    for i, image in enumerate(random_images(3)):
        Image.fromarray(image).save(tmp_path / f"images/{i}.png")
    (tmp_path / "broken.png").write_bytes(b"x")

    def call(*arguments, **options):
        return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, check=False, **options)

    done = call(tmp_path / "images", "--root", store.root, "--json")
    document = json.loads(done.stdout)
    assert (document["model"], len(document["results"]), done.returncode) == ("0001-net", 3, 0)
    frames = random_images(3).tobytes()
    raw = json.loads(call("-", "--frames", "16x16", "--root", store.root, "--json", input=frames).stdout)
    assert [r["top"] for r in raw["results"]] == [r["top"] for r in document["results"]]
    done = call(
        tmp_path / "images", tmp_path / "broken.png", tmp_path / "none", "--model", models["fp32"], "--json"
    )
    assert (done.returncode, done.stderr) == (1, b"slimdeploy: 2 of 5 images could not be classified\n")
    assert "No such file" in json.loads(done.stdout)["results"][4]["error"]
    done = call("-", "--frames", "16x16", "--root", store.root, "--json", input=frames[:-5])
    cut = json.loads(done.stdout)["results"]
    assert (cut[:2], done.returncode) == (raw["results"][:2], 1)
    assert cut[2] == {
        "image": "frame 2",
        "error": "frame 2: 763 bytes, not 768: check its size and pixel format",
    }
    done = call("-", "--frames", "16x16", "--root", store.root, input=b"")
    assert (done.returncode, done.stderr) == (2, b"slimdeploy: no frame on standard input\n")
    done = call("broken.png", "--model", models["fp32"], text=True, cwd=tmp_path)
    assert done.stdout.count("broken.png") == 1  # its name, and then why
    for arguments in (("-",), ("x", "--frames", "4x4"), ("x", "--root", tmp_path / "none")):
        done = call(*arguments)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
