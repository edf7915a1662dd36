"""Training in several processes (torchrun): each batch is divided among them, and after every step all have
the weights that a single process would have, up to rounding.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from slimdeploy.toolchain import launch as launching
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.launch import Launch
from slimdeploy.toolchain.progress import console

JOINING = timedelta(minutes=10)
"""How long to wait for the other processes to start."""
DECODING = timedelta(hours=24)
"""How long they wait for each other later: the first one may be decoding the images. If one dies, torchrun
stops the others.
"""


class PeerLost(SlimdeployError):
    """Another process of the run ended, or torchrun was stopped."""

    exit_code = 1

    def __init__(self) -> None:
        super().__init__(
            "another process of the run ended, or torchrun was stopped: the same command with --resume "
            "continues after the last complete epoch"
        )


@dataclass(frozen=True)
class Ranks:
    """The processes that train together. With one process, all methods do nothing."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share_of(self, split: Split) -> Split:
        """This process's images of `split`: every `size`-th one."""
        return split if self.size == 1 else split.take(np.arange(self.rank, len(split), self.size))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, bit-identical in each; `tensor` is overwritten."""
        if self.size > 1:
            with peers_explained():
                dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            with peers_explained():
                dist.barrier()

    def check_same(self, value: int, error: str) -> None:
        """Raise SlimdeployError(`error`) in all processes if they don't all have the same `value`."""
        if self.size > 1:
            values = torch.zeros(self.size, dtype=torch.int64, device=_device())
            values[self.rank] = value
            if len(self.sum(values).unique()) > 1:
                raise SlimdeployError(error)

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` for training steps: its gradients are averaged over the processes."""
        if self.size == 1:
            return network
        # Buffers need no broadcast: BN statistics are computed over the whole batch and equal everywhere.
        parallel = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters  # torch 2.13
        off: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return parallel(network, gradient_as_bucket_view=True, **off)


ALONE = Ranks()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Connect to the other processes started by torchrun, if any: by NCCL if `device` is cuda, else by gloo.

    On CUDA each process of a machine uses the GPU of its local rank. Raises SlimdeployError if there are too
    few GPUs, or if the other processes don't connect.
    """
    this = launching.launch()
    if this.size == 1:
        yield ALONE
        return
    console.quiet = not this.main
    if device == "cuda":
        if this.local_size > torch.cuda.device_count():
            raise SlimdeployError(
                f"{this.local_size} processes, but this machine has {torch.cuda.device_count()} GPUs: "
                f"torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(this.local_rank)
    with peers_explained():
        store = _meet(this, "nccl" if device == "cuda" else "gloo")
    launching.agree_by(lambda: _first(store))
    before = signal.signal(signal.SIGTERM, _told_to_stop)
    try:
        yield Ranks(this.rank, this.size)
        dist.destroy_process_group()  # after an error it might wait for a process that has ended
        launching.agree_by(None)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def first_on_machine(ranks: Ranks) -> Iterator[None]:
    """Run the block in one process of each machine before the others, to fill a cache for them."""
    if launching.launch().local_rank:
        ranks.wait()
    yield
    if not launching.launch().local_rank:
        ranks.wait()


def _meet(this: Launch, backend: str) -> dist.Store:
    store, rank, size = next(dist.rendezvous("env://", timeout=JOINING))
    # A separate store: after a restart by torchrun the default one would be that of the earlier processes.
    store = dist.PrefixStore(f"slimdeploy-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=DECODING)
    return store


def _first(store: dist.Store) -> bool:
    """Whether this process asks first; also true if the store's process has ended."""
    try:
        return store.add("error", 1) == 1
    except RuntimeError:
        return True


def _told_to_stop(number: int, frame: object) -> None:
    """End on SIGTERM, which torchrun sends to the other processes when one has died, and to all when
    stopped.
    """
    raise PeerLost


@contextlib.contextmanager
def peers_explained() -> Iterator[None]:
    """Turn the error of a broken connection into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises no specific type.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise PeerLost from error
        raise


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
