"""`train`: the training of the student, and of a teacher candidate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.recipe.schema.base import Count, Section


def _class_weights(value: Any) -> Any:
    """Check for a word, or weights by class, with one message for all branches of the union."""

    def weight(one: Any) -> bool:
        return isinstance(one, (int, float)) and not isinstance(one, bool) and 0 < one < float("inf")

    if value in ("none", "balanced") or (isinstance(value, dict) and value and all(map(weight, value.values()))):
        return value
    raise ValueError("expected none, balanced or weights above 0 by class, such as {faulty: 3}")


ClassWeight = Annotated[float, Field(gt=0)]
ClassWeights = Annotated[Literal["none", "balanced"] | dict[str, ClassWeight], BeforeValidator(_class_weights)]


class Schedule(Section):
    """Learning rate over the epochs."""

    kind: Literal["cosine", "step", "constant"] = Field(
        default="cosine",
        description="cosine: falls to zero at the end of the last epoch; step: times gamma after each milestone; "
        "constant: stays",
    )
    milestones: tuple[Count, ...] = Field(
        default=(150, 180, 210), description="step: last epochs (1-based) before the rate falls"
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="step: factor of the rate at each milestone"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="epochs in which the rate rises linearly from 0; null: 0 from scratch, 1 (at most a quarter of the "
        "epochs) from pretrained weights",
    )


class Train(Section):
    """How a network is trained. A `null` takes the default for training from scratch or from pretrained weights."""

    epochs: Count | None = Field(
        default=None,
        description="null: 240 from scratch as in the papers (60 for a teacher candidate), 20 from pretrained weights",
    )
    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(default=64, description="images per step")
    lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="learning rate; null: 0.05 from scratch (0.01 for MobileNets and ShuffleNets), 0.001 from "
        "pretrained weights; with adamw 0.001 and 0.0001",
    )
    optimizer: Literal["sgd", "adamw"] | None = Field(
        default=None,
        description="adamw: Adam with decoupled weight decay, which wants a larger weight_decay; null: sgd",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="momentum of SGD")
    nesterov: bool = Field(default=False, description="use Nesterov momentum")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=5e-4, description="applied to every parameter, including those of the method; see decay_norms"
    )
    decay_norms: bool | None = Field(
        default=None, description="false: no weight decay on biases and on the weights of norms; null: true"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="scale a gradient whose norm over all parameters is larger down to it; null: never"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="validate and ship an exponential moving average of the weights, with BatchNorm statistics of its "
        "own: what each step keeps of it, such as 0.99; null: the weights themselves",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="label smoothing of the cross-entropy"
    )
    class_weights: ClassWeights | None = Field(
        default=None,
        description="weights of the classes in the cross-entropy; balanced: as the inverse of their numbers of images; "
        "or one for each class that is named, such as `{faulty: 3}`, and 1 for the others; null: none",
    )
    sampling: Literal["all", "balanced"] | None = Field(
        default=None,
        description="which images an epoch shows; all: each once; balanced: as many, drawn so that every class comes "
        "equally often; null: all",
    )
    schedule: Schedule = Field(default=Schedule(), description="learning rate over the epochs")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto: bf16 on CUDA GPUs (from Ampere on) and CPUs with bf16 units, else float32"
    )
    engine: Literal["auto", "compile", "graph", "eager"] = Field(
        default="auto",
        description="auto: on a CPU, BatchNorms run in kernels that the local C compiler builds; on CUDA, a step is "
        "recorded once as a graph and replayed where method and teacher allow it, and from 50,000 steps on the "
        "student is compiled by torch.compile; compile: compiled on any device (a CPU needs a C++ compiler); "
        "graph: recorded, not compiled; eager: neither. On a CPU only auto uses the BatchNorm kernels",
    )
    sync_batchnorm: bool = Field(
        default=True,
        description="with several processes on CUDA, compute BatchNorm's statistics over the whole batch; false, and "
        "always on CPUs: over each process's share",
    )
    batch_norm: Literal["auto", "running", "recomputed", "frozen"] | None = Field(
        default=None,
        description="the statistics with which BatchNorm evaluates; running: averages over the steps, as in the "
        "papers; recomputed: those of 2,048 training views (of all images if there are fewer), taken anew with the "
        "weights of each epoch's end; frozen: those of the pretrained weights, in training too; null or auto: "
        "frozen from pretrained weights, running from scratch",
    )
    probe: bool | None = Field(
        default=None,
        description="fit the last layer alone before fine-tuning (Kumar et al. 2022), by logistic regression on the "
        "features of the pretrained weights; its validation accuracy is reported, and `keep: best` may ship it; null: "
        "wherever pretrained weights get a new last layer",
    )
    views: Count | None = Field(
        default=None,
        description="limit the augmentation to so many views per image, so that cached teacher logits are reused "
        "sooner; null: no limit",
    )
    trace_gradients: Count | None = Field(
        default=None,
        description="every so many steps, record in the history the cosine between the gradients of the "
        "cross-entropy and of the distillation losses, for the classifier and for the backbone; null: "
        "never",
    )
    patience: Count | None = Field(
        default=None,
        description="stop after so many epochs without a better validation accuracy; usually with `keep: best`; null: "
        "train all epochs",
    )
    metric: Literal["top1", "balanced_accuracy", "macro_f1"] | None = Field(
        default=None,
        description="what `keep: best` and `patience` go by on the validation images, and, in the student's section, "
        "`teacher.select: best`; balanced_accuracy and macro_f1 count every class alike; null: top1",
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="which epoch ships; best: the one with the best validation accuracy"
    )
    threads: Count | None = Field(
        default=None,
        description="CPU threads; null: torch's choice (for a candidate: the student's); a resumed training keeps them",
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="null: the recipe's seed (student) or 0 (teacher candidates)"
    )
