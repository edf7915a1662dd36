"""Run an untrusted ONNX file first in a separate process with limits on time and memory.

The content of the file is checked before (`runtime/onnx_file.py`). Here a runtime loads it and computes one
batch: a hang, excessive memory use or a crash of the runtime affects only that process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.runtime.onnx_file import OnnxFacts

LIMIT_S = 60.0
BASE_BYTES = 1 << 30
"""Memory of the process besides the model: Python, numpy and the runtime with its threads."""
_FAILED = 3


def try_model(model: Path, facts: OnnxFacts, *, batch: int, limit_s: float = LIMIT_S) -> None:
    """Load the ONNX file at `model` with onnxruntime on the CPU in a separate process, and run it once.

    Raises SlimdeployError if it doesn't finish within `limit_s`, uses much more memory than expected from its
    size, or crashes the runtime.
    """
    memory = memory_limit(model.stat().st_size, facts, batch=batch)
    command = [sys.executable, "-m", __name__, str(model), str(batch), str(memory)]
    problem = f"{model.name}: the trial run of this unsigned model failed: "
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise SlimdeployError(f"{problem}not done within {limit_s:g} s") from None
    if done.returncode == _FAILED:
        raise SlimdeployError(f"{problem}{shorten(done.stderr.decode(errors='replace'))}")
    if done.returncode:
        reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise SlimdeployError(f"{problem}{reason}, with {memory >> 20} MiB of memory allowed")


def memory_limit(model_bytes: int, facts: OnnxFacts, *, batch: int) -> int:
    """Maximum memory in bytes for loading and running the model: several times its weights, and the
    activations of a few layers.
    """
    return BASE_BYTES + 8 * model_bytes + 8 * 4 * batch * facts.largest


def _run(model: Path, batch: int, memory: int) -> None:
    # Memory that is written, not only reserved: threads reserve large address ranges.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import numpy as np

    from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

    with open_session(model, "onnxruntime", SessionOptions(device="cpu", threads=1)) as session:
        session.run(np.zeros((batch, *session.input_shape), np.float32))


def _main() -> None:
    model, batch, memory = sys.argv[1:]
    try:
        _run(Path(model), int(batch), int(memory))
    except MemoryError:
        sys.exit(f"more than {int(memory) >> 20} MiB of memory")
    except SlimdeployError as error:
        sys.stderr.write(str(error))
        sys.exit(_FAILED)


if __name__ == "__main__":
    _main()
