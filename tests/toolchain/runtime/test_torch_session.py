"""Sessions over torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session
from slimdeploy.toolchain.runtime.torch import GraphedForward

CPU = SessionOptions(device="cpu")


@pytest.fixture(scope="module")
def expected(small_checkpoint: Path, small_batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return load_checkpoint(small_checkpoint).network(torch.from_numpy(small_batch)).numpy()


def test_eager_session_computes_what_the_network_does(
    small_checkpoint: Path, small_batch: np.ndarray, expected: np.ndarray
) -> None:
    with open_session(small_checkpoint, options=CPU) as session:
        logits = session.run(small_batch)
        assert (session.backend, session.precision, session.input_shape) == ("torch-cpu", "fp32", (3, 16, 16))
        assert session.info is not None
        assert session.info.class_names == ("cat", "dog", "frog", "ship")
    np.testing.assert_array_equal(logits, expected)
    assert logits.dtype == np.float32


def test_a_checkpoint_is_known_by_its_content(
    small_checkpoint: Path, small_batch: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "lr0.1"
    path.write_bytes(small_checkpoint.read_bytes())
    with open_session(path, options=CPU) as session:
        np.testing.assert_array_equal(session.run(small_batch), expected)
    path.write_bytes(b"nothing")
    with pytest.raises(SlimdeployError, match=r"no backend opens '\.1'"):
        open_session(path, options=CPU)


def test_channels_last_session_computes_the_same(
    small_checkpoint: Path, small_batch: np.ndarray, expected: np.ndarray
) -> None:
    with open_session(small_checkpoint, "torch-channels-last", CPU) as session:
        assert session.backend == "torch-channels-last-cpu"
        np.testing.assert_allclose(session.run(small_batch), expected, atol=1e-4)


def test_fp16_session_stays_within_half_precision(
    small_checkpoint: Path, small_batch: np.ndarray, expected: np.ndarray
) -> None:
    with open_session(small_checkpoint, options=replace(CPU, precision="fp16")) as session:
        logits = session.run(small_batch)
        assert session.precision == "fp16"
    np.testing.assert_allclose(logits, expected, atol=0.02 * np.abs(expected).max())
    assert np.abs(logits - expected).max() > 0, "the network must really have run in half precision"


def test_compiled_session_compiles_with_static_shapes(
    small_checkpoint: Path, small_batch: np.ndarray, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_eagerly = torch.compile
    seen = {}

    def compile_without_codegen(network: torch.nn.Module, **settings: object) -> object:
        seen.update(settings)
        return compile_eagerly(network, backend="eager", **settings)  # a C++ compilation takes a minute

    monkeypatch.setattr(torch, "compile", compile_without_codegen)
    with open_session(small_checkpoint, "torch-compiled", CPU) as session:
        assert session.backend == "torch-compiled-cpu"
        np.testing.assert_allclose(session.run(small_batch), expected, atol=1e-4)
    assert seen == {"dynamic": False}


def test_closing_twice_is_safe_and_running_afterwards_is_refused(
    small_checkpoint: Path, small_batch: np.ndarray
) -> None:
    session = open_session(small_checkpoint, options=CPU)
    session.close()
    session.close()
    with pytest.raises(SlimdeployError, match="the session is closed"):
        session.run(small_batch)


def test_threads_are_set_until_the_session_is_closed_and_only_if_given(small_checkpoint: Path) -> None:
    before = torch.get_num_threads()
    with open_session(small_checkpoint, options=SessionOptions(device="cpu", threads=before + 1)) as session:
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    session.close()
    with open_session(small_checkpoint, options=SessionOptions(device="cpu")):
        torch.set_num_threads(before + 2)
    assert torch.get_num_threads() == before + 2, "the caller's own change stays"
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(CPU, precision="int8"), "torch runs fp32, fp16, bf16, not int8"),
        (replace(CPU, cuda_graph=True), "a CUDA graph needs device cuda"),
    ],
)
def test_impossible_options_are_refused(
    small_checkpoint: Path, options: SessionOptions, message: str
) -> None:
    with pytest.raises(SlimdeployError, match=message):
        open_session(small_checkpoint, options=options)


def test_cuda_without_a_gpu_is_refused(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SlimdeployError, match="torch sees no CUDA GPU"):
        open_session(small_checkpoint, options=SessionOptions(device="cuda"))


def test_graph_is_captured_once_a_shape_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        calls.append(images.shape[0])
        return images * 2

    class Capture(GraphedForward):
        def _capture(self, images: torch.Tensor):
            own_input = images.clone()
            own_output = torch.empty_like(own_input)

            class Graph:
                def replay(self) -> None:
                    own_output.copy_(forward(own_input))

            forward(own_input)
            return Graph(), own_input, own_output

    graphed = Capture(forward)
    for value, size in ((1.0, 2), (2.0, 2), (3.0, 5), (4.0, 2)):
        assert torch.equal(graphed(torch.full((size,), value)), torch.full((size,), 2 * value))
    assert calls == [2, 2, 2, 5, 5, 2], "one capture for each of the two shapes, one replay a call"
