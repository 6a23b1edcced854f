"""The records behind a trained network: float and int8 files, their measurements, and the device's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.core.records.base import File


@dataclass(frozen=True)
class Exported:
    """A float32 ONNX file, compared with torch on real validation images."""

    file: File
    opset: int
    ir_version: int
    nodes: int
    input: str
    max_abs_diff: float | None  # of the logits, onnxruntime against torch; None: there is no torch network
    disagreements: int  # predictions that differ from the recorded ones
    images: int
    rewrites: tuple[dict[str, Any], ...]  # kept and rejected ones, with their numbers
    contract: File | None = None  # beside another project's file, which has none inside
    # The float file that int8 is made from, where rewrites for integer kernels made it another one.
    int8_source: File | None = None


@dataclass(frozen=True)
class Tuned:
    """A student trained further as its int8 file for one target computes it.

    Accuracies are fractions, on the validation images.
    """

    target: str
    weights: File  # .safetensors float32: initializers of the graph that int8 is made from
    ranges: File  # .json: tensor -> [low, high] of the activations
    history: File
    epochs: int
    lr: float
    top1_float: float  # of the float student before tuning
    top1_static: float  # of static int8 of the same student
    top1_validation: float  # after tuning
    agreement: float  # fraction of predictions that the simulation and the file have in common
    mean_abs_diff: float  # of their logits
    seconds: float
    images_per_second: float
    threads: int


@dataclass(frozen=True)
class Quantized:
    """An int8 ONNX file (QDQ) for one target."""

    file: File
    target: str
    activation_type: str
    weight_type: str
    calibration_images: int
    calibrate: str = "minmax"
    scheme: str = "static"  # static | qat
    float_layers: tuple[str, ...] = ()  # layers that were left in float
    bias_correction: bool = False
    trials: tuple[dict[str, Any], ...] = ()  # of the search, the survivors first
    search: str | None = None  # what the search chose and why, one sentence


@dataclass(frozen=True)
class Extra:
    """A further form of a shipped file.

    `kind`: batch1 | ort | operators; `source`: the file of the run folder that it was made from.
    """

    name: str
    kind: str
    source: str
    file: File
    target: str | None
    max_abs_diff: float | None  # of the logits against the source's, on this machine
    operators: tuple[str, ...] | None  # of an .ort file: the kernels that a minimal onnxruntime needs


@dataclass(frozen=True)
class Packaged:
    """The files that `export.fixed_batch` and `export.ort` ask for."""

    files: tuple[Extra, ...]


@dataclass(frozen=True)
class ModelFile:
    """A file to validate. `name` is its name in the run folder and in the bundle."""

    name: str
    role: str  # teacher | student | baseline | static (int8 of a student before it was tuned)
    precision: str  # fp32 | int8
    file: File
    target: str | None
    max_abs_diff_from_torch: float | None
    contract: File | None = None  # beside `file`, where that is another project's

    @property
    def comparison_only(self) -> bool:
        """Whether it is measured for comparison and goes to no device."""
        return self.role in ("baseline", "static")


@dataclass(frozen=True)
class Measured:
    """The final validation: one row a model (report.json's `models`), paired comparisons, and the files behind them."""

    models: tuple[dict[str, Any], ...]
    comparisons: tuple[dict[str, Any], ...]
    per_class: tuple[dict[str, Any], ...]
    latency: dict[str, Any]
    warnings: tuple[str, ...]
    predictions: File
    latency_samples: File
    gallery: File  # .npz: the images that the report shows
    bundle: File  # .zip
    ships: str | None = None  # the student's file that ships
    ships_because: str | None = None  # one sentence where `keep: faster` decided
    slices: tuple[dict[str, Any], ...] = ()  # the shipped student where the teacher is least sure


@dataclass(frozen=True)
class Verified:
    """The device's answer: one row for each model that ran there (report.json's `device`).

    `failure`: in one sentence, why a remote device did not answer or what is wrong with it; `exit_code`: the exit code
    that the run then ends with.
    """

    rows: tuple[dict[str, Any], ...]
    ok: bool
    failure: str | None = None
    exit_code: int = 0
