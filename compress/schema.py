"""The recipe's sections: keys, types, ranges, defaults. Torch-free, so that a wrong recipe is answered at once.

Every value has a default but `data` and the two networks. `recipe.py` reads the YAML, knows positions and turns
pydantic's errors into one line each; this file only says what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
VERSION_PATTERN = r"^[0-9]+\.[0-9]+(\.[0-9]+)?$"
PATTERNS = {  # in words, for messages
    NAME_PATTERN: "a name of letters, digits, '.', '_' and '-' that begins with a letter or a digit",
    VERSION_PATTERN: "a version such as '1.19'",
}


def _share_or_count(value: Any) -> Any:
    """Pass a share in (0, 1) or a whole number from 1 on; one message for both branches of the union."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (0 < value < 1 or (isinstance(value, int) and value >= 1)):
        return value
    shown = repr(value) if isinstance(value, str) or number else "something else"
    raise ValueError(f"expected a share between 0 and 1 or a whole number of pictures, got {shown}")


Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
ShareOrCount = Annotated[Share | Count, BeforeValidator(_share_or_count)]  # a share below 1 or a number of pictures


class Section(BaseModel):
    """A frozen record of plain values; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Normalize(Section):
    """Per-channel mean and standard deviation of pixels in [0, 1], RGB."""

    mean: tuple[float, float, float]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], Field()]


class Data(Section):
    """Where the pictures come from and how they are split by purpose."""

    source: Literal["fashion", "cifar10", "cifar100", "folder", "npz"]
    root: str | None = Field(default=None, description="file (npz) or folder; relative to the recipe, ~ expands")
    download: bool = Field(default=False, description="let torchvision download cifar10 / cifar100 into root")
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(default=None, description="pixels; default: 32, or 224 for folder")
    normalize: Normalize | None = Field(default=None, description="default: published constants of a named set, else the train mean")
    augment: Literal["crop_flip", "crop", "resized_crop", "none"] | None = Field(
        default=None, description="training views; default: crop_flip, or resized_crop for folder"
    )
    validation: ShareOrCount = Field(default=0.1, description="carved from train, stratified: a share below 1 or a number of pictures")
    test: ShareOrCount = Field(default=0.2, description="folder without a test sub-folder: what is carved off for the final validation")
    calibration: Count = Field(default=512, description="pictures from train for the int8 ranges")
    split_seed: Annotated[int, Field(ge=0)] = 0
    max_unreadable: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.01, description="share of unreadable pictures that is tolerated")
    limit_train: Count | None = Field(default=None, description="use only the first n training pictures (stratified), for a quick trial")
    limit_test: Count | None = Field(default=None, description="use only the first n test pictures (stratified), for a quick trial")


class Schedule(Section):
    """Learning rate over epochs. step: x gamma after each milestone epoch; cosine: to zero at the end of the last epoch."""

    kind: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[Count, ...] = Field(default=(150, 180, 210), description="step: last epoch (1-based) at the higher rate")
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="linear from 0; default: 0, or 1 (at most a quarter of the epochs) from pretrained weights"
    )


class Train(Section):
    """SGD as in the papers. `null` takes the default for the start: from scratch, or from pretrained weights."""

    epochs: Count | None = Field(
        default=None, description="default: 240 from scratch (the papers'; 60 for a teacher candidate), 20 from pretrained weights"
    )
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="default: 0.05 from scratch (0.01 for Mobile- and ShuffleNets), 0.005 from pretrained weights"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Schedule = Schedule()
    precision: Literal["auto", "float32", "bf16"] = "auto"
    views: Count | None = Field(
        default=None, description="limit the augmentation to n views a picture, so that a teacher's logits can be remembered; null: all"
    )
    keep: Literal["last", "best"] = Field(default="last", description="which epoch ships; best is judged on validation")
    threads: Count | None = Field(default=None, description="CPU threads; default: all physical cores; a resume keeps them")
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="default: the recipe's seed (student) or 0 (teacher candidates)"
    )


class Candidate(Section):
    """One possible teacher: a network to train here, or a checkpoint, or a checkpoint that is trained further."""

    model: str
    width: Annotated[float, Field(gt=0, le=4)] | None = None
    weights: str = Field(default="none", description="none | embedded | a torchvision weights name | path to .safetensors / .pt / .pth")
    expect_top1: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="what the checkpoint must reach on validation, as a fraction"
    )
    normalize: Normalize | None = Field(default=None, description="the checkpoint's own; default: data's")
    train: Train | None = Field(
        default=None, description="train here (from `weights` where given); default: train exactly when weights is none"
    )


class Teacher(Section):
    select: Literal["best"] = "best"
    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)]


class Student(Section):
    model: str
    width: Annotated[float, Field(gt=0, le=4)] | None = None
    weights: str = Field(default="none", description="none | a torchvision weights name | path to .safetensors / .pt / .pth")


class Dhkd(Section):
    """L = gamma CE(main) + alpha BinaryKL-Norm_temperature(auxiliary, teacher). Source: Yang et al. 2024."""

    alpha: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="weight of the auxiliary loss; about 100 / classes (it sums over classes)"
    )
    gamma: Annotated[float, Field(ge=0)] = Field(default=1.0, description="weight of the cross-entropy")
    temperature: Annotated[float, Field(gt=0)] = 2.0
    head: Literal["linear", "nonlinear", "none"] = Field(
        default="nonlinear", description="none: both losses on one classifier, the paper's ablation"
    )
    hidden: Count = Field(default=200, description="nonlinear head's width")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    align: Literal["none", "all", "shared"] = Field(
        default="all", description="project the auxiliary gradient where it opposes the cross-entropy's"
    )
    loss: Literal["binary_kl_norm", "binary_kl"] = Field(default="binary_kl_norm", description="binary_kl: the ablation's loss")
    ramp_epochs: Annotated[float, Field(ge=0)] = Field(default=0.0, description="alpha grows linearly over the first epochs")
    stop_epoch: Count | None = Field(default=None, description="from this epoch (1-based) on alpha is 0; the ImageNet recipe uses 50")


class Kd(Section):
    """L = ce CE + kd T^2 KL(teacher || student). Source: Hinton et al. 2015; weights of RepDistiller and mdistiller."""

    temperature: Annotated[float, Field(gt=0)] = 4.0
    ce: Annotated[float, Field(ge=0)] = 0.1
    kd: Annotated[float, Field(ge=0)] = 0.9
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
    """Which method, with which settings. Flat keys are sorted into the method's own section by recipe.py before this is built."""

    method: Literal["dhkd", "kd", "none"] = "dhkd"
    baseline: bool = Field(default=False, description="train the same student without a teacher too, and report the difference")
    dhkd: Dhkd = Dhkd()
    kd: Kd = Kd()

    @property
    def settings(self) -> Section:
        """The section of the selected method."""
        return Plain() if self.method == "none" else getattr(self, self.method)

    def alone(self) -> Distill:
        """The selected method's settings and nothing else: what a training depends on."""
        own = Distill(method=self.method)
        return own if self.method == "none" else own.model_copy(update={self.method: self.settings})


