"""What is particular to single methods, most of it where the published code is fragile."""

from __future__ import annotations

import os

import pytest
import torch
import torch.multiprocessing as processes
from torch import Tensor

from compress.core import distributed
from compress.core.errors import UsageError
from compress.methods import Outline, Signals, build_method
from compress.methods.crd import CRD
from compress.methods.fitnet import regressor
from compress.models.deployed import projector
from compress.recipe.schema import At, Catkd, Crd, Distill, Fitnet, ReviewKd, Simkd

CRD_SMALL = Distill(method="crd", crd=Crd(width=4, negatives=50))
UNEVEN = torch.tensor([2, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0])  # ragged lists of classes break the published sampler


def net(classes: int = 3, **shapes: tuple[int, ...]) -> Outline:
    return Outline(
        "resnet8", classes, {"pooled": (5,), **{name.replace("__", "."): shape for name, shape in shapes.items()}}
    )


def crd(labels: Tensor = UNEVEN, index: Tensor | None = None, *, distill: Distill = CRD_SMALL, seed: int = 3) -> CRD:
    torch.manual_seed(0)
    method = build_method(distill, student=net(), teacher=net(), train_labels=labels, train_index=index, seed=seed)
    assert isinstance(method, CRD)
    return method


def batch(index: list[int], labels: Tensor = UNEVEN, step: int = 0) -> Signals:
    at, generator = torch.tensor(index), torch.Generator().manual_seed(1)
    drawn = torch.randn(2, len(labels), 5, generator=generator)[:, at]
    return Signals(
        labels[at],
        at,
        torch.tensor(1.0),
        drawn[0, :, :3],
        None,
        {"pooled": drawn[0]},
        {"pooled": drawn[1]},
        torch.tensor(step),
    )


# --- crd


def test_negatives_are_of_other_classes_and_all_of_them():
    train_index = torch.tensor([0, 1, 2, 4, 5, 7, 8, 9])  # 3, 6 and 10 are validation pictures
    method = crd(index=train_index)
    picture = {int(method.row[index]): int(index) for index in train_index}
    assert sorted(picture) == list(range(8)) and len(method.memory_student) == 8
    index = [0, 1, 7]
    for own, rows in zip(index, method.draws(batch(index)).tolist(), strict=True):
        assert picture[rows[0]] == own and len(rows) == 51
        drawn = {picture[row] for row in rows[1:]}
        assert drawn == {int(one) for one in train_index if UNEVEN[one] != UNEVEN[own]}


def test_negatives_depend_on_seed_step_and_image_alone():
    method = crd()
    rows = method.draws(batch([4, 9, 2], step=7))
    assert torch.equal(
        rows[1], method.draws(batch([9], step=7))[0]
    )  # whoever shares the batch, whichever process it is
    assert not torch.equal(rows, method.draws(batch([4, 9, 2], step=8)))
    assert not torch.equal(rows, crd(seed=4).draws(batch([4, 9, 2], step=7)))


def test_a_positive_may_be_any_image_of_the_class():
    method = crd(distill=Distill(method="crd", crd=Crd(width=4, negatives=5, positive="class")))
    own = {int(method.draws(batch([0], step=step))[0, 0]) for step in range(40)}
    assert own == {int(method.row[0]), int(method.row[9])}


def test_one_class_alone_has_no_negatives():
    with pytest.raises(UsageError, match="crd needs training images of at least two classes"):
        crd(torch.zeros(5, dtype=torch.int64))


def test_a_resumed_training_continues_with_its_memories():
    method = crd()
    method(batch([0, 1, 7]))
    again = crd(seed=3)
    again.load_state_dict(method.state_dict())
    for one in (method, again):
        one(batch([3, 9, 2], step=1))
    assert torch.equal(method.memory_student, again.memory_student) and torch.equal(method.log_z, again.log_z)
    again.load_state_dict(crd().state_dict())  # of before the first batch: what was known is asked for again
    assert again.log_z.isnan().all()
    again(batch([0, 1, 7]))
    assert torch.equal(again.log_z, method.log_z)


