"""What one training works on: built before the first step, put back as it was after the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from compress.core.distributed import ALONE, Group, sync_batchnorm
from compress.core.malloc import keep_freed_memory
from compress.core.records.training import Normalization
from compress.data.augment import views
from compress.data.streaming.batches import Stream
from compress.methods import Method
from compress.models.taps import Tapped
from compress.recipe.schema import ResolvedTrain
from compress.training import schedule
from compress.training.checkpoint import Checkpointer, State
from compress.training.engine.choose import RECORDERS, StepRunner, choose_engine, classifier_of, keep_channels_last
from compress.training.engine.compile import release_compiled
from compress.training.evaluation import ImageSet
from compress.training.kernels import TORCH, use_fast_kernels
from compress.training.optimization import LearningRate, MovingAverage, build_optimizer
from compress.training.precision import resolve_precision
from compress.training.step import Step, TeacherSource, parameter_groups, trainable


class Progress(Protocol):
    """Where the loop reports what it does."""

    def start_at(self, epoch: int, step: int) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, images: int, losses: dict[str, Tensor]) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...


@dataclass
class Session:
    """Student, method, optimizer and step of one training, resumed from its checkpoint where there is one.

    Restoring a checkpoint is a collective operation: every rank builds its session at the same time.

    Attributes:
        taps: the student's taps, by name.
        folder: holds checkpoint.pt.
        group: the processes that share each batch.
        batch_size: images per batch, over all ranks.
        steps_per_epoch: batches per epoch.
        images_per_epoch: images that these batches hold.
        threads: the CPU threads that train.
        kernels: who computes the student's BatchNorms, see `kernels.use_fast_kernels`.
    """

    student: nn.Module
    method: Method
    image_set: ImageSet
    train: ResolvedTrain
    normalization: Normalization
    taps: Mapping[str, str]
    teacher: TeacherSource | None
    device: str
    folder: Path
    progress: Progress
    group: Group

    def __post_init__(self) -> None:
        train, student, method, group, device = self.train, self.student, self.method, self.group, self.device
        count = len(self.image_set.train_index)
        smallest = max(method.smallest_batch(), schedule.smallest_batch(student, self.image_set.image_size, device))
        self.batch_size = schedule.batch_size(train.batch_size, count, smallest * group.size)
        self.steps_per_epoch = schedule.steps(count, self.batch_size, smallest * group.size)
        self.images_per_epoch = min(self.steps_per_epoch * self.batch_size, count)
        method.set_process_group(group)
        keep_freed_memory()
        warn = self.progress.warn if group.is_main else lambda _: None
        self._restore_batch_norms = sync_batchnorm(group, device, train.sync_batchnorm, warn, student, method)
        self.parameters = trainable(student, method)
        self.optimizer = build_optimizer(self.parameters, train)
        # For dropout; everything else draws its random numbers from a stateless source.
        torch.manual_seed(train.seed)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(train.threads or self._threads_before)
        self.checkpoints = Checkpointer(self.folder, student, method, self.optimizer, group)
        self.state = self._restore()
        self.threads = torch.get_num_threads()
        self.average = None if train.ema is None else MovingAverage(self.parameters, train.ema, self.state.average)
        self.state.average = None if self.average is None else self.average.values
        # After the checkpoint: a restored optimizer has its own learning rate.
        self.learning_rate = LearningRate(self.optimizer, device, recorded=torch.device(device).type in RECORDERS)
        self.tapped = Tapped(student, {name: self.taps[name] for name in method.student_taps})
        self.stream = self.image_set.images if isinstance(self.image_set.images, Stream) else None
        self.step = self._build_step()
        self.classifier, self._remove_hooks = classifier_of(student, self.taps), keep_channels_last(student)
        self._restore_kernels: Callable[[], None] = lambda: None
        self.kernels = TORCH

    def _restore(self) -> State:
        """Return where training starts; every rank has rank 0's weights then."""
        restored = self.checkpoints.restore(resolve_precision(self.train.precision, self.device))
        state = restored or State()
        if restored is not None:
            self.progress.start_at(state.epoch, state.step)
        done = (state.epoch - 1) * self.steps_per_epoch + state.step
        self.group.broadcast_parameters(self.student, self.method, done=done)
        return state

    def _build_step(self) -> Step:
        image_set, normalization = self.image_set, self.normalization
        mean, std = (torch.tensor(values, device=self.device) for values in (normalization.mean, normalization.std))
        return Step(
            network=self.tapped,
            method=self.method,
            images=None if isinstance(image_set.images, Stream) else image_set.images,
            labels=image_set.labels,
            augment=image_set.augment,
            image_size=image_set.image_size,
            mean=mean,
            std=std,
            teacher=self.teacher,
            optimizer=self.optimizer,
            parameters=self.parameters,
            precision=self.checkpoints.precision,
            group=self.group,
            traced=parameter_groups(self.student, self.taps) if self.train.trace_gradients else {},
            distortion=image_set.distortion,
            crop_scale=image_set.crop_scale,
            clip_norm=self.train.clip_norm,
            average=self.average,
        )

    def choose_engine(self) -> StepRunner:
        """Install the CPU kernels and return what runs the steps: the step itself, compiled or recorded."""
        warn, total = self.progress.warn, self.steps_per_epoch * self.train.epochs
        if self.device == "cpu":
            self._restore_kernels, self.kernels = use_fast_kernels(
                self.student, self.image_set.image_size, self.train.engine, warn
            )
        return choose_engine(self.train.engine, self.step, self.batch_size, total, self.classifier, warn)

    def draws(self, epoch: int, *, mix_shards: bool = True) -> tuple[Tensor, Tensor]:
        """Return an epoch's images in order and the view of each, int64 (M,) each on the device.

        An image that comes again in the same epoch comes in another view.

        Args:
            epoch: 1-based, or 0 for the views that statistics are recomputed from.
            mix_shards: respect the shards of a stream.
        """
        image_set, train = self.image_set, self.train
        index, shards = image_set.train_index, image_set.shards if mix_shards else None
        if train.sampling != "balanced":
            order = schedule.order(index, train.seed, epoch, shards)
            return order, self._views(order, epoch)
        order = schedule.order(index, train.seed, epoch, shards, image_set.labels[index])
        again, view = schedule.occurrences(order).to(order.device), torch.empty_like(order)
        # No two draws of a training share a number, unless a limit makes views come again anyway.
        step = 1 if train.views else train.epochs + 1
        for number in range(int(again.max()) + 1):
            here = again == number
            view[here] = self._views(order[here], epoch + number * step)
        return order, view

    def _views(self, index: Tensor, epoch: int) -> Tensor:
        """Return an epoch's view of each image, int64 (N,) on the device."""
        image_set = self.image_set
        return views.views_of(
            index.cpu(),
            epoch,
            self.train.seed,
            image_set.augment,
            self.train.views,
            image_set.image_size,
            distorted=image_set.distortion is not None,
        ).to(self.device)

    def close(self) -> None:
        """Put networks, threads and processes back as they were, and save what the teacher cache learned."""
        torch.set_num_threads(self._threads_before)
        self.tapped.close()
        self._remove_hooks()
        self._restore_kernels()
        release_compiled(self.classifier)
        # The trained networks ship without gradients; a recording's memory is freed with them.
        self.optimizer.zero_grad(set_to_none=True)
        self._restore_batch_norms()
        self.method.set_process_group(ALONE)
        if self.stream is not None:
            self.stream.close()
        if self.teacher is not None and self.group.is_main:
            self.teacher.save()
