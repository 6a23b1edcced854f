"""The recipe's sections: keys, types, ranges, defaults. Torch-free, so that a wrong recipe is answered at once.

Every value has a default but `data` and the two networks. `recipe.py` reads the YAML, knows positions and turns
pydantic's errors into one line each; this file only says what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

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


MODEL = "a network's name, see `compress models`"
WIDTH = "width multiplier, for mobilenet_v2 (0.1 to 2) and shufflenet_v2 (0.5, 1, 1.5, 2); null: the network's own (0.5 and 1)"

START = (
    "start: none (from scratch), a torchvision weights name, or the path of a .safetensors, .pt, .pth or .bin file; "
    "another number of classes gets a fresh last layer"
)


class Section(BaseModel):
    """A frozen record of plain values; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Normalize(Section):
    """Per-channel mean and standard deviation of pixels in [0, 1], RGB."""

    mean: tuple[float, float, float] = Field(description="mean of red, green, blue, of pixels in [0, 1]")
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        description="standard deviation of red, green, blue, of pixels in [0, 1]"
    )


class Data(Section):
    """Where the pictures come from and how they are split by purpose."""

    source: Literal["fashion", "cifar10", "cifar100", "folder", "npz"] = Field(
        description="fashion: embedded; cifar10, cifar100: through torchvision; folder: photos in class sub-folders; npz: arrays in one file"
    )
    root: str | None = Field(
        default=None, description="the npz file, or the folder; relative to the recipe, `~` expands; folder and npz need it; "
        "null for cifar10 and cifar100: the user's cache folder"
    )  # fmt: skip
    download: bool = Field(default=False, description="let torchvision download cifar10 / cifar100 into root")
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(default=None, description="side of the input in pixels; null: 32, or 224 for folder")
    normalize: Normalize | None = Field(default=None, description="null: published constants of a named set, else of the training pictures")
    augment: Literal["crop_flip", "crop", "flip", "resized_crop", "none"] | None = Field(
        default=None, description="random views in training; crops move by an eighth of the side; null: crop_flip, or resized_crop for folder"
    )
    validation: ShareOrCount = Field(default=0.1, description="carved from the training pictures, stratified; selects the teacher and is watched in training")
    test: ShareOrCount = Field(default=0.2, description="folder without a test sub-folder only: what is carved off, stratified, for the final validation")
    calibration: Count = Field(default=512, description="how many training pictures set the int8 ranges; never validation or test pictures")
    split_seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the splits and of the limits below")
    max_unreadable: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.01, description="folder: share of pictures that may be unreadable; they are skipped")
    limit_train: Count | None = Field(default=None, description="use only so many training pictures (stratified, seeded), for a quick trial; null: all")
    limit_test: Count | None = Field(default=None, description="use only so many test pictures (stratified, seeded), for a quick trial; null: all")


class Schedule(Section):
    """Learning rate over epochs. step: x gamma after each milestone epoch; cosine: to zero at the end of the last epoch."""

    kind: Literal["cosine", "step", "constant"] = Field(default="cosine", description="shape of the learning rate over the epochs")
    milestones: tuple[Count, ...] = Field(default=(150, 180, 210), description="step: last epoch (1-based) at the higher rate")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="step: factor at each milestone")
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="epochs in which the rate rises linearly from 0; null: 0, or 1 (at most a quarter of the epochs) from pretrained weights"
    )


class Train(Section):
    """SGD as in the papers. `null` takes the default for the start: from scratch, or from pretrained weights."""

    epochs: Count | None = Field(
        default=None, description="null: 240 from scratch (the papers'; 60 for a teacher candidate), 20 from pretrained weights"
    )
    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(default=64, description="pictures a step")
    lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="learning rate; null: 0.05 from scratch (0.01 for Mobile- and ShuffleNets), 0.005 from pretrained weights"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="of SGD")
    nesterov: bool = Field(default=False, description="Nesterov's form of momentum")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=5e-4, description="on every parameter, the method's own included")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="of the cross-entropy")
    schedule: Schedule = Field(default=Schedule(), description="learning rate over the epochs")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto: bf16 on CUDA, and on CPUs with bf16 units for networks without depthwise convolutions; else float32"
    )
    views: Count | None = Field(
        default=None, description="limit the augmentation to so many views a picture, so that the teacher's logits are reused sooner; null: no limit"
    )
    keep: Literal["last", "best"] = Field(default="last", description="which epoch ships; best: by validation accuracy")
    threads: Count | None = Field(default=None, description="CPU threads; null: as many as torch chooses; a resume keeps them")
    seed: Annotated[int, Field(ge=0)] | None = Field(default=None, description="null: the recipe's seed (student) or 0 (teacher candidates)")


