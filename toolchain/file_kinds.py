"""Identify the kind of a file by its first bytes, for the error if a command gets another kind of file."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError

PYTORCH, CHECKPOINT, ONNX, BUNDLE = "a PyTorch file", "a checkpoint", "an ONNX file", "a bundle"

_NEXT_STEP = {
    PYTORCH: "convert it with slimdeploy train --weights {path} --data … --epochs 0 -o {stem}.safetensors",
    CHECKPOINT: "slimdeploy export makes an ONNX file from it, and slimdeploy package a bundle from that",
    ONNX: "give the checkpoint that slimdeploy export made it from",
    BUNDLE: "slimdeploy deploy {path} installs it",
}
_TO_BUNDLE = {ONNX: "slimdeploy package {path} makes a bundle from it"}
"""The next step if a bundle is wanted."""
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"
"""What may follow the IR version: producer, version, domain, model version, text, graph, opset."""


def kind_of(path: Path) -> str | None:
    """PYTORCH, CHECKPOINT (any safetensors), ONNX or BUNDLE; None for all else and for what can't be read."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        length = path.stat().st_size
    except OSError:
        return None
    if start.startswith(b"manifest.json\0"):
        return BUNDLE
    # safetensors: the length of a JSON header, which can look like another file's first bytes, and a brace.
    if start[8:9] == b"{":
        return CHECKPOINT if int.from_bytes(start[:8], "little") < length else None
    if start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive or, before torch 1.6, a pickle
        return PYTORCH
    if len(start) > 2 and start[0] == 8 and start[1] < 32 and start[2] in _ONNX_FIELDS:
        return ONNX
    return None


def refuse_other_kind(path: Path, wanted: str) -> None:
    """Raise SlimdeployError, with the next step, if `path` is of another kind than `wanted`."""
    kind = kind_of(path)
    if kind not in (None, wanted):
        steps = _NEXT_STEP | _TO_BUNDLE if wanted == BUNDLE else _NEXT_STEP
        how = steps[kind].format(path=path, stem=path.stem)
        raise SlimdeployError(f"{path} is {kind}, not {wanted}: {how}")
