"""CUDA graphs: a whole step as one launch, for small networks whose operations a CPU cannot launch fast enough."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from compress.training.engine.recorder import Losses, Run

# torch's words.
SYNCHRONIZED = "called a synchronizing CUDA operation"
# cuDNN times its kernels for each shape that it meets in a step. Never for the teacher: its number of rows varies, and
# each number would be timed anew.
BENCHMARK_CUDNN = True
# Graphs of recordings that failed: torch's allocators may still ask them which streams are theirs.
_FAILED_GRAPHS: list[torch.cuda.CUDAGraph] = []


class CudaGraphRecorder:
    """A `recorder.Recorder` for the current GPU; recordings and the steps before them share one side stream."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm_up(self, run: Run) -> Losses:
        """Run on the recordings' stream: what a step chooses and allocates there exists when it is recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), _cudnn_benchmark():
            losses = run()
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def warm_up_watching(self, run: Run) -> tuple[Losses, bool]:
        """Run in torch's debug mode: a recording that fails half-way is harder to leave than one that is not begun."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = self.warm_up(run)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        return losses, any(SYNCHRONIZED in str(one.message) for one in caught)

    def record(self, run: Run) -> Run:
        """Record with a memory pool of its own, which the graph keeps as long as it lives."""
        graph, pool, outer = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self.stream), _cudnn_benchmark():
                losses = run()
        except RuntimeError:
            torch.cuda.set_stream(outer)
            _abandon(graph, pool)
            raise

        def replay() -> Losses:
            graph.replay()
            return losses

        return replay

    def free(self) -> None:
        """Return to the GPU what torch keeps of freed memory."""
        torch.cuda.empty_cache()


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN choose its fastest kernel by trying all; a recording takes the choice of the steps before it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or BENCHMARK_CUDNN
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _abandon(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Undo a recording that failed, where torch does not (2.11; since 2.15 `reset` does all of it).

    The generator believes that it is being recorded, and the next dropout would raise. The allocator believes so too,
    and `empty_cache` would raise. Nothing that was recorded was computed, so weights, buffers and the optimizer's state
    are as they were.
    """
    graph.reset()
    _FAILED_GRAPHS.append(graph)
    device = torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    # These raise where torch has ended the recording itself; torch 2.12 to 2.14 then keep what the pool holds.
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
