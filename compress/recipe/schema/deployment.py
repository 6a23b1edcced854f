"""`export`, `quantize`, `validate`, `device`, `require`: from the trained student to the verdict."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from compress.core.plural import agree
from compress.recipe.schema.base import VERSION_PATTERN, Count, Section
from export.targets import WrongTarget, parse


class Export(Section):
    """The ONNX files."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(default=18, description="version of the ONNX operators")
    batch: Literal["dynamic"] = Field(default="dynamic", description="the file takes any number of images at once")
    input: Literal["uint8_nhwc", "float_nchw"] = Field(
        default="uint8_nhwc",
        description="uint8_nhwc: RGB pixels (N, H, W, 3), normalised in the file; float_nchw: (N, 3, H, W), "
        "normalised by the application",
    )
    min_runtime: Annotated[str, Field(pattern=VERSION_PATTERN)] = Field(
        default="1.19", description="oldest onnxruntime that must run the file; in quotes"
    )
    fixed_batch: bool = Field(
        default=False,
        description="also write copies of the student's files that take one image at a time, for NNAPI, CoreML and QNN",
    )
    ort: bool = Field(
        default=False,
        description="also write the student's files as .ort, with the list of kernels for a minimal build of "
        "onnxruntime",
    )


Target = Literal["auto", "x86-vnni", "x86-avx2", "arm64", "web"]


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _target_or_list(value: Any) -> Any:
    """Check for a target or a list of different ones, with one message for both branches of the union."""
    known = get_args(Target)
    listed = value if isinstance(value, (list, tuple)) else [value]
    wrong = [item for item in listed if not isinstance(item, str) or item not in known]
    if wrong:
        raise ValueError(
            f"expected one of {', '.join(known)}, or a list of them, got {wrong[0]!r}{_hint(str(wrong[0]), known)}"
        )
    if not listed or len(set(listed)) != len(listed):
        raise ValueError("names a target twice" if listed else "expected at least one entry, got none")
    return tuple(value) if isinstance(value, list) else value


