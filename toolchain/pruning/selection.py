"""Which channels stay: pure functions from scores and a target to sorted indices for each group."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError

Kept = dict[str, np.ndarray]
"""Group name -> sorted indices of the channels that stay."""


def select_by_ratio(scores: dict[str, np.ndarray], ratio: float, *, min_channels: int = 3) -> Kept:
    """Remove the `ratio` of all channels with the lowest scores over all groups together.

    Each group keeps at least its `min_channels` best (all, where it has no more), so fewer than the ratio
    may go. Ties are cut in favour of the earlier channel. Raises SlimdeployError for a ratio outside 0…1.
    """
    if not 0 <= ratio < 1:
        raise SlimdeployError(f"--ratio must be from 0 to below 1, not {ratio:g}")
    if min_channels < 1:
        raise SlimdeployError(f"--min-channels must be at least 1, not {min_channels}")
    names = list(scores)
    flat = np.concatenate([scores[name] for name in names])
    owner = np.repeat(np.arange(len(names)), [len(scores[name]) for name in names])
    index = np.concatenate([np.arange(len(scores[name])) for name in names])
    doomed = np.zeros(len(flat), dtype=bool)
    by_rising_score = np.lexsort((-index, flat))
    doomed[by_rising_score[: int(len(flat) * ratio)]] = True
    return {
        name: _at_least(scores[name], index[(owner == i) & ~doomed], min_channels)
        for i, name in enumerate(names)
    }


def _at_least(scores: np.ndarray, kept: np.ndarray, count: int) -> np.ndarray:
    """`kept`, or the `count` best channels where it holds fewer."""
    if len(kept) >= count:
        return kept
    return best_channels(scores, count)


def best_channels(scores: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of the `count` highest scores, the earlier channel first among equals."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
