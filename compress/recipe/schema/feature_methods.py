"""`distill`: settings of the methods that read the teacher's features; the teacher runs on every batch. Defaults: the benchmarks' on CIFAR-100."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.schema.base import Count, Section
from compress.recipe.schema.logit_methods import CE, Temperature, Weight


class Fitnet(Section):
    """L = ce CE + hint MSE(regressor(student's map), teacher's map). Source: Romero et al. 2015, joint as in the benchmarks."""

    ce: Weight = Field(default=1.0, description=CE)
    hint: Weight = Field(default=100.0, description="weight of the squared difference")
    stage: Count = Field(default=2, description="which stage gives the hint; 1 is the first behind the stem")
    signed: bool = Field(
        default=False,
        description="no ReLU behind the regressor, for teachers whose maps have negative values (mobilenet_v2)",
    )
    mode: Literal["joint", "two_stage"] = Field(
        default="joint",
        description="two_stage: as in the paper, first the hint alone, then classic distillation; it trains nothing above the hint at first",
    )
    hint_epochs: Count = Field(default=5, description="two_stage: epochs of the hint alone, of train.epochs")
    kd: Weight = Field(
        default=1.0, description="two_stage: weight of the divergence from the teacher's softened logits"
    )
    temperature: Temperature = Field(default=4.0, description="two_stage: divides the logits of both")


class At(Section):
    """L = ce CE + at sum over stages of the squared difference of spatial attention. Source: Zagoruyko and Komodakis 2017."""

    ce: Weight = Field(default=1.0, description=CE)
    at: Weight = Field(default=1000.0, description="weight of the attention maps' difference")


class Rkd(Section):
    """L = ce CE + distance D + angle A, between the pictures of a batch. Source: Park et al. 2019."""

    ce: Weight = Field(default=1.0, description=CE)
    distance: Weight = Field(default=25.0, description="weight of the distances of pairs")
    angle: Weight = Field(default=50.0, description="weight of the angles of triples")


class Crd(Section):
    """L = ce CE + crd NCE of embeddings against memories of all training pictures. Source: Tian et al. 2020."""

    ce: Weight = Field(default=1.0, description=CE)
    crd: Weight = Field(default=0.8, description="weight of the contrast")
    width: Count = Field(default=128, description="length of the embeddings; two memories hold one a training picture")
    negatives: Count = Field(
        default=16384, description="memory entries of other classes that each picture is held against"
    )
    temperature: Temperature = Field(default=0.07, description="divides the products of embeddings")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="share of the old entry that stays in the memory"
    )
    positive: Literal["own", "class"] = Field(
        default="own", description="what a picture belongs to: its own entry, or any of its class"
    )


class Ofd(Section):
    """L = ce CE + ofd sum over stages of 2^-(stages behind it) partial L2, in front of the activation. Source: Heo et al. 2019."""

    ce: Weight = Field(default=1.0, description=CE)
    ofd: Weight = Field(
        default=1e-3, description="weight of the maps' difference, a sum over each picture; ImageNet: 1e-4"
    )
    teacher_bn: Literal["batch", "eval"] = Field(
        default="batch", description="the teacher's BatchNorms: statistics of the batch (the authors) or its own"
    )
    exact_margins: bool = Field(
        default=False,
        description="the margin's formula everywhere; false: the authors' jump to -3 deviations beyond 3.1",
    )


class ReviewKd(Section):
    """L = ce CE + min(1, epoch / warmup_epochs) weight HCL of fused stages. Source: Chen et al. 2021."""

    ce: Weight = Field(default=1.0, description=CE)
    weight: Weight = Field(default=1.0, description="weight of the maps' difference; the papers' pairs take 0.6 to 8")
    warmup_epochs: Weight = Field(
        default=20.0, description="weight grows linearly over so many first epochs; ImageNet: 0"
    )
    student_maps: Literal["post", "pre"] = Field(
        default="post", description="the student's maps behind or before the activation; ImageNet: pre"
    )
    width: Count | None = Field(
        default=None, description="channels within the fusions; null: those of the pooled vector, at most 512"
    )
    teacher_bn: Literal["batch", "eval"] = Field(
        default="eval", description="batch: statistics of the batch, as in the authors' CIFAR-100 script"
    )


class Simkd(Section):
    """L = simkd MSE(projector(student's map), teacher's map); no labels. The teacher's classifier ships. Source: Chen et al. 2022."""

    simkd: Annotated[float, Field(gt=0)] = Field(default=1.0, description="weight of the squared difference")
    factor: Count = Field(
        default=2, description="the projector is the teacher's width over this factor inside; 8 is small, 2 the papers'"
    )


class Catkd(Section):
    """L = ce CE + cat MSE of class activation maps. The student ships without a bias in its classifier. Source: Guo et al. 2023."""

    ce: Weight = Field(default=1.0, description=CE)
    cat: Annotated[float, Field(gt=0)] = Field(
        default=15.0, description="weight of the maps' difference; the papers' pairs take 0.5 to 600"
    )
    side: Count = Field(default=2, description="maps are averaged to side x side first")
    normalize: bool = Field(
        default=True,
        description="scale each map to norm 1, which bounds the loss; the papers do so for mobile students and not for ResNets, WRNs and VGGs",
    )
