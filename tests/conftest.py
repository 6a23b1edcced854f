"""Fixtures that make trainings give the same bits on every machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Train on one thread, for the same bits whatever the number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cuDNN choose the same deterministic kernels in each training."""
    import torch

    from compress.training.engine import cuda_graph

    monkeypatch.setattr(cuda_graph, "BENCHMARK_CUDNN", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
