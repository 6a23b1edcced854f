"""Records that stages hand to each other: numbers, strings and files, never live modules. Imports nothing of the project.

A record is a frozen dataclass. `to_json` / `from_json` carry it through `stage.json`; `identity` is what a cache key is made of
(files count by content, not by path).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Fields that say how a result came about, not what it is: never part of a cache key.
CIRCUMSTANCE = frozenset({"seconds", "images_per_second", "history", "threads", "precision", "origin", "largest_logit", "streamed"})


@dataclass(frozen=True)
class File:
    """A file that a stage wrote or read. `sha256` is lower-case hex of the content."""

    path: Path
    sha256: str
    bytes: int

    @staticmethod
    def of(path: Path) -> File:
        """Hash an existing file."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return File(path, digest, path.stat().st_size)


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1], RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be decoded. `path` is relative to the data root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A data set, decoded once. Images are `.npy` uint8 (N, S, S, 3) RGB, labels `.npy` int64 (N,).

    Of a set too large for that, `train_images` lists the files (see `data.listing`), `paths` names them, `root` is where they are.

    `store_size` S of the training pictures may exceed `image_size` (room for random crops); test pictures are (N, image_size, image_size, 3).
    """

    source: str
    classes: tuple[str, ...]
    image_size: int
    train_images: File
    train_labels: File
    test_images: File
    test_labels: File
    normalization: Normalization
    augment: str
    unreadable: tuple[Unreadable, ...] = ()
    root: Path | None = None
    paths: File | None = None


@dataclass(frozen=True)
class Held:
    """The validation part of a set that stays in its files, as in evaluation: `.npy` uint8 (V, S, S, 3)."""

    images: File


@dataclass(frozen=True)
class Streamed:
    """How training reads pictures that stay in their files; `images` of the same record lists them, and alone is part of a key.

    `held`: the validation pictures, where they are decoded already. `workers`: decode processes; None: one a core.
    """

    root: Path
    paths: File
    held: File | None
    workers: int | None


@dataclass(frozen=True)
class TrainingData:
    """What a training stage may read. The test split is not in it. With `streamed`, `images` is a listing."""

    images: File
    labels: File
    classes: tuple[str, ...]
    image_size: int
    augment: str
    validation: float | int
    split_seed: int
    streamed: Streamed | None = None


@dataclass(frozen=True)
class CalibrationData:
    """What quantize may read: the training pictures and how many of them set the int8 ranges."""

    training: TrainingData
    count: int


@dataclass(frozen=True)
class TestData:
    """The final validation's pictures: read by `validate` and the report only."""

    __test__ = False  # not a test class

    images: File
    labels: File
    classes: tuple[str, ...]
    image_size: int


@dataclass(frozen=True)
class Network:
    """How to build a network, and the normalisation that its weights expect. `deployed`: the form that ships, see `models.deployed`."""

    model: str
    width: float | None
    classes: int
    image_size: int
    normalization: Normalization
    deployed: dict[str, Any] | None = None
    own_size: int | None = None  # side in pixels that the network itself takes; None: image_size, the recipe's
    channels: str = "rgb"  # rgb | bgr
    order: tuple[int, ...] | None = None  # which of the network's outputs stands for each class; None: all, in order
    source: str | None = None  # sha256 of the code of a network of one's own
    black_box: bool = False  # an ONNX file of another project: `model` is its name, the weights are the file
    outputs: int | None = None  # how many it has, where that is not `classes`
    taps: tuple[str, ...] | None = None  # stages of a network of one's own, as the recipe names them

    @property
    def side(self) -> int:
        """Side in pixels of the pictures that the network itself sees."""
        return self.own_size or self.image_size

    @property
    def contracted(self) -> bool:
        """Whether it takes other pictures or gives other logits than the recipe's."""
        return self.own_size not in (None, self.image_size) or self.channels != "rgb" or self.order is not None


@dataclass(frozen=True)
class Trained:
    """A network with weights (`.safetensors`, plain keys of the built network) and what its training was."""

    network: Network
    weights: File
    top1_validation: float  # fraction, float32 eval
    params: int
    macs: int | None  # multiply-accumulates of convolutions and linear layers, one picture; None: an ONNX file that does not show it
    epochs: int
    seconds: float
    images_per_second: float | None = None
    precision: str | None = None
    threads: int | None = None
    history: File | None = None  # csv: epoch, learning rate, losses, validation accuracy
    origin: str = "trained here"
    largest_logit: float | None = None  # of a teacher, without its sign, on the validation pictures


@dataclass(frozen=True)
class Distilled:
    """A student and its method's own modules after training, in one file: keys `student.*` and `method.*`."""

    network: Network
    combined: File
    method: str
    epochs: int
    shipped_epoch: int
    seconds: float
    images_per_second: float
    precision: str
    threads: int
    history: File


