"""`analysis`: what `compress analyze` adds."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from compress.report.schema.base import Interval, Number, ReportPart


class GradientAnalysis(ReportPart):
    """Whether the gradients of the student's two losses agree."""

    every: int | None = Field(default=None, description="`train.trace_gradients` of the recipe; null: not traced")
    lowest: dict[str, Number] = Field(
        default={}, description="part of the student (classifier, backbone): its lowest mean cosine of an epoch"
    )
    head: dict[str, Any] | None = Field(
        default=None, description="DHKD's settings of its auxiliary head; null: another method"
    )
    sentence: str | None = Field(default=None, description="why there are no cosines, one sentence; null: there are")


class MissingLogits(ReportPart):
    """Whether the stored logits could be compared."""

    sentence: str | None = Field(default=None, description="why they could not, one sentence; null: they were")


class CorrelationRow(ReportPart):
    """Correlations between classes of a student's logits minus the teacher's (Tian et al. 2020)."""

    what: str = Field(default="", description="float student, classifier or auxiliary head")
    split: str | None = Field(default=None, description="test or validation")
    pictures: int | None = Field(default=None, description="number of images")
    mean_abs: Number | None = Field(default=None, description="mean absolute difference off the diagonal")
    max_abs: Number | None = Field(default=None, description="largest absolute difference")
    mean_logits_abs: Number | None = Field(
        default=None, description="mean absolute difference of each true class's mean logits; null: no class has images"
    )


class CalibrationRow(ReportPart):
    """How well a file's confidence matches its accuracy, on the test images."""

    what: str = Field(default="", description="teacher, float student or int8 student")
    file: str | None = Field(default=None, description="the file")
    pictures: int | None = Field(default=None, description="number of images")
    bins: int | None = Field(default=None, description="equal bins of confidence")
    resamples: int | None = Field(default=None, description="bootstrap resamples behind `ece_ci95`")
    ece: Number | None = Field(
        default=None, description="expected calibration error (Guo et al. 2017), a fraction in [0, 1]"
    )
    ece_ci95: Interval | None = Field(default=None, description="95 % confidence interval of `ece`")
    confidence: Number | None = Field(default=None, description="mean confidence, a fraction in [0, 1]")
    top1: Number | None = Field(default=None, description="top-1, a fraction in [0, 1]")
    nll: Number | None = Field(default=None, description="negative log-likelihood in nats")


class FeatureNetwork(ReportPart):
    """One network's features."""

    role: str | None = Field(default=None, description="teacher or student")
    model: str | None = Field(default=None, description="the network's name")
    width: int | None = Field(default=None, description="number of features")
    same_class_neighbours: Number | None = Field(
        default=None, description="share of the nearest neighbours that are of the image's own class, in [0, 1]"
    )


class FeatureAnalysis(ReportPart):
    """What the classifiers read, and its t-SNE."""

    pictures: int | None = Field(default=None, description="validation images drawn")
    classes: list[str] = Field(default=[], description="classes drawn")
    of_classes: int | None = Field(default=None, description="number of all classes")
    perplexity: Number | None = Field(default=None, description="perplexity of t-SNE")
    neighbours: int | None = Field(default=None, description="nearest neighbours counted per image")
    networks: list[FeatureNetwork] = Field(default=[], description="the networks drawn")
    sentence: str | None = Field(default=None, description="what is missing and why; null: nothing")


class OtherRun(ReportPart):
    """A run whose training curves are drawn beside this one's; the first row is this run itself."""

    recipe: str = Field(default="", description="the recipe's name")
    run: str = Field(default="", description="the run folder's name")
    method: str | None = Field(default=None, description="its distillation method")
    loss: str | None = Field(default=None, description="name of its task loss")
    top1_validation: Number | None = Field(default=None, description="top-1 on validation after the last epoch")
    cosines: list[str] = Field(default=[], description="the cosines that it traced")


class AnalysisSection(ReportPart):
    """Everything that `compress analyze` found. Arrays are in analysis.npz."""

    seed: int | None = Field(default=None, description="seed of t-SNE and bootstrap")
    gradients: GradientAnalysis = Field(default=GradientAnalysis(), description="gradients of the student's losses")
    against: list[OtherRun] = Field(default=[], description="the runs of `--against`; empty: none")
    logits: MissingLogits = Field(default=MissingLogits(), description="whether stored logits could be compared")
    correlations: list[CorrelationRow] = Field(default=[], description="of the float student on the test images")
    calibration: list[CalibrationRow] = Field(default=[], description="one row a file")
    features: FeatureAnalysis = Field(default=FeatureAnalysis(), description="features and their t-SNE")
    heads: list[CorrelationRow] = Field(
        default=[], description="of DHKD's classifier and auxiliary head on validation images; empty: another method"
    )
