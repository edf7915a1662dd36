"""The result of pruning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slimdeploy.toolchain.models.checkpoint import Checkpoint
from slimdeploy.toolchain.networks.cost import Cost
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.surgery import Folding


@dataclass(frozen=True)
class Latency:
    """Latency of the pruned network, predicted by the latency table and measured."""

    predicted_ms: float
    measured_ms: float | None
    not_measured: str | None
    """Why it was not measured."""


@dataclass(frozen=True)
class PruneResult:
    """The pruned network, its costs and its accuracies."""

    checkpoint: Checkpoint
    channels: tuple[int, ...]
    """Remaining widths, in order of execution."""
    before: Cost
    after: Cost
    removed_blocks: tuple[str, ...]
    """Blocks that were replaced by their shortcut."""
    folding: Folding
    """Numbers of folded constants."""
    accuracy: dict[str, float] | None
    """Accuracy on the test images, 0…1, before pruning and after each step; `final` is that of the result.
    None without test images.
    """
    seconds: float
    """Duration of scoring, selection and surgery, without reading, evaluation and writing."""
    latency: Latency | None = None
    """None unless the target was a latency."""
    removed_in_training: int = 0
    """Channels that training removed before pruning; the target `ratio` includes them."""

    @property
    def network(self) -> GraphNetwork:
        """The pruned network, a `torch.nn.Module`: (N, C, size, size) → (N, classes)."""
        return self.checkpoint.network

    def to_json(self) -> dict[str, Any]:
        document = {
            "channels": list(self.channels),
            "params": {"before": self.before.params, "after": self.after.params},
            "macs": {"before": self.before.macs, "after": self.after.macs},
            "padded_macs": {"before": self.before.padded_macs, "after": self.after.padded_macs},
            "removed_blocks": list(self.removed_blocks),
            "removed_in_training": self.removed_in_training,
            "folding": asdict(self.folding),
            "seconds": self.seconds,
        }
        if self.latency is not None:
            document["latency"] = asdict(self.latency)
        return document if self.accuracy is None else {**document, "accuracy": self.accuracy}