class Candidate(Section):
    """One possible teacher: a network to train here, or a checkpoint, or a checkpoint that is trained further."""

    model: str = Field(description=MODEL)
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(
        default="none", description="none (train here), embedded (shipped, for fashion), a torchvision weights name, or the path of a "
        ".safetensors, .pt, .pth or .bin file"
    )  # fmt: skip
    expect_top1: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="accuracy that the checkpoint must reach on the validation pictures, as a fraction; null: not checked"
    )
    normalize: Normalize | None = Field(default=None, description="what the checkpoint was trained with; null: that of `data`")
    train: Train | None = Field(
        default=None, description="train here, from `weights` where given; null: train with defaults when weights is none, else take the checkpoint as it is"
    )


class Teacher(Section):
    """The possible teachers, and how one of them is chosen."""

    select: Literal["best"] = Field(default="best", description="best: by accuracy on the validation pictures; equal ones by fewer MACs")
    candidates: tuple[Candidate, ...] = Field(min_length=1, description="one or more networks")


class Choice(Section):
    """A network that may become the student."""

    model: str = Field(description=MODEL)
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(default="none", description=START)


class Choose(Section):
    """Before any training, each network is exported with random weights and timed: the largest (MACs, then parameters) within the budget wins."""

    max_latency_ms: Annotated[float, Field(gt=0)] = Field(
        description="budget in milliseconds for one picture: the upper end of the interval of the median of the file that would ship, on the target device"
    )
    from_: tuple[Choice, ...] = Field(alias="from", min_length=1, description="the networks to pick from")


class Student(Section):
    """The network that ships."""

    model: str | None = Field(default=None, description=f"{MODEL}; needed unless `choose` picks it")
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(default="none", description=START)
    choose: Choose | None = Field(default=None, description="instead of model, width and weights: pick the largest network that is fast enough")

    @property
    def networks(self) -> tuple[Choice, ...]:
        """What may become the student: the one network, or those that `choose` picks from."""
        if self.choose is not None:
            return self.choose.from_
        return () if self.model is None else (Choice(model=self.model, width=self.width, weights=self.weights),)


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


