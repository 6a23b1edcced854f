"""Methods against published numbers: totals of their losses, modules by parameters, what ships."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress import models
from compress.methods import Outline, Signals, build_method, losses
from compress.methods.crd import CRD
from compress.methods.reviewkd import Fusion
from compress.models.count import macs, params
from compress.models.deployed import projector, to_deployed
from compress.models.outline import outline
from compress.models.taps import Tapped
from compress.recipe.schema import Crd, Dhkd, Dist, Distill, Dkd, Kd, Simkd

FOLDER = Path(__file__).parents[1] / "golden"
METHODS, VECTORS = (json.loads((FOLDER / name).read_text()) for name in ("methods.json", "testvectors.json"))
V2, V3 = (
    {name: torch.tensor(VECTORS["inputs"][which][name], dtype=torch.float64) for name in ("z_s", "z_t")}
    for which in ("V2", "V3")
)
LABELS = torch.tensor(VECTORS["inputs"]["V2"]["y"])
PAIRS = [(method, pair, count) for method, counts in METHODS["parameters"].items() for pair, count in counts.items()]
BARE = Outline("net", 3, {"pooled": (3,)})


def signals(**more: object) -> Signals:
    now = torch.tensor(40.0, dtype=torch.float64)
    given = {
        "labels": LABELS,
        "index": torch.arange(2),
        "epoch": now,
        "student_logits": V2["z_s"],
        "teacher_logits": V2["z_t"],
    }
    return Signals(**{**given, **more})


def ours(distill: Distill) -> nn.Module:
    return build_method(distill, student=BARE, teacher=BARE, train_labels=torch.tensor([0, 1, 2]))


def drawn(step: int, modulus: int, divisor: int, offset: float, *shape: int) -> Tensor:
    i = torch.arange(math.prod(shape))
    return (((step * i) % modulus).double() / divisor - offset).view(shape)


def a(*shape: int) -> Tensor:
    return drawn(3, 7, 2, 1.5, *shape)


def b(*shape: int) -> Tensor:
    return drawn(5, 11, 4, 1.0, *shape)


@pytest.mark.parametrize(
    ("distill", "key", "without"),
    [
        (Distill(method="kd"), "KD_T4_.1_.9", ()),
        (Distill(method="kd", kd=Kd(temperature=1, ce=0.5, kd=0.5)), "KD_T1_.5_.5", ()),
        (Distill(method="dkd"), "DKD_a1_b8_T4", ("ce",)),
        (Distill(method="dkd", dkd=Dkd(beta=2)), "DKD_a1_b2_T4", ("ce",)),
        (Distill(method="dkd", dkd=Dkd(beta=0.5, temperature=1, warmup_epochs=0)), "DKD_a1_b.5_T1", ("ce",)),
        (Distill(method="dist", dist=Dist(inter=1, intra=1)), "DIST_tau4", ("ce",)),
    ],
)
def test_totals_of_logit_methods(distill, key, without):
    total = sum(loss for name, loss in ours(distill)(signals()).items() if name not in without)
    assert total.item() == pytest.approx(METHODS["totals"][key], rel=1e-9)


def test_total_of_rkd():
    taps = {side: {"pooled": V3[name]} for side, name in (("student", "z_s"), ("teacher", "z_t"))}
    found = ours(Distill(method="rkd"))(signals(labels=torch.tensor([0, 1, 2]), student_logits=V3["z_s"], **taps))
    assert (found["distance"] + found["angle"]).item() == pytest.approx(METHODS["totals"]["RKD_25_50"], rel=1e-9)


def test_total_of_dhkd_and_reviewkd():
    """V2's DHKD plus 5 HCL of three maps: the fusions are left out, their output is what the vectors give."""
    shapes = {
        "pooled": (3,),
        **{f"stages_{kind}.{stage}": (3, side, side) for kind in ("pre", "post") for stage, side in ((1, 8), (2, 2))},
    }
    net = Outline("net", 3, shapes)
    distill = Distill(method=("dhkd", "reviewkd"), dhkd=Dhkd(head="none")).model_copy(
        update={"reviewkd": Distill().reviewkd.model_copy(update={"weight": 5.0})}
    )
    method = build_method(distill, student=net, teacher=net, train_labels=LABELS)
    method.parts[1].fused = lambda student, sides: student
    taps = [{"pooled": f(2, 3), "stages.2": f(2, 3, 2, 2), "stages.1": f(2, 3, 8, 8)} for f in (a, b)]
    student, teacher = (
        {n.replace("stages", f"stages_{kind}"): value for n, value in tap.items()}
        for tap, kind in zip(taps, ("post", "pre"), strict=True)
    )
    total = sum(method(signals(student=student, teacher=teacher)).values())
    assert total.item() == pytest.approx(METHODS["totals"]["DHKD_REVIEW"], rel=1e-9)


