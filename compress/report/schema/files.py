"""How the files came about: `data`, `export`, `package`, `quantize`, and what distillation, int8 and tuning gained."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from compress.report.schema.base import Interval, Number, ReportPart
from compress.report.schema.measurements import MCNEMAR, SHA256


class DataSection(ReportPart):
    """The data set. The page shows these keys, and any further ones, as they are."""

    source: str | None = Field(default=None, description="`data.source` of the recipe")
    image_size: int | None = Field(default=None, description="side of the input in pixels")
    classes: int | None = Field(default=None, description="number of classes")
    validation_pictures: int | None = Field(
        default=None, description="validation images, taken from the training split"
    )
    test_pictures: int | None = Field(default=None, description="test images")
    normalization: dict[str, Any] | None = Field(
        default=None, description="mean and std per channel (RGB) of pixels in [0, 1]"
    )


class NearDuplicatesSection(ReportPart):
    """Images that are nearly the same in two parts of the data: resized, recompressed, cropped, or the next frame."""

    test: int | None = Field(default=None, description="test images with one among training and validation images")
    test_images: int | None = Field(default=None, description="all test images")
    validation: int | None = Field(default=None, description="validation images with one among training images")
    validation_images: int | None = Field(default=None, description="all validation images")
    group: str | None = Field(
        default=None, description="the `data.group` that would keep them together; null: the files' names show none"
    )


class UnreadableFile(ReportPart):
    """An image file that was skipped."""

    path: str | None = Field(default=None, description="path relative to the data's root")
    reason: str | None = Field(default=None, description="why it could not be decoded")


class RewriteRow(ReportPart):
    """A float-exact rewrite of the graph that was tried."""

    name: str | None = Field(default=None, description="what replaces what")
    nodes: int | None = Field(default=None, description="nodes replaced")
    kept: bool | None = Field(default=None, description="whether the files have it")
    reason: str | None = Field(default=None, description="why it was kept or refused")
    files: str | None = Field(default=None, description="the files that it is for: `float and int8`, or `int8`")
    max_abs_diff: Number | None = Field(
        default=None, description="largest difference of logits with and without it, in float64"
    )
    limit: Number | None = Field(
        default=None,
        description="limit of `max_abs_diff`: 1e-6 of the largest |logit|, for fused branches 1e-4",
    )
    images: int | None = Field(default=None, description="images that it was judged on")
    integer_share: Number | None = Field(
        default=None, description="share of integer kernels in the int8 file without it, in [0, 1]; null: not asked"
    )
    rewritten_share: Number | None = Field(default=None, description="the same share with it; null: not asked")
    float32_diff: Number | None = Field(
        default=None, description="`max_abs_diff` as onnxruntime computes it in float32, which decides nothing"
    )


class ExportSection(ReportPart):
    """The student's float ONNX file. The page shows these keys, and any further ones, as they are."""

    opset: int | None = Field(default=None, description="ONNX opset")
    ir_version: int | None = Field(default=None, description="ONNX IR version")
    nodes: int | None = Field(default=None, description="nodes of the graph")
    input: str | None = Field(default=None, description="`export.input` of the recipe, for example uint8_nhwc")
    max_abs_diff: Number | None = Field(
        default=None, description="largest difference of logits between onnxruntime and torch"
    )
    disagreements: int | None = Field(
        default=None, description="validation images whose prediction differs from torch's"
    )
    pictures: int | None = Field(default=None, description="validation images that it was checked on")
    rewrites: list[RewriteRow] = Field(default=[], description="float-exact rewrites, kept and refused")
    contract: dict[str, Any] | None = Field(
        default=None, description="always null: the student's file holds its own contract"
    )


class PackagedFile(ReportPart):
    """A further form of one of the student's files."""

    file: str | None = Field(default=None, description="the file's name in the run folder")
    kind: str | None = Field(
        default=None,
        description="batch1: a fixed batch of one image; ort: onnxruntime's own format; operators: the kernels that a "
        "minimal onnxruntime needs",
    )
    source: str | None = Field(default=None, description="the file that it was made from")
    target: str | None = Field(default=None, description="the processors that it is for; null: any")
    sha256: str | None = Field(default=None, description=SHA256)
    bytes: int | None = Field(default=None, description="size in bytes")
    max_abs_diff: Number | None = Field(
        default=None, description="largest difference of logits from those of `source` on this host; null: not run"
    )
    operators: list[str] | None = Field(default=None, description="the kernels that an .ort file needs; null otherwise")


