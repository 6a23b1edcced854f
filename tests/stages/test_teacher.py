"""Teacher selection: training, loading, what a checkpoint must reach, and who wins."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress import models
from compress.core.errors import MissingError, StageError
from compress.core.records.base import File, sha256_of
from compress.core.records.training import Network, Normalization, Proxied, Trained, TrainingData
from compress.data import training_arrays
from compress.models import checkpoints
from compress.models.count import macs, params
from compress.recipe.schema import Distill, Export, ResolvedCandidate, ResolvedTrain
from compress.stages import convert, proxy, teacher
from compress.training import build
from compress.training.distill import train_student
from compress.verdict import teacher_choice


def run(config: ResolvedCandidate, **inputs: Any) -> Trained:
    return teacher.run_teacher(config, **inputs)


def test_a_trained_candidate_is_recorded_as_it_is(trained_teacher, training, network):
    model = build.load_network(network, trained_teacher.weights, "cpu")
    data = build.load_images(training, "cpu")
    logits = teacher.predict(model, data.images[data.validation_index], 16, network.normalization)
    assert trained_teacher.top1_validation == teacher.accuracy(logits, data.labels[data.validation_index])
    assert (trained_teacher.params, trained_teacher.macs) == (params(model), macs(model, 16))
    assert (trained_teacher.epochs, trained_teacher.precision, trained_teacher.threads) == (4, "float32", 1)
    assert trained_teacher.origin == "trained here" and trained_teacher.history is not None
    with trained_teacher.history.path.open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2", "3", "4"]


def test_a_checkpoint_is_judged_without_training(work, trained_teacher, training, network):
    config = ResolvedCandidate(model="resnet8", weights="file", expect_top1=0.2)
    loaded = run(config, context=work, network=network, data=training, weights=trained_teacher.weights)
    assert loaded.top1_validation == trained_teacher.top1_validation
    assert (loaded.epochs, loaded.history, loaded.origin) == (0, None, "checkpoint")
    assert loaded.weights.sha256 == trained_teacher.weights.sha256


def test_a_checkpoint_below_its_known_accuracy_stops_with_a_sentence(work, trained_teacher, training, network):
    config = ResolvedCandidate(model="resnet8", weights="file", expect_top1=0.9)
    torch.manual_seed(4)
    checkpoints.save_state(models.build("resnet8", classes=4), work.work / "fresh.safetensors")
    with pytest.raises(StageError) as raised:
        run(config, context=work, network=network, data=training, weights=File.of(work.work / "fresh.safetensors"))
    said = str(raised.value)
    assert said.startswith("teacher resnet8: expect_top1 is 0.9000, but validation gives 0.") and "40 images" in said
    assert said.endswith("check normalize, image_size and the order of the classes")


@pytest.fixture(scope="module")
def vivid(context, training, network) -> tuple[TrainingData, Trained]:
    """Images whose class is their colour, and a network that tells them apart, so that a wrong input must show."""
    work = context("vivid")
    images, labels, _, _ = training_arrays(training)
    images = np.random.default_rng(3).integers(0, 120, images.shape)
    for channel in range(3):
        images[..., channel] += 100 * (labels == channel)[:, None, None]
    np.save(work.work / "images.npy", images.astype(np.uint8))
    data = dataclasses.replace(training, images=File.of(work.work / "images.npy"))
    own = dataclasses.replace(network, normalization=Normalization((0.5,) * 3, (0.5,) * 3))
    short = ResolvedTrain(epochs=4, batch_size=32, lr=0.1, seed=0, precision="float32")
    learnt = run(ResolvedCandidate(model="resnet8", train=short), context=work, network=own, data=data, weights=None)
    assert learnt.top1_validation > 0.9
    return data, learnt


@pytest.mark.parametrize(
    ("normalize", "said"),
    [
        (None, "looks like BGR: with red and blue exchanged top-1 is "),
        (Normalization((0.0,) * 3, (1 / 255,) * 3), "looks like another normalisation: with "),
    ],
)
def test_the_mistake_behind_a_low_accuracy_is_named(work, vivid, normalize, said):
    """Fed in another order of channels, or with pixels that nobody divided."""
    right, learnt = vivid
    images = np.load(right.images.path)
    np.save(work.work / "images.npy", images if normalize else np.ascontiguousarray(images[..., ::-1]))
    fed = dataclasses.replace(right, images=File.of(work.work / "images.npy"))
    wrong = dataclasses.replace(learnt.network, normalization=normalize or learnt.network.normalization)
    with pytest.raises(StageError) as raised:
        run(
            ResolvedCandidate(model="resnet8", weights="file", expect_top1=learnt.top1_validation),
            context=work,
            network=wrong,
            data=fed,
            weights=learnt.weights,
        )
    assert said in str(raised.value) and "check normalize" not in str(raised.value)


def test_an_accuracy_within_the_interval_of_what_is_expected_passes(work, trained_teacher, training, network):
    expected = min(trained_teacher.top1_validation + 0.03, 0.99)
    config = ResolvedCandidate(model="resnet8", weights="file", expect_top1=expected)
    assert (
        run(config, context=work, network=network, data=training, weights=trained_teacher.weights).top1_validation
        < expected
    )


def test_a_checkpoint_of_other_classes_gets_a_new_head_where_it_is_trained(work, trained_teacher, training, network):
    torch.manual_seed(4)
    checkpoints.save_state(models.build("resnet8", classes=7), work.work / "seven.safetensors")
    weights = File.of(work.work / "seven.safetensors")
    further = ResolvedTrain(epochs=1, batch_size=32, lr=0.01, seed=0, precision="float32")
    config = ResolvedCandidate(model="resnet8", weights="file", train=further)
    trained = run(config, context=work, network=network, data=training, weights=weights)
    assert trained.origin == "checkpoint, trained further here" and trained.epochs == 1
    with pytest.raises(StageError, match="another number of classes"):
        run(
            ResolvedCandidate(model="resnet8", weights="file"),
            context=work,
            network=network,
            data=training,
            weights=weights,
        )


def test_the_pictures_prepared_at_random_start_are_the_seeds(work, training, network):
    once = ResolvedTrain(epochs=1, batch_size=32, lr=0.01, seed=3, precision="float32")
    results = []
    for number, seed in enumerate((3, 3, 4)):
        folder = work.work / str(number)
        folder.mkdir()
        config = ResolvedCandidate(model="resnet8", train=once.model_copy(update={"seed": seed}))
        results.append(
            run(
                config, context=dataclasses.replace(work, work=folder), network=network, data=training, weights=None
            ).weights.sha256
        )
    assert results[0] == results[1] != results[2]


def test_embedded_weights_that_do_not_exist_are_missing_with_the_way_out():
    with pytest.raises(
        MissingError, match=r"no embedded weights for resnet110 \(available: .*remove `weights: embedded`"
    ):
        checkpoints.embedded_teacher("resnet110")


def candidate(model: str, top1: float, macs_: int) -> Trained:
    network = Network(model, None, 4, 16, Normalization((0.0,) * 3, (1.0,) * 3))
    return Trained(network, File(teacher.Path("w"), "0" * 64, 1), top1, 10, macs_, 1, 1.0)


def test_the_best_on_validation_wins_and_the_reason_says_by_how_much():
    selected = teacher_choice.select(
        [candidate("resnet8", 0.70, 5), candidate("resnet20", 0.825, 50), candidate("resnet56", 0.81, 500)]
    )
    assert (selected.index, selected.teacher.network.model) == (1, "resnet20")
    assert (
        selected.reason == "resnet20 has the best validation accuracy: 82.50 %, 1.50 points ahead of resnet56 (81.00 %)"
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_tie_goes_to_the_cheaper_network(order):
    selected = teacher_choice.select([candidate("resnet56", 0.8, 500), candidate("resnet20", 0.8, 50)][::order])
    assert selected.reason == "resnet20 ties with resnet56 on validation and needs fewer multiply-accumulates"


def test_a_single_candidate_is_called_so():
    assert teacher_choice.select([candidate("resnet8", 0.1, 5)]).reason == "resnet8 is the only candidate"


def proxies_of(folder: Path, *right: int, pictures: int = 400) -> tuple[Proxied, ...]:
    """Students that get the first so many pictures right."""
    found = []
    for number, count in enumerate(right):
        np.save(folder / f"{number}.npy", np.arange(pictures) < count)
        found.append(Proxied(count / pictures, File.of(folder / f"{number}.npy"), pictures, 2, 0.5, 1.0))
    return tuple(found)


def test_the_proxy_decides_and_both_rankings_are_told(tmp_path):
    candidates = [candidate("resnet8", 0.70, 5), candidate("resnet20", 0.80, 50), candidate("resnet56", 0.81, 500)]
    proxies = proxies_of(tmp_path, 160, 180, 168)

    selected = teacher_choice.select(candidates, proxies)
    rows = teacher_choice.rows(candidates, selected)

    assert (selected.teacher, selected.index) == (candidates[1], 1)
    assert selected.reason == (
        "the student reaches 45.00 % on 400 validation images after 2 epochs on 50 % of the images with resnet20, "
        "3.00 [1.72, 5.17] points more than "
        "with resnet56, although resnet56 is stronger by itself (81.00 %)"
    )
    assert [(row["rank"], row["proxy_rank"], row["chosen"]) for row in rows] == [
        (3, 3, False),
        (2, 1, True),
        (1, 2, False),
    ]
    assert rows[1]["proxy_behind_ci95"] is None and rows[0]["proxy_behind_points"] == 5.0
    assert teacher_choice.proxy_line(rows[0]).startswith(
        "teacher resnet8: 70.00 % by itself (rank 3), the student 40.00 % with it (rank 3, 5.00 ["
    )
    assert teacher_choice.proxy_line(rows[0]).endswith("] points behind the best)")


@pytest.mark.parametrize("order", [1, -1])
def test_where_no_difference_is_shown_the_cheaper_teacher_is_taken(tmp_path, order):
    candidates = [candidate("resnet8", 0.70, 5), candidate("resnet20", 0.80, 50), candidate("resnet56", 0.81, 500)][
        ::order
    ]
    selected = teacher_choice.select(candidates, proxies_of(tmp_path, *(150, 178, 180)[::order]))

    assert selected.teacher.network.model == "resnet20"  # resnet8's student is shown to be worse than the best
    assert (
        "with resnet56, 0.50 [" in selected.reason
        and "more than with resnet20: no difference shown, and resnet20 needs fewer" in selected.reason
    )
    assert [gap is None or gap.shown for gap in selected.behind] == [True, False, True][::order]
    lines = [teacher_choice.proxy_line(row) for row in teacher_choice.rows(candidates, selected)]
    assert [line.endswith("no difference shown)") for line in lines] == [False, True, False][::order]

    best = teacher_choice.select(
        candidates, proxies_of(tmp_path, *(150, 180, 178)[::order])
    )  # the best is the cheaper one itself
    assert (
        best.teacher.network.model == "resnet20"
        and "with resnet20, 0.50 [" in best.reason
        and "and resnet20 needs fewer" in best.reason
    )


def test_equal_proxies_go_to_the_cheaper_teacher_and_without_any_there_is_no_second_ranking(tmp_path):
    candidates = [candidate("resnet8", 0.70, 5), candidate("resnet20", 0.80, 50)]

    assert teacher_choice.select(candidates[::-1], proxies_of(tmp_path, 160, 160)).index == 1
    assert teacher_choice.select(candidates, proxies_of(tmp_path, 160, 160)).index == 0
    assert [row["proxy_rank"] for row in teacher_choice.rows(candidates, teacher_choice.select(candidates))] == [
        None,
        None,
    ]


def test_a_short_distillation_sees_its_share_and_is_judged_on_validation(
    work, network, training, trained_teacher, dhkd
):
    train = ResolvedTrain(epochs=1, batch_size=16, lr=0.05, seed=0, precision="float32")
    inputs = {
        "student": network,
        "start": "none",
        "weights": None,
        "teacher": trained_teacher,
        "data": training,
        "train": train,
    }
    short = proxy.run_proxy(dhkd, context=work, share=0.5, **inputs)
    trained = train_student(dhkd, context=work, **inputs, share=0.5)

    assert (short.images, short.epochs, short.share) == (40, 1, 0.5)
    assert short.top1_validation == trained.fitted.history[-1]["top1_validation"] == np.load(short.correct.path).mean()
    assert len(list((work.cache / "logits").glob("*/logits.npz"))) == 1  # the real distillation will find these logits


def test_logits_that_float16_cannot_hold_are_refused_before_training(work, network, training, trained_teacher, dhkd):
    assert 0 < trained_teacher.largest_logit < 100  # recorded where it was judged, and no part of a key
    assert sha256_of(trained_teacher) == sha256_of(dataclasses.replace(trained_teacher, largest_logit=None))
    inputs = {
        "context": work,
        "student": network,
        "start": "none",
        "weights": None,
        "data": training,
        "train": ResolvedTrain(epochs=1, batch_size=16, lr=0.05, seed=0),
    }
    for largest in (65_505.0, math.nan):
        wild = dataclasses.replace(trained_teacher, largest_logit=largest)
        with pytest.raises(
            StageError,
            match=r"teacher resnet8: its logits reach (6.55e\+04|nan) on the validation images, and float16",
        ):
            train_student(dhkd, teacher=wild, **inputs)


def foreign(trained: Trained, path: Path) -> tuple[File, tuple[str, ...]]:
    """The same network as another project would have it: blue first, classes in another order, one class more."""
    state = checkpoints.read_state(trained.weights.path)
    state["conv1.weight"] = state["conv1.weight"].flip(1)
    state["fc.weight"] = torch.cat([state["fc.weight"], torch.randn(1, 64)])[[3, 4, 0, 2, 1]]
    state["fc.bias"] = torch.cat([state["fc.bias"], torch.full((1,), 50.0)])[
        [3, 4, 0, 2, 1]
    ]  # would win everywhere if it were not left out
    torch.save({"state_dict": state}, path)
    return File.of(path), ("grey", "purple", "red", "blue", "green")


def test_a_foreign_teacher_answers_through_its_own_contract(context, network, training, trained_teacher):
    work = context("foreign")
    weights, names = foreign(trained_teacher, work.work / "foreign.pt")
    order = tuple(names.index(name) for name in training.classes)
    own = dataclasses.replace(network, channels="bgr", order=order, outputs=5)
    result = run(
        ResolvedCandidate(model="resnet8", weights="file"), context=work, network=own, data=training, weights=weights
    )

    theirs, ours = (build.load_network(one.network, one.weights, "cpu").eval() for one in (result, trained_teacher))
    x = torch.randn(3, 3, 16, 16)
    assert (order, result.top1_validation) == ((2, 4, 3, 0), trained_teacher.top1_validation)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x))


def test_blue_first_is_named_before_anything_is_distilled(work, vivid):
    data, learnt = vivid
    state = checkpoints.read_state(learnt.weights.path)
    state["conv1.weight"] = state["conv1.weight"].flip(1)
    torch.save(state, work.work / "bgr.pt")
    config = ResolvedCandidate(model="resnet8", weights="file", expect_top1=learnt.top1_validation)

    with pytest.raises(StageError, match="looks like BGR: with red and blue exchanged .*; set channels: bgr$"):
        run(config, context=work, network=learnt.network, data=data, weights=File.of(work.work / "bgr.pt"))


def test_a_teacher_of_another_size_sees_resized_views_teaches_by_its_maps_and_exports(
    context, network, training, trained_teacher
):
    larger = dataclasses.replace(network, own_size=24, channels="bgr")
    teacher_of_24 = dataclasses.replace(trained_teacher, network=larger)
    model = build.load_network(larger, trained_teacher.weights, "cpu").eval()
    plain = build.load_network(network, trained_teacher.weights, "cpu").eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        wanted = plain(torch.nn.functional.interpolate(x, size=24, mode="bilinear", align_corners=False).flip(1))
        torch.testing.assert_close(model(x), wanted)

    train = ResolvedTrain(epochs=1, batch_size=40, lr=0.05, seed=0, precision="float32")
    taught = train_student(
        Distill(method=("at",)),
        context=context("at 24"),
        student=network,
        start="none",
        weights=None,
        teacher=teacher_of_24,
        data=training,
        train=train,
    )
    logits = teacher.predict(model, build.load_images(training, "cpu").images, 16, network.normalization)
    index = build.load_images(training, "cpu").validation_index
    measured = dataclasses.replace(
        teacher_of_24, top1_validation=teacher.accuracy(logits[index], build.load_images(training, "cpu").labels[index])
    )
    exported = convert.run_convert(
        Export(), context=context("24"), model=measured, recorded=None, data=training, versions={}
    )

    assert taught.fitted.history[-1]["at"] > 0
    assert exported.max_abs_diff < 1e-3 and exported.disagreements <= 1