def test_fusions_of_reviewkd():
    deep, shallow = Fusion(2, 2, 3, fuse=False).double().eval(), Fusion(2, 2, 3, fuse=True).double().eval()
    for fusion in (deep, shallow):
        for conv in (module for module in fusion.modules() if isinstance(module, nn.Conv2d)):
            for parameter in conv.parameters():
                parameter.data = torch.linspace(-0.5, 0.7, parameter.numel(), dtype=torch.float64).view(parameter.shape)
    first, residual = deep(a(2, 2, 1, 1), None, (1, 1))
    second, _ = shallow(b(2, 2, 4, 4), residual, (4, 4))
    golden = METHODS["abf"]
    assert first.flatten().tolist() == pytest.approx(golden["first"], rel=1e-9)
    assert second.sum().item() == pytest.approx(golden["second_sum"], rel=1e-9)
    assert second.abs().mean().item() == pytest.approx(golden["second_mean_abs"], rel=1e-9)
    total = losses.hierarchical_context(second, a(2, 3, 4, 4)) + losses.hierarchical_context(first, b(2, 3, 1, 1))
    assert total.item() == pytest.approx(golden["hcl"], rel=1e-9)


def test_crd_is_golden_with_given_memories():
    """Embeddings are the vectors themselves; draws are the given contrast."""
    given = VECTORS["inputs"]["CRD"]
    distill = Distill(method="crd", crd=Crd(width=3, negatives=2, temperature=0.5))
    labels = torch.tensor([0, 1, 2, 3, 4])
    net = Outline("net", 5, {"pooled": (3,)})
    method = build_method(distill, student=net, teacher=net, train_labels=labels).double()
    assert isinstance(method, CRD)
    for layer in (method.embed_student, method.embed_teacher):
        layer.weight.data, layer.bias.data = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    method.memory_student, method.memory_teacher = (
        torch.tensor(given[name], dtype=torch.float64) for name in ("mem_s", "mem_t")
    )
    method.draws = lambda _: torch.tensor(given["contrast"])
    batch = signals(index=torch.tensor(given["idx"]), student={"pooled": V2["z_s"]}, teacher={"pooled": V2["z_t"]})
    before = method.memory_student.clone()
    assert method(batch)["crd"].item() == pytest.approx(METHODS["totals"]["CRD_T.5_x.8"], rel=1e-9)
    assert method.memory_student[0].tolist() == pytest.approx(METHODS["crd_memory"]["row0"], rel=1e-9)
    assert method.memory_student[3].tolist() == pytest.approx(VECTORS["expected"]["CRD_mem1_row3"], rel=1e-9)
    assert torch.equal(method.memory_student[[1, 2, 4]], before[[1, 2, 4]])
    assert method.log_z.exp().tolist() == pytest.approx(
        [VECTORS["expected"]["CRD_T0.5"][name] for name in ("Z_s", "Z_t")], rel=1e-9
    )
    first = method.log_z.clone()
    method(batch)
    assert torch.equal(method.log_z, first)  # the first batch's, for good


def at_32(name: str) -> Outline:
    return outline(name, classes=100, width=None, image_size=32)


@pytest.mark.parametrize(("method", "pair", "count"), PAIRS)
def test_parameter_counts_of_modules_that_never_ship(method, pair, count):
    teacher, student = map(at_32, pair.split())
    with torch.device("meta"):
        built = build_method(
            Distill(method=method), student=student, teacher=teacher, train_labels=torch.tensor([0, 1], device="cpu")
        )
    assert params(built) == count


# Width of the pooled vector -> parameters of the authors' linear and nonlinear heads at 100 classes.
AUXILIARY = {
    64: (6_500, 33_500),
    128: (12_900, 46_300),
    256: (25_700, 71_900),
    512: (51_300, 123_100),
    960: (96_100, 212_700),
    1024: (102_500, 225_500),
    1280: (128_100, 276_700),
    2048: (204_900, 430_300),
}


@pytest.mark.parametrize("width", AUXILIARY)
def test_parameters_of_dhkds_auxiliary_head(width):
    net = Outline("net", 100, {"pooled": (width,)})
    built = [
        build_method(Distill(method="dhkd", dhkd=Dhkd(head=head)), student=net, teacher=net, train_labels=LABELS)
        for head in ("linear", "nonlinear")
    ]
    assert tuple(params(method) for method in built) == AUXILIARY[width]


