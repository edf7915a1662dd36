"""The data of a report, read from the folder of a run. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.artifacts import parse_json, read_text
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.layers import Layer, priced_layers
from slimdeploy.toolchain.run_record import OUTDATED, read_record

HEADER_KEY = "slimdeploy"
"""Key of the ModelInfo in a checkpoint (as in toolchain.models.checkpoint, which needs torch)."""


@dataclass(frozen=True)
class Model:
    """The description of a network, and the γ of its prunable layers in one array."""

    info: ModelInfo
    scales: np.ndarray

    def layers(self) -> dict[str, Layer]:
        """Its convolutions and hidden linear layers by name, in order."""
        return {layer.name: layer for layer in priced_layers(self.info.graph, self.info.preprocessing.size)}


@dataclass(frozen=True)
class Run:
    """A finished run. Histories are the records of `<name>.history.jsonl`, an entry per epoch."""

    onnx: dict[str, Path]
    """`original` and `final`; the files may be missing."""
    original: Model
    final: Model
    pruned: dict[str, Model]
    """By stage: `pruned`, which was fine-tuned, and `compare-<ratio>`, which were only evaluated; empty if
    the files are missing.
    """
    stages: dict[str, dict[str, Any]]
    histories: dict[str, list[dict[str, Any]]]
    bench: dict[str, Any]
    table: dict[str, Any]


def read_run(folder: Path) -> Run:
    """Read the output of `slimdeploy run` in `folder`.

    Raises SlimdeployError if the folder contains no run, or an unfinished one.
    """
    if not (folder / "run.json").is_file():
        raise SlimdeployError(
            f"no run and no sweep in {folder}: slimdeploy run … --output {folder} makes one"
        )
    entries = read_record(folder / "run.json")
    stages = {
        name: entry["result"]
        for name, entry in entries.items()
        if "result" in entry and OUTDATED not in entry
    }
    missing = [name for name in ("train", "pruned", "finetune", "bench") if name not in stages]
    if missing or not (folder / "table.json").is_file():
        raise SlimdeployError(
            f"the run in {folder} is not finished ({', '.join(missing) or 'its table'} missing): "
            "the same slimdeploy run continues it"
        )
    cuts = [name for name in stages if name == "pruned" or name.startswith("compare-")]
    return Run(
        onnx={name: folder / f"{name}.onnx" for name in ("original", "final")},
        original=read_model(folder / "sparse.safetensors"),
        final=read_model(folder / "final.safetensors"),
        pruned={name: read_model(folder / f"{name}.safetensors") for name in cuts},
        stages=stages,
        histories={name: read_history(folder / f"{name}.history.jsonl") for name in ("sparse", "final")},
        bench=results.read(folder / "bench.json", "bench"),
        table=results.read(folder / "table.json", "table"),
    )


def read_model(path: Path) -> Model:
    """Read a checkpoint's description and γ; raises SlimdeployError if it is missing or damaged."""
    try:
        with safetensors.safe_open(str(path), "numpy") as file:
            header = (file.metadata() or {}).get(HEADER_KEY, "")
            info = ModelInfo.from_json(header, str(path))
            names = dict.fromkeys(bn for group in channel_groups(info.graph) for bn in group.batchnorms)
            affine = [name for name in names if info.graph.by_name[name].attributes["affine"]]
            scales = [file.get_tensor(f"{name}.weight") for name in affine]
    except (FileNotFoundError, IsADirectoryError):
        raise artifacts.missing(path, "checkpoint") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise SlimdeployError(f"{path} is not a checkpoint, or is damaged ({error})") from error
    return Model(info, np.concatenate([np.empty(0), *scales]).astype(np.float32))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of `<name>.history.jsonl`, an entry per epoch; empty if there is none."""
    if not path.is_file():
        return []
    problem = f"{path} is not a history of training"
    records = [parse_json(line, problem) for line in read_text(path, "history of training").splitlines()]
    if not all(isinstance(record, dict) for record in records):
        raise SlimdeployError(problem)
    return records
