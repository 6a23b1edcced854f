"""Two ranks: a signal to one ends both at the same step, a step is one message, and both share cached logits."""

from __future__ import annotations

import csv
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress.core.distributed import ASK_EVERY_STEPS
from compress.core.errors import Interrupted
from tests.support.torchrun import torchrun

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "support" / "distributed_stop.py"
STEPS, TOLD = 12, 16  # of an epoch, and behind which of all the first signal comes
ENDED = ("one", "first", "both")


@dataclass
class Runs:
    """The same command twice: what torchrun answered, and what the processes said."""

    folder: Path
    answers: list[subprocess.CompletedProcess[str]]

    def said(self, number: int, name: str) -> list[str]:
        """Of a training in one of the runs, by rank."""
        lines = self.answers[number].stdout.splitlines()
        return [
            line.removeprefix(f"<{name} {rank}> ")
            for rank in (0, 1)
            for line in lines
            if line.startswith(f"<{name} {rank}> ")
        ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("stop")
    return Runs(folder, [torchrun(str(SCRIPT), str(folder)) for _ in range(2)])


def words(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ENDED)
def test_a_signal_to_one_process_ends_all_at_the_same_step(runs, name):
    """SIGINT to the second of two, SIGTERM to the first, and both, behind different steps of the second epoch."""
    steps = STEPS + ASK_EVERY_STEPS
    assert TOLD < steps <= TOLD + ASK_EVERY_STEPS  # within so many
    again = "interrupted in epoch 2 of 2, checkpoint kept; run the same command again to resume"
    assert (
        runs.said(0, name)
        == [f"{again} | began at (1, 0) | steps {steps} | kept (2, {ASK_EVERY_STEPS}) and answers"] * 2
    ), words(runs.answers[0])


def test_each_process_ends_with_the_code_of_an_interruption(runs):
    assert runs.answers[0].returncode == 1, words(runs.answers[0])  # torchrun's for every code but 0
    assert runs.answers[0].stderr.count(f"exitcode  : {Interrupted.exit_code} ") == 2, words(runs.answers[0])


@pytest.mark.parametrize("name", ENDED)
def test_resuming_gives_the_weights_and_history_of_an_uninterrupted_training(runs, name):
    assert runs.answers[1].returncode == 0, words(runs.answers[1])
    assert (
        all(f"done | began at (2, {ASK_EVERY_STEPS}) | " in line for line in runs.said(1, name))
        and len(runs.said(1, name)) == 2
    )
    expected, found = (load_file(runs.folder / folder / "weights.safetensors") for folder in ("whole", name))
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    whole, parts = (
        list(csv.DictReader((runs.folder / folder / "history.csv").read_text().splitlines()))
        for folder in ("whole", name)
    )
    assert [row["epoch"] for row in whole] == [row["epoch"] for row in parts] == ["1", "2"]
    for one, other in zip(whole, parts, strict=True):
        assert all(float(other[loss]) == pytest.approx(float(one[loss]), rel=1e-9) for loss in ("ce", "bkl"))


def test_the_gradients_of_a_step_are_one_message(runs):
    """Of several losses, too; the question whether to stop is another one, every tenth step."""
    assert len(runs.said(0, "whole")) == 2
    for line in runs.said(0, "whole"):
        sent = [int(number) for number in line.partition("messages [")[2].rstrip("]").split(", ")]
        assert len(sent) == 2 * STEPS
        asked = {step for step in range(2 * STEPS) if step % STEPS % ASK_EVERY_STEPS == 0}
        assert [sent[step] for step in range(2 * STEPS) if step not in asked] == [1] * (2 * STEPS - len(asked))
        assert [sent[step] for step in asked if step % STEPS] == [2, 2]


def test_both_ranks_have_all_cached_logits(runs):
    """In the second training each asks for pictures that the other one had."""
    (first, second) = (
        [int(number) for number in line.removeprefix("rows [").rstrip("]").split(", ")]
        for line in runs.said(0, "taught")
    )
    assert first[0] > 0 < second[0] and first[1] == second[1] == 0
    with np.load(runs.folder / "logits" / "logits.npz") as stored:
        known = set(zip(stored["index"].tolist(), stored["view"].tolist(), strict=True))
    assert len(known) == first[0] + second[0] == 72  # two views of 36 pictures
