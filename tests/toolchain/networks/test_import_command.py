"""`slimdeploy import`: the name and the arguments of a network, its weights and its preprocessing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import write_image_folder

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.models.model_info import check_class_names
from slimdeploy.toolchain.models.named_networks import foreign_module, named_network, parse_arguments
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Geometry, Preprocessing
from slimdeploy.toolchain.published_weights import published_weights
from slimdeploy.toolchain.torchvision import import_torchvision
from slimdeploy.toolchain.training.pretrained import read_weights

MODEL = """
import torch
from torch import nn

def build(width=1.0, num_classes=4):
    channels = int(8 * width)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(channels * 9, num_classes),
    )

def broken():
    raise RuntimeError("no weights\\nhere")

number = 3
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


def test_arguments_are_literals() -> None:
    assert parse_arguments(("width=0.5", "act=relu", "sizes=(1, 2)")) == {
        "width": 0.5, "act": "relu", "sizes": (1, 2),
    }  # fmt: skip
    with pytest.raises(SlimdeployError, match="arguments width: write it as name=value"):
        parse_arguments(("width",))
    with pytest.raises(SlimdeployError, match="width is given twice"):
        parse_arguments(("width=1", "width=2"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:mobilenet_v7", "torchvision has no classifier 'mobilenet_v7'"),
        ("my_model.py:biuld", "has no function 'biuld'. Did you mean 'build'?"),
        ("my_model.py:broken", "can't be built: RuntimeError: no weights here"),
        ("my_model.py:number", "has no function 'number'"),
        ("nothing.py:build", "no file at"),
        ("resnet5O", "Did you mean 'resnet50'"),
    ],
)
def test_names_that_lead_nowhere(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(model_file.parent)
    with pytest.raises(SlimdeployError) as refused:
        named_network(name, size=16)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_number_of_classes_reaches_a_users_function(model_file: Path) -> None:
    assert named_network(f"{model_file}:build", size=16, classes=10).graph.classes == 10
    fixed = model_file.with_name("fixed.py")
    fixed.write_text(f"import {model_file.stem}\ndef four(): return {model_file.stem}.build()\n")
    with pytest.raises(SlimdeployError, match=r"gives a network of 4 classes, not 10: pass"):
        named_network(f"{fixed}:four", size=16, classes=10)


def test_a_builtin_without_a_signature_is_called_without_classes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("build = iter")
    with pytest.raises(SlimdeployError, match=r"net.py:build can't be built: TypeError"):
        foreign_module(f"{tmp_path}/net.py:build", classes=10)


def test_without_class_names_the_option_is_named(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    net, folder = tmp_path / "net.safetensors", write_image_folder(tmp_path / "images", train=4, test=2)
    made = slimdeploy_command("import", f"{model_file}:build", "--classes", 3, "--size", 16, "-o", net)
    assert made.exit_code == 0, made.err
    ran = slimdeploy_command("evaluate", net, "--data", f"folder:{folder}")
    expected = f"than {net} (class 0, class 1, class 2): the network has no class names; import it with "
    assert (ran.exit_code, expected in ran.error) == (2, True), ran.error


def test_arguments_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef make(name, build=1): return torch.nn.Linear(build, name)"
    )
    module = foreign_module(f"{tmp_path}/net.py:make", arguments={"name": 3, "build": 2})
    assert (module.in_features, module.out_features) == (2, 3)
    seven = foreign_module("torchvision:squeezenet1_0", arguments={"num_classes": 7, "weights": None})
    assert seven.num_classes == 7
    with pytest.raises(
        SlimdeployError, match=r"^arguments num_classes=7: leave it out; the network gets 10 classes$"
    ):
        foreign_module("torchvision:squeezenet1_0", classes=10, arguments={"num_classes": 7})


USERS_FILE = """from __future__ import annotations
from dataclasses import dataclass
import torch
from {helper} import WIDTH

@dataclass
class Options:
    width: int = WIDTH

def build():
    from {helper} import WIDTH
    return torch.nn.Sequential(torch.nn.Conv2d(3, Options().width, 3), torch.nn.Flatten())

def leave():
    raise SystemExit(3)
"""


@pytest.mark.parametrize("helper", ["beside_a_file", "beside_in_a_package", ".beside", "..inner.beside"])
def test_a_users_file_imports_what_lies_beside_it(tmp_path: Path, helper: str) -> None:
    packaged = helper != "beside_a_file"
    folder = tmp_path / "users_package" / "inner" if packaged else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    if packaged:
        for package in (folder, folder.parent):
            (package / "__init__.py").touch()
    (folder / f"{helper.rpartition('.')[2]}.py").write_text("WIDTH = 5\n")
    (folder / "net.py").write_text(USERS_FILE.format(helper=helper))
    before = list(sys.path)
    try:
        module = foreign_module(f"{folder}/net.py:build")
        assert module(torch.ones(1, 3, 4, 4)).shape == (1, 5 * 4)
        with pytest.raises(SlimdeployError, match="can't be built: SystemExit: 3"):
            foreign_module(f"{folder}/net.py:leave")
        (folder / "ends.py").write_text("import sys; sys.exit(3)")
        with pytest.raises(SlimdeployError, match=r"ends\.py can't be imported: SystemExit: 3"):
            foreign_module(f"{folder}/ends.py:build")
        assert sys.path == before
    finally:
        for name in [name for name in sys.modules if "beside" in name or "users_package" in name]:
            del sys.modules[name]


def test_the_command_writes_a_checkpoint_that_every_other_takes(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    weights, output = tmp_path / "w.pth", tmp_path / "net.safetensors"
    scope: dict = {}
    exec(MODEL, scope)
    module = scope["build"](width=2.0)
    torch.save(module.state_dict(), weights)
    command = ["import", f"{model_file}:build", "--arg", "width=2.0", "--size", 16, "-o", output]
    done = slimdeploy_command(*command, "--weights", weights, "--json")
    assert done.exit_code == 0, done.err
    assert done.json["relative_error"] < 1e-5
    found = load_checkpoint(output)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found.network(images), module.eval()(images))
    assert slimdeploy_command("summary", output).exit_code == 0
    pruned = tmp_path / "pruned.safetensors"
    cut = slimdeploy_command("prune", output, "--ratio", 0.5, "--min-channels", 1, "--align", 1, "-o", pruned)
    assert cut.exit_code == 0, cut.err
    assert load_checkpoint(pruned).network.graph.channels["0"] == 8
    assert load_checkpoint(pruned).network(images).shape == (2, 4)


def test_the_users_file_is_not_replaced(
    slimdeploy_command: Callable, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_file.parent)
    before = model_file.read_bytes()
    done = slimdeploy_command("import", f"./{model_file.name}:build", "-o", model_file, "--force")
    assert done.exit_code == 2
    assert "are the same file" in done.error
    done = slimdeploy_command(
        "train", "--arch", f"{model_file}:build", "--data", "digits", "-o", model_file.name, "--force"
    )
    assert done.exit_code == 2
    assert "are the same file" in done.error
    assert model_file.read_bytes() == before


def test_a_network_whose_logits_are_not_finite_is_refused_as_such(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    with model_file.open("a") as file:
        file.write("""

def broken():
    net = build()
    for tensor in net.parameters():
        tensor.data.fill_(1e38)
    return net
""")
    done = slimdeploy_command("import", f"{model_file}:broken", "--size", 16, "-o", tmp_path / "x")
    assert "the module's logits are not finite on random images: are its weights intact?" in done.error


def test_a_list_of_class_names_that_cannot_be_read(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes(b"caf\xe9\n")
    for name, message in (
        (tmp_path, f"{tmp_path} is a folder, not a list of class names"),
        (tmp_path / "none", f"no list of class names at {tmp_path}/none"),
        (
            tmp_path / "latin",
            f"{tmp_path}/latin is not a readable list of class names: not UTF-8 text (byte 3)",
        ),
    ):
        done = slimdeploy_command(
            "import", f"{model_file}:build", "--class-names", name, "--size", 16, "-o", tmp_path / "x"
        )
        assert (done.exit_code, done.error) == (2, message)


def test_class_names_are_normalised_and_repeated_ones_told(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    names, output = tmp_path / "names.txt", tmp_path / "net.safetensors"
    names.write_text("crane\nçrane\ncrane\ndog\n")  # a letter and a combining cedilla
    done = slimdeploy_command(
        "import", f"{model_file}:build", "--class-names", names, "--size", 16, "-o", output
    )
    assert done.exit_code == 0, done.err
    assert "names.txt has several classes named crane: data for this network needs" in done.err
    assert load_checkpoint(output).info.class_names == ("crane", "\u00e7rane", "crane", "dog")


def test_class_names_that_look_the_same_are_the_same() -> None:
    check_class_names("data", ["c\u0327rane"], "net", ["\u00e7rane"])
    with pytest.raises(SlimdeployError, match=r"^data has other classes \(crane\) than net \(çrane\)$"):
        check_class_names("data", ["crane"], "net", ["çrane"])


def test_weights_that_do_not_fit_name_the_first_keys(
    slimdeploy_command: Callable, model_file: Path, tmp_path: Path
) -> None:
    weights, output = tmp_path / "w.pth", tmp_path / "net.safetensors"
    torch.save({"0.weight": torch.zeros(8, 3, 5, 5), "conv.bias": torch.zeros(3)}, weights)
    done = slimdeploy_command(
        "import", f"{model_file}:build", "--weights", weights, "--size", 16, "-o", output
    )
    assert done.exit_code == 2
    assert (
        "the weights don't fit: 0.bias is missing; 1.weight is missing; 1.bias is missing (and" in done.error
    )
    assert not output.exists()


def test_preprocessing_is_as_given(slimdeploy_command: Callable, model_file: Path, tmp_path: Path) -> None:
    def imported(*options: object) -> tuple[Preprocessing, str]:
        output = tmp_path / "net.safetensors"
        done = slimdeploy_command("import", f"{model_file}:build", *options, "-o", output, "--force")
        assert done.exit_code == 0, done.err
        return load_checkpoint(output).info.preprocessing, done.err

    found, said = imported("--size", 16)
    assert found == Preprocessing(16, IMAGENET_MEAN, IMAGENET_STD)
    assert "std 0.229 0.224 0.225, the default unless an option overrides it" in said
    found, _ = imported("--preprocessing", "imagenet-bicubic", "--crop", 24)
    assert found.geometry == Geometry(24, 256, "bicubic")
    found, said = imported(
        "--resize", "20x24", "--crop", 18, "--interpolation", "bicubic", "--channels", "bgr",
        "--mean", .1, .2, .3, "--std", .4, .5, .6,
    )  # fmt: skip
    assert found == Preprocessing(18, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (20, 24), "bicubic", "bgr")
    assert "0.4 0.5 0.6, as given" in said
    done = slimdeploy_command(
        "import", f"{model_file}:build", "--mean", 123.6, .2, .3, "-o", tmp_path / "no.safetensors"
    )  # fmt: skip
    assert done.exit_code == 2
    assert "mean 123.6 is not possible for pixels in 0…1: divide by 255, 0.4847" in done.error


def test_weights_that_torchvision_publishes_are_told_by_their_hash() -> None:
    v1, v2 = (published_weights("resnet50", digits + 56 * "0") for digits in ("0676ba61", "11ad3fa6"))
    assert v1
    assert v1.preprocessing.geometry == Geometry(224, 256)
    assert v2
    assert v2.preprocessing.geometry == Geometry(224, 232)
    assert str(v2) == "ResNet50_Weights.IMAGENET1K_V2 (--preprocessing imagenet-v2)"
    assert v1.class_names[:2] == ("tench", "goldfish")
    bicubic = published_weights("efficientnet_b0", "7f5810bc" + 56 * "0")
    assert bicubic
    assert bicubic.preprocessing.interpolation == "bicubic"
    assert published_weights("resnet50", "f37072fd" + 56 * "0") is None  # of another network
    assert published_weights("tiny", 64 * "0") is None


def test_published_weights_bring_their_preprocessing_and_classes(
    slimdeploy_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, output = tmp_path / "renamed.pth", tmp_path / "net.safetensors"
    torch.save(import_torchvision().models.squeezenet1_1(weights=None).state_dict(), weights)
    monkeypatch.setattr(artifacts, "sha256_file", lambda path: "b8a52dc0" + 56 * "0")
    done = slimdeploy_command("import", "torchvision:squeezenet1_1", "--weights", weights, "-o", output)
    assert done.exit_code == 0, done.err
    info = load_checkpoint(output).info
    assert info.preprocessing == Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD, 256)
    assert (info.class_names[0], len(info.class_names)) == ("tench", 1000)
    assert "of SqueezeNet1_1_Weights.IMAGENET1K_V1 (--preprocessing imagenet), unless" in done.err


@pytest.mark.parametrize("published", [True, False])
def test_a_network_that_converts_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], published: bool
) -> None:
    """A state dict doesn't say whether GoogLeNet transforms its input; torchvision's published one does."""
    weights = tmp_path / "googlenet.pth"
    make = import_torchvision().models.googlenet
    made = make(weights=None, aux_logits=False, transform_input=published, init_weights=False).eval()
    torch.save(made.state_dict(), weights)
    if published:
        monkeypatch.setattr(artifacts, "sha256_file", lambda path: "1378be20" + 56 * "0")
    found = read_weights(weights, arch="torchvision:googlenet", size=lambda: 64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.network.eval()(images), made(images), rtol=1e-3, atol=1e-4)
    assert ("is built without transform_input" in capsys.readouterr().err) != published