def test_a_temperature_that_overflows_half_precision_is_finite():
    method = crd(distill=Distill(method="crd", crd=Crd(width=4, negatives=50, temperature=0.001)))
    losses = method(batch([0, 1, 7]))
    losses["crd"].backward()
    assert torch.isfinite(losses["crd"]) and all(torch.isfinite(p.grad).all() for p in method.parameters())


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine's own name leads to
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    method = crd()
    if rank == 0:  # tuning for int8, which the first process does while the other one waits: nobody is asked
        method(batch([3, 9]))
        method = crd()
    method.set_process_group(distributed.Group(rank, 2))
    for step, parts in enumerate((([0, 1, 7], [3, 9]), ([5], [2, 8, 10]))):  # batches of unlike length
        method(batch(parts[rank], step=step))
    torch.save(method.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    distributed.leave(0)


@pytest.mark.slow
def test_memories_of_two_ranks_equal_those_of_one_process(tmp_path):
    processes.spawn(_rank, (str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    alone = crd()
    for step, index in enumerate(([0, 1, 7, 3, 9], [5, 2, 8, 10])):
        alone(batch(index, step=step))
    torch.testing.assert_close(states[0]["memory_student"], alone.memory_student)
    torch.testing.assert_close(states[0]["log_z"], alone.log_z)  # though their batches differ in length


# --- stages


@pytest.mark.parametrize(
    ("side", "kind", "kernel", "stride", "out"),
    [
        (8, "Conv2d", 3, 2, 4),
        (2, "ConvTranspose2d", 4, 2, 4),
        (4, "Conv2d", 1, 1, 4),
        (6, "Conv2d", 3, 1, 4),
        (1, "Conv2d", 1, 1, 1),
    ],
)
def test_a_regressor_for_every_size(side, kind, kernel, stride, out):
    layers = regressor((3, side, side), (7, 4, 4))
    assert (type(layers[0]).__name__, layers[0].kernel_size[0], layers[0].stride[0]) == (kind, kernel, stride)
    assert layers(torch.randn(2, 3, side, side)).shape == (2, 7, out, out)


def test_fitnet_names_a_stage_that_is_not_there_and_takes_signed_maps():
    maps = {"stages_post__1": (4, 8, 8)}
    with pytest.raises(
        UsageError,
        match=r"fitnet with stage 4 needs the map 'stages_post.4', which the catalogue does not have for resnet8",
    ):
        build_method(
            Distill(method="fitnet", fitnet=Fitnet(stage=4)),
            student=net(**maps),
            teacher=net(**maps),
            train_labels=UNEVEN,
        )
    method = build_method(
        Distill(method="fitnet", fitnet=Fitnet(stage=1, signed=True)),
        student=net(**maps),
        teacher=net(**maps),
        train_labels=UNEVEN,
    )
    assert [type(layer).__name__ for layer in method.regressor] == ["Conv2d", "BatchNorm2d"]


def stages(*sides: int, width: int = 4) -> Outline:
    return net(
        **{
            f"stages_{kind}__{stage}": (width * stage, side, side)
            for stage, side in enumerate(sides, 1)
            for kind in ("post", "pre")
        }
    )


def test_stages_are_matched_from_the_shallow_end_by_at_and_from_the_deep_end_by_reviewkd():
    student, teacher = stages(8, 4, 2), stages(16, 8, 4, 2)
    at = build_method(Distill(method="at", at=At()), student=student, teacher=teacher, train_labels=UNEVEN)
    assert at.student_taps == at.teacher_taps == ("stages_post.1", "stages_post.2", "stages_post.3")
    review = build_method(Distill(method="reviewkd"), student=student, teacher=teacher, train_labels=UNEVEN)
    assert review.student_taps == ("pooled", "stages_post.3", "stages_post.2", "stages_post.1")
    assert review.teacher_taps == ("pooled", "stages_pre.4", "stages_pre.3", "stages_pre.2")


def test_the_inner_width_of_reviewkds_fusions_is_configurable():
    method = build_method(
        Distill(method="reviewkd", reviewkd=ReviewKd(width=7)),
        student=stages(8, 4),
        teacher=stages(8, 4),
        train_labels=UNEVEN,
    )
    assert [fusion.reduce[0].out_channels for fusion in method.fusions] == [
        7,
        7,
        7,
    ]  # mdistiller reads this setting and then takes 512
    wide = Outline(
        "wide",
        3,
        {"pooled": (900,), **{name: shape for name, shape in stages(8, 4).shapes.items() if name != "pooled"}},
    )
    assert (
        build_method(Distill(method="reviewkd"), student=wide, teacher=stages(8, 4), train_labels=UNEVEN)
        .fusions[0]
        .reduce[0]
        .out_channels
        == 512
    )


def test_reviewkds_weight_grows_from_the_first_epoch_and_takes_the_students_maps_before_the_activation():
    method = build_method(
        Distill(method="reviewkd", reviewkd=ReviewKd(student_maps="pre")),
        student=stages(4),
        teacher=stages(4),
        train_labels=UNEVEN,
    )
    assert method.student_taps == ("pooled", "stages_pre.1")
    taps = {"pooled": torch.randn(3, 5), "stages_pre.1": torch.randn(3, 4, 4, 4)}
    epochs = [torch.tensor(epoch) for epoch in (1.0, 10.0, 20.0, 99.0)]
    values = [
        method(Signals(UNEVEN[:3], torch.arange(3), epoch, torch.randn(3, 3), None, taps, taps))["hcl"].item()
        for epoch in epochs
    ]
    assert [value / values[-1] for value in values] == pytest.approx([0.05, 0.5, 1.0, 1.0], rel=1e-4)


def test_ofd_refuses_a_teacher_whose_maps_no_batchnorm_describes():
    with pytest.raises(
        UsageError, match="resnet8 has none that describes all channels; choose another teacher, or reviewkd"
    ):
        build_method(Distill(method="ofd"), student=stages(4), teacher=stages(4), train_labels=UNEVEN)


def test_ofd_halves_the_weight_of_every_stage_before_the_last():
    norms = tuple((torch.ones(4 * stage), torch.zeros(4 * stage)) for stage in (1, 2, 3))
    teacher = Outline("t", 3, stages(8, 4, 2).shapes, norms=norms)
    method = build_method(Distill(method="ofd"), student=stages(8, 4, 2), teacher=teacher, train_labels=UNEVEN)
    for connector in method.connectors:
        connector[0].weight.data.zero_()
    maps = {f"stages_pre.{stage}": torch.ones(2, 4 * stage, side, side) for stage, side in ((1, 8), (2, 4), (3, 2))}
    loss = method(Signals(UNEVEN[:2], torch.arange(2), torch.tensor(1.0), torch.randn(2, 3), None, maps, maps))["ofd"]
    assert loss.item() == pytest.approx(1e-3 * (4 * 64 / 4 + 8 * 16 / 2 + 12 * 4), rel=1e-6)


# --- what ships


def test_simkd_pools_the_larger_map():
    assert projector(3, 8, 2, pool=4)(torch.randn(2, 3, 8, 8)).shape == (2, 8, 4, 4)
    head = (torch.randn(3, 8), torch.randn(3))
    teacher = Outline("t", 3, {"pooled": (8,), "head": (3, 8), "pre_pool": (8, 4, 4)}, classifier=head)
    small = build_method(
        Distill(method="simkd"), student=net(last_stage=(5, 2, 2)), teacher=teacher, train_labels=UNEVEN
    )
    large = build_method(
        Distill(method="simkd"), student=net(last_stage=(5, 8, 8)), teacher=teacher, train_labels=UNEVEN
    )
    assert (small.deployed_spec()["pool"], large.deployed_spec()["pool"]) == (None, 4)
    for method, side in ((small, 2), (large, 8)):
        taps = {"last_stage": torch.randn(2, 5, side, side)}
        signals = Signals(
            UNEVEN[:2],
            torch.arange(2),
            torch.tensor(1.0),
            torch.randn(2, 3),
            None,
            taps,
            {"pre_pool": torch.rand(2, 8, 4, 4)},
        )
        assert torch.isfinite(method(signals)["simkd"])
    assert torch.equal(large.classifier.weight, head[0]) and not large.classifier.weight.requires_grad


def test_simkd_refuses_a_factor_that_does_not_divide():
    teacher = Outline(
        "t", 3, {"pooled": (8,), "head": (3, 8), "pre_pool": (8, 4, 4)}, classifier=(torch.randn(3, 8), torch.randn(3))
    )
    with pytest.raises(UsageError, match=r"distill.simkd.factor: 3 does not divide the 8 channels of t"):
        build_method(
            Distill(method="simkd", simkd=Simkd(factor=3)),
            student=net(last_stage=(5, 2, 2)),
            teacher=teacher,
            train_labels=UNEVEN,
        )


def test_catkd_refuses_a_side_larger_than_the_map():
    maps = {"pre_pool": (5, 2, 2), "head": (3, 5)}
    with pytest.raises(
        UsageError, match=r"distill.catkd.side: 4 is larger than the last map of resnet8 \(2x2\); lower it"
    ):
        build_method(
            Distill(method="catkd", catkd=Catkd(side=4)), student=net(**maps), teacher=net(**maps), train_labels=UNEVEN
        )
