"""`distill`: settings of the methods that read the teacher's features, so that the teacher runs on every batch.

Defaults are those of CIFAR-100 benchmarks.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.schema.base import Count, Section
from compress.recipe.schema.logit_methods import CE, Temperature, Weight


class Fitnet(Section):
    """L = ce CE + hint MSE(regressor(student's map), teacher's map). Source: Romero et al. 2015.

    Both losses are trained together by default, as in the benchmarks.
    """

    ce: Weight = Field(default=1.0, description=CE)
    hint: Weight = Field(default=100.0, description="weight of the squared difference")
    stage: Count = Field(default=2, description="stage that gives the hint; 1 is the first after the stem")
    signed: bool = Field(
        default=False,
        description="no ReLU after the regressor, for teachers whose maps have negative values (mobilenet_v2)",
    )
    mode: Literal["joint", "two_stage"] = Field(
        default="joint",
        description="two_stage: as in the paper, first only the hint, then classic distillation; layers above the "
        "hint are not trained at first",
    )
    hint_epochs: Count = Field(default=5, description="two_stage: how many of train.epochs train only the hint")
    kd: Weight = Field(
        default=1.0, description="two_stage: weight of the divergence from the teacher's softened logits"
    )
    temperature: Temperature = Field(default=4.0, description="two_stage: divisor of both networks' logits")


class At(Section):
    """L = ce CE + at sum over stages of the squared difference of spatial attention.

    Source: Zagoruyko and Komodakis 2017.
    """

    ce: Weight = Field(default=1.0, description=CE)
    at: Weight = Field(default=1000.0, description="weight of the attention maps' difference")


class Rkd(Section):
    """L = ce CE + distance D + angle A, between the images of a batch. Source: Park et al. 2019."""

    ce: Weight = Field(default=1.0, description=CE)
    distance: Weight = Field(default=25.0, description="weight of the distances of pairs")
    angle: Weight = Field(default=50.0, description="weight of the angles of triples")


class Crd(Section):
    """L = ce CE + crd NCE of embeddings against memories of all training images. Source: Tian et al. 2020."""

    ce: Weight = Field(default=1.0, description=CE)
    crd: Weight = Field(default=0.8, description="weight of the contrast")
    width: Count = Field(
        default=128, description="length of the embeddings; two memories hold one for each training image"
    )
    negatives: Count = Field(
        default=16384, description="memory entries of other classes that each image is compared with"
    )
    temperature: Temperature = Field(default=0.07, description="divisor of the products of embeddings")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="share of the old entry that stays in the memory"
    )
    positive: Literal["own", "class"] = Field(
        default="own", description="positive entry of an image: its own, or any of its class"
    )


class Ofd(Section):
    """L = ce CE + ofd sum over stages of 2^-(stages after it) partial L2, before the activation.

    Source: Heo et al. 2019.
    """

    ce: Weight = Field(default=1.0, description=CE)
    ofd: Weight = Field(
        default=1e-3, description="weight of the maps' difference, a sum over each image; ImageNet: 1e-4"
    )
    teacher_bn: Literal["batch", "eval"] = Field(
        default="batch",
        description="statistics of the teacher's BatchNorms: the batch's, as the authors do, or its own",
    )
    exact_margins: bool = Field(
        default=False,
        description="use the margin's formula everywhere; false: the authors' jump to -3 deviations beyond 3.1",
    )


class ReviewKd(Section):
    """L = ce CE + min(1, epoch / warmup_epochs) weight HCL of fused stages. Source: Chen et al. 2021."""

    ce: Weight = Field(default=1.0, description=CE)
    weight: Weight = Field(default=1.0, description="weight of the maps' difference; the papers' pairs take 0.6 to 8")
    warmup_epochs: Weight = Field(
        default=20.0, description="epochs over which the weight grows linearly from 0; ImageNet: 0"
    )
    student_maps: Literal["post", "pre"] = Field(
        default="post", description="take the student's maps after or before the activation; ImageNet: pre"
    )
    width: Count | None = Field(
        default=None, description="channels within the fusion modules; null: those of the pooled vector, at most 512"
    )
    teacher_bn: Literal["batch", "eval"] = Field(
        default="eval", description="batch: statistics of the batch, as in the authors' CIFAR-100 script"
    )


class Simkd(Section):
    """L = simkd MSE(projector(student's map), teacher's map), without labels. Source: Chen et al. 2022.

    The teacher's classifier ships.
    """

    simkd: Annotated[float, Field(gt=0)] = Field(default=1.0, description="weight of the squared difference")
    factor: Count = Field(
        default=2,
        description="the projector's inner width is the teacher's divided by this factor; 2 as in the paper, 8 is "
        "small",
    )


class Catkd(Section):
    """L = ce CE + cat MSE of class activation maps. Source: Guo et al. 2023.

    The student ships without a bias in its classifier.
    """

    ce: Weight = Field(default=1.0, description=CE)
    cat: Annotated[float, Field(gt=0)] = Field(
        default=15.0, description="weight of the maps' difference; the papers' pairs take 0.5 to 600"
    )
    side: Count = Field(default=2, description="maps are averaged to side x side first")
    normalize: bool = Field(
        default=True,
        description="scale each map to norm 1, which bounds the loss; the paper does so for mobile students, not for "
        "ResNets, WRNs and VGGs",
    )
