"""Recipes: their keys, what is wrong with them, and settings on the command line."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path

import click
import pytest

from slimdeploy.toolchain.cli import cli
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pipeline.recipe import Recipe, find_recipe, load_recipe
from slimdeploy.toolchain.pipeline.toml_options import keys


def _write(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text)
    return path


MINIMAL = '[data]\nname = "digits"\n[prune]\nratio = 0.5\n'


def test_a_recipe_needs_little(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, MINIMAL))
    assert recipe.name == "my"
    assert str(recipe.network) == "resnet50, stem cifar-pool"
    assert recipe.finetune.lr == 1e-3


def test_mean_and_deviation_of_gray_images_are_one_number(tmp_path: Path) -> None:
    """As on the command line."""
    for mean, std in (("0", "0.3"), ("[0]", "[0.3]")):
        data = MINIMAL.replace("[prune]", f"mean = {mean}\nstd = {std}\n[prune]")
        found = load_recipe(_write(tmp_path, data)).data
        assert (found.channels, found.statistics) == ("gray", ((0.0,), (0.3,)))
    for wrong in ("true", '"0.3"'):
        with pytest.raises(SlimdeployError, match=r"data.mean must be a list, not"):
            load_recipe(_write(tmp_path, MINIMAL.replace("[prune]", f"mean = {wrong}\n[prune]")))


def test_fine_tuning_is_like_training_where_the_recipe_does_not_say(tmp_path: Path) -> None:
    train = "[train]\nflip = false\nbatch_size = 32\nlr = 0.5\nsparsity = 1e-3\nepochs = 7\n"
    found = load_recipe(_write(tmp_path, MINIMAL + train + "[finetune]\nbatch_size = 64\n")).finetune
    assert (found.flip, found.batch_size, found.lr) == (False, 64, 1e-3)
    assert (found.sparsity, found.epochs) == (0, 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "is not TOML: "),
        ("", "data is missing"),
        ("[data]\nsize = 32", "data.name is missing"),
        (MINIMAL + "[trian]\nepochs = 1", "unknown section [trian]. Did you mean 'train'?"),
        (MINIMAL + "[train]\nepoch = 1", "unknown key 'train.epoch'. Did you mean 'epochs'?"),
        (MINIMAL + "[train]\nxyzzy = 1", "unknown key 'train.xyzzy'."),
        (MINIMAL + "[train]\nepochs = 1.5", "train.epochs must be a whole number, not 1.5"),
        (MINIMAL + "[train]\nepochs = true", "train.epochs must be a whole number, not True"),
        (MINIMAL + "[train]\nlr = '0.1'", "train.lr must be a number, not '0.1'"),
        (MINIMAL + "[train]\nlr = false", "train.lr must be a number, not False"),
        (MINIMAL + "[train]\nflip = 1", "train.flip must be true or false, not 1"),
        (MINIMAL + "[train]\nschedule = 3", "train.schedule must be a string, not 3"),
        ("[data]\nname = 'digits'\ndata_dir = 3", "data.data_dir must be a string, not 3"),
        ("train = 3\n" + MINIMAL, "train must be a section, [train]"),
        ("compare_ratios = 0.5\n" + MINIMAL, "compare_ratios must be a list, not 0.5"),
        ("compare_ratios = ['a']\n" + MINIMAL, "compare_ratios must be a number, not 'a'"),
        ("compare_ratios = [1.0]\n" + MINIMAL, "compare_ratios must be from 0 to below 1, not 1"),
        (MINIMAL + "[train]\nsparsity = true", "train.sparsity must be a number (λ) or auto:SHARE"),
        (MINIMAL + "[train]\nsparsity = 'auto:2'", "[train] sparsity must be a number (λ) or auto:SHARE "),
        (MINIMAL + "[train]\nflip_mode = 'both'", "[train] unknown flip mode 'both'; known: random, "),
        (MINIMAL + "[train]\nema = 1", "[train] ema must be from 0 to below 1, not 1"),
        (MINIMAL + "[train]\nteacher = 'trained'", "[train] teacher can't be 'trained', the network "),
        (MINIMAL + "[finetune]\nteacher = 3", "finetune.teacher must be the path of a file, not 3"),
        (MINIMAL + "[train]\nlr = 0", "[train] lr must be above 0, not 0"),
        (MINIMAL + "[finetune]\nschedule = 'cosin'", "[finetune] unknown schedule 'cosin'; known: one-cycle, "
         "cosine, step, constant. Did you mean 'cosine'?"),
        (MINIMAL + "[network]\narch = 'resnet20'", "[network] unknown arch 'resnet20'; known: "),
        (MINIMAL + "[network]\nstem = 'cifr'", "[network] unknown stem 'cifr'; known: "),
        ("[data]\nname = 'digits'\n[prune]\nratio = 2", "[prune] ratio must be from 0 to below 1, not 2"),
        (MINIMAL + "criterion = 'gama'", "[prune] unknown criterion 'gama'; known: gamma, "),
        (MINIMAL + "residual = 'kep'", "[prune] unknown residual 'kep'; known: "),
        ("compare_ratios = [0.5, 0.25, 0.5]\n" + MINIMAL, "compare_ratios holds 0.5 twice"),
        ("[data]\nname = 'digits'\n[prune]\nlatency_ms = 2\nlatency_table = 'none.json'",
         "[prune] no latency table at none.json"),
        ("[data]\nname = 'digits'\n[prune]\nfold = true", "[prune] give one target, "),
        (MINIMAL + "[export]\nopset = 9", "[export] opset must be at least 13, not 9"),
        (MINIMAL + "[bench]\nbatch = []", "[bench] batch must be sizes from 1 to 65535, not ()"),
        (MINIMAL + "[bench]\nbatch = [1, 0]", "[bench] batch must be sizes from 1 to 65535, not (1, 0)"),
        (MINIMAL + "[bench]\nseconds = 0", "[bench] seconds must be above 0, not 0"),
        (MINIMAL + "[bench]\nbatch = [1000000]", "[bench] batch must be sizes from 1 to 65535, not (1"),
        (MINIMAL + "[train]\nlr = nan", "train.lr must be a finite number, not nan"),
        (MINIMAL + "[train]\nsparsity = -inf", "train.sparsity must be a finite number, not -inf"),
        (MINIMAL + "[train]\nlr = 1e38", "[train] lr must be at most 10000, not 1e+38"),
        (MINIMAL + "[train]\ncrop_pad = 1000000", "[train] crop_pad must be at most 256, not 1e+06"),
        (MINIMAL + "[train]\nseed = 18446744073709551616", "train.seed must be a 64-bit number, not 184467"),
        (MINIMAL + "[train]\nseed = -1", "[train] seed must be at least 0, not -1"),
        (MINIMAL + f"[train]\nseed = {'9' * 5000}", "is not TOML: "),
        (MINIMAL + '[finetune]\nteacher = "a\\u0000b"', "finetune.teacher must not hold a NUL character"),
        ("x = " + "[" * 5000, "is not TOML: nested too deeply"),
        ("compare_ratios = [nan]\n" + MINIMAL, "compare_ratios must be a finite number, not nan"),
        ("[data]\nname = 'digits'\nsize = 100000\n[prune]\nratio = 0.5",
         "[data] size must be at most 4096, not 100000"),
        ("[data]\nname = 'digits'\n[prune]\nparams = '3X'",
         "prune.params must be a number such as 3.94M, not '3X'"),
        ("[data]\nname = 'digits'\n[prune]\nmacs = 'nan'", "prune.macs must be a finite number, not nan"),
        (MINIMAL + "align = 'automatic'", "prune.align must be auto or a whole number from 1, such as "),
    ],
)  # fmt: skip
def test_every_mistake_is_named_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(SlimdeployError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(f"{path} {message}" if "TOML" in message else f"{path}: {message}")
    assert "\n" not in str(refused.value)


def test_whole_numbers_pass_for_numbers(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, "compare_ratios = [0]\n" + MINIMAL + "[train]\nlr = 1"))
    assert recipe.train.lr == 1.0
    assert recipe.compare_ratios == (0.0,)


def test_sparsity_is_a_number_or_a_share(tmp_path: Path) -> None:
    path = _write(tmp_path, MINIMAL + "[train]\nsparsity = 'auto:0.8'\n[finetune]\nteacher = 'trained'")
    assert load_recipe(path).train.sparsity_target == 0.8
    assert load_recipe(path).finetune.teacher == "trained"
    assert load_recipe(path, ("train.sparsity=auto:0.5",)).train.sparsity_target == 0.5
    assert load_recipe(path, ("train.sparsity=1e-4",)).train.sparsity == 1e-4
    assert load_recipe(path, ("train.sparsity=0",)).train.sparsity == 0.0


def test_int8_is_for_where_the_run_measures(tmp_path: Path) -> None:
    path = _write(tmp_path, MINIMAL + '[export]\nprecision = "int8"\n')
    assert load_recipe(path).export.target == "cpu"
    assert load_recipe(path, ("export.target=tensorrt",)).export.target == "tensorrt"


def test_settings_on_the_command_line_win(tmp_path: Path) -> None:
    path = _write(tmp_path, MINIMAL + "[train]\nepochs = 5\nlr = 0.5")
    settings = ("train.epochs=2", "network.arch=resnet18", "bench.batch=[1, 8]", "data.name=folder:a=b",
                "train.flip=false", "compare_ratios=[0.25]")  # fmt: skip
    recipe = load_recipe(path, settings)
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.flip) == (2, 0.5, False)
    assert recipe.network.arch == "resnet18"
    assert recipe.bench.batches == (1, 8)
    assert recipe.data.name == "folder:a=b"
    assert recipe.compare_ratios == (0.25,)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs", "settings train.epochs: write it as section.key=value, e.g. train.epochs=2"),
        ("=2", "settings =2: write it as section.key=value, e.g. train.epochs=2"),
        ("name.x=2", "settings name.x=2: name is not a section"),
        (
            "train.epoch=2",
            "{there}: unknown key 'train.epoch'. Did you mean 'epochs'?",
        ),
        (
            "train.epochs=many",
            "{there}: train.epochs must be a whole number, not 'many'",
        ),
        ("train=2", "{there}: train must be a section, [train]"),
        ("train=none", "{there}: [train] can't be left out"),
        (
            "epochs=2",
            "{there}: unknown key 'epochs'. Did you mean train.epochs or finetune.epochs?",
        ),
        (
            "network.arch=net.py",
            "{there}: [network] arch net.py: name the function too, net.py:FUNCTION",
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, setting: str, message: str) -> None:
    path = _write(tmp_path, 'name = "x"\n' + MINIMAL)
    expected = message.format(there=f"{path} with settings {setting}")
    with pytest.raises(SlimdeployError, match=f"^{re.escape(expected)}$"):
        load_recipe(path, (setting,))


def test_numbers_may_be_written_as_on_the_command_line(tmp_path: Path) -> None:
    text = '[data]\nname = "digits"\n[prune]\nparams = "3M"\nalign = "auto"'
    prune = load_recipe(_write(tmp_path, text)).prune
    assert (prune.params, prune.align, prune.alignment) == (3e6, None, 8)
    prune = load_recipe(_write(tmp_path, MINIMAL), ("prune.macs=1.5G", "prune.align=16")).prune
    assert (prune.macs, prune.align) == (1.5e9, 16)


def test_a_target_that_is_set_takes_the_place_of_the_recipe_s(tmp_path: Path) -> None:
    prune = load_recipe(_write(tmp_path, MINIMAL), ("prune.params=3M",)).prune
    assert (prune.ratio, prune.params) == (None, 3e6)
    with pytest.raises(SlimdeployError, match=r"give one target, .* not params and macs"):
        load_recipe(_write(tmp_path, MINIMAL), ("prune.params=3M", "prune.macs=40M"))


def test_what_may_have_no_value_is_set_to_none(tmp_path: Path) -> None:
    path = _write(tmp_path, MINIMAL + "[train]\npatience = 3\nteacher = 'x'")
    settings = ("train.patience=none", "train.teacher=none", "prune.ratio=none", "prune.macs=4M")
    recipe = load_recipe(path, settings)
    assert (recipe.train.patience, recipe.train.teacher, recipe.prune.ratio) == (None, None, None)
    with pytest.raises(SlimdeployError, match=r"train\.epochs must be a whole number, not 'none'"):
        load_recipe(path, ("train.epochs=none",))


def test_paths_in_a_recipe_may_begin_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path, MINIMAL + "[finetune]\nteacher = '~/t.safetensors'\n")
    recipe = load_recipe(find_recipe("~/my.toml"), ("data.data_dir=~/data",))
    assert recipe.finetune.teacher == f"{tmp_path}/t.safetensors"
    assert recipe.data.data_dir == tmp_path / "data"


def test_the_text_of_a_recipe_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_recipe(path).prune.ratio == 0.5
    path.write_bytes(MINIMAL.encode("utf-16"))
    with pytest.raises(SlimdeployError, match=r"my\.toml is not a readable recipe: not UTF-8 text"):
        load_recipe(path)


def test_unknown_recipes_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SlimdeployError, match=r"^no recipe 'digit'; there are .*Did you mean 'digits'\?$"):
        find_recipe("digit")
    with pytest.raises(SlimdeployError, match=r"^no recipe at nowhere\.toml$"):
        find_recipe("nowhere.toml")
    path = _write(tmp_path, MINIMAL)
    assert find_recipe(str(path)) == path


SECTIONS = {
    "train": ("network", "data", "train"),
    "prune": ("data", "prune"),
    "finetune": ("data", "finetune"),
    "export": ("data", "export"),
    "calibrate": ("data", "calibrate"),
    "bench": ("data", "bench"),
    "package": ("data", "package"),
    "report": ("report",),
}
OF_THE_RUN = {"data", "output", "force", "resume", "device", "threads", "json", "debug"}
"""Said by [data] name, or to `run` itself."""
SPARSITY = {"sparsity", "sparsity_step", "sparse_layers", "sparse_align", "shrink"}
"""Of training only; [finetune] has the same fields."""
NOT_IN_A_RECIPE = {
    "data": {"crop"},  # another name of --size
    "export": {  # a run measures with onnxruntime; `deploy` builds engines on the device
        "batch", "trt", "trt_check", "dla", "hardware_compatible", "optimization_level", "tf32",
        "version_compatible", "workspace_mb",
    },
    "calibrate": {"ranges", "trt8_cache"},  # files beside
    "bench": {"backend", "compare", "fail_if"},
}  # fmt: skip


def _keys(section: str) -> set[str]:
    """Of a section of a recipe."""
    hint = typing.get_type_hints(Recipe)[section]
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not types.NoneType]
    return set(keys(kinds[0]))


@pytest.mark.parametrize("command", SECTIONS)
def test_keys_are_called_as_on_the_command_line(command: str) -> None:
    """Every option of a command has a key of its name in the command's section, or a reason to have none."""
    sections = SECTIONS[command]
    known = set().union(*map(_keys, sections))
    found = cli.get_command(click.Context(cli), command)
    options = {p.opts[-1].lstrip("-").replace("-", "_") for p in found.params if isinstance(p, click.Option)}
    left_out = set().union(OF_THE_RUN, *(NOT_IN_A_RECIPE.get(s, set()) for s in (command, "data")))
    assert options - left_out <= known
    own = _keys(command) if command in sections else set()
    sparse = SPARSITY if command == "finetune" else set()
    assert own - sparse <= options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[bench]\nbatches = [1]", "'bench.batches' is called 'bench.batch'"),
        ("[network]\narguments = []", "'network.arguments' is called 'network.arg'"),
        ("[calibrate]\nfloat_layers = []", "unknown key 'calibrate.float_layers'"),
    ],
)
def test_older_names_are_told_with_the_newer(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(MINIMAL + text)
    with pytest.raises(SlimdeployError, match=re.escape(message)):
        load_recipe(tmp_path / "r.toml")


def test_the_crop_of_the_data_is_its_size(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[data]\nname = "digits"\ncrop = 24')
    with pytest.raises(SlimdeployError, match=re.escape("'data.crop' is called 'data.size'")):
        load_recipe(tmp_path / "r.toml")
