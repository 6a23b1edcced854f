"""Two processes that share each batch train what one process trains; a process that is lost ends the job, and it resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress import distributed
from compress.distributed import ALONE, Group
from compress.errors import UsageError

SCRIPT = Path(__file__).parent / "distributed_steps.py"
ROOT = Path(__file__).parents[1]


def started(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return started("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    # batches of 15 and a last one of 6: shares of 8 and 7, and of 3 and 3
    methods = ("dhkd", "kd", "crd")
    for run, name in ((started, "one"), (torchrun, "two")):
        (tmp_path / name).mkdir()
        done = run(str(SCRIPT), str(tmp_path / name), "-1", *methods)
        assert done.returncode == 0, done.stderr
    for method in methods:
        one, two = (load_file(tmp_path / name / method / "weights.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys() and any(key.startswith("method.") for key in one) == (method != "kd")
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-11, msg=lambda text, name=f"{method} {key}": f"{name}: {text}")


@pytest.mark.slow
def test_a_lost_process_ends_the_job_and_the_job_resumes(tmp_path):
    for name in ("whole", "lost"):
        (tmp_path / name).mkdir()
    whole = torchrun(str(SCRIPT), str(tmp_path / "whole"), "-1", "kd")
    lost = torchrun(str(SCRIPT), str(tmp_path / "lost"), "1", "kd")
    assert lost.returncode != 0 and not (tmp_path / "lost" / "kd" / "weights.safetensors").exists()
    assert "another process of this run is gone" in lost.stdout and "run the same command again to resume" in lost.stdout
    again = torchrun(str(SCRIPT), str(tmp_path / "lost"), "-1", "kd")
    assert (whole.returncode, again.returncode) == (0, 0), again.stderr
    assert "goes on in epoch 2" in again.stdout
    expected, found = (load_file(tmp_path / name / "kd" / "weights.safetensors") for name in ("whole", "lost"))
    for key in expected:
        assert torch.equal(expected[key], found[key]), key


@pytest.mark.slow
def test_the_command_line_shares_a_training_and_the_first_process_does_the_rest(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "data: {source: fashion, limit_train: 400, limit_test: 100, validation: 100, calibration: 64}\n"
        "teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}\n"
        "student: {model: mobilenet_v2, width: 0.25}\n"
        "train: {epochs: 1, batch_size: 50}\n"
        "validate: {repeats: 16, warmup: 1}\n"
    )
    arguments = ("-m", "compress", "run", str(recipe), "--artifacts", str(tmp_path / "a"), "--device", "cpu")
    done = torchrun(*arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("distill                      running") == 1  # the other process is silent
    (report,) = (tmp_path / "a" / "runs" / "tiny").glob("2*/report.json")
    assert json.loads(report.read_text())["student"]["epochs"] == 1
    again = torchrun(*arguments)
    assert again.returncode == 0 and "distill                      reused" in again.stdout


def test_shares_of_a_batch_are_even_and_whole():
    batch = torch.arange(15)
    parts = [Group(rank, 4).share(batch) for rank in range(4)]
    assert torch.equal(torch.cat(parts), batch) and [len(part) for part in parts] == [4, 4, 4, 3]
    with pytest.raises(UsageError, match="train.batch_size: a batch of 3 cannot be shared by 4 processes"):
        Group(0, 4).share(batch[:3])


def test_alone_nothing_is_asked():
    assert ALONE.first and ALONE.averaging(3, 3) is None and ALONE.word("x") == "x"
    assert ALONE.agree(True, 7) and not ALONE.agree(False, 0)
    rows = torch.arange(3)
    assert distributed.gather(rows) is rows


def test_a_named_card_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="every process takes its own card"), distributed.joined("cuda:1"):
        pass
