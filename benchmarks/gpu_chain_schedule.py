"""When each piece of `gpu_chain` runs: several at once, in the order of their importance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from slimdeploy.benchmarks.gpu_chain_pieces import Piece

TRAININGS = 3
"""Number of full trainings that run at once: more would only delay what needs the first of them."""


def run_all(
    waiting: Sequence[Piece],
    do: Callable[[Piece], str],
    done: Callable[[Piece, str], None],
    jobs: int,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Run each piece as soon as what it needs has run, `jobs` at a time, in their order. Pieces that run
    alone wait until no other can run. `done` is called with each piece and what `do` returned for it, and
    `stop` if an error or Ctrl-C ends the loop: it must end the running ones.
    """
    waiting, running = list(waiting), dict[Future[str], Piece]()
    with ThreadPoolExecutor(jobs) as pool, contextlib.ExitStack() as if_ended_early:
        if_ended_early.callback(stop)
        while waiting or running:
            unfinished = {piece.name for piece in (*waiting, *running.values())}
            ready = [piece for piece in waiting if unfinished.isdisjoint(piece.needs)]
            for piece in ready:
                if _may_start(piece, list(running.values()), jobs):
                    waiting.remove(piece)
                    running[pool.submit(do, piece)] = piece
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done(running.pop(future), future.result())
        if_ended_early.pop_all()


def _may_start(piece: Piece, running: list[Piece], jobs: int) -> bool:
    if piece.alone or any(other.alone for other in running):
        return not running
    full = sum(other.trains for other in running)
    return len(running) < jobs and (not piece.trains or full < TRAININGS)
