"""Arguments of the library's functions: of the wrong type, and in other accepted forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.utils.prune
from torch import nn

import slimdeploy
from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.training.options import WEIGHTS_LR

SIZE = tiny.PREPROCESSING.size
LABELS = torch.tensor([0, 1, 2, 0])
BATCHES = [(torch.zeros(4, 3, SIZE, SIZE), LABELS)]
DATASET = Dataset(tiny.CLASSES, tiny.learnable_split(8), tiny.learnable_split(4), tiny.PREPROCESSING)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


class Quantised(nn.Linear):
    """Its state dict holds a dtype, like those of torch's dynamically quantised layers."""

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}dtype"] = torch.qint8


def _prune(**keywords: object) -> Callable[[nn.Module], object]:
    return lambda module: slimdeploy.prune(module, **{"size": SIZE, "ratio": 0.5, **keywords})


def _train(**keywords: object) -> Callable[[nn.Module], object]:
    return lambda module: slimdeploy.train(module, **{"size": SIZE, "data": BATCHES, "epochs": 1, **keywords})


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), 0.1)


def _hooked(module: nn.Sequential) -> nn.Module:
    module[0].register_full_backward_hook(lambda *_: None)
    return module


def _exported(module: nn.Module) -> nn.Module:
    return torch.export.export(module, (torch.zeros(2, 3, SIZE, SIZE),)).module()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_prune(ratio="0.5"), "^ratio must be a number, not '0.5'"),
        (_prune(ratio=None, params="many"), "^params must be a number such as 3.94M, not 'many'"),
        (_prune(align="wide"), "^align must be auto or a whole number .*, not 'wide'"),
        (_prune(criterion=5), "^criterion must be a string, not 5"),
        (_prune(fold="no"), "^fold must be true or false, not 'no'"),
        (_prune(size="16"), "^size must be int or None, not str"),
        (_prune(ratio=None, options={"ratio": 0.5}), "^options must be PruneOptions or None, not dict"),
        (_prune(device="tpu"), "^device tpu: torch can't use it here"),
        (_prune(device=5), "^device must be str or device or None, not int"),
        (_prune(data="digits"), "^data must be Dataset or Iterable or None, not str"),
        (_prune(test=5), "^test must be Iterable or None, not int"),
        (_prune(test=BATCHES), "^test needs data"),
        (_prune(size=-1), "^size must be 1 to 4096 pixels, not -1"),
        (_prune(data=torch.utils.data.TensorDataset(LABELS)), "not TensorDataset: wrap it in a torch.utils"),
        (_prune(data=BATCHES, steps=2), "pass data as a Dataset, or a function between that trains$"),
        (lambda module: slimdeploy.prune(torch.jit.trace(module, torch.zeros(1, 3, SIZE, SIZE)), size=SIZE,
                                         ratio=0.5), "^the module is TorchScript: give the nn.Module"),
        (lambda module: slimdeploy.prune(Quantised(2, 2), size=SIZE, ratio=0.5),
         "^the module's dtype is quantised: give the module before quantisation$"),
        (_prune(size=2 * SIZE, data=BATCHES), "^data yields images of 3 × 16 × 16, but the"),
        (_prune(test=[(torch.zeros(2, 1, SIZE, SIZE), LABELS[:2])], data=BATCHES),
         "^test yields images of 1 × 16"),
        (_prune(data=[(torch.zeros(2, 3, SIZE, SIZE), torch.full((2,), 7))]), "^data contains the label 7"),
        (_prune(data=[(torch.full((4, 3, SIZE, SIZE), torch.nan), LABELS)]), "^data yields images with NaN"),
        (_prune(data=[(torch.zeros(4, 3, SIZE, SIZE), LABELS.float())]), r"labels \(N,\) int64 are needed"),
        (_prune(data=BATCHES, between=print), "^between trains between steps: it needs steps above 1"),
        (lambda module: slimdeploy.evaluate(module, data=[(torch.zeros(0, 3, SIZE, SIZE), LABELS[:0])],
                                            size=SIZE), "^data yields a batch without images"),
        (_prune(data=[(torch.zeros(3, SIZE, SIZE), torch.tensor(1))]), r"^data yields \(3, 16, 16\)"),
        (_train(lr="0.1"), "^lr must be a number, not '0.1'"),
        (_train(epochs=1.5), "^epochs must be a whole number, not 1.5"),
        (_train(epochs=True), "^epochs must be a whole number, not True"),
        (_train(lr=float("nan")), "^lr must be a finite number, not nan"),
        (_train(data="digits"), "^data must be Dataset or .*, not str: slimdeploy.load_data reads images$"),
        (_train(data=[(torch.zeros(4, 3, SIZE, SIZE), LABELS[:2])]), r"and \(2,\) torch.int64; pairs of"),
        (lambda module: slimdeploy.bench(["a.onnx"], limit=3), "^limit needs data"),
        (lambda module: slimdeploy.from_module(module, size=SIZE, class_names=["a", "b", ""]),
         "^class_names has no name for class 2$"),
        (lambda module: slimdeploy.sparsity.parameter_groups(5, 1e-4), "^network must be Module, not int"),
        (lambda module: slimdeploy.sparsity.parameter_groups(module, -1.0), "^weight_decay must be at least"),
        (lambda module: slimdeploy.quantize("a.onnx", data=DATASET, output="a.onnx", force=True),
         "^output a.onnx and model a.onnx are the same file"),
        (lambda module: slimdeploy.quantize("a.onnx", data=DATASET, output="b.onnx", ranges="a.onnx.json"),
         "^ranges a.onnx.json and model a.onnx are the same file, or one belongs to the other"),
        (lambda module: slimdeploy.package(["a.onnx"], output="a.onnx.json", noise=True, force=True),
         "^output a.onnx.json and models a.onnx are the same file, or one belongs"),
        (lambda module: slimdeploy.package(["a.onnx"], output="b", noise=True, evaluation=5),
         "^give noise or evaluation, not both: noise has no labels$"),
        (_train(teacher=5), "^teacher must be the path of a file, not 5"),
        (_train(size=2 * SIZE), "^data yields images of 3 × 16 × 16, but the network takes 3 × 32 × 32"),
        (lambda module: slimdeploy.prune("net.safetensors", ratio=0.5),
         "^network must be Checkpoint or Module, not str: slimdeploy.load reads a file$"),
        (lambda module: slimdeploy.evaluate(5, data=BATCHES), "^module must be Module, not int"),
        (lambda module: slimdeploy.evaluate(module, data=5, size=SIZE), "^data must be a list of batches or"),
        (lambda module: slimdeploy.evaluate(module, data=BATCHES, size=8), "^data yields images of 3 × 16"),
        (lambda module: slimdeploy.export(module, data=[(torch.zeros(1, 3, 8, 8), LABELS[:1])],
                                          size=SIZE, output="net.onnx"), "^data yields images of 3 × 8"),
        (lambda module: slimdeploy.quantize("a.onnx", data=BATCHES, output="b.onnx"),
         "^data must be Dataset or CalibrationData, not list"),
        (lambda module: slimdeploy.quantize("a.onnx", data=DATASET, output="b.onnx", float_layers="conv"),
         "^float_layers must be a list, not 'conv'"),
        (lambda module: slimdeploy.bench("a.onnx"), "^models must be Sequence, not str"),
        (lambda module: slimdeploy.package("a.onnx", output="b.tar"), "^models must be Sequence, not str"),
        (lambda module: slimdeploy.deploy("a.slim.tar", batch="8"), "^batch must be a whole number, not '8'"),
        (lambda module: slimdeploy.save(module, path="a.safetensors"), "^checkpoint must be Checkpoint, not"),
        (lambda module: slimdeploy.load(5), "^path must be str or Path, not int"),
        (lambda module: slimdeploy.load_data(5), "^data must be str or DataOptions, not int"),
        (lambda module: slimdeploy.from_module("resnet18", size=8), "^module must be Module, not str"),
        (lambda module: slimdeploy.DataOptions(5), "^data must be a string, not 5"),
        (lambda module: slimdeploy.DataOptions("digits", size="16"), "^size must be a number, not '16'"),
        (lambda module: slimdeploy.DataOptions("digits", mean=(1, 2)), "^mean must be three numbers, or one"),
        (lambda module: slimdeploy.Preprocessing("16", (0, 0, 0), (1, 1, 1)), "1 to 4096 pixels, not '16'"),
        (lambda module: slimdeploy.Preprocessing(16, (0, 0, 0), (1, 1, 1), resize=[8, 8]), "not \\[8, 8\\]"),
        (lambda module: slimdeploy.sparsity.gammas(module, layers="most", size=SIZE), "^unknown layers"),
        (lambda module: slimdeploy.sparsity.Proximal(_optimizer(module), module, strength="1", size=SIZE),
         "^strength must be float, not str"),
        (lambda module: slimdeploy.sparsity.Proximal(_optimizer(module), module, strength=-1.0, size=SIZE),
         "^strength must be at least 0, not -1"),
        (lambda module: slimdeploy.package([], output="b.tar"), "^models names no model"),
        (lambda module: slimdeploy.package(["a.onnx"], output="b.tar", data=DATASET),
         "^data must be str or DataOptions or None, not Dataset"),
        (lambda module: slimdeploy.package(["a.onnx"], output=""), "^output must be a path, not an empty"),
        (lambda module: slimdeploy.bench(["a.onnx", module]), r"^models\[1\] must be str or Path, not Seq"),
        (lambda module: slimdeploy.bench(["a.onnx"], backends=[]), "^backends names no backend"),
        (lambda module: slimdeploy.deploy("a.slim.tar", hosts=[1]), r"^hosts\[0\] must be str, not int"),
        (lambda module: slimdeploy.load("a\0b"), r"^path is not a path: 'a\\x00b'"),
        (lambda module: slimdeploy.load("x" * 300), r"^path is not a path: 'xxx"),
        (lambda module: slimdeploy.from_module(module, size=8, class_names=[]), "^3 classes, but 0 class"),
        (lambda module: slimdeploy.DataOptions("digits", data_dir=None), "^data_dir must be the path"),
        (lambda module: slimdeploy.DataOptions("digits", stream="yes"), "^stream must be true or false, not"),
        (lambda module: slimdeploy.DataOptions("digits", interpolation=""), "^unknown interpolation ''"),
        (lambda module: slimdeploy.Preprocessing(16, (0, 0, 0), (1, 1, 1), interpolation=5), "^unknown"),
        (_prune(ratio=None, params="1e400"), "^params must be a finite number, not 1e400"),
        (lambda module: _prune()(module.double()), r"^the module's 0\.weight is float64"),
        (lambda module: _prune()(module.to("meta")), r"^the module's 0\.weight is on the meta device"),
        (lambda module: _prune()(nn.Sequential(module[:-1], nn.LazyLinear(3))), "^the module's 1"),
        (lambda module: _prune()(_hooked(module)), "^0 has backward hooks"),
        (lambda module: _prune()(_exported(module)), "^the module was exported by torch.export"),
        (torch.inference_mode()(_prune(data=BATCHES)), "^gradients are needed: leave torch.inference_mode"),
        (torch.inference_mode()(_train()), "^gradients are needed: leave torch.inference_mode"),
        (lambda module: slimdeploy.export(module, size=SIZE, data=BATCHES, output="a", min_agreement=2.0),
         "^min_agreement must be at most 1, not 2"),
        (_train(distill=0.3), "^distill needs teacher"),
        (_train(step_epochs=3), "^step_epochs needs schedule step"),
        (_prune(measure=False), "^measure needs latency_ms"),
        (_prune(compensate=False), "^compensate needs data"),
        (_train(teacher=""), "^teacher must be the path of a file, not an empty text"),
    ],
)  # fmt: skip
def test_errors_name_the_parameter(
    module: nn.Module, call: Callable[[nn.Module], object], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(slimdeploy.SlimdeployError, match=message):
        call(module)
    assert not list(tmp_path.iterdir())


def test_other_forms_of_a_value(module: nn.Module, tmp_path: Path) -> None:
    """Texts as on the command line, numpy's numbers, paths and devices."""
    options = slimdeploy.PruneOptions(params="0.4k", align="auto", min_channels=np.int64(4))
    assert (options.params, options.align, options.min_channels) == (400.0, None, 4)
    table = slimdeploy.PruneOptions(latency_ms=np.float32(2), latency_table=tmp_path / "t.json").latency_table
    assert table == str(tmp_path / "t.json")
    assert slimdeploy.BenchOptions(batches=[1, 8]).batches == (1, 8)
    assert slimdeploy.BenchOptions(batches="1,8").batches == (1, 8)
    found = slimdeploy.prune(module, size=SIZE, ratio=0.5, device=torch.device("cpu"))
    slimdeploy.save(found.checkpoint, path=tmp_path / "pruned.safetensors")
    assert slimdeploy.load(tmp_path / "pruned.safetensors").info.provenance[-1]["options"]["ratio"] == 0.5


def test_without_gradients_around_it(module: nn.Module) -> None:
    """As in a notebook that begins with torch.set_grad_enabled(False)."""
    with torch.no_grad():
        pruned = slimdeploy.prune(module, size=SIZE, ratio=0.5, data=DATASET, criterion="taylor")
        slimdeploy.finetune(pruned.checkpoint, data=DATASET, epochs=1)
        assert not torch.is_grad_enabled()


def test_the_random_numbers_of_the_caller_go_on(module: nn.Module) -> None:
    before = torch.get_rng_state()
    slimdeploy.from_module(module, size=SIZE)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_may_require_gradients(module: nn.Module) -> None:
    images, labels = BATCHES[0]
    data = [(images.clone().requires_grad_(), labels)]
    assert slimdeploy.evaluate(module, data=data, size=SIZE).to_json()["images"] == 4


def test_a_cumulative_batchnorm_goes_on_learning(module: nn.Module) -> None:
    """torch.export gives momentum None as 0, with which the statistics would never change again."""
    module[1].momentum = None
    network = slimdeploy.from_module(module, size=SIZE).network
    assert network.batchnorms()[0].momentum == 0.1


def test_weights_that_are_nan_are_not_saved(module: nn.Module, tmp_path: Path) -> None:
    checkpoint = slimdeploy.from_module(module, size=SIZE)
    slimdeploy.save(checkpoint, path=tmp_path / "net")
    before = (tmp_path / "net").read_bytes()
    with torch.no_grad():
        next(checkpoint.network.parameters()).fill_(torch.nan)
    with pytest.raises(slimdeploy.SlimdeployError, match="contains NaN or infinite values"):
        slimdeploy.save(checkpoint, path=tmp_path / "net", force=True)
    assert (tmp_path / "net").read_bytes() == before


def test_weights_that_overflow_with_their_batchnorm_are_named(module: nn.Module, tmp_path: Path) -> None:
    checkpoint = slimdeploy.from_module(module, size=SIZE)
    with torch.no_grad():
        for parameter in checkpoint.network.parameters():
            parameter.fill_(1e30)
    with pytest.raises(slimdeploy.SlimdeployError, match=r"^0\.weight with 1 folded in contains NaN or"):
        slimdeploy.export(checkpoint, data=BATCHES, output=tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_wrappers_are_taken_off(module: nn.Module) -> None:
    wanted = slimdeploy.from_module(module, size=SIZE).network.state_dict()
    for wrapped in (nn.DataParallel(module), torch.compile(module, backend="eager")):
        found = slimdeploy.from_module(wrapped, size=SIZE).network.state_dict()
        assert found.keys() == wanted.keys()
        assert slimdeploy.sparsity.gammas(wrapped, size=SIZE)[0] is module[1].weight


def test_a_frozen_batchnorm_stays_in_eval_mode(module: nn.Module) -> None:
    module.train()
    module[1].eval()
    slimdeploy.prune(module, size=SIZE, ratio=0.5)
    assert [part.training for part in module] == [True, False, True, True, True, True]


def test_weights_that_are_nan_are_named(module: nn.Module) -> None:
    with torch.no_grad():
        module[5].weight[0, 0] = torch.nan
    with pytest.raises(slimdeploy.SlimdeployError, match=r"^the module's 5\.weight contains NaN"):
        slimdeploy.prune(module, size=SIZE, ratio=0.5)


def test_class_names_become_texts(module: nn.Module, tmp_path: Path) -> None:
    slimdeploy.save(slimdeploy.from_module(module, size=SIZE, class_names=[7, 8, 9]), path=tmp_path / "net")
    assert slimdeploy.load(tmp_path / "net").info.class_names == ("7", "8", "9")


def test_a_module_is_described_by_the_dataset_and_a_checkpoint_must_match_it(module: nn.Module) -> None:
    found = slimdeploy.prune(module, data=DATASET, ratio=0.5)
    assert found.checkpoint.info.preprocessing == tiny.PREPROCESSING
    assert found.checkpoint.info.class_names == tiny.CLASSES
    other = slimdeploy.from_module(module, size=SIZE)  # ImageNet's mean, not that of the dataset
    for call in (
        lambda: slimdeploy.prune(other, data=DATASET, ratio=0.5),
        lambda: slimdeploy.evaluate(other, data=DATASET),
        lambda: slimdeploy.export(other, data=DATASET, output="net.onnx"),
    ):
        with pytest.raises(slimdeploy.SlimdeployError, match=r"^the images of data are made with"):
            call()


def _last_options(result: slimdeploy.TrainResult) -> dict[str, object]:
    return result.checkpoint.info.provenance[-1]["options"]


def test_options_of_the_last_training_are_the_defaults_of_the_next(module: nn.Module) -> None:
    first = slimdeploy.train(module, data=DATASET, epochs=1, lr=0.1, flip=False, momentum=0.8, batch_size=8)
    pruned = slimdeploy.prune(first.checkpoint, data=DATASET, ratio=0.5).checkpoint
    tuned = _last_options(slimdeploy.finetune(pruned, data=DATASET, epochs=1, batch_size=6))
    assert (tuned["flip"], tuned["momentum"], tuned["batch_size"], tuned["lr"]) == (False, 0.8, 6, 1e-3)
    assert _last_options(slimdeploy.train(pruned, data=DATASET, epochs=1))["lr"] == WEIGHTS_LR
    own = slimdeploy.TrainOptions(epochs=1, lr=0.01, batch_size=8)
    given = _last_options(slimdeploy.finetune(pruned, data=DATASET, options=own))
    assert (given["flip"], given["momentum"], given["lr"]) == (True, 0.9, 0.01)
    with_batches = _last_options(slimdeploy.finetune(pruned, data=BATCHES, epochs=1))
    assert with_batches["momentum"] == 0.8
    assert "flip" not in with_batches


def test_results_are_short_in_a_notebook(module: nn.Module) -> None:
    start = slimdeploy.from_module(module, preprocessing=tiny.PREPROCESSING)
    assert repr(DATASET.train) == f"Split({len(DATASET.train)} images of {SIZE}×{SIZE} pixels)"
    for result in (DATASET, slimdeploy.prune(start, ratio=0.5).checkpoint.info):
        assert len(repr(result)) < 600, result
