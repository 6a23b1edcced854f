"""The records up to a trained network: the data, the teacher, the student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.core.records.base import File
from compress.core.records.training_checks import TrainingChecks
from compress.core.records.warnings import RunWarning


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1], RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Unreadable:
    """An image file that could not be decoded. `path` is relative to the data root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A data set, decoded once. Images are `.npy` uint8 (N, S, S, 3) RGB, labels `.npy` int64 (N,).

    S of the training images may exceed `image_size`, to leave room for random crops; test images have S = `image_size`.
    Of a set too large to decode, `train_images` is a listing (see `data.streaming.listing`), `paths` names its files
    and `root` is their folder.

    `train_names` and `test_names` are the files' paths below the root, `.npy` str (N,), where the source has files;
    `train_groups` and `test_groups` the images' groups, where the recipe names some.

    `warnings` and `cautions` are the sentences of `run_warnings`, as stage.json keeps them: what is probably wrong with
    the images, without paths of this machine. Cautions affect the verdict, because they make accuracies doubtful.
    `value_range`: of the files' values if they have more than 8 bits, to which 0 to 255 in the arrays correspond.
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
    value_range: tuple[float, float] | None = None
    train_names: File | None = None
    test_names: File | None = None
    train_groups: File | None = None
    test_groups: File | None = None

    @property
    def run_warnings(self) -> tuple[RunWarning, ...]:
        """What is probably wrong with the data; warnings that affect the verdict come first."""
        doubtful = (RunWarning(text, affects_verdict=True) for text in self.cautions)
        return (*doubtful, *(RunWarning(text) for text in self.warnings))


@dataclass(frozen=True)
class NearDuplicates:
    """Images that are nearly the same in two parts.

    Attributes:
        test: Test images with a near-duplicate among the training and validation images.
        test_images: All test images.
        validation: Validation images with one among the training images.
        validation_images: All validation images.
        group: The `data.group` that would keep the pairs together; None: no pattern in the files' names does.
        examples: .npz of some pairs: images `first` and `second`, uint8 (P, S, S, 3), and their names.
    """

    test: int
    test_images: int
    validation: int
    validation_images: int
    group: str | None
    examples: File


@dataclass(frozen=True)
class DecodedValidation:
    """The validation images of a set that stays in its files, as evaluation sees them: `.npy` uint8 (V, S, S, 3)."""

    images: File


@dataclass(frozen=True)
class StreamingSource:
    """How training reads images that stay in their files. Not part of a key: `TrainingData.images` lists the files.

    `held`: the decoded validation images, if there are any yet. `workers`: decode processes; None: one for each core.
    """

    root: Path
    paths: File
    held: File | None
    workers: int | None