class TrialRow(ReportPart):
    """One variant that the search for an int8 file tried."""

    name: str | None = Field(default=None, description="the variant")
    kl: Number | None = Field(
        default=None, description="mean KL divergence from the float student in nats; null: not tried"
    )
    agreement: Number | None = Field(
        default=None, description="share of predictions in common with the float student, in [0, 1]; null: not tried"
    )
    bytes: int | None = Field(default=None, description="size in bytes; null: not tried")
    kept: bool | None = Field(default=None, description="whether it was certified on the validation images")
    chosen: bool | None = Field(default=None, description="whether it ships")
    reason: str | None = Field(default=None, description="why")
    drop_points: Number | None = Field(
        default=None, description="percentage points below the float student on validation; missing: not certified"
    )
    drop_ci95: Interval | None = Field(default=None, description="95 % confidence interval of `drop_points`")
    mcnemar_p: Number | None = Field(default=None, description=MCNEMAR)
    images: int | None = Field(default=None, description="validation images")


class Int8File(ReportPart):
    """How an int8 file was made. The page shows these keys, and any further ones, as they are."""

    target: str | None = Field(default=None, description="the processors that it is built for")
    activation_type: str | None = Field(default=None, description="type of activations, for example uint8")
    weight_type: str | None = Field(default=None, description="type of weights, for example int8")
    calibration_pictures: int | None = Field(default=None, description="training images that set the ranges")
    calibrate: str | None = Field(default=None, description="how ranges were set, for example minmax")
    scheme: str | None = Field(default=None, description="static or qat")
    float_layers: list[str] = Field(default=[], description="layers left in float")
    bias_correction: bool | None = Field(default=None, description="whether biases were corrected")
    trials: list[TrialRow] = Field(default=[], description="of the search: the certified variants, then the others")
    search: str | None = Field(default=None, description="what the search chose, one sentence; null: no search")


class QuantizeSection(Int8File):
    """The int8 file for the recipe's device, and those for other targets."""

    further: list[Int8File] = Field(default=[], description="the int8 files for other targets")


class GainSection(ReportPart):
    """What a step gained in accuracy, on the same test images."""

    gain_points: Number | None = Field(default=None, description="gain in percentage points; negative: a loss")
    ci95: Interval | None = Field(default=None, description="95 % confidence interval of `gain_points`")
    mcnemar_p: Number | None = Field(default=None, description=MCNEMAR)
    sentence: str | None = Field(default=None, description="the gain in words")
    model: str | None = Field(default=None, description="the file with the step; missing: the one that ships")
    against: str | None = Field(default=None, description="the file without it; missing: the baseline's")


class TuningSection(GainSection):
    """What quantisation-aware training gained over static int8 of the same student."""

    epochs: int | None = Field(default=None, description="epochs of tuning")
    lr: Number | None = Field(default=None, description="learning rate of tuning")
    top1_float: Number | None = Field(
        default=None, description="top-1 on validation of the float student that it began with, a fraction in [0, 1]"
    )
    top1_static: Number | None = Field(default=None, description="top-1 on validation of static int8")
    top1_validation: Number | None = Field(default=None, description="top-1 on validation after tuning")
    agreement: Number | None = Field(
        default=None, description="share of predictions in common between the file and the simulation in training"
    )
    mean_abs_diff: Number | None = Field(default=None, description="mean difference of their logits")
    seconds: Number | None = Field(default=None, description="seconds that tuning took")
    images_per_second: Number | None = Field(default=None, description="images trained per second")
    threads: int | None = Field(default=None, description="CPU threads of tuning")


class IntegerGain(ReportPart):
    """What integer arithmetic is worth: the int8 student against the float student."""

    speedup: Number | None = Field(default=None, description="float latency over int8 latency")
    ci95: Interval | None = Field(default=None, description="95 % confidence interval of `speedup`")
    top1_drop_points: Number | None = Field(default=None, description="percentage points that int8 is below float")
    top1_drop_ci95: Interval | None = Field(default=None, description="95 % confidence interval of `top1_drop_points`")
    target: str | None = Field(default=None, description="the device that it was measured on; missing: this host")
    sentence: str | None = Field(default=None, description="the same in words")


class ShippedFile(ReportPart):
    """The student's file that ships."""

    file: str | None = Field(default=None, description="its name in the run folder")
    sentence: str | None = Field(
        default=None, description="what `quantize.keep: faster` decided; null: there was nothing to decide"
    )


class StageTime(ReportPart):
    """One part of a stage, such as one candidate's training."""

    title: str | None = Field(default=None, description="the stage and its part, for example `teacher resnet20`")
    seconds: Number | None = Field(default=None, description="seconds that it took when it was made")
    reused: bool | None = Field(default=None, description="whether it came from the cache")
