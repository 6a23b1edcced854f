"""Several processes, one training: `torchrun --nproc-per-node N -m compress run recipe.yaml`. Nothing here in an ordinary run.

A training's batch is the recipe's batch whatever the number of processes: each takes its share of every batch, gradients are averaged by
share, and every process steps the same weights. All other work is done by the first process, while the others wait for its word.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from compress.core.errors import MissingError, StageError, UsageError

if TYPE_CHECKING:  # torch is imported where there is more than one process, or a tensor: the store knows groups, and is needed without torch
    from torch import Tensor, nn

ASK_EVERY_STEPS = 10  # steps between two questions whether to stop
STEP = timedelta(minutes=30)  # between two messages of a training
WAIT = timedelta(
    hours=48
)  # the first process may look for pictures, validate, quantise and measure while the others wait for its word


@dataclass(frozen=True)
class Group:
    """The processes of one run: `rank` in [0, size). `waiting`: the connections over which a word of the first process is waited for; None: torch's own."""

    rank: int = 0
    size: int = 1
    waiting: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This process's part of a batch's pictures (B,): contiguous, sizes differ by one at most. Raises UsageError where it is empty."""
        if self.size == 1:
            return batch
        if len(batch) < self.size:
            raise UsageError(f"train.batch_size: a batch of {len(batch)} cannot be shared by {self.size} processes")
        return batch.tensor_split(self.size)[self.rank]

    def scale_losses(self, losses: Mapping[str, Tensor], own: int, batch: int) -> dict[str, Tensor]:
        """Means over `own` of a batch's `batch` pictures -> this process's part of the batch's mean.

        Before the backward pass, not after it: with SyncBatchNorm a process's gradients hold parts of the others' losses, too.
        """
        return dict(losses) if self.size == 1 else {name: loss * (own / batch) for name, loss in losses.items()}

    @property
    def gradient_reducer(self) -> Callable[[list[Tensor]], None] | None:
        """How the gradients of all processes' parts become the batch's; None for one process."""
        return None if self.size == 1 else self._sum

    def _sum(self, gradients: list[Tensor]) -> None:
        """Over all processes, in place, in one message for each type."""
        import torch

        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            group = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in group])
            with _named():
                torch.distributed.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in group])
            for gradient, part in zip(group, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def all_reduce_sum(self, sums: dict[str, float]) -> dict[str, float]:
        """Numbers -> their sums over all processes."""
        if self.size == 1 or not sums:
            return sums
        import torch

        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=_device())
        with _named():
            torch.distributed.all_reduce(values)
        return dict(zip(sums, values.tolist(), strict=True))

    def any_rank(self, stop: bool, step: int) -> bool:
        """Whether any process wants to stop, asked every ASK_EVERY_STEPS steps: all must leave the loop at the same step."""
        import torch

        if self.size == 1 or step % ASK_EVERY_STEPS:
            return stop and self.size == 1
        flag = torch.tensor(float(stop), device=_device())
        with _named():
            torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def broadcast_parameters(self, *modules: nn.Module, done: int = 0) -> None:
        """The first process's weights and buffers, in every process; other processes draw other dropout from here on.

        `done`: steps behind it; a training that goes on there draws other dropout than it began with.
        """
        if self.size == 1:
            return
        import torch

        with _named():
            for value in (value for module in modules for value in module.state_dict().values()):
                torch.distributed.broadcast(value, src=0)
        torch.manual_seed((torch.initial_seed() + self.rank + (done << 16)) % 2**63)

    def gather(self, own: Tensor) -> Tensor:
        """Every process's rows (M_r, ...), in the order of ranks: (sum of M_r, ...). Row counts may differ. Alone: `own`."""
        if self.size == 1:
            return own
        import torch

        counts = [torch.zeros((), dtype=torch.int64, device=own.device) for _ in range(self.size)]
        with _named():
            torch.distributed.all_gather(counts, torch.tensor(len(own), device=own.device))
            most = max(int(count) for count in counts)
            padded = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        import torch

        box = [value]
        with _named():
            torch.distributed.broadcast_object_list(box, src=0, group=self.waiting)
        return box[0]


ALONE = Group()


def sync_batchnorm(
    group: Group, device: str, wanted: bool, warn: Callable[[str], None], *modules: nn.Module
) -> Callable[[], None]:
    """BatchNorms inside `modules` take their training statistics over the whole batch. What is returned puts them back as they were.

    Only between processes on CUDA, where torch has it; elsewhere, or where it is not wanted, `warn` is told whose statistics they take.
    The new layers share parameters and buffers with the old ones.
    """
    import torch
    from torch import nn

    norms = [
        (parent, name, layer)
        for module in modules
        for parent in module.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    if group.size == 1 or not norms:
        return lambda: None
    if not wanted or not device.startswith("cuda"):
        why = "train.sync_batchnorm is false" if not wanted else "SyncBatchNorm needs CUDA"
        warn(
            f"BatchNorm takes its statistics over each process's own share of a batch, 1/{group.size} of it ({why}); the first process's are kept"
        )
        return lambda: None
    for parent, name, layer in norms:
        setattr(parent, name, torch.nn.SyncBatchNorm.convert_sync_batchnorm(layer))

    def back() -> None:
        for parent, name, layer in norms:
            layer.train(parent.training)
            setattr(parent, name, layer)

    return back


def _device() -> str:
    """Where small messages stand: nccl sends none from the CPU."""
    import torch

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


@contextmanager
def _named() -> Iterator[None]:
    """A process that is gone is one sentence, not a socket's message."""
    try:
        yield
    except RuntimeError as error:
        first = re.sub(
            r"^\[[^]]*\] *", "", str(error).strip()
        )  # gloo begins with the place in its source, and ends with advice
        reason = re.split(r"\. |\n", first, maxsplit=1)[0] or "no message"
        raise StageError(
            f"another process of this run is gone ({reason}); run the same command again to resume"
        ) from error


def under_torchrun() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[tuple[Group, str]]:
    """(the group, this process's device) while the processes are connected: nccl on CUDA, gloo on the CPU.

    `cuda` becomes this process's own card (LOCAL_RANK). Raises UsageError where a card is named for all processes, MissingError where
    the machine has fewer cards than processes.
    """
    if not under_torchrun():
        yield ALONE, device
        return
    import torch

    if device.startswith("cuda:"):
        raise UsageError(f"--device {device}: under torchrun every process takes its own card; say cuda or cpu")
    cuda = device == "cuda"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        cards, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if max(local + 1, processes) > cards:  # every process says it, and none waits for the others
            raise MissingError(
                f"torch sees {cards} CUDA devices here for {max(local + 1, processes)} processes; start fewer: --nproc-per-node {cards}"
            )
        torch.cuda.set_device(local)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", timeout=STEP, device_id=torch.device("cuda", local) if cuda else None
    )
    # On the CPU whatever the device: a wait of hours keeps no card busy, and a first process that is gone is noticed at once.
    waiting = torch.distributed.new_group(backend="gloo", timeout=WAIT)
    yield (
        Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), waiting),
        f"cuda:{local}" if cuda else device,
    )
    with _named():
        torch.distributed.all_reduce(torch.zeros(1), group=waiting)  # type: ignore[arg-type]  # nobody closes its connections while another one still works


def leave(code: int) -> NoReturn:
    """End a process of a group at once: its work is done and written.

    gloo's threads can abort an interpreter that shuts down (seen once in eight runs, torch 2.15: "terminate called without an active exception"),
    and torchrun would call the whole run a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
