"""`distill`: settings of the methods that read the teacher's logits. Defaults are those of CIFAR-100 benchmarks."""

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
    temperature: Temperature = Field(default=2.0, description="divisor of the difference of the logits")
    head: Literal["linear", "nonlinear", "none"] = Field(
        default="nonlinear", description="the auxiliary head; none: both losses on one classifier, the paper's ablation"
    )
    hidden: Count = Field(default=200, description="hidden units of the nonlinear head")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="dropout of the nonlinear head")
    align: Literal["none", "all", "shared"] = Field(
        default="all",
        description="project the auxiliary gradient where it opposes the cross-entropy's; over which parameters",
    )
    loss: Literal["binary_kl_norm", "binary_kl"] = Field(
        default="binary_kl_norm", description="the auxiliary loss; binary_kl: the ablation's"
    )
    ramp_epochs: Weight = Field(default=0.0, description="epochs over which alpha grows linearly from 0")
    stop_epoch: Count | None = Field(
        default=None,
        description="from this epoch (1-based) on alpha is 0; the paper's ImageNet recipe uses 50; null: never",
    )


class Kd(Section):
    """L = ce CE + kd T^2 KL(teacher || student). Source: Hinton et al. 2015; weights of RepDistiller and mdistiller."""

    temperature: Temperature = Field(default=4.0, description="divisor of both networks' logits")
    ce: Weight = Field(default=0.1, description=CE)
    kd: Weight = Field(default=0.9, description="weight of the divergence from the teacher")
    standardize: bool = Field(default=False, description="z-score the logits of each image first (Sun et al. 2024)")


class Dkd(Section):
    """L = ce CE + min(1, epoch / warmup_epochs) T^2 (alpha TCKD + beta NCKD). Source: Zhao et al. 2022.

    For ImageNet the paper uses beta 0.5, temperature 1 and no warm-up.
    """

    ce: Weight = Field(default=1.0, description=CE)
    alpha: Weight = Field(default=1.0, description="weight of the right class against the rest")
    beta: Weight = Field(
        default=8.0, description="weight of the other classes among themselves; the papers' pairs take 2, 6 or 8"
    )
    temperature: Temperature = Field(default=4.0, description="divisor of both networks' logits")
    warmup_epochs: Weight = Field(default=20.0, description="epochs over which both parts grow linearly from 0")


class Dist(Section):
    """L = ce CE + tau^2 (inter (1 - r over an image's classes) + intra (1 - r over the batch)), r the correlation.

    Source: Huang et al. 2022.
    """

    ce: Weight = Field(default=1.0, description=CE)
    inter: Weight = Field(default=2.0, description="weight of the relations between classes")
    intra: Weight = Field(
        default=2.0, description="weight of the relations between images; it depends on the batch size"
    )
    temperature: Temperature = Field(default=4.0, description="divisor of both networks' logits; ImageNet: 1")
    tau_squared: bool = Field(
        default=True, description="multiply by temperature^2, as the authors' code for CIFAR-100 and not their paper"
    )


class Plain(Section):
    """Plain cross-entropy: no teacher."""
