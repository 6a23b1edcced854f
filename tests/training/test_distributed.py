"""Two processes train what one process trains; a lost process ends the job, which then resumes."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compress.cli import main
from compress.core import distributed
from compress.core.distributed import ALONE, Group, sync_batchnorm
from compress.core.errors import MissingError, UsageError
from compress.data.augment import views
from compress.pipeline import run as pipeline
from compress.training import batch_norm, precision, schedule
from tests.support import distributed_steps
from tests.support.torchrun import DISTRIBUTED_RUN, ENVIRONMENT, ROOT, TORCHRUN, run_python, torchrun

METHODS = ("dhkd", "kd", "crd", "streamed", "weighted", "balanced")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two processes trained, a folder for each method."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(str(DISTRIBUTED_RUN), str(folder), "-1", "cpu", *METHODS)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path, shared):
    # batches of 15 and a last one of 6: shares of 8 and 7, and of 3 and 3
    done = run_python(str(DISTRIBUTED_RUN), str(tmp_path), "-1", "cpu", *METHODS)
    assert done.returncode == 0, done.stdout + done.stderr
    for method in METHODS:
        one, two = (load_file(folder / method / "weights.safetensors") for folder in (tmp_path, shared))
        assert one.keys() == two.keys() and any(key.startswith("method.") for key in one) == (method in ("dhkd", "crd"))
        for key in one:
            torch.testing.assert_close(
                two[key], one[key], rtol=1e-9, atol=1e-11, msg=lambda text, name=f"{method} {key}": f"{name}: {text}"
            )


@pytest.mark.slow
def test_recomputed_statistics_are_the_same_bits_on_every_rank_and_in_one_process(tmp_path):
    done = torchrun(str(DISTRIBUTED_RUN), str(tmp_path), "-1", "cpu", "recomputed")
    assert done.returncode == 0, done.stdout + done.stderr
    main_rank, other = (
        load_file(tmp_path / name / "weights.safetensors") for name in ("recomputed", "recomputed.beside")
    )
    assert main_rank.keys() == other.keys() and "norm.running_mean" in other
    for key, value in main_rank.items():
        assert torch.equal(other[key], value), key
    net = distributed_steps.Net(norm=True).double()
    net.load_state_dict(main_rank)
    images, _ = distributed_steps.images_and_labels()
    index = schedule.order(torch.arange(len(images)), 0, 0)
    view = views.views_of(index, 0, 0, "crop_flip", None, 8)
    pixels = views.apply_views(images, index, view, "crop_flip", 8)
    batch_norm.recompute(net, [pixels], torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))
    for key, value in net.state_dict().items():
        assert torch.equal(main_rank[key], value), key


@pytest.mark.gpu
def test_batchnorm_over_two_gpus_equals_that_of_one(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("torch sees fewer than two CUDA devices")
    for run, name in ((run_python, "one"), (torchrun, "two")):
        (tmp_path / name).mkdir()
        done = run(str(DISTRIBUTED_RUN), str(tmp_path / name), "-1", "cuda", "norm")
        assert done.returncode == 0 and "warned" not in done.stdout, done.stderr
    one, two = (load_file(tmp_path / name / "norm" / "weights.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_batchnorm_is_synchronised_on_cuda_alone_and_put_back():
    student, said = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4))), []
    norm, weights = student[1][0], list(student.parameters())

    back = sync_batchnorm(Group(0, 2), "cuda:0", True, said.append, student)
    assert isinstance(student[1][0], nn.SyncBatchNorm) and all(
        a is b for a, b in zip(student.parameters(), weights, strict=True)
    )
    student[1][0].running_mean.fill_(3)
    back()
    assert student[1][0] is norm and norm.running_mean.eq(3).all() and not said

    for arguments in ((Group(0, 2), "cpu", True), (Group(0, 2), "cuda:0", False), (ALONE, "cuda", True)):
        sync_batchnorm(*arguments, said.append, student)()
        assert student[1][0] is norm
    assert (
        len(said) == 2
        and "SyncBatchNorm needs CUDA" in said[0]
        and "1/2" in said[0]
        and "train.sync_batchnorm is false" in said[1]
    )


@pytest.mark.slow
def test_a_lost_process_ends_the_job_which_then_resumes(tmp_path, shared):
    lost = torchrun(str(DISTRIBUTED_RUN), str(tmp_path), "1", "cpu", "kd")
    assert lost.returncode != 0 and not (tmp_path / "kd" / "weights.safetensors").exists()
    assert (
        "another process of this run is gone" in lost.stdout and "run the same command again to resume" in lost.stdout
    ), lost.stdout + lost.stderr
    again = torchrun(str(DISTRIBUTED_RUN), str(tmp_path), "-1", "cpu", "kd")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "goes on in epoch 2 behind step 1" in again.stdout  # of three
    rows = [
        list(csv.DictReader((folder / "kd" / "history.csv").read_text().splitlines())) for folder in (shared, tmp_path)
    ]
    for one, other in zip(*rows, strict=True):
        assert all(float(other[name]) == pytest.approx(float(one[name]), rel=1e-5) for name in ("ce", "kd"))
    expected, found = (load_file(folder / "kd" / "weights.safetensors") for folder in (shared, tmp_path))
    for key in expected:
        assert torch.equal(expected[key], found[key]), key


@pytest.fixture
def tiny(tmp_path):
    """What torchrun is told to run a recipe of `epochs` epochs from the command line, results in tmp_path / "a"."""

    def command(epochs: int) -> tuple[str, ...]:
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text(
            "data: {source: fashion, limit_train: 400, limit_test: 100, validation: 100, calibration: 64}\n"
            "teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}\n"
            "student: {model: resnet8}\n"
            f"train: {{epochs: {epochs}, batch_size: 50}}\n"
            "validate: {repeats: 16, warmup: 1}\n"
        )
        return "-m", "compress", "run", str(recipe), "--artifacts", str(tmp_path / "a"), "--device", "cpu"

    return command


@pytest.mark.slow
def test_only_training_is_shared_and_rank_0_runs_the_other_stages(tmp_path, tiny):
    done = torchrun(*tiny(1))
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("distill                      running") == 1  # the other process is silent
    (report,) = (tmp_path / "a" / "runs" / "tiny").glob("2*/report.json")
    assert json.loads(report.read_text())["student"]["epochs"] == 1
    again = torchrun(*tiny(1), "--until", "strip", "--json")
    assert again.returncode == 0 and "distill                      reused" in again.stderr, again.stdout + again.stderr
    assert json.loads(again.stdout)["reused"] == ["data", "teacher", "distill", "strip"]  # one document


def test_a_failure_on_another_rank_is_left_to_torchrun(tmp_path, monkeypatch, capsys):
    error = tmp_path / "error.json"
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("TORCHELASTIC_ERROR_FILE", str(error))):
        monkeypatch.setenv(name, value)
    assert main.main(["run", str(tmp_path / "none.yaml")]) == 2 and capsys.readouterr().err == ""
    assert "none.yaml: no such recipe" in json.loads(error.read_text())["message"]["message"]
    error.unlink()
    monkeypatch.setattr(
        "compress.core.files.os.replace", full_disk
    )  # torchrun itself would end on a file that is not whole
    assert main.main(["run", str(tmp_path / "none.yaml")]) == 2 and not list(tmp_path.glob("error*"))
    monkeypatch.setattr(
        "compress.recipe.loader.load", interrupted
    )  # as torchrun does to those beside the one that failed
    (tmp_path / "none.yaml").touch()
    assert main.main(["run", str(tmp_path / "none.yaml")]) == 130 and not error.exists()


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_torchruns_report_of_a_wrong_recipe_ends_with_our_message(tmp_path):
    (tmp_path / "wrong.yaml").write_text(
        "data: {source: fashion}\nteacher: {candidates: [{model: resnet9}]}\nstudent: {model: resnet8}\n"
    )
    done = torchrun("-m", "compress", "run", str(tmp_path / "wrong.yaml"))
    assert done.returncode == 1 and "there is no network 'resnet9'" in done.stderr.split("Root Cause")[1], done.stderr


def ranks(job: int) -> dict[str, int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for child in Path(f"/proc/{job}/task/{job}/children").read_text().split():
        values = dict(
            line.split("=", 1) for line in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in line
        )
        found[values.get("RANK", "")] = int(child)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds torchrun's processes in /proc")
@pytest.mark.parametrize("lost", ["0", "1"])
def test_a_killed_command_line_process_ends_the_job_which_then_resumes(tmp_path, tiny, lost):
    said = []
    with subprocess.Popen(
        [sys.executable, *TORCHRUN, *tiny(8), "--until", "distill"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            said.append(line)
            if "student resnet8 by dhkd  epoch 2/8  lr" in line:
                os.kill(ranks(job.pid)[lost], signal.SIGKILL)
    text = "".join(said)
    assert job.returncode == 1 and "  epoch 2/8  lr" in text and "  epoch 8/8  lr" not in text, text
    # torchrun's account repeats it
    (sentence,) = {
        line.removeprefix("  traceback : ") for line in said if "another process of this run is gone" in line
    }
    assert (
        sentence.rstrip().endswith("); run the same command again to resume")
        and "gloo/" not in sentence
        and ". " not in sentence
    ), sentence

    again = torchrun(*tiny(8), "--until", "distill")
    assert again.returncode == 0 and "  epoch 1/8  lr" not in again.stdout and "  epoch 8/8  lr" in again.stdout, (
        again.stdout + again.stderr
    )
    histories = [
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (tmp_path / "a" / "cache" / "distill").glob("*/history.csv")
    ]
    assert [[row["epoch"] for row in rows] for rows in histories] == [[str(epoch) for epoch in range(1, 9)]]


def test_shards_of_a_batch_are_even_and_complete():
    batch = torch.arange(15)
    parts = [Group(rank, 4).shard(batch) for rank in range(4)]
    assert torch.equal(torch.cat(parts), batch) and [len(part) for part in parts] == [4, 4, 4, 3]
    with pytest.raises(UsageError, match="train.batch_size: a batch of 3 cannot be shared by 4 processes"):
        Group(0, 4).shard(batch[:3])


def test_a_single_process_sends_no_messages():
    assert (
        ALONE.is_main
        and ALONE.gradient_reducer is None
        and ALONE.scale_losses({"ce": torch.ones(())}, 3, 3) == {"ce": 1}
        and ALONE.broadcast("x") == "x"
    )
    assert ALONE.any_rank(True, 7) and not ALONE.any_rank(False, 0)
    rows = torch.arange(3)
    assert ALONE.gather(rows) is rows


def test_a_resumed_training_draws_new_dropout_on_every_rank():
    drawn = []
    with torch.random.fork_rng():
        for rank, done in ((0, 0), (1, 0), (0, 40), (1, 40), (0, 41)):
            torch.manual_seed(3)
            Group(rank, 2).broadcast_parameters(done=done)
            drawn.append(torch.rand(4).tolist())
    assert len({tuple(row) for row in drawn}) == 5


def test_one_named_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="every process takes its own GPU"), distributed.joined("cuda:1"):
        pass


@pytest.fixture
def chosen(monkeypatch) -> list[torch.device | int]:
    """What `torch.cuda.set_device` is told, on a machine that has two cards for all that is asked."""
    told: list[torch.device | int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    return told


def test_streams_and_graphs_use_the_gpu_named_by_number(chosen):
    assert pipeline.resolve_device("cuda:1") == "cuda:1" and chosen == [torch.device("cuda", 1)]
    assert pipeline.resolve_device("cuda") == "cuda" and len(chosen) == 1
    with pytest.raises(MissingError, match="--device cuda:2: torch sees 2 CUDA devices here, counted from 0"):
        pipeline.resolve_device("cuda:2")


def test_a_training_reports_its_gpu(chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda": "NVIDIA H200", "cuda:1": "NVIDIA T4"}.__getitem__)
    assert [precision.gpu_name(name) for name in ("cuda", "cuda:1", "cpu", "mps")] == [
        "NVIDIA H200",
        "NVIDIA T4",
        None,
        None,
    ]


def test_more_processes_than_gpus_are_refused_on_every_rank(chosen, monkeypatch):
    for rank in ("0", "2"):
        for name, value in (("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3"), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(
                MissingError, match="torch sees 2 CUDA devices here for 3 processes; start fewer: --nproc-per-node 2"
            ),
            distributed.joined("cuda"),
        ):
            pass
    assert not chosen


@pytest.mark.parametrize(
    ("device", "backend", "card"), [("cuda", "nccl", torch.device("cuda", 1)), ("cpu", "gloo", None)]
)
def test_steps_time_out_after_minutes_and_broadcasts_wait_on_the_cpu(chosen, monkeypatch, device, backend, card):
    told: list[tuple] = []
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for name in ("init_process_group", "all_reduce", "broadcast_object_list"):
        monkeypatch.setattr(torch.distributed, name, lambda *args, name=name, **named: told.append((name, args, named)))
    for name, found in (("new_group", "over the CPU"), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(
            torch.distributed,
            name,
            lambda found=found, **named: (told.append(("", (), named)), found)[1] if named else found,
        )
    with distributed.joined(device) as (group, own):
        assert (group, own) == (Group(1, 2, "over the CPU"), "cuda:1" if device == "cuda" else "cpu")
        group.broadcast(None)
    (_, started_with, connection), (_, _, waiting), (_, _, word), (_, (last,), end) = told
    assert (
        started_with == (backend,)
        and connection == {"timeout": distributed.STEP_TIMEOUT, "device_id": card}
        and distributed.STEP_TIMEOUT.total_seconds() <= 3600
    )
    assert (
        waiting == {"backend": "gloo", "timeout": distributed.BROADCAST_TIMEOUT}
        and word["group"] == end["group"] == "over the CPU"
        and last.device.type == "cpu"
    )
    assert chosen == ([1] if device == "cuda" else [])
