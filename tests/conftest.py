"""Fixtures that all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported. Several tests run at once, each on one core; and sums in one order give the same
# bits. `make test-machines` asks for other numbers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
from processes import process_environment  # noqa: E402

from slimdeploy.toolchain.errors import SlimdeployError  # noqa: E402

hypothesis.settings.register_profile("tests", deadline=None, max_examples=30)
hypothesis.settings.load_profile("tests")


LONG = (
    "sshd", "forked", "pipeline", "test_compile_kernels", "report", "bench_truth", "test_own_model",
    "test_gpu_check", "test_gpu_chain", "test_deploy_interrupted", "test_notebook", "test_docs_commands",
)  # fmt: skip
"""Groups that take more than twenty seconds come first: at the end no process is left alone with one."""


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist takes groups in the order of the tests, not by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file run in one process, unless the file says otherwise: what they share is made once.

    pytest 9.2 ignores the groups: pytest-xdist 3.8 writes them to an attribute that it no longer has.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """Where its group comes: those in LONG first, in that order, then all others."""
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    group = marker.args[0]
    return LONG.index(group) if group in LONG else len(LONG)


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        import json

        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    @property
    def error(self) -> str:
        """The one line of an error, without `slimdeploy: `; log lines may stand before it."""
        last = self.err.splitlines()[-1]
        assert last.startswith("slimdeploy: "), self.err
        assert "Traceback" not in self.err
        return last.removeprefix("slimdeploy: ")


@dataclass(frozen=True)
class BuiltNetwork:
    """What TensorRT made of an ONNX file: every layer's output types by name, and the plan's size."""

    types: dict[str, tuple[str, ...]]
    """Layer name -> element type of each output, such as `FLOAT`, `HALF` or `INT8`."""
    fed_by: dict[str, str]
    """Layer name -> kind of the layer that its first input comes from, such as `DEQUANTIZE`."""
    plan_bytes: int


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMDEPLOY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 24 test images of three classes, 16×16. Not to be changed."""
    return tiny.write_image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def slimdeploy_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Runs `slimdeploy ARGUMENTS…` in this process, from its entry point to its exit."""
    import torch

    from slimdeploy.toolchain.cli import main

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["slimdeploy", *map(str, arguments)])
        capfd.readouterr()
        threads = torch.get_num_threads()  # a command sets its own
        with pytest.raises(SystemExit) as ended:
            main()
        torch.set_num_threads(threads)
        written = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, written.out, written.err)

    return run


@pytest.fixture(scope="session")
def fresh_python() -> Callable[..., Ran]:
    """Runs Python code in a fresh process that has imported nothing yet."""

    def run(code: str, *arguments: str) -> Ran:
        environment = process_environment()
        # Without the tiny networks: they bring torch.
        own = [p for p in environment["PYTHONPATH"].split(os.pathsep) if p != str(TESTS / "subprocesses")]
        setup = f"import sys; sys.path.append({str(TESTS / 'subprocesses')!r})\n"
        environment["PYTHONPATH"] = os.pathsep.join(own)
        command = [sys.executable, "-c", setup + code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def start_command() -> Callable[..., subprocess.Popen[str]]:
    """Starts `slimdeploy ARGUMENTS…` as a process of its own that knows the tiny networks."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "slimdeploy.toolchain", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=process_environment())

    return start


@pytest.fixture(scope="session")
def tensorrt_cpu(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """The genuine `tensorrt` module, able to parse and build without a GPU."""
    from slimdeploy.toolchain.export import trt_cpu

    try:
        return trt_cpu.load(tmp_path_factory.mktemp("tensorrt"))
    except SlimdeployError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def trt_builder(tensorrt_cpu: types.ModuleType) -> Callable[[Path], BuiltNetwork]:
    """A function that parses an ONNX file and builds it strongly typed; an assertion fails with the
    parser's own words where it can't.
    """
    trt = tensorrt_cpu
    logger = trt.Logger(trt.Logger.ERROR)

    def build(path: Path) -> BuiltNetwork:
        builder = trt.Builder(logger)
        network = builder.create_network(0)  # TensorRT 11 knows no other than strongly typed networks
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse_from_file(str(path))
        assert parsed, "\n".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        image = network.get_input(0)
        shape = list(image.shape)[1:]
        profile.set_shape(image.name, [1, *shape], [8, *shape], [64, *shape])
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, "parsed, but no plan could be built"
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        outputs = {
            la.name: tuple(la.get_output(i).dtype.name for i in range(la.num_outputs)) for la in layers
        }
        makers = {la.get_output(i).name: la.type.name for la in layers for i in range(la.num_outputs)}
        fed_by = {la.name: makers.get(la.get_input(0).name, "") for la in layers if la.num_inputs}
        return BuiltNetwork(outputs, fed_by, plan.nbytes)

    return build
