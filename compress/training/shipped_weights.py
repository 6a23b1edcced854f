"""The weights that ship: those of the last or best epoch or their average, with the statistics that the recipe names.

Every epoch's validation sees these weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress.data.augment.distort import distort_views
from compress.training import batch_norm
from compress.training.evaluation import accuracy, predict, score
from compress.training.session import Session

# The number under which the start of a training is kept, before its first epoch.
START = 0


class ShippedWeights:
    """What would ship if training ended now, in one `fit`.

    Attributes:
        loaded: whether the networks have it for good, so that training cannot go on from them.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.loaded = session, False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Bring the networks into the state in which they would ship; put a moving average aside afterwards."""
        session = self.session
        if session.average is None:
            self._settle()
            yield
            return
        buffers = [(value, value.clone()) for value in _statistics(session.student, session.method)]
        session.average.swap()
        self._settle()
        yield
        session.average.swap()
        for value, before in buffers:
            value.copy_(before)

    def _settle(self) -> None:
        """Recompute statistics where they are to be, also of a moving average, whose running ones nobody kept."""
        train = self.session.train
        if train.batch_norm == "recomputed" or (train.ema is not None and train.batch_norm != "frozen"):
            self._recompute_statistics()

    @property
    def column(self) -> str:
        """The history's column that training goes by."""
        return f"{self.session.train.metric or 'top1'}_validation"

    def validate(self) -> dict[str, float]:
        """Return the accuracies on the validation images by their columns, on rank 0 alone; none without any."""
        session, image_set = self.session, self.session.image_set
        if not len(image_set.validation_index) or not session.group.is_main:
            return {}
        logits = predict(
            session.method.deployed(session.student),
            image_set.validation(),
            image_set.image_size,
            session.normalization,
            device=image_set.labels.device,
        )
        labels = image_set.labels[image_set.validation_index]
        found = {"top1_validation": accuracy(logits, labels)}
        return found if self.column in found else {**found, self.column: score(session.train.metric, logits, labels)}

    def keep_best(self, row: Mapping[str, float], epoch: int) -> None:
        """Copy the weights of the best epoch so far, under `train.keep: best`; of equal epochs the later one counts.

        Args:
            row: the epoch's accuracies, see `validate`.
            epoch: 1-based, or START.
        """
        session, state, reached = self.session, self.session.state, row.get(self.column, 0.0)
        # A checkpoint names it top1 whatever the metric.
        if session.train.keep != "best" or reached < (state.best or {"top1": -1.0})["top1"]:
            return
        student, method = (
            {name: value.detach().clone() for name, value in module.state_dict().items()}
            for module in (session.student, session.method)
        )
        state.best = {"top1": reached, "epoch": epoch, "student": student, "method": method}

    def exhausted(self) -> bool:
        """Return whether `train.patience` epochs have passed without a better validation accuracy, on rank 0 alone."""
        patience, history = self.session.train.patience, self.session.state.history
        reached = [row.get(self.column, 0.0) for row in history]
        return patience is not None and bool(reached) and len(reached) - 1 - reached.index(max(reached)) >= patience

    def keep_start(self) -> None:
        """Let the start of training ship where no epoch is better, unless training is resumed."""
        state = self.session.state
        if self.session.train.keep == "best" and (state.epoch, state.step, state.best) == (1, 0, None):
            self.keep_best(self.validate(), START)

    def load(self) -> int:
        """Give the networks the weights that ship; return their 1-based epoch, or START."""
        session, best, self.loaded = self.session, self.session.state.best, True
        if session.train.keep != "best" or best is None:
            if session.average is not None:
                session.average.swap()
                self._settle()
            return len(session.state.history)
        session.student.load_state_dict(best["student"])
        session.method.load_state_dict(best["method"])
        return int(best["epoch"])

    def _recompute_statistics(self) -> None:
        """Recompute the statistics of the BatchNorms that ship.

        Rank 0 computes and the others take its values. Images and views are the same after every epoch and for every
        number of ranks, so the same weights get the same statistics.
        """
        session = self.session
        network = session.method.deployed(session.student)
        if session.group.is_main:
            batch_norm.recompute(network, self._statistics_batches(), session.step.mean, session.step.std)
        if session.group.size > 1:
            own = _statistics(network)
            theirs = session.group.broadcast([value.cpu() for value in own])
            for value, new in zip(own, theirs, strict=True):
                value.copy_(new)

    def _statistics_batches(self) -> Iterator[Tensor]:
        """Yield the training views that statistics are recomputed from, uint8 (N, H, W, 3)."""
        session, image_set = self.session, self.session.image_set
        index, view = session.draws(START, mix_shards=False)
        batches = batch_norm.fixed_batches(index[: batch_norm.VIEWS], image_set.image_size)
        views = torch.split(view[: batch_norm.VIEWS], [len(part) for part in batches])
        if session.stream is None:
            yield from (session.step.pixels(*pair) for pair in zip(batches, views, strict=True))
            return
        requests = ((part.cpu(), view.cpu()) for part, view in zip(batches, views, strict=True))
        decoded = session.stream.batches(requests, max(map(len, batches)))
        for view, pixels in zip(views, decoded, strict=True):
            yield distort_views(pixels, view, image_set.distortion)


def _statistics(*networks: nn.Module) -> list[Tensor]:
    """Return the running means and variances of networks, in order."""
    layers = (layer for network in networks for layer in batch_norm.tracked_layers(network))
    pairs = ((layer.running_mean, layer.running_var) for layer in layers)
    return [value for pair in pairs for value in pair if value is not None]
