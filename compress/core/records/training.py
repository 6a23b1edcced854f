"""What the stages up to a trained network hand on: the data, the teacher, the student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.core.records.base import File
from compress.core.records.warnings import RunWarning


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
    `warnings` and `cautions` are the sentences of `run_warnings`, as stage.json keeps them: what is probably wrong with
    the images, without paths of this machine. Cautions affect the verdict, because they make accuracies doubtful.

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
    warnings: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def run_warnings(self) -> tuple[RunWarning, ...]:
        """What is probably wrong with the data; warnings that affect the verdict come first."""
        doubtful = (RunWarning(text, affects_verdict=True) for text in self.cautions)
        return (*doubtful, *(RunWarning(text) for text in self.warnings))


@dataclass(frozen=True)
class DecodedValidation:
    """The validation part of a set that stays in its files, as in evaluation: `.npy` uint8 (V, S, S, 3)."""

    images: File


@dataclass(frozen=True)
class StreamingSource:
    """How training reads pictures that stay in their files; `images` of the same record lists them, and alone is part of a key.

    `held`: the validation pictures, where they are decoded already. `workers`: decode processes; None: one a core.
    """

    root: Path
    paths: File
    held: File | None
    workers: int | None


@dataclass(frozen=True)
class Distortion:
    """What is done to training views beyond crop and flip. Ranges of the colour jitter; how many operations of RandAugment, how strong."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # of the colour circle, at most 0.5
    operations: int = 0
    magnitude: int = 0  # 0 to 30


@dataclass(frozen=True)
class TrainingData:
    """What a training stage may read. The test split is not in it. With `streamed`, `images` is a listing. `shards_at_once`: see `data.streaming.batches.ShardMixing`."""

    images: File
    labels: File
    classes: tuple[str, ...]
    image_size: int
    augment: str
    validation: float | int
    split_seed: int
    streamed: StreamingSource | None = None
    distortion: Distortion | None = None
    shards_at_once: int | None = None

    @property
    def evaluated(self) -> TrainingData:
        """The same for who trains nothing: how training views are made and ordered is no part of it."""
        return replace(self, distortion=None, shards_at_once=None)


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
    macs: (
        int | None
    )  # multiply-accumulates of convolutions and linear layers, one picture; None: an ONNX file that does not show it
    epochs: int
    seconds: float
    images_per_second: float | None = None
    precision: str | None = None
    threads: int | None = None
    kernels: str | None = None  # who computed the BatchNorms on a CPU: a C compiler's name, or "torch"
    history: File | None = None  # csv: epoch, learning rate, losses, validation accuracy
    origin: str = "trained here"
    largest_logit: float | None = None  # of a teacher, without its sign, on the validation pictures
    gpu: str | None = None  # the name of the card that trained it


@dataclass(frozen=True)
class Distilled:
    """A student and its method's own modules after training, in one file: keys `student.*` and `method.*`.

    `teacher_rows`: views that the teacher was run on for logits, in all processes, since the training was last resumed; those remembered
    from earlier do not count. None: no teacher, or one whose maps are read, which runs on every batch.
    """

    network: Network
    combined: File
    method: str
    epochs: int
    shipped_epoch: int
    seconds: float
    images_per_second: float
    precision: str
    threads: int
    kernels: str
    history: File
    teacher_rows: int | None = None
    gpu: str | None = None  # the name of the card that trained it


@dataclass(frozen=True)
class Proxied:
    """What a short distillation from a teacher made of the student."""

    top1_validation: float
    correct: File  # .npy bool (V,): which of the validation pictures it gets right, in their order
    images: int  # that judged it
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