@pytest.mark.parametrize(("factor", "count"), METHODS["deployed"]["projector_256_256"].items())
def test_parameters_of_simkds_projector(factor, count):
    assert params(projector(256, 256, int(factor))) == count


@pytest.mark.parametrize(("pair", "count"), METHODS["deployed"]["simkd"].items())
def test_parameters_of_what_simkd_ships(pair, count):
    teacher, student, factor = pair.split()
    with torch.device("meta"):
        method = build_method(
            Distill(method="simkd", simkd=Simkd(factor=int(factor))),
            student=at_32(student),
            teacher=at_32(teacher),
            train_labels=LABELS,
        )
        assert params(to_deployed(models.build(student, classes=100), student, method.deployed_spec())) == count


# Per cent more parameters, and where known multiply-accumulates, than the plain student; from the same measurement.
GROWTH = [
    ("resnet56 resnet20 2", 5, 2),
    ("resnet32x4 resnet8x4 2", 17, 8),
    ("resnet32x4 resnet8x4 4", 6, 3),
    ("resnet32x4 resnet8x4 8", 2, 1),
    ("wrn_40_2 wrn_40_1 2", 10, 4),
    ("vgg13 vgg8 2", 22, 14),
    ("resnet32x4 shufflenet_v1 2", 25, 13),
    ("resnet50 vgg8 2", 308, None),
]


@pytest.mark.parametrize(("pair", "parameters", "products"), GROWTH)
def test_what_simkd_adds_to_the_plain_student(pair, parameters, products):
    teacher, student, factor = pair.split()
    with torch.device("meta"):
        method = build_method(
            Distill(method="simkd", simkd=Simkd(factor=int(factor))),
            student=at_32(student),
            teacher=at_32(teacher),
            train_labels=LABELS,
        )
        plain, ships = (models.build(student, classes=100) for _ in range(2))
        ships = to_deployed(ships, student, method.deployed_spec())
    assert abs(100 * (params(ships) / params(plain) - 1) - parameters) <= 1
    assert products is None or abs(100 * (macs(ships, 32) / macs(plain, 32) - 1) - products) <= 1


@pytest.mark.parametrize(("teacher", "width"), [("mobilenet_v2", 1280), ("shufflenet_v2", 1024), ("wrn_16_2", 128)])
def test_simkd_accepts_teachers_whose_pooled_map_is_no_stage(teacher, width):
    """The published code compares with the last stage, which does not fit these classifiers or is a raw sum."""
    model = models.build(teacher, classes=100).eval()
    known = outline(teacher, classes=100, width=None, image_size=32, model=model)
    method = build_method(Distill(method="simkd"), student=at_32("resnet8"), teacher=known, train_labels=LABELS)
    assert (method.classifier.in_features, method.projector[-3].out_channels) == (width, width)
    with torch.no_grad(), Tapped(model, {name: known.taps[name] for name in ("pre_pool", "pooled")}) as tapped:
        _, seen = tapped(torch.randn(2, 3, 32, 32))
    assert seen["pre_pool"].min() >= 0  # what the projector, which ends in a ReLU, can give
    torch.testing.assert_close(seen["pre_pool"].mean((2, 3)), seen["pooled"])


@pytest.mark.parametrize(("student", "count"), METHODS["deployed"]["catkd"].items())
def test_parameters_of_what_catkd_ships(student, count):
    with torch.device("meta"):
        assert params(to_deployed(models.build(student, classes=100), student, {"kind": "catkd"})) == count


@pytest.mark.parametrize(
    ("student", "dropped"), [("mobilenet_v2", 160 * 1280 + 2 * 1280), ("shufflenet_v2", 464 * 1024 + 2 * 1024)]
)
def test_simkd_ships_no_layers_after_its_tap(student, dropped):
    with torch.device("meta"):
        plain = models.build(student, classes=100)
        shapes = at_32(student).shapes
        form = {
            "kind": "simkd",
            "width_in": shapes["last_stage"][0],
            "width": 256,
            "factor": 8,
            "pool": None,
            "classes": 100,
        }
        shipped = to_deployed(models.build(student, classes=100), student, form)
    head = params(projector(shapes["last_stage"][0], 256, 8)) + 257 * 100
    assert params(shipped) == params(plain) - dropped - 100 * (shapes["pooled"][0] + 1) + head
