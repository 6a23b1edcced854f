"""`teacher` and `student`: the networks."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.schema.base import Count, Normalize, Section
from compress.recipe.schema.train import Train

MODEL = (
    "a network's name, see `compress models`, `timm/NAME` for one of the package timm, or `package.module:function` "
    "for your own, called with `classes=` (only with --allow-code)"
)
WIDTH = (
    "width multiplier, for mobilenet_v1 (0.25 to 2), mobilenet_v2 (0.1 to 2) and shufflenet_v2 (0.5, 1, 1.5, 2); null: "
    "the network's own (1, 0.5, 1)"
)
TAPS = (
    "for your own network: its stages from shallow to deep, as paths of modules (their outputs, after the last "
    "activation), for methods that read feature maps; null: its attribute `taps`"
)
WEIGHTS_KEY = (
    "which weights of a checkpoint file to take: the name of an entry, such as `state_dict_ema`, a prefix of its keys, "
    "such as `student`, or both joined by a dot; null: averaged weights (EMA) where there are some, else the only ones"
)
CHECKPOINT = "the path of a .safetensors, .pt, .pth, .bin, .ckpt or .pth.tar file"
START = (
    "initial weights: none (from scratch), a torchvision weights name, timm's name of weights or `pretrained`, or "
    f"{CHECKPOINT}; with another number of classes the last layer is new"
)


class Candidate(Section):
    """One possible teacher: a network to train here, a checkpoint, or a checkpoint that is trained further."""

    model: str = Field(default="", description=f"{MODEL}; needed unless `onnx` is given")
    onnx: str | None = Field(
        default=None,
        description="instead of model and weights: the path of an ONNX file with one float input (N, 3, S, S) or "
        "(N, S, S, 3), normalised by `normalize`, and an output with a value for each class: logits, or probabilities, "
        "which are turned into logits; it teaches only by its logits",
    )
    output: str | None = Field(
        default=None,
        description="name of the ONNX file's output, or of a tensor inside it, that holds the logits; null: the only "
        "one with a value for each class",
    )
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(
        default="none",
        description="none (train here), embedded (part of the package, for fashion), a torchvision weights name, "
        f"timm's name of weights or `pretrained`, or {CHECKPOINT}",
    )
    weights_key: str | None = Field(default=None, description=WEIGHTS_KEY)
    taps: tuple[str, ...] | None = Field(default=None, description=TAPS)
    expect_top1: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="accuracy that the checkpoint must reach on the validation images, as a fraction; null: not "
        "checked",
    )
    normalize: Normalize | None = Field(
        default=None, description="normalisation that the checkpoint was trained with; null: that of `data`"
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None,
        description="side in pixels of the images that the network was trained with; each view is resized to it; null: "
        "data.image_size, or the ONNX file's own",
    )
    channels: Literal["rgb", "bgr"] = Field(
        default="rgb",
        description="order of the colours that the network was trained with; `normalize` always has red first",
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="names of the network's outputs in their order, if they differ from the data's classes; each "
        "class is then found by name",
    )
    train: Train | None = Field(
        default=None,
        description="train here, starting from `weights` if given; null: train with defaults if weights is none, "
        "else use the checkpoint as it is",
    )

    @property
    def title(self) -> str:
        """Return its name in messages and tables."""
        return self.model if self.onnx is None else PurePath(self.onnx).name


class Proxy(Section):
    """`select: proxy`: short distillations of the student from each candidate, with a cosine schedule."""

    epochs: Count = Field(default=5, description="epochs of each short distillation")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="share of the training images, the same for every class"
    )


class Teacher(Section):
    """The possible teachers, and how one of them is selected."""

    select: Literal["best", "proxy"] = Field(
        default="best",
        description="best: the most accurate on the validation images, among equals the one with fewer MACs; "
        "proxy: by the student's accuracy after a short distillation from each, the cheapest of those "
        "that are not shown to be worse than the best; the report shows both rankings",
    )
    proxy: Proxy = Field(default=Proxy(), description="the short distillations")
    candidates: tuple[Candidate, ...] = Field(min_length=1, description="one or more networks")


class Choice(Section):
    """A network that may become the student."""

    model: str = Field(description=MODEL)
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(default="none", description=START)
    weights_key: str | None = Field(default=None, description=WEIGHTS_KEY)
    taps: tuple[str, ...] | None = Field(default=None, description=TAPS)


class Choose(Section):
    """Picks the student before any training: each network is exported with random weights and timed.

    The largest network (by MACs, then parameters) within the budget is picked.
    """

    max_latency_ms: Annotated[float, Field(gt=0)] = Field(
        description="budget in milliseconds for one image on the target device, held against the upper end of the "
        "interval of the median of the file that would ship"
    )
    from_: tuple[Choice, ...] = Field(alias="from", min_length=1, description="the networks to pick from")


class Student(Section):
    """The network that ships."""

    model: str | None = Field(default=None, description=f"{MODEL}; needed unless `choose` picks it")
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(default=None, description=WIDTH)
    weights: str = Field(default="none", description=START)
    weights_key: str | None = Field(default=None, description=WEIGHTS_KEY)
    taps: tuple[str, ...] | None = Field(default=None, description=TAPS)
    choose: Choose | None = Field(
        default=None, description="instead of model, width and weights: pick the largest network that is fast enough"
    )

    @property
    def networks(self) -> tuple[Choice, ...]:
        """Return the networks that may become the student: the one that is named, or those that `choose` picks from."""
        if self.choose is not None:
            return self.choose.from_
        return (
            ()
            if self.model is None
            else (
                Choice(
                    model=self.model,
                    width=self.width,
                    weights=self.weights,
                    weights_key=self.weights_key,
                    taps=self.taps,
                ),
            )
        )
