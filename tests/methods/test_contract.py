"""One contract for every method, on real networks: what it reads, gives, trains and ships."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress import models
from compress.core.errors import UsageError
from compress.methods import METHODS, Method, Outline, Signals, build_method
from compress.models import catalog
from compress.models.count import params
from compress.models.deployed import to_deployed
from compress.models.outline import outline
from compress.models.taps import Tapped
from compress.recipe.schema import Catkd, Crd, Dhkd, Distill, Dkd, Fitnet, Kd, ReviewKd
from compress.training import gradients

N, K, SIDE = 6, 5, 16
SMALL = Crd(negatives=8, width=4)
VARIANTS = {
    "none": Distill(method="none"),
    "kd": Distill(method="kd"),
    "kd-standardized": Distill(method="kd", kd=Kd(standardize=True)),
    "dhkd": Distill(method="dhkd"),
    "dhkd-linear": Distill(method="dhkd", dhkd=Dhkd(head="linear", align="none")),
    "dhkd-one-head": Distill(method="dhkd", dhkd=Dhkd(head="none", loss="binary_kl")),
    "dkd": Distill(method="dkd"),
    "dist": Distill(method="dist"),
    "fitnet": Distill(method="fitnet"),
    "fitnet-two-stage": Distill(method="fitnet", fitnet=Fitnet(mode="two_stage")),
    "at": Distill(method="at"),
    "rkd": Distill(method="rkd"),
    "crd": Distill(method="crd", crd=SMALL),
    "ofd": Distill(method="ofd"),
    "reviewkd": Distill(method="reviewkd"),
    "simkd": Distill(method="simkd"),
    "catkd": Distill(method="catkd", catkd=Catkd(side=1)),
    "dhkd+reviewkd": Distill(method=("dhkd", "reviewkd")),
    "kd+crd+rkd": Distill(method=("kd", "crd", "rkd"), crd=SMALL),
    "catkd+kd": Distill(method=("catkd", "kd"), catkd=Catkd(side=1)),
}
LABELS = torch.arange(12) % K


class Pair:
    """A student and a teacher with their outlines; resnet8 learns from resnet8x4."""

    def __init__(self, student: str = "resnet8", teacher: str = "resnet8x4", classes: int = K) -> None:
        torch.manual_seed(0)
        self.names = (student, teacher)
        self.student, self.teacher = (models.build(name, classes=classes) for name in self.names)
        self.teacher.eval().requires_grad_(False)
        self.outlines = [
            outline(name, classes=classes, width=None, image_size=SIDE, model=model)
            for name, model in zip(self.names, (self.student, self.teacher), strict=True)
        ]

    def build(self, distill: Distill, labels: Tensor = LABELS, class_weights: Tensor | None = None) -> Method:
        torch.manual_seed(1)
        return build_method(
            distill,
            student=self.outlines[0],
            teacher=self.outlines[1],
            train_labels=labels,
            class_weights=class_weights,
        )

    def signals(
        self, method: Method, batch: int = N, *, dtype: torch.dtype = torch.float32, epoch: float = 1.0, seed: int = 2
    ) -> Signals:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(batch, 3, SIDE, SIDE, generator=generator)
        index = torch.arange(batch)
        with Tapped(self.student, {name: self.outlines[0].taps[name] for name in method.student_taps}) as tapped:
            logits, student = tapped(pixels)
        with (
            torch.no_grad(),
            Tapped(self.teacher, {name: self.outlines[1].taps[name] for name in method.teacher_taps}) as tapped,
        ):
            known, teacher = tapped(pixels)
        student, teacher = ({name: tap.to(dtype) for name, tap in taps.items()} for taps in (student, teacher))
        return Signals(
            LABELS[index % len(LABELS)], index, torch.tensor(epoch), logits.to(dtype), known.to(dtype), student, teacher
        )


@cache
def prototype(student: str, teacher: str, classes: int) -> Pair:
    return Pair(student, teacher, classes)


def fresh(student: str = "resnet8", teacher: str = "resnet8x4", classes: int = K) -> Pair:
    """A pair of one's own; building networks and reading their outlines costs more than a copy."""
    return copy.deepcopy(prototype(student, teacher, classes))


