"""`distill`: the methods and their settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.schema.base import Count, Section


class Dhkd(Section):
    """L = gamma CE(main) + alpha BinaryKL-Norm_temperature(auxiliary, teacher). Source: Yang et al. 2024."""

    alpha: Annotated[float, Field(ge=0)] = Field(default=1.0, description="weight of the auxiliary loss; about 100 / classes (it sums over classes)")
    gamma: Annotated[float, Field(ge=0)] = Field(default=1.0, description="weight of the cross-entropy")
    temperature: Annotated[float, Field(gt=0)] = Field(default=2.0, description="divides the difference of the logits")
    head: Literal["linear", "nonlinear", "none"] = Field(
        default="nonlinear", description="the auxiliary head; none: both losses on one classifier, the paper's ablation"
    )
    hidden: Count = Field(default=200, description="nonlinear head's hidden units")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="nonlinear head's dropout")
    align: Literal["none", "all", "shared"] = Field(
        default="all", description="project the auxiliary gradient where it opposes the cross-entropy's; over which parameters"
    )
    loss: Literal["binary_kl_norm", "binary_kl"] = Field(default="binary_kl_norm", description="the auxiliary loss; binary_kl: the ablation's")
    ramp_epochs: Annotated[float, Field(ge=0)] = Field(default=0.0, description="alpha grows linearly over so many first epochs")
    stop_epoch: Count | None = Field(default=None, description="from this epoch (1-based) on alpha is 0; the paper's ImageNet recipe uses 50; null: never")


class Kd(Section):
    """L = ce CE + kd T^2 KL(teacher || student). Source: Hinton et al. 2015; weights of RepDistiller and mdistiller."""

    temperature: Annotated[float, Field(gt=0)] = Field(default=4.0, description="divides the logits of both")
    ce: Annotated[float, Field(ge=0)] = Field(default=0.1, description="weight of the cross-entropy")
    kd: Annotated[float, Field(ge=0)] = Field(default=0.9, description="weight of the divergence from the teacher")
    standardize: bool = Field(default=False, description="z-score the logits of each picture first (Sun et al. 2024)")


class Plain(Section):
    """Plain cross-entropy: no teacher."""


METHOD_SECTIONS: dict[str, type[Section]] = {"dhkd": Dhkd, "kd": Kd, "none": Plain}
METHOD_SUMMARIES: dict[str, str] = {
    "dhkd": "dual-head distillation: an auxiliary head that never ships learns from the teacher's logits (Yang et al. 2024)",
    "kd": "classic distillation: cross-entropy and the KL divergence to the teacher's softened logits (Hinton et al. 2015)",
    "none": "plain cross-entropy without a teacher, the baseline",
}


class Distill(Section):
    """Which method, with which settings. The selected method's keys may stand flat here, or in a section named after the method."""

    # recipe.py sorts the flat keys into the method's own section before this is built
    method: Literal["dhkd", "kd", "none"] = Field(default="dhkd", description="see `compress methods`; none: plain cross-entropy")
    baseline: bool = Field(default=False, description="train the same student without a teacher too, and report the difference")
    dhkd: Dhkd = Field(default=Dhkd(), description="settings of dhkd")
    kd: Kd = Field(default=Kd(), description="settings of kd")

    @property
    def settings(self) -> Section:
        """The section of the selected method."""
        return Plain() if self.method == "none" else getattr(self, self.method)

    def alone(self) -> Distill:
        """The selected method's settings and nothing else: what a training depends on."""
        own = Distill(method=self.method)
        return own if self.method == "none" else own.model_copy(update={self.method: self.settings})
