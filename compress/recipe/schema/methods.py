"""`distill`: the methods and their settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from compress.recipe.schema.base import Count, Section
from compress.recipe.schema.feature_methods import At, Catkd, Crd, Fitnet, Ofd, ReviewKd, Rkd, Simkd
from compress.recipe.schema.logit_methods import Dhkd, Dist, Dkd, Kd, Plain

METHOD_SECTIONS: dict[str, type[Section]] = {
    "dhkd": Dhkd,
    "kd": Kd,
    "dkd": Dkd,
    "dist": Dist,
    "fitnet": Fitnet,
    "at": At,
    "rkd": Rkd,
    "crd": Crd,
    "ofd": Ofd,
    "reviewkd": ReviewKd,
    "simkd": Simkd,
    "catkd": Catkd,
    "none": Plain,
}
METHOD_SUMMARIES: dict[str, str] = {
    "dhkd": "dual-head distillation: an auxiliary head, which does not ship, learns from the teacher's logits "
    "(Yang et al. 2024)",
    "kd": "classic distillation: cross-entropy and the KL divergence from the teacher's softened logits "
    "(Hinton et al. 2015)",
    "dkd": "decoupled distillation: separate weights for the right class and for the others among themselves "
    "(Zhao et al. 2022)",
    "dist": "relations between classes and between images, by correlation (Huang et al. 2022)",
    "fitnet": "hints: one stage's map, through a regressor that does not ship (Romero et al. 2015)",
    "at": "attention transfer: where each stage looks (Zagoruyko and Komodakis 2017)",
    "rkd": "relations: distances and angles between the images of a batch (Park et al. 2019)",
    "crd": "contrast: an image's embedding against a memory of all others (Tian et al. 2020)",
    "ofd": "overhaul: every stage before its activation, through connectors that do not ship (Heo et al. 2019)",
    "reviewkd": "review: deep stages fused into shallow ones by modules that do not ship (Chen et al. 2021)",
    "simkd": (
        "the teacher's classifier on projected features; projector and classifier ship and make the student "
        "larger (Chen et al. 2022)"
    ),
    "catkd": "class activation maps; the student ships without a bias in its classifier (Guo et al. 2023)",
    "none": "plain cross-entropy without a teacher, the baseline",
}

MethodName = Literal[
    "dhkd", "kd", "dkd", "dist", "fitnet", "at", "rkd", "crd", "ofd", "reviewkd", "simkd", "catkd", "none", "auto"
]
# Those that ship the student as the recipe names it, so that only accuracy differs.
TriedName = Literal["none", "kd", "dkd", "dist", "dhkd", "fitnet", "at", "rkd", "crd", "ofd", "reviewkd"]


def _listed(value: Any) -> Any:
    """Turn one method into a list of one."""
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


def _together(methods: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse methods that cannot be combined."""
    if not methods:
        raise ValueError("expected at least one method, got none")
    twice = next((name for name in methods if methods.count(name) > 1), None)
    if twice:
        raise ValueError(f"{twice} is named twice")
    if len(methods) > 1 and "auto" in methods:
        raise ValueError("auto tries methods one by one; name them in distill.auto.methods")
    if len(methods) > 1 and "none" in methods:
        raise ValueError("none is plain cross-entropy, which every other method has already; leave it out of the list")
    if len(methods) > 1 and "simkd" in methods:
        dropped = "simkd ships the teacher's classifier and drops the student's"
        raise ValueError(f"{dropped}, so nothing that trains the student's own can stand beside it")
    return methods


def _short(methods: tuple[str, ...]) -> str | list[str]:
    """Return the methods as a recipe has them."""
    return methods[0] if len(methods) == 1 else list(methods)


Methods = Annotated[
    tuple[MethodName, ...], BeforeValidator(_listed), AfterValidator(_together), PlainSerializer(_short)
]


def _different(methods: tuple[str, ...]) -> tuple[str, ...]:
    if len(methods) < 2:
        raise ValueError("expected at least two methods to choose from")
    twice = next((name for name in methods if methods.count(name) > 1), None)
    if twice:
        raise ValueError(f"{twice} is named twice")
    return methods


class Auto(Section):
    """How `method: auto` chooses: by short trials, judged image by image on validation."""

    methods: Annotated[tuple[TriedName, ...], AfterValidator(_different)] = Field(
        default=("none", "kd", "dkd", "dist", "dhkd"),
        description="the methods to try, from the simplest on: a later one is taken only if it is shown to be better",
    )
    epochs: Count | None = Field(
        default=None, description="of each trial; null: a quarter of train.epochs, at least 3 and at most train.epochs"
    )
    seeds: Count | None = Field(
        default=None,
        description="trainings of each method; null: 3, or 1 in five folds with fewer than 500 validation images",
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share of the training images that each trial sees"
    )


class Distill(Section):
    """The distillation method and its settings.

    The keys of a single method may stand here directly, or in a section named after the method.
    """

    # `recipe.loader.load` has moved flat keys into the method's own section before this is built.
    method: Methods = Field(
        default=("dhkd",),
        description="see `compress methods`; none: plain cross-entropy; a list: the sum of the methods, with the first "
        "one's cross-entropy; auto: the one of auto.methods that short trials show to be the best",
    )
    baseline: bool = Field(
        default=False, description="also train the same student without a teacher, and report the difference"
    )
    auto: Auto | None = Field(default=None, description="settings of `method: auto`; null: their defaults")
    dhkd: Dhkd = Field(default=Dhkd(), description="settings of dhkd")
    kd: Kd = Field(default=Kd(), description="settings of kd")
    dkd: Dkd = Field(default=Dkd(), description="settings of dkd")
    dist: Dist = Field(default=Dist(), description="settings of dist")
    fitnet: Fitnet = Field(default=Fitnet(), description="settings of fitnet")
    at: At = Field(default=At(), description="settings of at")
    rkd: Rkd = Field(default=Rkd(), description="settings of rkd")
    crd: Crd = Field(default=Crd(), description="settings of crd")
    ofd: Ofd = Field(default=Ofd(), description="settings of ofd")
    reviewkd: ReviewKd = Field(default=ReviewKd(), description="settings of reviewkd")
    simkd: Simkd = Field(default=Simkd(), description="settings of simkd")
    catkd: Catkd = Field(default=Catkd(), description="settings of catkd")

    @property
    def name(self) -> str:
        """Return the methods' names: `dhkd`, or `dhkd + reviewkd`."""
        return " + ".join(self.method)

    @property
    def plain(self) -> bool:
        """Return whether there is no distillation at all."""
        return self.method == ("none",)

    @property
    def trials(self) -> Auto:
        """The settings of `method: auto`, with their defaults."""
        return self.auto or Auto()

    @property
    def candidates(self) -> tuple[Distill, ...]:
        """This section, once for each method that `method: auto` tries; otherwise itself alone."""
        if self.method != ("auto",):
            return (self,)
        return tuple(self.model_copy(update={"method": (name,)}) for name in self.trials.methods)

    def settings(self, method: str) -> Section:
        """Return a method's section."""
        return Plain() if method == "none" else getattr(self, method)

    def alone(self) -> Distill:
        """Return only the selected methods' settings: what a training depends on."""
        own = Distill(method=self.method)
        return own.model_copy(update={name: self.settings(name) for name in self.method if name != "none"})