@dataclass(frozen=True)
class Distortion:
    """Augmentation beyond crop and flip: ranges of colour jitter, number and strength of RandAugment's operations."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # fraction of the colour circle, at most 0.5
    operations: int = 0
    magnitude: int = 0  # 0 to 30


@dataclass(frozen=True)
class TrainingData:
    """The data that a training stage may read, without the test split.

    With `streamed`, `images` is a listing. `shards_at_once`: see `data.streaming.batches.ShardMixing`. `labelled`: how
    many images to train on keep their label; None: all that have one.
    """

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
    labelled: int | None = None
    groups: File | None = None  # .npy str (N,): images of one group stay on one side of the validation split
    crop_scale: tuple[float, float] | None = None  # of resized_crop; None: that of the papers
    # Number and count of the disjoint parts of which one is the validation part; None: `validation` is its size.
    fold: tuple[int, int] | None = None

    @property
    def evaluated(self) -> TrainingData:
        """A copy without augmentation and shard order, for stages that only evaluate; it keeps their keys stable."""
        return replace(self, distortion=None, shards_at_once=None, crop_scale=None)


@dataclass(frozen=True)
class CalibrationData:
    """The data that quantize may read: the training images, and how many of them set the int8 ranges."""

    training: TrainingData
    count: int


@dataclass(frozen=True)
class TestData:
    """The test images. No stage that trains or chooses receives them: only `validate`, `settle` and the report."""

    __test__ = False  # not a test class

    images: File
    labels: File
    classes: tuple[str, ...]
    image_size: int
    groups: File | None = None  # .npy str (N,)


@dataclass(frozen=True)
class Network:
    """How to build a network, and the normalisation that its weights expect.

    `deployed`: the form that ships, see `models.deployed`.
    """

    model: str
    width: float | None
    classes: int
    image_size: int
    normalization: Normalization
    deployed: dict[str, Any] | None = None
    own_size: int | None = None  # side in pixels that the network takes; None: image_size, the recipe's
    channels: str = "rgb"  # rgb | bgr
    order: tuple[int, ...] | None = None  # the network's output for each class; None: all outputs, in order
    source: str | None = None  # sha256 of the code of the user's own network
    black_box: bool = False  # another project's ONNX file: `model` is its name, the weights are the file
    outputs: int | None = None  # number of outputs, where that is not `classes`
    taps: tuple[str, ...] | None = None  # stages of the user's own network, as the recipe names them
    weights_key: str | None = None  # which weights of the checkpoint training starts from; None: the usual ones
    output: str | None = None  # tensor of an ONNX file that the recipe names as its logits

    @property
    def side(self) -> int:
        """Side in pixels of the images that the network itself sees."""
        return self.own_size or self.image_size

    @property
    def needs_adapter(self) -> bool:
        """Whether it takes other images or gives other logits than the recipe's; see `models.input_adapter`."""
        return self.own_size not in (None, self.image_size) or self.channels != "rgb" or self.order is not None


@dataclass(frozen=True)
class Trained:
    """A network with weights (`.safetensors`, plain keys of the built network) and what its training was."""

    network: Network
    weights: File
    top1_validation: float  # fraction, float32 eval
    params: int
    # Multiply-accumulates of convolutions and linear layers for one image; None: an ONNX file does not show them.
    macs: int | None
    epochs: int
    seconds: float
    images_per_second: float | None = None
    precision: str | None = None
    threads: int | None = None
    kernels: str | None = None  # what computed BatchNorm on a CPU: a C compiler's name, or "torch"
    history: File | None = None  # csv: epoch, learning rate, losses, validation accuracy
    origin: str = "trained here"
    largest_logit: float | None = None  # of a teacher: largest absolute value on the validation images
    gpu: str | None = None  # name of the GPU that trained it
    checks: TrainingChecks | None = None  # None: not trained here, or by an older version
    score: float | None = None  # on the validation images, by the metric that chooses the teacher; None: by top-1
    advice: str | None = None  # a sentence about a finished teacher at chance level: what its input should be


@dataclass(frozen=True)
class Distilled:
    """A student and its method's own modules after training, in one file: keys `student.*` and `method.*`.

    `teacher_rows`: views that the teacher was run on for logits, on all ranks, since the training was last resumed;
    cached logits do not count. None: no teacher, or one whose feature maps are read, which runs on every batch.
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
    gpu: str | None = None  # name of the GPU that trained it
    checks: TrainingChecks | None = None  # None: trained by an older version


@dataclass(frozen=True)
class Proxied:
    """A short distillation, to compare teachers or methods by."""

    top1_validation: float
    correct: File  # .npy bool (V,): whether each validation image is classified correctly
    images: int  # validation images
    epochs: int
    share: float  # fraction of the training images that it saw
    seconds: float


@dataclass(frozen=True)
class Stripped:
    """The network that deploys, and the keys of the training that were dropped."""

    trained: Trained
    dropped: tuple[str, ...]
    # .npy int64 (V,): float32 torch predictions on the validation images, which every later file is compared with.
    predictions: File
    plain_params: int | None = None  # of the student as the recipe names it; the form that ships may be larger
    plain_macs: int | None = None
