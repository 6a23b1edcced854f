"""`teacher` and `student`: the networks."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.schema.base import Count, Normalize, Section
from compress.recipe.schema.train import Train

MODEL = "a network's name, see `compress models`, or `package.module:function` of one's own, called with `classes=` (with --allow-code only)"
WIDTH = "width multiplier, for mobilenet_v1 (0.25 to 2), mobilenet_v2 (0.1 to 2) and shufflenet_v2 (0.5, 1, 1.5, 2); null: the network's own (1, 0.5, 1)"

TAPS = (
    "of a network of one's own: its stages, shallow to deep, as paths of modules (their outputs, behind the last activation), for methods that read feature "
    "maps; null: what its attribute `taps` says"
)

START = (
    "start: none (from scratch), a torchvision weights name, or the path of a .safetensors, .pt, .pth or .bin file; "
    "another number of classes gets a fresh last layer"
)


class Candidate(Section):
    """One possible teacher: a network to train here, or a checkpoint, or a checkpoint that is trained further."""

    model: str = Field(default="", description=f"{MODEL}; needed unless `onnx` is given")
    onnx: str | None = Field(
        default=None,
        description="instead of model and weights: the path of an ONNX file with one float input (N, 3, S, S) or (N, S, S, 3), normalised by "
        "`normalize`, and logits; it teaches by its logits only and goes into the run byte for byte",
    )
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(
        default="none",
        description="none (train here), embedded (shipped, for fashion), a torchvision weights name, or the path of a "
        ".safetensors, .pt, .pth or .bin file",
    )
    taps: tuple[str, ...] | None = Field(default=None, description=TAPS)
    expect_top1: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="accuracy that the checkpoint must reach on the validation pictures, as a fraction; null: not checked",
    )
    normalize: Normalize | None = Field(
        default=None, description="what the checkpoint was trained with; null: that of `data`"
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None,
        description="side in pixels of the pictures that the network was trained with; each view is resized to it; null: data.image_size, or "
        "what an ONNX file says",
    )
    channels: Literal["rgb", "bgr"] = Field(
        default="rgb", description="order of the colours that the network was trained with; `normalize` stays red first"
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="names of the network's outputs, in their order, where they are not the data's classes in theirs: each class is found by name",
    )
    train: Train | None = Field(
        default=None,
        description="train here, from `weights` where given; null: train with defaults when weights is none, else take the checkpoint as it is",
    )

    @property
    def title(self) -> str:
        """What messages and tables call it."""
        return self.model if self.onnx is None else PurePath(self.onnx).name


class Proxy(Section):
    """`select: proxy`: a short distillation of the student from each candidate, by the recipe's method and `train`, with a cosine schedule."""

    epochs: Count = Field(default=5, description="epochs of each short distillation")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="share of the training pictures, of every class alike"
    )


class Teacher(Section):
    """The possible teachers, and how one of them is chosen."""

    select: Literal["best", "proxy"] = Field(
        default="best",
        description="best: by accuracy on the validation pictures, equal ones by fewer MACs; proxy: by the accuracy of this student after a "
        "short distillation from each, the cheapest of those that are not shown to be worse than the best; the table shows both rankings",
    )
    proxy: Proxy = Field(default=Proxy(), description="the short distillations")
    candidates: tuple[Candidate, ...] = Field(min_length=1, description="one or more networks")


class Choice(Section):
    """A network that may become the student."""

    model: str = Field(description=MODEL)
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(default="none", description=START)
    taps: tuple[str, ...] | None = Field(default=None, description=TAPS)


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
    taps: tuple[str, ...] | None = Field(default=None, description=TAPS)
    choose: Choose | None = Field(
        default=None, description="instead of model, width and weights: pick the largest network that is fast enough"
    )

    @property
    def networks(self) -> tuple[Choice, ...]:
        """What may become the student: the one network, or those that `choose` picks from."""
        if self.choose is not None:
            return self.choose.from_
        return (
            ()
            if self.model is None
            else (Choice(model=self.model, width=self.width, weights=self.weights, taps=self.taps),)
        )
