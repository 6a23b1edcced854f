"""One contract for every method, then what is particular to DHKD."""

from __future__ import annotations

import pytest
import torch

from compress.errors import UsageError
from compress.methods import METHODS, Shape, Signals, build_method
from compress.methods.dhkd import auxiliary_head
from compress.models.count import params
from compress.schema import Dhkd, Distill, Kd

N, K, D = 6, 5, 8
STUDENT, TEACHER = Shape("student", K, D), Shape("teacher", K, 2 * D)
VARIANTS = {
    "none": Distill(method="none"),
    "kd": Distill(method="kd"),
    "kd-standardized": Distill(method="kd", kd=Kd(standardize=True)),
    "dhkd": Distill(method="dhkd"),
    "dhkd-linear": Distill(method="dhkd", dhkd=Dhkd(head="linear", align="none")),
    "dhkd-one-head": Distill(method="dhkd", dhkd=Dhkd(head="none", loss="binary_kl")),
}


def signals(batch: int = N, classes: int = K, epoch: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Signals, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(batch, D, generator=generator).requires_grad_()
    logits = (pooled[:, :1] * torch.linspace(-1, 1, classes) + torch.randn(batch, classes, generator=generator)).to(dtype)
    teacher = (3 * torch.randn(batch, classes, generator=generator)).to(dtype)
    labels = torch.randint(classes, (batch,), generator=generator)
    return Signals(labels, torch.arange(batch), torch.tensor(epoch), logits, teacher, {"pooled": pooled}), pooled


def build(distill: Distill, student: Shape = STUDENT, teacher: Shape | None = TEACHER):
    torch.manual_seed(0)
    return build_method(distill, student=student, teacher=teacher, train_labels=torch.zeros(4, dtype=torch.int64))


def test_every_method_is_in_the_contract_suite():
    assert {distill.method for distill in VARIANTS.values()} == set(METHODS)


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_finite_scalars_with_the_task_first(name):
    losses = build(VARIANTS[name])(signals()[0])
    assert next(iter(losses)) == "ce"
    assert all(loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_reaches_the_student_and_the_methods_own_parameters(name):
    method, (batch, pooled) = build(VARIANTS[name]), signals()
    sum(method(batch).values()).backward()
    assert pooled.grad is not None and pooled.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in method.named_parameters() if not n.endswith("0.bias"))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_order_of_the_batch_does_not_matter(name):
    method, (batch, _) = build(VARIANTS[name]).eval(), signals()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = Signals(batch.labels[order], batch.index[order], batch.epoch, batch.student_logits[order], batch.teacher_logits[order],
                    {"pooled": batch.student["pooled"][order]})  # fmt: skip
    for one, other in zip(method(batch).values(), method(moved).values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_logits_give_float32_losses(name):
    losses = build(VARIANTS[name])(signals(dtype=torch.bfloat16)[0])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("classes", [2, 1000])
def test_two_and_a_thousand_classes_work(name, classes):
    method = build(VARIANTS[name], Shape("s", classes, D), Shape("t", classes, D))
    assert all(torch.isfinite(loss) for loss in method(signals(classes=classes)[0]).values())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_of_one_works_where_the_method_says_so(name):
    method = build(VARIANTS[name])
    if method.smallest_batch() == 1:
        assert all(torch.isfinite(loss) for loss in method(signals(batch=1)[0]).values())
    else:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            method(signals(batch=1)[0])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "none"])
def test_a_teacher_is_needed_and_its_classes_must_fit(name):
    with pytest.raises(UsageError, match="needs a teacher"):
        build(VARIANTS[name], teacher=None)
    with pytest.raises(UsageError, match="knows 7 classes"):
        build(VARIANTS[name], teacher=Shape("t", 7, D))


@pytest.mark.parametrize("name", VARIANTS)
def test_deployed_is_the_student_itself(name):
    student = torch.nn.Linear(D, K)
    assert build(VARIANTS[name]).deployed(student) is student


@pytest.mark.parametrize(("width", "linear", "nonlinear"), [(64, 6_500, 33_500), (128, 12_900, 46_300), (1280, 128_100, 276_700), (2048, 204_900, 430_300)])
def test_auxiliary_head_has_the_papers_parameter_counts(width, linear, nonlinear):
    assert params(auxiliary_head("linear", width, 100, 200, 0.1)) == linear
    assert params(auxiliary_head("nonlinear", width, 100, 200, 0.1)) == nonlinear


def test_dropout_stands_before_batchnorm():
    assert [type(m).__name__ for m in auxiliary_head("nonlinear", 8, 3, 200, 0.1)] == ["Linear", "Dropout", "BatchNorm1d", "ReLU", "Linear"]


@pytest.mark.parametrize(("alpha", "key"), [(1.0, "DHKD_obj_gamma1_alpha1_tau2 (main head logits = zs, aux logits = zs)"), (0.1, "DHKD_obj_alpha0.1")])
def test_dhkd_total_is_golden(alpha, key):
    import json
    from pathlib import Path

    golden = json.loads((Path(__file__).parent / "golden" / "testvectors.json").read_text())
    v2 = {name: torch.tensor(golden["inputs"]["V2"][name], dtype=torch.float64) for name in ("z_s", "z_t")}
    method = build(Distill(dhkd=Dhkd(head="none", alpha=alpha)), Shape("s", 3, 2), Shape("t", 3, 2))
    batch = Signals(torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0, dtype=torch.float64), v2["z_s"], v2["z_t"])
    assert sum(method(batch).values()).item() == pytest.approx(golden["expected"][key], rel=1e-9)


@pytest.mark.parametrize(("epoch", "share"), [(1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0), (10, 0.0), (11, 0.0)])
def test_alpha_ramps_up_and_stops(epoch, share):
    method = build(Distill(dhkd=Dhkd(alpha=2.0, ramp_epochs=4, stop_epoch=10)))
    assert method.alpha(torch.tensor(float(epoch))).item() == pytest.approx(2.0 * share)


def test_alignment_names_the_auxiliary_loss():
    assert build(Distill(dhkd=Dhkd(align="none"))).aligned == ()
    assert build(Distill(dhkd=Dhkd(align="shared"))).scope == "shared"
    method = build(Distill())
    assert method.aligned == ("bkl",) and method.scope == "all" and set(method.aligned) < set(method(signals()[0]))
