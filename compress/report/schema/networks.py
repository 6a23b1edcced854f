"""`teacher`, `student`, `baseline`: the networks and their training."""

from __future__ import annotations

from pydantic import Field

from compress.report.schema.base import Interval, Number, ReportPart
from compress.report.schema.measurements import ComparisonRow, ModelRow

VALIDATION = "top-1 on the validation images, a fraction in [0, 1]; null: not measured"
PARAMS = "number of parameters"
PROBE = (
    "top-1 on the validation images of a last layer alone, fitted to the features of the pretrained weights before "
    "fine-tuning, a fraction in [0, 1]; null: none was fitted"
)
MACS = "multiply-accumulates of convolutions and linear layers for one image; null: an ONNX file that does not show it"
GPU = "name of the GPU that trained it; null: trained on a CPU, or not trained here"
KERNELS = 'what computed BatchNorm on a CPU: a C compiler\'s name and version, or "torch"; null: not recorded'


class CandidateRow(ReportPart):
    """One candidate for the teacher."""

    model: str | None = Field(default=None, description="the network's name")
    width: Number | None = Field(default=None, description="width multiplier; null: the network has none")
    top1_validation: Number | None = Field(default=None, description=VALIDATION)
    score: Number | None = Field(
        default=None,
        description="`train.metric` on validation, by which the teacher was chosen, a fraction in [0, 1]; null: by "
        "`top1_validation`",
    )
    probe_top1_validation: Number | None = Field(default=None, description=PROBE)
    rank: int | None = Field(default=None, description="rank by `top1_validation`, 1 is the best")
    proxy_top1_validation: Number | None = Field(
        default=None,
        description="top-1 of the student after a short distillation from this candidate, a fraction in [0, 1]; "
        "null: candidates were not compared by proxy",
    )
    proxy_rank: int | None = Field(
        default=None, description="rank by `proxy_top1_validation`, 1 is the best; null: not compared by proxy"
    )
    proxy_behind_points: Number | None = Field(
        default=None,
        description="percentage points that this candidate's student is behind the best one; null: it is the best one, "
        "or not compared by proxy",
    )
    proxy_behind_ci95: Interval | None = Field(
        default=None, description="95 % confidence interval of `proxy_behind_points`, paired on the validation images"
    )
    params: int | None = Field(default=None, description=PARAMS)
    macs: int | None = Field(default=None, description=MACS)
    seconds: Number | None = Field(
        default=None, description="seconds that its training took; of shipped weights, its check"
    )
    epochs: int | None = Field(default=None, description="epochs trained here; 0: the weights are used as they are")
    origin: str | None = Field(default=None, description="where its weights come from, for example `trained here`")
    gpu: str | None = Field(default=None, description=GPU)
    kernels: str | None = Field(default=None, description=KERNELS)
    chosen: bool | None = Field(default=None, description="whether it teaches; exactly one candidate does")


class TeacherSection(CandidateRow):
    """The chosen teacher: the keys of its candidate, why it was chosen, and all candidates."""

    reason: str | None = Field(default=None, description="why it was chosen, one sentence")
    candidates: list[CandidateRow] = Field(default=[], description="all candidates, in the recipe's order")


class StudentSection(ReportPart):
    """The student and its training."""

    model: str | None = Field(default=None, description="the network's name")
    width: Number | None = Field(default=None, description="width multiplier; null: the network has none")
    params: int | None = Field(default=None, description=f"{PARAMS} that ship")
    macs: int | None = Field(default=None, description=f"{MACS}; of what ships")
    plain_params: int | None = Field(
        default=None, description="`params` of the student as the recipe names it; some methods ship more"
    )
    plain_macs: int | None = Field(
        default=None, description="`macs` of the student as the recipe names it; some methods ship more"
    )
    dropped: list[str] = Field(
        default=[], description="tensors of the training that do not ship, such as those of an auxiliary head"
    )
    epochs: int | None = Field(default=None, description="epochs trained")
    shipped_epoch: int | None = Field(
        default=None,
        description="the epoch whose weights ship, counted from 1; the last one unless `train.keep: best`; 0: the last "
        "layer alone, fitted before the first epoch",
    )
    metric: str | None = Field(
        default=None, description="`train.metric`, by which `train.keep: best` chose that epoch; null: the last ships"
    )
    method: str | None = Field(default=None, description="the distillation method; none: plain cross-entropy")
    top1_validation: Number | None = Field(default=None, description=VALIDATION)
    probe_top1_validation: Number | None = Field(default=None, description=PROBE)
    precision: str | None = Field(default=None, description="precision of training: float32 or bf16")
    threads: int | None = Field(default=None, description="CPU threads of training; another number changes the bits")
    images_per_second: Number | None = Field(default=None, description="images trained per second")
    gpu: str | None = Field(default=None, description=GPU)
    kernels: str | None = Field(default=None, description=KERNELS)
    teacher_rows: int | None = Field(
        default=None,
        description="views that the teacher computed logits for, without cached ones, since the training was last "
        "resumed; null: no teacher, or one whose feature maps are read, which runs on every batch",
    )


class BaselineSection(ReportPart):
    """The same student trained without a teacher."""

    models: list[ModelRow] = Field(default=[], description="its measured files, role `baseline`")
    comparisons: list[ComparisonRow] = Field(default=[], description="the comparisons that it is part of")
    epochs: int | None = Field(default=None, description="epochs trained")
    top1_validation: Number | None = Field(default=None, description=VALIDATION)
    seconds: Number | None = Field(default=None, description="seconds that its training took")


class MethodTrialRow(ReportPart):
    """One method in the short trials of `distill.method: auto`."""

    method: str | None = Field(default=None, description="its name")
    top1_validation: Number | None = Field(default=None, description="mean top-1 over the seeds, a fraction in [0, 1]")
    top1_by_seed: list[Number] = Field(default_factory=list, description="top-1 of each seed, fractions in [0, 1]")
    gain_points: Number | None = Field(
        default=None, description="percentage points over the first method, the simplest; null: it is that one"
    )
    gain_ci95: Interval | None = Field(
        default=None,
        description="95 % confidence interval of `gain_points`, paired on the images, over seeds and images",
    )
    p_holm: Number | None = Field(
        default=None, description="p-value of `gain_points` after Holm's correction for the number of methods"
    )
    chosen: bool | None = Field(default=None, description="whether the student is trained by it; exactly one is")


class MethodChoiceSection(ReportPart):
    """How `distill.method: auto` chose the method."""

    reason: str | None = Field(default=None, description="why it was chosen, one sentence")
    trials: list[MethodTrialRow] = Field(default_factory=list, description="every method, the simplest first")
    images: int | None = Field(default=None, description="images that each method was judged on")
    seeds: int | None = Field(default=None, description="trainings of each method, for each part of the images")
    folds: int | None = Field(
        default=None, description="parts of the images, each judged by trainings on the others; 1: the validation part"
    )
    epochs: int | None = Field(default=None, description="epochs of each trial")
    share: Number | None = Field(default=None, description="share of the training images that each trial saw")
    seconds: Number | None = Field(default=None, description="seconds that all trials took when they were made")