class Export(Section):
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    batch: Literal["dynamic"] = "dynamic"
    input: Literal["uint8_nhwc", "float_nchw"] = Field(
        default="uint8_nhwc", description="uint8_nhwc: RGB pixels, normalised inside the file; float_nchw: the app normalises"
    )
    min_runtime: Annotated[str, Field(pattern=VERSION_PATTERN)] = Field(
        default="1.19", description="oldest onnxruntime that must run the file; in quotes"
    )


class Quantize(Section):
    scheme: Literal["static", "none"] = "static"
    target: Literal["auto", "x86-vnni", "x86-avx2", "arm64"] = "auto"
    per_channel: bool = True
    calibrate: Literal["minmax"] = "minmax"

    @model_validator(mode="after")
    def _per_tensor_with_reduced_range(self) -> Quantize:
        if not self.per_channel and self.target == "x86-avx2":
            raise ValueError(
                "per_channel: false with x86-avx2's reduced range ruins compact networks (measured: 77.9 -> 48.8 %); leave it true"
            )
        return self


class Validate(Section):
    threads: Count = 1
    warmup: Annotated[int, Field(ge=0)] = 50
    repeats: Annotated[int, Field(ge=16)] = Field(default=700, description="timed runs a model; p90 needs 64, p99 needs 662")
    seed: Annotated[int, Field(ge=0)] = 0


class Device(Section):
    target: Literal["local"] = "local"
    samples: Annotated[int, Field(ge=16)] = Field(default=64, description="test pictures in the bundle")


class Require(Section):
    """Limits on the model that ships, against the float teacher. null: not required."""

    max_top1_drop: Annotated[float, Field(ge=0, le=100)] | None = Field(default=None, description="points")
    min_top1: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="fraction")
    max_latency_ms: Annotated[float, Field(gt=0)] | None = Field(default=None, description="p50, batch 1")
    min_speedup: Annotated[float, Field(gt=0)] | None = Field(default=None, description="x teacher, p50")
    max_bytes: Count | None = Field(default=None, description="size of the shipped file")
    min_compression: Annotated[float, Field(gt=0)] | None = Field(default=None, description="teacher's bytes / shipped file's bytes")
    max_memory_bytes: Count | None = Field(default=None, description="peak resident memory of a fresh process that runs it")
    min_int8_mac_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of multiply-accumulates in integer kernels"
    )


class Recipe(Section):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(default=None, description="default: the file's name")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data
    teacher: Teacher
    student: Student
    distill: Distill = Distill()
    train: Train = Train()
    export: Export = Export()
    quantize: Quantize = Quantize()
    validate_: Validate = Field(default=Validate(), alias="validate")
    device: Device = Device()
    require: Require = Require()

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    def plain(self) -> dict[str, Any]:
        """The recipe as YAML-able values, under the names that a user writes."""
        return self.model_dump(mode="json", by_alias=True)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe as a user writes it: with the flat keys of the selected method in `distill`."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    distill = schema["$defs"]["Distill"]["properties"]
    one = {"type": "array", "items": distill["method"], "minItems": 1, "maxItems": 1}
    distill["method"] = {"anyOf": [distill["method"], one], "default": "dhkd"}
    flat: dict[str, list[Any]] = {}
    for section in METHOD_SECTIONS.values():
        for key, value in section.model_json_schema()["properties"].items() if section.model_fields else ():
            flat.setdefault(key, []).append({name: part for name, part in value.items() if name != "default"})
    for key, options in flat.items():
        options += [distill[key]] if key in distill else []
        distill[key] = options[0] if len(options) == 1 else {"anyOf": options}
    return schema
