"""Knowledge distillation (Hinton et al., arXiv 1503.02531): the softened logits of a teacher as second
target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import PerChannel, Preprocessing
from slimdeploy.toolchain.training.teacher_cache import TeacherCache


@dataclass(frozen=True)
class Teacher:
    """A network in eval mode, the normalisation of its images, the hash of its file, and the file that keeps
    its logits, if any.
    """

    network: GraphNetwork
    preprocessing: Preprocessing
    sha256: str
    cache: TeacherCache | None = None

    @torch.no_grad()
    def logits(self, images: Tensor, normalised_by: Preprocessing) -> Tensor:
        """(N, classes) logits for images (N, C, H, W) normalised for the student."""
        images = _renormalised(images, normalised_by, self.preprocessing)
        return self.cache.logits(images, self.network) if self.cache else self.network(images)


def load_teacher(path: Path, student: ModelInfo, *, device: str, cache: str | None = None) -> Teacher:
    """The network in `path`, on `device`, with its logits in the file `cache`. Raises SlimdeployError if it
    has other classes than the student or another input size, or if the cache cannot be used.
    """
    found = load_checkpoint(path)
    size, wanted = found.info.preprocessing.size, student.preprocessing.size
    if found.info.class_names != student.class_names:
        raise SlimdeployError(
            f"the teacher {path} has other classes ({_some(found.info)}) than the data ({_some(student)})"
        )
    if size != wanted:
        raise SlimdeployError(f"the teacher {path} takes {size}×{size}, the data is {wanted}×{wanted}")
    own, given = found.info.preprocessing, student.preprocessing
    if own.image_channels != given.image_channels:
        raise SlimdeployError(f"the teacher {path} takes {own.channels} images, the student {given.channels}")
    network = place(found.network, device).eval().requires_grad_(requires_grad=False)
    kept = TeacherCache(Path(cache), found.sha256) if cache else None
    return Teacher(network, found.info.preprocessing, found.sha256, kept)


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(taught/T) ‖ softmax(logits/T)), averaged over the images; T² keeps the scale of the
    gradients (section 2).
    """
    own = F.log_softmax(logits / temperature, dim=1)
    wanted = F.log_softmax(taught / temperature, dim=1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True) * temperature**2


def _renormalised(images: Tensor, own: Preprocessing, wanted: Preprocessing) -> Tensor:
    """Images normalised by preprocessing `own`, renormalised by `wanted`."""
    if own.channels != wanted.channels:
        images = images.flip(1)
    if (own.mean, own.std) == (wanted.mean, wanted.std):
        return images

    def of_channels(values: PerChannel) -> Tensor:
        ordered = values[::-1] if wanted.channels == "bgr" else values
        return torch.tensor(ordered, device=images.device)[:, None, None]

    pixels = images * of_channels(own.std) + of_channels(own.mean)
    return (pixels - of_channels(wanted.mean)) / of_channels(wanted.std)


def _some(info: ModelInfo) -> str:
    return ", ".join([*info.class_names[:3], *["…"][: len(info.class_names) > 3]])