@pytest.fixture
def pair() -> Pair:
    return fresh()


def test_every_method_is_in_the_contract_suite():
    assert {method for distill in VARIANTS.values() for method in distill.method} == set(METHODS)


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_finite_scalars_with_the_task_first(pair, name):
    method = pair.build(VARIANTS[name])
    losses = method(pair.signals(method))
    assert next(iter(losses)) == ("simkd" if name == "simkd" else "ce")
    assert all(loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    assert set(method.aligned) < set(losses) and list(losses).count("ce") <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_student_and_method_but_never_the_teacher(pair, name):
    method = pair.build(VARIANTS[name])
    for epoch in (1.0, 9.0):  # the two stages of fitnet
        method.start_epoch(int(epoch))
        sum(method(pair.signals(method, epoch=epoch)).values()).backward()
    assert pair.student.conv1.weight.grad is not None and pair.student.conv1.weight.grad.abs().sum() > 0
    silent = {
        name for name, p in method.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().sum() == 0)
    }
    assert all(name.endswith("0.bias") for name in silent), silent  # a bias in front of a BatchNorm
    assert all(
        p.grad is None for p in (*pair.teacher.parameters(), *(p for p in method.parameters() if not p.requires_grad))
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_order_of_the_batch_does_not_matter(pair, name):
    method = pair.build(VARIANTS[name])
    first = pair.signals(method)
    method(first)  # what the first batch sets, is set
    method.eval()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = dataclasses.replace(
        first,
        labels=first.labels[order],
        index=first.index[order],
        student_logits=first.student_logits[order],
        teacher_logits=first.teacher_logits[order],
        **{
            side: {tap: value if tap == "head" else value[order] for tap, value in getattr(first, side).items()}
            for side in ("student", "teacher")
        },
    )
    for one, other in zip(method(first).values(), method(moved).values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_signals_give_finite_float32_losses(pair, name):
    method = pair.build(VARIANTS[name])
    signals = pair.signals(method, dtype=torch.bfloat16)
    taps = {
        side: {tap: value.float() for tap, value in getattr(signals, side).items()} for side in ("student", "teacher")
    }  # as the engine does
    losses = method(dataclasses.replace(signals, **taps))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


class Waits(TorchDispatchMode):
    """Notes the operators whose result, or whose shape, the CPU must know: a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        by_mask = name.startswith("aten.index") and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1] or ()
        )
        if by_mask or any(
            word in name
            for word in ("nonzero", "_local_scalar_dense", "masked_select", "unique", "aten.equal", "bincount")
        ):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recordable_step_waits_for_nothing_and_leaves_every_tensor_in_its_place(pair, name):
    method = pair.build(VARIANTS[name])
    sum(method(pair.signals(method)).values()).backward()  # what the first step sets, is set
    places = {key: value.data_ptr() for key, value in method.state_dict().items()}
    signals = pair.signals(method)
    with Waits() as waits:
        sum(method(signals).values()).backward()
    assert not (method.recordable and waits.found), waits.found
    assert not method.recordable or places == {key: value.data_ptr() for key, value in method.state_dict().items()}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("classes", [2, 300])
def test_two_and_many_classes_train_or_are_refused(name, classes):
    pair = fresh(classes=classes)
    if classes == 2 and "dkd" in VARIANTS[name].method:
        with pytest.raises(UsageError, match="with two classes there is only one"):
            pair.build(VARIANTS[name])
        return
    method = pair.build(VARIANTS[name], labels=torch.arange(12) % classes)
    signals = pair.signals(method)
    losses = method(dataclasses.replace(signals, labels=signals.index % classes))
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_smallest_batch_that_a_method_names_works(pair, name):
    method = pair.build(VARIANTS[name])
    signals = pair.signals(method, method.smallest_batch())
    losses = method(signals)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(
        torch.isfinite(p.grad).all() for p in (*pair.student.parameters(), *method.parameters()) if p.grad is not None
    )


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "none"])
def test_a_teacher_is_needed_and_its_classes_must_fit(pair, name):
    with pytest.raises(UsageError, match="needs a teacher"):
        build_method(VARIANTS[name], student=pair.outlines[0], teacher=None, train_labels=LABELS)
    with pytest.raises(UsageError, match="knows 7 classes"):
        build_method(
            VARIANTS[name], student=pair.outlines[0], teacher=fresh(classes=7).outlines[1], train_labels=LABELS
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_state_is_disjoint_from_the_students_and_survives_a_round_trip(pair, name):
    method = pair.build(VARIANTS[name])
    method(pair.signals(method))
    assert not {value.data_ptr() for value in method.state_dict().values()} & {
        value.data_ptr() for value in pair.student.state_dict().values()
    }
    again = fresh().build(VARIANTS[name])
    again.load_state_dict({key: value.clone() for key, value in method.state_dict().items()})
    method.eval(), again.eval()
    signals = pair.signals(method, seed=3)
    for one, other in zip(method(signals).values(), again(signals).values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["none", "dhkd", "reviewkd", "simkd", "catkd", "catkd+kd"])
@pytest.mark.parametrize("student", ["resnet8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"])
def test_what_ships_answers_as_in_training_and_can_be_built_from_its_record(name, student):
    pair = fresh(student)
    method = pair.build(VARIANTS[name]).eval()
    pair.student.eval()
    pixels = torch.randn(3, 3, SIDE, SIDE)
    with (
        torch.no_grad(),
        Tapped(pair.student, {tap: pair.outlines[0].taps[tap] for tap in method.student_taps}) as tapped,
    ):
        logits, taps = tapped(pixels)
        trained = method.logits(
            Signals(torch.zeros(3, dtype=torch.int64), torch.arange(3), torch.ones(()), logits, None, taps)
        )
    deployed = method.deployed(pair.student)
    assert (deployed is pair.student) == (method.deployed_spec() is None)
    rebuilt = to_deployed(models.build(student, classes=K), student, method.deployed_spec()).eval()
    rebuilt.load_state_dict(deployed.state_dict())
    with torch.no_grad():
        shipped = rebuilt(pixels)
    assert (trained - shipped).abs().max() <= 1e-5
    if method.deployed_spec() is None:
        assert torch.equal(trained, shipped) and params(deployed) == params(pair.student)
    elif name.startswith("catkd"):
        assert params(deployed) == params(pair.student) - K
    assert (
        pair.student.get_submodule(catalog.info(student).linear).bias is not None
    )  # the student itself stays as it is


def test_losses_of_several_methods_are_the_parts_with_one_task(pair):
    both = pair.build(VARIANTS["dhkd+reviewkd"])
    signals = pair.signals(both, epoch=5.0)
    both.eval()
    apart = [part.eval()(signals) for part in both.parts]
    together = both(signals)
    assert list(together) == ["ce", "bkl", "hcl"]
    for key, value in {**apart[1], **apart[0]}.items():
        assert torch.equal(together[key], value)
    assert all(key.startswith("parts.") for key in both.state_dict()) and both.shipping is both.parts[0]
    assert both.aligned == ("bkl",) and set(both.teacher_taps) == set(both.parts[1].teacher_taps) and both.reads_logits


def test_only_the_first_methods_cross_entropy_counts(pair):
    for methods, weight in ((("kd", "rkd"), 0.1), (("rkd", "kd"), 1.0)):
        method = pair.build(Distill(method=methods))
        signals = pair.signals(method)
        assert method(signals)["ce"].item() == pytest.approx(
            weight * nn.functional.cross_entropy(signals.student_logits, signals.labels).item()
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_class_weights_count_in_every_cross_entropy_and_in_no_saved_state(pair, name):
    weights = torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0])
    plain, weighted = pair.build(VARIANTS[name]), pair.build(VARIANTS[name], class_weights=weights)
    signals, expected = pair.signals(plain), None
    for method in (plain, weighted):
        method.start_epoch(9)
        method.eval()
    before, after = plain(signals), weighted(signals)
    if "ce" in before:
        each = nn.functional.cross_entropy(plain.logits(signals), signals.labels, reduction="none")
        expected = before["ce"] * (each * weights[signals.labels]).mean() / each.mean()
        torch.testing.assert_close(after["ce"], expected)
    assert all(torch.equal(before[key], after[key]) for key in before if key != "ce")
    assert plain.state_dict().keys() == weighted.state_dict().keys()


def test_methods_that_need_different_teacher_modes_are_refused(pair):
    with pytest.raises(
        UsageError,
        match=r"ofd reads the teacher with the batch's statistics, reviewkd with its own; choose one with teacher_bn",
    ):
        pair.build(Distill(method=("ofd", "reviewkd")))
    assert (
        pair.build(Distill(method=("ofd", "reviewkd"), reviewkd=ReviewKd(teacher_bn="batch"))).teacher_mode
        == "batch_stats"
    )


@pytest.mark.parametrize("method", ["dkd", "crd"])
def test_methods_that_need_every_label_refuse_unlabelled_images(pair, method):
    with pytest.raises(UsageError, match=f"distill.method: {method} needs a label for every image; 1 have none"):
        pair.build(Distill(method=method), labels=torch.tensor([0, 1, -1]))


def test_a_network_without_the_maps_is_named():
    bare = Outline("plain", K, {"pooled": (8,)})
    pair = fresh()
    for method in ("fitnet", "at", "ofd", "reviewkd", "simkd", "catkd"):
        for student, teacher in ((bare, pair.outlines[1]), (pair.outlines[0], bare)):
            with pytest.raises(
                UsageError,
                match=rf"distill.method: {method} .*which the catalogue does not have for plain; "
                "choose another method or network",
            ):
                build_method(Distill(method=method), student=student, teacher=teacher, train_labels=LABELS)
    for method in ("kd", "dkd", "dist", "dhkd", "rkd", "crd"):
        assert build_method(Distill(method=method, crd=SMALL), student=bare, teacher=bare, train_labels=LABELS)


def test_dkd_with_beta_0_accepts_two_classes():
    pair = fresh(classes=2)
    method = pair.build(Distill(method="dkd", dkd=Dkd(beta=0)), labels=LABELS % 2)
    signals = pair.signals(method)
    assert torch.isfinite(method(dataclasses.replace(signals, labels=signals.labels % 2))["tckd"])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("none", "dkd", "crd", "kd+crd+rkd")])
@pytest.mark.parametrize("labelled", [0, 1])
def test_unlabelled_images_are_learnt_from_the_teacher_alone(pair, name, labelled):
    """A batch may have no label at all: finite losses, and gradients from the teacher."""
    distill = VARIANTS[name].model_copy(update={"catkd": Catkd(side=2)})  # of one pixel, a normalised map is constant
    method = pair.build(distill, labels=torch.cat([LABELS[:6], torch.full((6,), -1)]))
    signals = pair.signals(method, epoch=9.0)
    method.start_epoch(9)
    labels = torch.full_like(signals.labels, -1)
    labels[:labelled] = signals.labels[:labelled]
    losses = method(dataclasses.replace(signals, labels=labels))
    assert all(torch.isfinite(loss) for loss in losses.values())
    if "ce" in losses:
        method.eval()
        every, some = method(signals)["ce"], method(dataclasses.replace(signals, labels=labels))["ce"]
        logits = method.logits(signals)
        weight = every / nn.functional.cross_entropy(logits, signals.labels)
        alone = nn.functional.cross_entropy(logits[:1], signals.labels[:1])
        torch.testing.assert_close(some, weight * alone * labelled)
        method.train()
    parameters = [p for p in (*pair.student.parameters(), *method.parameters()) if p.requires_grad]
    if method.aligned:
        task, *others = losses.values()
        gradients.aligned_backward(task, sum(others), parameters, scope=method.scope)
    else:
        gradients.sum_backward(list(losses.values()), [p for p in parameters if reached(losses, p)])
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in parameters)
    assert pair.student.conv1.weight.grad.abs().sum() > 0


def reached(losses: dict[str, Tensor], parameter: Tensor) -> bool:
    """Return whether a loss reaches the parameter."""
    return torch.autograd.grad(sum(losses.values()), parameter, retain_graph=True, allow_unused=True)[0] is not None
