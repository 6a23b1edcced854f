"""`distill`: settings of the methods that read the teacher's logits. Defaults: the benchmarks' on CIFAR-100."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.schema.base import Count, Section

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]
CE = "weight of the cross-entropy"


class Dhkd(Section):
    """L = gamma CE(main) + alpha BinaryKL-Norm_temperature(auxiliary, teacher). Source: Yang et al. 2024."""

    alpha: Weight = Field(
        default=1.0, description="weight of the auxiliary loss; about 100 / classes (it sums over classes)"
    )
    gamma: Weight = Field(default=1.0, description=CE)
    temperature: Temperature = Field(default=2.0, description="divides the difference of the logits")
    head: Literal["linear", "nonlinear", "none"] = Field(
        default="nonlinear", description="the auxiliary head; none: both losses on one classifier, the paper's ablation"
    )
    hidden: Count = Field(default=200, description="nonlinear head's hidden units")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="nonlinear head's dropout")
    align: Literal["none", "all", "shared"] = Field(
        default="all",
        description="project the auxiliary gradient where it opposes the cross-entropy's; over which parameters",
    )
    loss: Literal["binary_kl_norm", "binary_kl"] = Field(
        default="binary_kl_norm", description="the auxiliary loss; binary_kl: the ablation's"
    )
    ramp_epochs: Weight = Field(default=0.0, description="alpha grows linearly over so many first epochs")
    stop_epoch: Count | None = Field(
        default=None,
        description="from this epoch (1-based) on alpha is 0; the paper's ImageNet recipe uses 50; null: never",
    )


class Kd(Section):
    """L = ce CE + kd T^2 KL(teacher || student). Source: Hinton et al. 2015; weights of RepDistiller and mdistiller."""

    temperature: Temperature = Field(default=4.0, description="divides the logits of both")
    ce: Weight = Field(default=0.1, description=CE)
    kd: Weight = Field(default=0.9, description="weight of the divergence from the teacher")
    standardize: bool = Field(default=False, description="z-score the logits of each picture first (Sun et al. 2024)")


class Dkd(Section):
    """L = ce CE + min(1, epoch / warmup_epochs) T^2 (alpha TCKD + beta NCKD). Source: Zhao et al. 2022; ImageNet: beta 0.5, temperature 1, no warm-up."""

    ce: Weight = Field(default=1.0, description=CE)
    alpha: Weight = Field(default=1.0, description="weight of the right class against the rest")
    beta: Weight = Field(
        default=8.0, description="weight of the other classes among themselves; the papers' pairs take 2, 6 or 8"
    )
    temperature: Temperature = Field(default=4.0, description="divides the logits of both")
    warmup_epochs: Weight = Field(default=20.0, description="both parts grow linearly over so many first epochs")


class Dist(Section):
    """L = ce CE + tau^2 (inter (1 - r over a picture's classes) + intra (1 - r over the batch)), r the correlation. Source: Huang et al. 2022."""

    ce: Weight = Field(default=1.0, description=CE)
    inter: Weight = Field(default=2.0, description="weight of the relations between classes")
    intra: Weight = Field(
        default=2.0, description="weight of the relations between pictures; it changes with the batch"
    )
    temperature: Temperature = Field(default=4.0, description="divides the logits of both; ImageNet: 1")
    tau_squared: bool = Field(
        default=True, description="multiply by temperature^2, as the authors' code for CIFAR-100 and not their paper"
    )


class Plain(Section):
    """Plain cross-entropy: no teacher."""
