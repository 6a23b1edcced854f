"""CUDA graphs: how steps are recorded on CUDA. A whole step is then one launch, where a CPU cannot launch a small network's operations fast enough."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from compress.training.engine.recorder import Losses, Run

SYNC = "called a synchronizing CUDA operation"  # torch's words
TIMED = True  # cuDNN times its kernels for a shape that it meets in a step; never for the teacher's, whose rows vary: each number would be timed anew
_LOST: list[
    torch.cuda.CUDAGraph
] = []  # of recordings that failed: torch's allocators may still ask them which streams are theirs


class Graphs:
    """Recordings on the current card, all of them and the steps before them on one stream beside the others: see `recorded.Recorder`."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def beside(self, run: Run) -> Losses:
        """On the recordings' own stream: what a step chooses and allocates for a stream is then there when it is recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), _timed():
            losses = run()
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def waits(self, run: Run) -> tuple[Losses, bool]:
        """Found by torch's own debug mode: a recording that fails half-way is harder to leave than one that is not begun."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = self.beside(run)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        return losses, any(SYNC in str(one.message) for one in said)

    def record(self, run: Run) -> Run:
        """With a memory pool of its own, which the graph keeps as long as it lives."""
        graph, pool, outer = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self.stream), _timed():
                losses = run()
        except RuntimeError:
            torch.cuda.set_stream(outer)
            _leave(graph, pool)
            raise

        def replay() -> Losses:
            graph.replay()
            return losses

        return replay

    def free(self) -> None:
        """What torch keeps of freed memory goes back to the card."""
        torch.cuda.empty_cache()


@contextmanager
def _timed() -> Iterator[None]:
    """Convolutions take the kernel that was quickest when cuDNN tried them all, in a recording the one of the steps before it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or TIMED
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _leave(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Undo a recording that failed, where torch does not (2.11; since 2.15 `reset` does all of it).

    The generator believes that it is being recorded, and the next dropout would raise; the allocator believes it, too, and `empty_cache`
    would raise. What was recorded was not computed, so weights, buffers and the optimizer's state are as they were.
    """
    graph.reset()
    _LOST.append(graph)
    device = torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    with suppress(RuntimeError):  # raised where torch has ended it; torch 2.12 to 2.14 then keep what the pool holds
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