@dataclass(frozen=True)
class Proxied:
    """What a short distillation from a teacher made of the student."""

    top1_validation: float
    correct: File  # .npy bool (V,): which of the validation pictures it gets right, in their order
    pictures: int  # that judged it
    epochs: int
    share: float  # of the training pictures
    seconds: float


@dataclass(frozen=True)
class Stripped:
    """What deploys: the network alone, and which keys of the training were dropped."""

    trained: Trained
    dropped: tuple[str, ...]
    predictions: File  # .npy int64 (V,): float32 torch predictions on the validation pictures, which every later file is held against
    plain_params: int | None = None  # of the student as the recipe names it; what ships may be larger
    plain_macs: int | None = None


@dataclass(frozen=True)
class Exported:
    """A float32 ONNX file, held against torch on real validation pictures."""

    file: File
    opset: int
    ir_version: int
    nodes: int
    input: str
    max_abs_diff: float | None  # logits, onnxruntime against torch; None: there is no torch network
    disagreements: int  # predictions that differ from the recorded ones
    pictures: int
    rewrites: tuple[dict[str, Any], ...]  # kept and refused, with their numbers
    contract: File | None = None  # beside a file of another project, which has none inside
    int8_source: File | None = None  # the float file that int8 is made from, where rewrites for integer kernels made it another one


@dataclass(frozen=True)
class Tuned:
    """A student trained further as the int8 file for one target will compute it. Accuracies are fractions, on the validation pictures."""

    target: str
    weights: File  # .safetensors float32: initializers of the graph that int8 is made from
    ranges: File  # .json: tensor -> [low, high] of the activations
    history: File
    epochs: int
    lr: float
    top1_float: float  # of the float student that it began with
    top1_static: float  # of static int8 of the same student
    top1_validation: float  # after tuning
    agreement: float  # share of predictions that the simulation and the file have in common
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
    calibration_pictures: int
    calibrate: str = "minmax"
    scheme: str = "static"  # static | qat
    float_layers: tuple[str, ...] = ()  # seen to run in float
    bias_correction: bool = False
    trials: tuple[dict[str, Any], ...] = ()  # of the search, the survivors first
    search: str | None = None  # what it chose and why, one sentence


@dataclass(frozen=True)
class Extra:
    """A further form of a shipped file. `kind`: batch1 | ort | operators; `source`: the run folder's file that it was made from."""

    name: str
    kind: str
    source: str
    file: File
    target: str | None
    max_abs_diff: float | None  # logits against the source's, on this machine
    operators: tuple[str, ...] | None  # of an .ort file: the kernels that a minimal onnxruntime needs


@dataclass(frozen=True)
class Packaged:
    """What `export.fixed_batch` and `export.ort` ask for."""

    files: tuple[Extra, ...]


@dataclass(frozen=True)
class ModelFile:
    """A file to validate. `name` is what it is called in the run folder and the bundle."""

    name: str
    role: str  # teacher | student | baseline | static (int8 of a student before it was tuned)
    precision: str  # fp32 | int8
    file: File
    target: str | None
    max_abs_diff_from_torch: float | None
    contract: File | None = None  # beside `file`, of another project's file

    @property
    def evidence(self) -> bool:
        """Whether it is measured for comparison alone and goes to no device."""
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
    pictures: File
    bundle: File  # zip
    ships: str | None = None  # the student's file that ships
    ships_because: str | None = None  # one sentence where `keep: faster` decided
    slices: tuple[dict[str, Any], ...] = ()  # the shipped student where the teacher is least sure


@dataclass(frozen=True)
class Verified:
    """The device's answer: one row a model that ran there (report.json's `device`).

    `failure`: why a distant device gave no answer, or what is wrong with it, in one sentence; `exit_code`: what a run then ends with.
    """

    rows: tuple[dict[str, Any], ...]
    ok: bool
    failure: str | None = None
    exit_code: int = 0


def to_json(value: Any) -> Any:
    """Plain JSON values of a record (recursive)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: Any, data: Any) -> Any:
    """The inverse of `to_json` for the annotated type `kind`."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return from_json(inner[0], data) if len(inner) == 1 else data
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{field.name: from_json(hints[field.name], data[field.name]) for field in dataclasses.fields(kind) if field.name in data})
    if origin is tuple:
        args = typing.get_args(kind)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(from_json(args[0], item) for item in data)
        return tuple(from_json(arg, item) for arg, item in zip(args, data, strict=True))
    if origin is list:
        return [from_json(typing.get_args(kind)[0], item) for item in data]
    if origin is dict:
        return {key: from_json(typing.get_args(kind)[1], item) for key, item in data.items()}
    if kind is Path:
        return Path(data)
    return data


def identity(value: Any) -> Any:
    """JSON values for a cache key: a file is its content, measured seconds and the like do not count."""
    if isinstance(value, File):
        return {"sha256": value.sha256}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: identity(getattr(value, field.name)) for field in dataclasses.fields(value) if field.name not in CIRCUMSTANCE}
    if isinstance(value, dict):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity(item) for item in value]
    return value


def sha256_of(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(identity(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
