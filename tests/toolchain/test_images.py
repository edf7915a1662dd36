"""Images to network input: bit for bit torchvision's transforms, on any image, and what is refused."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from slimdeploy.toolchain.data.batches import Normalise
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.decoding import decode
from slimdeploy.toolchain.deploy.images import FrameFormat, ImageLimits, decode_image, read_frames
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import fit, fit_pixels
from slimdeploy.toolchain.preprocessing import Geometry, Preprocessing
from slimdeploy.toolchain.preprocessing_options import PRESETS, parse_resize
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.torchvision import import_torchvision

IMAGENET = DataOptions("digits", preprocessing="imagenet").completed(
    224, lambda: pytest.fail("nothing to measure")
)
SIZES = [(333, 500), (64, 47), (1, 1), (500, 333), (257, 256), (224, 224), (255, 641), (2, 300), (30, 20)]
GEOMETRIES = [
    *(preset.geometry for preset in PRESETS.values()),
    Geometry(224),
    Geometry(64, (50, 90), "bicubic"),
    Geometry(33, 20),
    Geometry(32, 32, "bicubic"),
]


def by_torchvision(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """The pixels that torchvision's Resize and CenterCrop leave."""
    import_torchvision()
    from torchvision import transforms

    mode = transforms.InterpolationMode(geometry.interpolation)
    steps = [
        transforms.Resize(geometry.resize or geometry.size, mode),
        transforms.CenterCrop(geometry.size),
    ]
    return np.asarray(transforms.Compose(steps)(image))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.key)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_pixels_are_torchvisions(size: tuple[int, int], geometry: Geometry) -> None:
    image = noise(*size)
    expected = by_torchvision(image, geometry)
    np.testing.assert_array_equal(fit(image, geometry), expected)
    np.testing.assert_array_equal(fit_pixels(np.asarray(image)[None], geometry)[0], expected)


def test_presets_are_what_torchvision_says_of_its_weights() -> None:
    models = import_torchvision().models
    for name, weights in {
        "imagenet": models.ResNet18_Weights.IMAGENET1K_V1,
        "imagenet-v2": models.ResNet50_Weights.IMAGENET1K_V2,
        "inception": models.Inception_V3_Weights.IMAGENET1K_V1,
    }.items():
        transform, preset = weights.transforms(), PRESETS[name]
        size, resize = preset.geometry.size, preset.geometry.resize
        assert (transform.crop_size, transform.resize_size) == ([size], [resize])
        assert transform.interpolation.value == preset.geometry.interpolation
        assert (tuple(transform.mean), tuple(transform.std)) == (preset.mean, preset.std)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "RGBA", "1", "YCbCr"])
