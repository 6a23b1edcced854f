"""Kernels are compiled once, and where they cannot be, torch trains and the reason is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import compress.training.kernels.library as library
from compress.commands.doctor import environment
from compress.training.kernels import TORCH, use_fast_kernels


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._load.cache_clear()
    yield tmp_path / "compress" / "kernels"
    library._load.cache_clear()


@pytest.mark.slow
def test_kernels_are_compiled_once(fresh):
    if library.load_kernels() is None and "no C compiler is installed" in library.unavailable_reason():
        pytest.skip(f"no kernels: {library.unavailable_reason()}")
    (made,) = fresh.iterdir()
    first = made.stat().st_mtime_ns, library.load_kernels().compiler
    library._load.cache_clear()
    assert (made.stat().st_mtime_ns, library.load_kernels().compiler) == first and [*fresh.iterdir()] == [made]


def test_without_a_compiler_torch_trains(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    said: list[str] = []
    off, kernels = use_fast_kernels(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), 6, "auto", said.append
    )
    off()
    assert kernels == TORCH
    assert said == [
        "CPU kernels: no C compiler is installed (cc, gcc or clang, or what CC names); torch's BatchNorms run, slower"
    ]
    assert library.unavailable_reason() == "no C compiler is installed (cc, gcc or clang, or what CC names)"
    ((_, state, detail),) = [row for row in environment.examine() if row[0] == "CPU kernels"]
    assert state == "note" and "no C compiler is installed" in detail


def test_a_failing_compiler_is_reported(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "broken 1.0" && exit 0\necho "broken: no such thing" >&2\nexit 3\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert library.load_kernels() is None
    assert library.unavailable_reason() == f"{broken} does not compile them (broken: no such thing)"
    assert not list(fresh.glob("*"))


def test_a_hanging_compiler_is_reported(fresh, monkeypatch, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "slow 1.0" && exit 0\necho "slow: thinking" >&2\nexec sleep 30\n'
    )
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(library, "COMPILER_TIMEOUT_SECONDS", 1)
    assert library.load_kernels() is None
    assert library.unavailable_reason().startswith(f"{slow} does not compile them (")


@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_only_engine_auto_uses_the_kernels(engine):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    off, kernels = use_fast_kernels(network, 6, engine, pytest.fail)
    assert kernels == TORCH and not any("forward" in module.__dict__ for module in network)
    off()


def test_a_network_without_batchnorms_needs_no_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    off, kernels = use_fast_kernels(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), 6, "auto", pytest.fail)
    off()
    assert kernels == TORCH