class Quantize(Section):
    """Quantisation to int8, after training or by training further."""

    scheme: Literal["static", "qat", "none"] = Field(
        default="static",
        description="static: int8 weights and activations, with ranges from calibration; qat: the student is trained "
        "further by the recipe's method with simulated int8, and its learned ranges are used; none: the float "
        "file ships",
    )
    epochs: Count | None = Field(
        default=None, description="epochs of scheme: qat; null: a tenth of `train.epochs`, at least 2"
    )
    lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="learning rate of scheme: qat, which falls to zero along a cosine; null: a tenth of `train.lr`",
    )
    target: Annotated[Target | Annotated[tuple[Target, ...], Field(min_length=1)], BeforeValidator(_target_or_list)] = (
        Field(
            default="auto",
            description="instruction set that the int8 file is made for; auto: that of `device.target`; a list makes "
            "one file for each: the one for the device (auto, if the list has it) is student.int8.onnx, "
            "the others are student.int8.<target>.onnx",
        )
    )
    per_channel: bool = Field(
        default=True, description="one weight scale per output channel; false: one per tensor, not allowed for x86-avx2"
    )
    calibrate: Literal["minmax", "entropy", "percentile"] = Field(
        default="minmax",
        description="how activation ranges follow from the calibration images; minmax: all values; entropy: the "
        "range that changes the histogram least; percentile: without the rarest values",
    )
    percentile: float = Field(
        default=99.99, description="for calibrate: percentile, in per cent of the values; at least 99.99, below 100"
    )
    float_layers: tuple[str, ...] = Field(
        default=(),
        description="layers that stay in float: first, last, or names of nodes in student.fp32.onnx; checked in "
        "the graph that runs",
    )
    bias_correction: bool = Field(
        default=False, description="correct each layer's mean shift through quantisation in its bias"
    )
    search: bool = Field(
        default=False,
        description="try calibrators, the first and last layer in float, and bias correction; rank them by KL to "
        "the float student on 32 unlabelled images and check the best on the validation images; "
        "chooses the four keys above",
    )
    keep: Literal["always", "faster"] = Field(
        default="always",
        description="faster: the float file ships if int8 is not measurably faster on this target",
    )

    @field_validator("percentile")
    @classmethod
    def _cuts_off_activations(cls, value: float) -> float:
        if not 99.99 <= value < 100:
            why = "lower ones cut off real activations (measured: 99.9 gives 66.97 %, 99.99 gives 76.91 %)"
            raise ValueError(f"must be at least 99.99 and below 100, got {value:g}: {why}")
        return value

    @model_validator(mode="after")
    def _search_chooses(self) -> Quantize:
        chosen = [
            name
            for name in ("calibrate", "percentile", "float_layers", "bias_correction", "per_channel")
            if self._is_set(name)
        ]
        if self.search and chosen:
            raise ValueError(
                f"search: true chooses {' and '.join(chosen)}; leave {agree(len(chosen), 'it', 'them')} out"
            )
        return self

    @model_validator(mode="after")
    def _tuning(self) -> Quantize:
        given = [name for name in ("epochs", "lr") if self._is_set(name)]
        if given and self.scheme != "qat":
            belong = f"{' and '.join(given)} {agree(len(given), 'belongs', 'belong')}"
            raise ValueError(f"{belong} to scheme: qat, but scheme is {self.scheme}")
        if self.scheme == "qat" and self.search:
            raise ValueError(
                "search: true looks for the best int8 without training, scheme: qat trains; leave one of them out"
            )
        if self.scheme == "qat" and self.bias_correction:
            raise ValueError("bias_correction: true corrects what scheme: qat learns; leave it out")
        return self

    @property
    def static(self) -> Quantize:
        """Return the same settings without training further."""
        if self.scheme != "qat":
            return self
        return Quantize.model_construct(**(dict(self) | {"scheme": "static", "epochs": None, "lr": None}))

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the targets as a tuple."""
        return (self.target,) if isinstance(self.target, str) else self.target

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @model_validator(mode="after")
    def _per_tensor_with_reduced_range(self) -> Quantize:
        if not self.per_channel and "x86-avx2" in self.targets:
            raise ValueError(
                "per_channel: false with x86-avx2's reduced range ruins compact networks (measured: 77.9 -> 48.8 %); "
                "leave it true"
            )
        return self


class Validate(Section):
    """How latency is measured: one image at a time, with all models interleaved in rounds."""

    threads: Count = Field(default=1, description="threads of onnxruntime")
    warmup: Annotated[int, Field(ge=0)] = Field(default=50, description="runs of each model before the timed ones")
    repeats: Annotated[int, Field(ge=16)] = Field(
        default=700, description="timed runs of each model; p90 needs 64, p99 needs 662"
    )
    sustained_seconds: Annotated[int, Field(ge=0, le=86400)] = Field(
        default=0,
        description="seconds for which the shipped file runs without a pause, to compare its first minute with its "
        "last (of under 600 s: the first and last tenth); 0: not run",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="seed of the order of models and images, of the resampling, and of the bundle's images"
    )


class Device(Section):
    """Where the bundle is verified, on its own, as an application would run it."""

    target: str = Field(
        default="local",
        description="local: this machine, in a separate process; or what `compress verify --target` takes, such as "
        "`ssh://pi@board.local`; limits on time and memory are judged there; paths in its options are absolute "
        "or begin with `~`",
    )
    samples: Annotated[int, Field(ge=16)] = Field(default=64, description="test images in the bundle")
    photos: Annotated[int, Field(ge=0, le=64)] = Field(
        default=16,
        description="original files of a folder of photos that are added to the bundle, with EXIF, at most 20 MB, "
        "to check an application's decoder; 0: none",
    )

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str) -> str:
        try:
            address = parse(value)
        except WrongTarget as error:
            raise ValueError(
                f"{str(error).removeprefix(f'--target {value}: ')}{_hint(value, ('local', 'browser'))}"
            ) from error
        here = address.python if address.scheme == "local" else None  # elsewhere it is a path of the device
        for name, path in (
            ("python", here),
            ("config", address.config),
            ("binary", address.binary),
            ("ort", address.ort),
        ):
            if path is not None and not path.startswith(("/", "~")):
                raise ValueError(f"{name}={path} is a relative path; in a recipe it must be absolute or begin with ~")
        return value

    @property
    def name(self) -> str:
        """Return the target's name in reports."""
        return parse(self.target).shown

    @property
    def distant(self) -> bool:
        """Return whether it is anything but plain `local`; with options, this machine counts as another device, too."""
        return self.target != "local"


def _recall_limit(value: Any) -> Any:
    """Check for a fraction, or fractions by class, with one message for both branches of the union."""

    def fraction(one: Any) -> bool:
        return isinstance(one, (int, float)) and not isinstance(one, bool) and 0 < one <= 1

    if fraction(value) or (isinstance(value, dict) and value and all(map(fraction, value.values()))):
        return value
    raise ValueError("expected a fraction above 0, at most 1, or such fractions by class, such as {faulty: 0.8}")


Fraction = Annotated[float, Field(gt=0, le=1)]
RecallLimit = Annotated[Fraction | dict[str, Fraction], BeforeValidator(_recall_limit)]


class Require(Section):
    """Limits on the model that ships (int8, or float with `scheme: none`), against the float teacher.

    null: not required.
    """

    max_top1_drop: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="accuracy drop in percentage points"
    )
    min_top1: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="accuracy as a fraction")
    min_recall: RecallLimit | None = Field(
        default=None,
        description="recall, as a fraction: one for every class, or one for each class that is named, such as "
        "`{faulty: 0.8}`",
    )
    min_balanced_accuracy: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="mean of the classes' recalls, as a fraction"
    )
    min_macro_f1: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="mean of the classes' F1, as a fraction"
    )
    max_class_drop: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="accuracy drop of every class in percentage points"
    )
    max_latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="median latency of one image in milliseconds"
    )
    min_speedup: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="speed relative to the teacher: ratio of median latencies of one image"
    )
    max_bytes: Count | None = Field(default=None, description="size of the shipped file in bytes")
    min_compression: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="the teacher's bytes divided by the shipped file's"
    )
    max_memory_bytes: Count | None = Field(
        default=None,
        description="peak resident memory in bytes of a new process that runs the file, including the interpreter",
    )
    min_int8_speedup: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="speed of the int8 file relative to the float student: ratio of median latencies of one image",
    )
    min_int8_mac_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of multiply-accumulates in integer kernels, as a fraction"
    )