def test_every_kind_of_image_becomes_the_rgb_that_torchvision_gets(tmp_path: Path, mode: str) -> None:
    kind = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    file = tmp_path / f"image.{kind}"
    noise(75, 60).convert("RGB").convert(mode).save(file)
    with Image.open(file) as image:
        expected = by_torchvision(image.convert("RGB"), IMAGENET.geometry)
    np.testing.assert_array_equal(decode(file, IMAGENET.geometry), expected)
    content = decode_image(file.read_bytes(), "x", geometry=IMAGENET.geometry, limits=ImageLimits())
    np.testing.assert_array_equal(content, expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_8_count(tmp_path: Path, kind: str) -> None:
    gradient = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(gradient).save(tmp_path / "deep", kind)
    found = decode(tmp_path / "deep", Geometry(32))
    np.testing.assert_array_equal(found, np.repeat((gradient >> 8)[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (9, 9)).save(tmp_path / "deep.tif")
    with pytest.raises(
        SlimdeployError, match=r"deep\.tif: not a readable image .32-bit pixels, whose range is"
    ):
        decode(tmp_path / "deep.tif", Geometry(8))
    with pytest.raises(SlimdeployError, match=r"^x: 32-bit pixels"):
        decode_image((tmp_path / "deep.tif").read_bytes(), "x", geometry=Geometry(8), limits=ImageLimits())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_exif_says(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(40, 24).save(tmp_path / "turned", kind, exif=exif)
    with Image.open(tmp_path / "turned") as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert upright.size == ((40, 24) if orientation < 5 else (24, 40))
    np.testing.assert_array_equal(decode(tmp_path / "turned", None), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_image_as_it_is(tmp_path: Path) -> None:
    noise(40, 24).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")
    assert decode(tmp_path / "x.jpg", None).shape == (24, 40, 3)


def test_the_input_is_torchvisions_in_numpy_and_torch() -> None:
    from torchvision.transforms import functional

    pixels = fit(noise(333, 500), IMAGENET.geometry)
    expected = functional.normalize(functional.to_tensor(pixels.copy()), IMAGENET.mean, IMAGENET.std).numpy()
    np.testing.assert_allclose(normalise(pixels[None], IMAGENET)[0], expected, atol=2e-6)
    by_torch = Normalise(IMAGENET, "cpu")(torch.from_numpy(pixels.copy()[None]))[0]
    np.testing.assert_allclose(by_torch.numpy(), expected, atol=2e-6)


def test_blue_first_is_the_same_numbers_in_another_order() -> None:
    pixels = fit(noise(40, 40), Geometry(16))[None]
    rgb = Preprocessing(16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    bgr = Preprocessing(16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), channels="bgr")
    np.testing.assert_array_equal(normalise(pixels, bgr), normalise(pixels, rgb)[:, ::-1])
    torch_pixels = torch.from_numpy(pixels.copy())
    assert torch.equal(Normalise(bgr, "cpu")(torch_pixels), Normalise(rgb, "cpu")(torch_pixels).flip(1))


def test_raw_frames_go_the_same_way() -> None:
    frame = noise(320, 240)
    stream = io.BytesIO(np.asarray(frame).tobytes())
    (found,) = read_frames(stream, FrameFormat(320, 240), geometry=IMAGENET.geometry)
    np.testing.assert_array_equal(found, by_torchvision(frame, IMAGENET.geometry))


def test_survives_json_and_reads_the_form_of_old() -> None:
    for preprocessing in (
        IMAGENET,
        Preprocessing(9, (0.1,) * 3, (0.2,) * 3, (4, 5), "bicubic", "bgr"),
    ):
        assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    old = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    assert Preprocessing.from_json(old) == Preprocessing(32, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 100_000}, "1 to 4096 pixels, not 100000"),
        ({"resize": [5, 0]}, "1 to 4096 pixels, not 0"),
        ({"resize": 0}, "1 to 4096 pixels, not 0"),
        ({"interpolation": "nearest"}, "unknown interpolation 'nearest'; known: bilinear, bicubic"),
        ({"channels": "rbg"}, "unknown channels 'rbg'"),
        (
            {"mean": [123.6, 116.3, 103.5]},
            r"mean 123.6 is not possible for pixels in 0…1: divide by 255, 0\.4847",
        ),
        ({"std": [0, 1, 1]}, "std must be above 0 and at most 1"),
        ({"std": [float("nan"), 1, 1]}, "std must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(SlimdeployError, match=message):
        Preprocessing.from_json({**IMAGENET.to_json(), **change})


def test_options_go_before_the_preset_and_the_preset_before_the_data() -> None:
    def chosen(**options: object) -> Preprocessing:
        data = DataOptions("digits", **options)  # type: ignore[arg-type]
        geometry = data.geometry_or(32)
        return data.completed(geometry.size, lambda _: ((0.5,) * 3, (0.25,) * 3))

    assert chosen() == Preprocessing(32, (0.5,) * 3, (0.25,) * 3)
    assert (
        chosen(size=224, resize=256, preprocessing="imagenet") == chosen(preprocessing="imagenet") == IMAGENET
    )
    assert chosen(preprocessing="imagenet", size=160, mean=(0.1, 0.2, 0.3)) == Preprocessing(
        160, (0.1, 0.2, 0.3), IMAGENET.std, 256
    )
    assert chosen(resize="96x128", interpolation="bicubic").geometry == Geometry(96, (96, 128), "bicubic")
    assert chosen(resize=40).geometry == Geometry(40)
    model = Preprocessing(24, (0.1,) * 3, (0.2,) * 3, 30, "bicubic", "bgr")
    fed = DataOptions("digits", preprocessing="imagenet").fed_to(model)
    assert fed.completed(24, lambda _: pytest.fail("nothing to measure")) == model
    with pytest.raises(
        SlimdeployError, match=r"unknown preprocessing 'imagnet'; known: .*Did you mean 'imagenet'"
    ):
        chosen(preprocessing="imagnet")
    with pytest.raises(SlimdeployError, match="an interpolation needs a size"):
        chosen(interpolation="bicubic")


@pytest.mark.parametrize("text", ["", "x", "22.5", "1x2x3", "-4", "224 x 224"])
def test_resize_is_a_side_or_two(text: str) -> None:
    with pytest.raises(SlimdeployError, match="give the shorter side, such as 256, or HEIGHTxWIDTH"):
        parse_resize(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5,)}, "mean must be three numbers for rgb images, not (0.5,)"),
        ({"std": 0.5}, "std must be three numbers for rgb images, not (0.5,)"),
        ({"std": (0, 0.5, 0.5)}, "std must be above 0"),
        ({"std": (math.nan, 0.5, 0.5)}, "std must be above 0"),
        ({"mean": (127, 127, 127)}, "mean 127 is not possible for pixels in 0…1: divide by 255, 0.498"),
        ({"size": 0}, "not 0"),
        ({"interpolation": "cubic"}, "cubic"),
    ],
)
def test_a_preprocessing_that_no_checkpoint_may_have_is_refused_when_made(changes, message):
    valid = {"size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    with pytest.raises(SlimdeployError, match=re.escape(message)):
        Preprocessing(**valid | changes)
