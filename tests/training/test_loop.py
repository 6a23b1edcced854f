"""The training loop on a tiny network: schedules, batches, losses, and the same bits after an interruption."""

from __future__ import annotations

import copy
import csv
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.core.errors import Interrupted, StageError, UsageError
from compress.data.augment import views
from compress.methods import MethodContext, Signals
from compress.methods.cross_entropy import CrossEntropy
from compress.recipe.schema import Dhkd, Distill, ResolvedSchedule
from compress.training import checkpoint, loop, schedule, shipped_weights
from compress.training.evaluation import ImageSet
from compress.training.precision import resolve_precision
from compress.training.teacher.logit_cache import TeacherCache
from tests.support.tiny_training import (
    CLASSES,
    COUNT,
    DHKD,
    NORMALIZATION,
    SHAPE,
    SIDE,
    VALIDATION,
    Net,
    PowerCut,
    RecordingProgress,
    cut_power,
    fit,
    image_set,
    press_ctrl_c,
    same,
    settings,
    state_of,
    student_and_method,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# --- schedules and precision


@pytest.mark.parametrize(
    ("epoch", "rate"), [(1, 0.1), (150, 0.1), (151, 0.01), (180, 0.01), (181, 0.001), (211, 0.0001)]
)
def test_step_schedule_falls_after_its_milestones(epoch, rate):
    config = settings(epochs=240, lr=0.1, schedule=ResolvedSchedule(kind="step", warmup_epochs=0.0))
    assert schedule.learning_rate(config, epoch, 0.5) == pytest.approx(rate)


def test_cosine_begins_at_the_rate_is_half_in_the_middle_and_ends_at_zero():
    config = settings(epochs=10, lr=0.2)
    assert schedule.learning_rate(config, 1, 0.0) == pytest.approx(0.2)
    assert schedule.learning_rate(config, 6, 0.0) == pytest.approx(0.1)
    assert schedule.learning_rate(config, 3, 0.5) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    assert schedule.learning_rate(config, 10, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_warmup_is_linear_from_zero_and_cosine_follows_it():
    config = settings(epochs=5, lr=0.4, schedule=ResolvedSchedule(kind="cosine", warmup_epochs=1.0))
    assert [schedule.learning_rate(config, 1, share) for share in (0.0, 0.25, 0.5)] == pytest.approx([0.0, 0.1, 0.2])
    assert schedule.learning_rate(config, 2, 0.0) == pytest.approx(0.4)
    assert schedule.learning_rate(config, 4, 0.0) == pytest.approx(0.2)
    assert schedule.learning_rate(config, 5, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_constant_schedule_stays():
    config = settings(epochs=5, schedule=ResolvedSchedule(kind="constant", warmup_epochs=0.0))
    assert {schedule.learning_rate(config, epoch, 0.9) for epoch in range(1, 6)} == {0.05}


@pytest.mark.parametrize(
    ("precision", "device", "flags", "resolved"),
    [
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "float32"),
        ("auto", "cuda:1", False, "float32"),
        ("auto", "cuda", True, "bf16"),
        ("float32", "cuda", True, "float32"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_precision_follows_flags_never_a_clock(monkeypatch, precision, device, flags, resolved):
    monkeypatch.setattr("compress.training.precision.cpu_has_bf16", lambda: flags)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: flags or including_emulation)
    for clock in ("monotonic", "perf_counter", "time", "process_time"):
        monkeypatch.setattr(loop.time, clock, cut_power)
    assert resolve_precision(precision, device) == resolved


@pytest.mark.parametrize(("major", "resolved"), [(7, "float32"), (8, "bf16")])
def test_a_gpu_that_emulates_bf16_trains_in_float32(monkeypatch, major, resolved):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    assert resolve_precision("auto", "cuda") == resolved


class NoFloat64(TorchDispatchMode):
    """Refuses float64, which mps has not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in tree_leaves(out)), func
        return out


def test_a_training_computes_nothing_in_float64(tmp_path):
    with NoFloat64():
        fitted = fit(tmp_path, *student_and_method(), config=settings(epochs=1))
    assert 0 <= fitted.history[0]["top1_validation"] <= 1


# --- batches


def test_a_short_last_batch_is_trained_on(tmp_path):
    progress = RecordingProgress()
    fit(tmp_path, *student_and_method(), config=settings(epochs=2), progress=progress)
    assert progress.steps == [16, 16, 8] * 2


def test_a_last_batch_smaller_than_the_method_accepts_is_left_out(tmp_path):
    progress = RecordingProgress()
    fit(tmp_path, *student_and_method(), config=settings(epochs=2), data=image_set(VALIDATION + 33), progress=progress)
    assert progress.steps == [16, 16] * 2


def test_a_last_batch_of_one_is_left_out_where_batchnorm_needs_two(folders):
    progress, none = RecordingProgress(), Distill(method="none")
    fit(
        folders / "wide",
        *student_and_method(none),
        config=settings(epochs=1),
        data=image_set(VALIDATION + 33),
        progress=progress,
    )
    assert progress.steps == [16, 16, 1]
    narrow = RecordingProgress()
    fit(
        folders / "narrow",
        *student_and_method(none, net=Net(kernel=8)),
        config=settings(epochs=1),
        data=image_set(VALIDATION + 33),
        progress=narrow,
    )
    assert narrow.steps == [16, 16]


def test_a_batch_that_is_too_small_is_refused(tmp_path):
    for student, method in (student_and_method(), student_and_method(Distill(method="none"), net=Net(kernel=8))):
        with pytest.raises(UsageError, match=r"train.batch_size: batches of at least 2 are needed, got 1"):
            fit(tmp_path, student, method, config=settings(batch_size=1))
    assert not list(tmp_path.iterdir())


def test_a_batch_is_at_most_the_whole_set(tmp_path):
    progress = RecordingProgress()
    fit(tmp_path, *student_and_method(), config=settings(epochs=1, batch_size=4096), progress=progress)
    assert progress.steps == [COUNT - VALIDATION]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("wide", "narrow", "one", "other"):
        (tmp_path / name).mkdir()
    return tmp_path


# --- what a training does


def test_losses_fall_and_the_classes_are_learnt(tmp_path):
    fitted = fit(tmp_path, *student_and_method(), config=settings(epochs=12, lr=0.1))
    first, last = fitted.history[0], fitted.history[-1]
    assert last["ce"] < 0.5 * first["ce"] and last["bkl"] < first["bkl"]
    assert last["top1_validation"] > 0.8
    assert (fitted.precision, fitted.threads, fitted.shipped_epoch, len(fitted.history)) == ("float32", 1, 12, 12)
    assert fitted.images_per_second == pytest.approx(40 * 12 / fitted.seconds)


def test_history_csv_has_a_column_for_each_loss(tmp_path):
    fitted = fit(tmp_path, *student_and_method())
    with (tmp_path / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["epoch", "lr", "ce", "bkl", "top1_validation", "images_per_second"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["ce"]) for row in rows] == [row["ce"] for row in fitted.history]
    assert float(rows[1]["lr"]) == pytest.approx(0.05 / 2 * (1 + math.cos(math.pi / 3)))


class Recording(CrossEntropy):
    """Plain cross-entropy that remembers which pictures each batch held."""

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        self.__dict__.setdefault("batches", []).append(signals.index.clone())
        return super().forward(signals)


def test_training_equals_steps_written_by_hand(tmp_path):
    torch.manual_seed(0)
    student = Net()
    reference = copy.deepcopy(student).train()
    method = Recording(None, MethodContext(SHAPE, None, torch.zeros(1), torch.zeros(1)))
    config = settings(epochs=2, momentum=0.9, weight_decay=0.01, lr=0.1)
    data = image_set(augment="none")
    fit(tmp_path, student, method, config=config, data=data)

    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    batches = method.__dict__["batches"]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(VALIDATION, COUNT)) != torch.cat(batches[:3]).tolist()
    assert torch.cat(batches[:3]).tolist() != torch.cat(batches[3:]).tolist()
    for step, index in enumerate(batches):
        x = (data.images[index].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        loss = nn.functional.cross_entropy(reference(x), data.labels[index])
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        rate = 0.1 / 2 * (1 + math.cos(math.pi * step / 6))
        with torch.no_grad():
            for p, v, g in zip(reference.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p -= rate * v
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_number_of_threads_is_set_and_restored(tmp_path):
    assert fit(tmp_path, *student_and_method(), config=settings(epochs=1, threads=2)).threads == 2
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("accuracies", "best"), [((0.3, 0.9, 0.5), 2), ((0.9, 0.9, 0.1), 2), ((0.1, 0.2, 0.3), 3)])
def test_keep_best_ships_the_best_epoch_and_last_the_last(tmp_path, monkeypatch, accuracies, best):
    told = iter(accuracies)
    monkeypatch.setattr(shipped_weights, "accuracy", lambda logits, labels: next(told))
    student, method = student_and_method()
    epochs: list[list[Tensor]] = []
    progress = RecordingProgress()
    progress.on_epoch = lambda: epochs.append(state_of(student, method))
    fitted = fit(tmp_path, student, method, config=settings(keep="best"), progress=progress)
    assert fitted.shipped_epoch == best and same(state_of(student, method), epochs[best - 1])


# --- what can go wrong


class Exploding(CrossEntropy):
    """A second loss that is not finite from the second step of the second epoch on."""

    value = float("nan")

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        extra = signals.student_logits.sum() * 0 + (self.value if self.__dict__["calls"] >= 5 else 1.5)
        return {**super().forward(signals), "extra": extra}


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_nonfinite_loss_stops_training_and_keeps_the_last_good_checkpoint(tmp_path, value, shown):
    student = Net()
    method = Exploding(None, MethodContext(SHAPE, None, torch.zeros(1), torch.zeros(1)))
    method.value = value
    with pytest.raises(
        StageError,
        match=rf"not finite in epoch 2, step 2 \(ce [0-9.]+, extra {shown}\); the last good checkpoint is kept",
    ):
        fit(tmp_path, student, method)
    again = Net()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    state, _ = checkpoint.load(
        (tmp_path / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt", again, nn.Module(), optimizer
    )
    assert (state.epoch, state.step) == (2, 0)
    assert all(torch.isfinite(value).all() for value in again.state_dict().values())


class Poisoned(CrossEntropy):
    """From some step on a finite loss whose gradient is not: the square root of a distance of zero."""

    first = 3

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        extra = (
            (signals.student_logits - signals.student_logits.detach()).pow(2).sum().sqrt()
            if self.__dict__["calls"] >= self.first
            else torch.zeros(())
        )
        return {**super().forward(signals), "extra": extra}


@pytest.mark.parametrize(
    ("first", "kept"), [(3, "there is no checkpoint yet"), (6, "the last good checkpoint is kept")]
)
def test_nonfinite_weights_after_the_last_step_are_neither_saved_nor_shipped(tmp_path, first, kept):
    """Three steps an epoch, two epochs."""
    method = Poisoned(None, MethodContext(SHAPE, None, torch.zeros(1), torch.zeros(1)))
    method.first = first
    with pytest.raises(
        StageError, match=f"the weights are not finite in epoch {first // 3}, though every loss until then was; {kept}"
    ):
        fit(tmp_path, Net(), method)
    assert (tmp_path / "checkpoint.pt").exists() == (first == 6)
    if first == 6:
        stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert (
            all(torch.isfinite(value).all() for value in stored["student"].values()) and stored["state"]["epoch"] == 2
        )


def test_without_a_checkpoint_the_message_tells_so(tmp_path):
    with pytest.raises(
        StageError, match=r"not finite in epoch 1, step [0-9]+ \(ce .*there is no checkpoint yet: lower train.lr"
    ):
        fit(tmp_path, *student_and_method(Distill(method="none")), config=settings(lr=1e30))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_damaged_checkpoint_is_named_with_the_fix(tmp_path):
    fit(tmp_path, *student_and_method(), config=settings(epochs=1))
    path = tmp_path / "checkpoint.pt"
    for content in (path.read_bytes()[:1000], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(
            StageError, match=r"checkpoint.pt cannot be resumed from .*; start this training again: rm -r "
        ):
            fit(tmp_path, *student_and_method())
    fit_other = student_and_method(Distill(method="none"), net=nn.Sequential(Net()))
    (tmp_path / "checkpoint.pt").unlink()
    fit(tmp_path, *student_and_method(Distill(method="none")), config=settings(epochs=1))
    with pytest.raises(StageError, match="cannot be resumed from"):
        loop.fit(
            *fit_other,
            image_set(),
            train=settings(),
            normalization=NORMALIZATION,
            taps={"pooled": "0.fc:in"},
            teacher=None,
            device="cpu",
            folder=tmp_path,
            progress=RecordingProgress(),
        )


def of_four_cards(path: Path) -> None:
    """What an older version wrote on a machine of four: the random states of all cards."""
    content = torch.load(path, weights_only=True)
    content["rng_cuda"] = [*content["rng_cuda"], *(torch.zeros(16, dtype=torch.uint8) for _ in range(4))][:4]
    torch.save(content, path)


def test_cpu_training_ignores_gpus_and_loads_checkpoints_of_a_four_gpu_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("a card was asked for"))
    fit(tmp_path, *student_and_method(), config=settings(epochs=1))
    of_four_cards(tmp_path / "checkpoint.pt")
    assert len(fit(tmp_path, *student_and_method(), config=settings(epochs=2)).history) == 2


# --- interrupted and resumed


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("after", [1, 3, 4, 5, 9])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, precision, after):
    config = settings(precision=precision)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = student_and_method()
    uninterrupted = fit(tmp_path / "whole", *whole, config=config)

    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path / "parts", *student_and_method(), config=config, progress=RecordingProgress(after, press_ctrl_c))
    assert stopped.value.exit_code == 130
    assert str(stopped.value).endswith(" of 3, checkpoint kept; run the same command again to resume")
    progress, parts = RecordingProgress(), student_and_method(net=Net())
    torch.manual_seed(999)  # another process starts with another random state
    resumed = fit(tmp_path / "parts", *parts, config=config, progress=progress)

    assert same(state_of(*whole), state_of(*parts))
    assert progress.started == (after // 3 + 1, after % 3) and len(progress.steps) == 9 - after
    assert [row["ce"] for row in resumed.history] == pytest.approx([row["ce"] for row in uninterrupted.history])
    assert resumed.precision == precision and len(resumed.history) == 3


@pytest.mark.parametrize("distill", [DHKD, Distill(method="kd"), Distill(method="none")], ids=["dhkd", "kd", "none"])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, distill):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = student_and_method(distill)
    fit(tmp_path / "whole", *whole)
    for after in (2, 4):  # nothing saved yet; then one epoch saved
        with pytest.raises(PowerCut):
            fit(tmp_path / "parts", *student_and_method(distill), progress=RecordingProgress(after, cut_power))
    progress, parts = RecordingProgress(), student_and_method(distill)
    fit(tmp_path / "parts", *parts, progress=progress)
    assert same(state_of(*whole), state_of(*parts)) and progress.started == (2, 0)


def test_history_exists_when_killed_after_the_last_checkpoint(tmp_path, monkeypatch):
    written = checkpoint.save

    def save_and_die(*arguments):
        written(*arguments)
        raise PowerCut

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(PowerCut):
        fit(tmp_path, *student_and_method(), config=settings(epochs=1))
    monkeypatch.setattr(checkpoint, "save", written)
    fitted = fit(tmp_path, *student_and_method(), config=settings(epochs=1))
    assert len(fitted.history) == 1 and (tmp_path / "history.csv").read_text().count("\n") == 2


def test_keep_best_survives_an_interrupt(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    config, whole, parts = settings(keep="best"), student_and_method(), student_and_method()
    told = iter((0.9, 0.3, 0.2) * 2)
    monkeypatch.setattr(shipped_weights, "accuracy", lambda logits, labels: next(told))
    fit(tmp_path / "whole", *whole, config=config)
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", *student_and_method(), config=config, progress=RecordingProgress(5, press_ctrl_c))
    fitted = fit(tmp_path / "parts", *parts, config=config)
    assert fitted.shipped_epoch == 1 and same(state_of(*whole), state_of(*parts))


def test_an_interrupt_during_the_last_validation_is_not_lost(tmp_path):
    progress, before = RecordingProgress(), signal.getsignal(signal.SIGINT)
    progress.on_epoch = press_ctrl_c
    with pytest.raises(Interrupted, match="interrupted in epoch 1 of 1"):
        fit(tmp_path, *student_and_method(), config=settings(epochs=1), progress=progress)
    assert signal.getsignal(signal.SIGINT) is before
    assert (
        len(fit(tmp_path, *student_and_method(), config=settings(epochs=1), progress=RecordingProgress()).history) == 1
    )


def test_the_seed_decides_the_bits(tmp_path):
    results = []
    for number, seed in enumerate((7, 7, 8)):
        (tmp_path / str(number)).mkdir()
        modules = student_and_method()
        fit(tmp_path / str(number), *modules, config=settings(seed=seed, epochs=1))
        results.append(state_of(*modules))
    assert same(results[0], results[1]) and not same(results[0], results[2])


@pytest.mark.gpu
def test_training_runs_on_cuda(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    data = image_set()
    there = ImageSet(
        *(part.cuda() for part in (data.images, data.labels, data.train_index, data.validation_index)),
        "crop_flip",
        SIDE,
    )
    torch.manual_seed(11)
    net = Net().eval().requires_grad_(False).cuda()
    cache = TeacherCache(
        lambda raw: net(views.to_float(raw, NORMALIZATION.mean, NORMALIZATION.std)).float(),
        images=COUNT,
        views=18,
        classes=CLASSES,
        device="cuda",
        folder=None,
        warn=lambda text: None,
    )
    student, method = (module.cuda() for module in student_and_method())
    arguments: dict[str, Any] = {
        "train": settings(epochs=6, lr=0.1, precision="auto"),
        "normalization": NORMALIZATION,
        "taps": {"pooled": "fc:in"},
        "teacher": cache,
        "device": "cuda",
        "folder": tmp_path,
    }
    with pytest.raises(Interrupted):
        loop.fit(student, method, there, progress=RecordingProgress(7, press_ctrl_c), **arguments)
    of_four_cards(tmp_path / "checkpoint.pt")
    student, method = (module.cuda() for module in student_and_method())
    fitted = loop.fit(student, method, there, progress=RecordingProgress(), **arguments)
    assert fitted.precision == "bf16" and len(fitted.history) == 6
    assert fitted.history[-1]["ce"] < fitted.history[0]["ce"]
    assert all(value.is_cuda and torch.isfinite(value).all() for value in student.state_dict().values())


@pytest.mark.gpu
@pytest.mark.usefixtures("same_kernels")
@pytest.mark.parametrize("name", ["dhkd", "kd", "none"])
def test_a_recorded_step_trains_what_a_plain_one_trains(tmp_path, name):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    data = image_set(count=200)
    there = ImageSet(
        *(part.cuda() for part in (data.images, data.labels, data.train_index, data.validation_index)),
        "crop_flip",
        SIDE,
    )
    states, replayed = [], []
    for engine in ("eager", "auto"):
        (tmp_path / engine).mkdir()
        torch.manual_seed(11)
        net = Net().eval().requires_grad_(False).cuda()
        cache = TeacherCache(
            lambda raw, net=net: net(views.to_float(raw, NORMALIZATION.mean, NORMALIZATION.std)).float(),
            images=200,
            views=18,
            classes=CLASSES,
            device="cuda",
            folder=None,
            warn=lambda text: None,
        )
        student, method = (
            module.cuda() for module in student_and_method(Distill(method=(name,), dhkd=Dhkd(hidden=12, dropout=0.0)))
        )
        recorder = RecordingProgress()
        loop.fit(
            student,
            method,
            there,
            train=settings(epochs=2, engine=engine),
            normalization=NORMALIZATION,
            taps={"pooled": "fc:in"},
            teacher=cache,
            device="cuda",
            folder=tmp_path / engine,
            progress=recorder,
        )
        states.append(state_of(student, method))
        replayed.append(recorder.rows[-1]["ce"])
    assert replayed[0] == pytest.approx(replayed[1], rel=1e-3)
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# --- traced gradients


def test_traced_gradients_change_no_bit_and_survive_an_interrupt(tmp_path):
    one_head = Distill(dhkd=Dhkd(head="none", loss="binary_kl", align="none"))
    for name in ("plain", "whole", "parts"):
        (tmp_path / name).mkdir()
    plain, whole, parts = (student_and_method(one_head) for _ in range(3))
    fit(tmp_path / "plain", *plain)
    traced = fit(tmp_path / "whole", *whole, config=settings(trace_gradients=2))
    assert same(state_of(*plain), state_of(*whole))
    with pytest.raises(Interrupted):
        fit(
            tmp_path / "parts",
            *student_and_method(one_head),
            config=settings(trace_gradients=2),
            progress=RecordingProgress(5, press_ctrl_c),
        )
    resumed = fit(tmp_path / "parts", *parts, config=settings(trace_gradients=2))
    for row, again in zip(traced.history, resumed.history, strict=True):
        assert -1 <= row["cos_classifier"] <= 1 and -1 <= row["cos_backbone"] <= 1
        assert [again[name] for name in ("cos_classifier", "cos_backbone")] == pytest.approx(
            [row["cos_classifier"], row["cos_backbone"]]
        )


def test_a_loss_with_its_own_head_has_no_classifier_cosine(tmp_path):
    history = fit(tmp_path, *student_and_method(), config=settings(trace_gradients=1, epochs=1)).history
    assert "cos_backbone" in history[0] and "cos_classifier" not in history[0]