class Export(Section):
    """The ONNX files."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(default=18, description="version of the ONNX operators")
    batch: Literal["dynamic"] = Field(default="dynamic", description="the file takes any number of pictures at once")
    input: Literal["uint8_nhwc", "float_nchw"] = Field(
        default="uint8_nhwc", description="uint8_nhwc: RGB pixels (N, H, W, 3), normalised in the file; float_nchw: (N, 3, H, W), normalised by the app"
    )
    min_runtime: Annotated[str, Field(pattern=VERSION_PATTERN)] = Field(
        default="1.19", description="oldest onnxruntime that must run the file; in quotes"
    )
    fixed_batch: bool = Field(
        default=False, description="also write copies of the student's files that take one picture at a time (NNAPI, CoreML and QNN need that)"
    )
    ort: bool = Field(
        default=False, description="also write the student's files as .ort, with the list of kernels that a minimal build of onnxruntime needs"
    )


class Quantize(Section):
    """Post-training quantisation to int8."""

    scheme: Literal["static", "none"] = Field(default="static", description="static: int8 weights and activations; none: the float file ships")
    target: Literal["auto", "x86-vnni", "x86-avx2", "arm64", "web"] = Field(
        default="auto", description="instruction set that the int8 file is made for; auto: this machine's"
    )
    per_channel: bool = Field(default=True, description="one weight scale an output channel; false: one a tensor, refused for x86-avx2")
    calibrate: Literal["minmax", "entropy", "percentile"] = Field(
        default="minmax",
        description="how activation ranges follow from the calibration pictures; minmax: all that was seen; entropy: the range that changes the "
        "histogram least; percentile: without the rarest values",
    )
    percentile: float = Field(default=99.99, description="of calibrate: percentile, in per cent of the values; 99.99 or more, below 100")
    float_layers: tuple[str, ...] = Field(
        default=(), description="layers that stay in float: first, last, or names of nodes in student.fp32.onnx; proven in the graph that runs"
    )
    bias_correction: bool = Field(default=False, description="take each layer's mean shift through quantisation back in its bias")
    search: bool = Field(
        default=False, description="try calibrators, first and last layer in float, and bias correction; rank them by KL to the float student on "
        "32 unlabelled pictures and certify the best on the validation pictures; chooses the four keys above"
    )  # fmt: skip
    keep: Literal["always", "faster"] = Field(
        default="always", description="faster: where int8 is not measurably faster than float on this target, the float file ships"
    )

    @field_validator("percentile")
    @classmethod
    def _cuts_off_activations(cls, value: float) -> float:
        if not 99.99 <= value < 100:
            raise ValueError(
                f"must be at least 99.99 and below 100, got {value:g}: lower ones cut off real activations (measured: 99.9 gives 66.97 %, "
                "99.99 gives 76.91 %)"
            )
        return value

    @model_validator(mode="after")
    def _search_chooses(self) -> Quantize:
        chosen = [name for name in ("calibrate", "percentile", "float_layers", "bias_correction", "per_channel") if self._is_set(name)]
        if self.search and chosen:
            raise ValueError(f"search: true chooses {' and '.join(chosen)}; leave {'it' if len(chosen) == 1 else 'them'} out")
        return self

    def _is_set(self, name: str) -> bool:
        return getattr(self, name) != type(self).model_fields[name].default

    @model_validator(mode="after")
    def _per_tensor_with_reduced_range(self) -> Quantize:
        if not self.per_channel and self.target == "x86-avx2":
            raise ValueError(
                "per_channel: false with x86-avx2's reduced range ruins compact networks (measured: 77.9 -> 48.8 %); leave it true"
            )
        return self


class Validate(Section):
    """How latency is measured: batch 1, all models interleaved in rounds."""

    threads: Count = Field(default=1, description="onnxruntime's threads")
    warmup: Annotated[int, Field(ge=0)] = Field(default=50, description="runs a model before the timed ones")
    repeats: Annotated[int, Field(ge=16)] = Field(default=700, description="timed runs a model; p90 needs 64, p99 needs 662")
    sustained_seconds: Annotated[int, Field(ge=0, le=86400)] = Field(
        default=0, description="seconds that the file which ships runs without a pause; the first minute is held against the last (of under 600 s "
        "the tenths); 0: not run"
    )  # fmt: skip
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the order of models and pictures, of the resampling, and of the bundle's pictures")


class Device(Section):
    """Where the bundle is verified, alone, as an application would run it."""

    target: Literal["local"] = Field(default="local", description="local: this machine, in a process of its own")
    samples: Annotated[int, Field(ge=16)] = Field(default=64, description="test pictures in the bundle")


class Require(Section):
    """Limits on the model that ships (int8, or float with `scheme: none`), against the float teacher. null: not required."""

    max_top1_drop: Annotated[float, Field(ge=0, le=100)] | None = Field(default=None, description="accuracy drop in points of per cent")
    min_top1: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="accuracy as a fraction")
    max_latency_ms: Annotated[float, Field(gt=0)] | None = Field(default=None, description="median latency of one picture in milliseconds")
    min_speedup: Annotated[float, Field(gt=0)] | None = Field(default=None, description="times the teacher's speed, median, one picture at a time")
    max_bytes: Count | None = Field(default=None, description="size of the shipped file in bytes")
    min_compression: Annotated[float, Field(gt=0)] | None = Field(default=None, description="teacher's bytes / shipped file's bytes")
    max_memory_bytes: Count | None = Field(default=None, description="peak resident memory in bytes of a fresh process that runs it, interpreter included")
    min_int8_mac_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of multiply-accumulates in integer kernels, as a fraction"
    )


class Recipe(Section):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(default=None, description="names the folder of its runs; null: the file's name")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="of the student's training: weights, order, views")
    data: Data = Field(description="the pictures and their splits")
    teacher: Teacher = Field(description="the teacher's candidates")
    student: Student = Field(description="the network that ships")
    distill: Distill = Field(default=Distill(), description="the method")
    train: Train = Field(default=Train(), description="the student's training")
    export: Export = Field(default=Export(), description="the ONNX files")
    quantize: Quantize = Field(default=Quantize(), description="int8")
    validate_: Validate = Field(default=Validate(), alias="validate", description="how latency is measured")
    device: Device = Field(default=Device(), description="where the bundle is verified")
    require: Require = Field(default=Require(), description="the limits behind the verdict")

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
