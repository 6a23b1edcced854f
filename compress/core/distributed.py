"""One training on several processes: `torchrun --nproc-per-node N -m compress run recipe.yaml`.

The batch is the recipe's, whatever the number of processes: each rank trains on its part of every batch, gradients are
averaged by the sizes of the parts, and every rank steps the same weights. Rank 0 does all other work, while the others
wait for what it broadcasts.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, cast

from compress.core.errors import MissingError, StageError, UsageError

if TYPE_CHECKING:  # functions import torch themselves: the store, which knows groups, is used without it
    from torch import Tensor, nn

ASK_EVERY_STEPS = 10  # steps between two questions whether to stop
STEP_TIMEOUT = timedelta(minutes=30)  # between two messages of a training
# Rank 0 may decode images, validate, quantise and measure while the others wait.
BROADCAST_TIMEOUT = timedelta(hours=48)


@dataclass(frozen=True)
class Group:
    """The processes of one run, of which this one is `rank` in [0, size).

    `control`: the process group for broadcasts from rank 0; None: torch's default group.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch's image indices (B,): contiguous; sizes differ by at most one.

        Raises UsageError if a rank would get nothing.
        """
        if self.size == 1:
            return batch
        if len(batch) < self.size:
            raise UsageError(f"train.batch_size: a batch of {len(batch)} cannot be shared by {self.size} processes")
        return batch.tensor_split(self.size)[self.rank]

    def scale_losses(self, losses: Mapping[str, Tensor], own: int, batch: int) -> dict[str, Tensor]:
        """Turn means over this rank's `own` images into its part of the mean over all `batch` images.

        Losses are scaled before the backward pass, because with SyncBatchNorm a rank's gradients also hold parts of
        the other ranks' losses.
        """
        return dict(losses) if self.size == 1 else {name: loss * (own / batch) for name, loss in losses.items()}

    @property
    def gradient_reducer(self) -> Callable[[list[Tensor]], None] | None:
        """The function that sums gradients over all ranks in place; None for one process."""
        return None if self.size == 1 else self._sum_gradients

    def _sum_gradients(self, gradients: list[Tensor]) -> None:
        """Sum over all ranks in place, in one message for each dtype."""
        import torch

        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            group = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in group])
            with _lost_process_reported():
                torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in group])
            for gradient, part in zip(group, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def all_reduce_sum(self, sums: dict[str, float]) -> dict[str, float]:
        """Return the sum of each number over all ranks."""
        if self.size == 1 or not sums:
            return sums
        import torch

        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=_device())
        with _lost_process_reported():
            torch.distributed.all_reduce(values)
        return dict(zip(sums, values.tolist(), strict=True))

    def any_rank(self, stop: bool, step: int) -> bool:
        """Return whether any rank wants to stop; asked every ASK_EVERY_STEPS steps, so that all stop together."""
        import torch

        if self.size == 1 or step % ASK_EVERY_STEPS:
            return stop and self.size == 1
        flag = torch.tensor(float(stop), device=_device())
        with _lost_process_reported():
            torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def broadcast_parameters(self, *modules: nn.Module, done: int = 0) -> None:
        """Copy rank 0's weights and buffers to every rank, and give each rank its own dropout from here on.

        Args:
            modules: What is copied.
            done: Steps already trained, so that a resumed training does not repeat the dropout of its beginning.
        """
        if self.size == 1:
            return
        import torch

        with _lost_process_reported():
            for value in (value for module in modules for value in module.state_dict().values()):
                torch.distributed.broadcast(value, src=0)
        torch.manual_seed((torch.initial_seed() + self.rank + (done << 16)) % 2**63)

    def gather(self, own: Tensor) -> Tensor:
        """Return the rows (M_r, ...) of all ranks in rank order: (sum of M_r, ...). Row counts may differ."""
        if self.size == 1:
            return own
        import torch

        counts = [torch.zeros((), dtype=torch.int64, device=own.device) for _ in range(self.size)]
        with _lost_process_reported():
            torch.distributed.all_gather(counts, torch.tensor(len(own), device=own.device))
            most = max(int(count) for count in counts)
            padded = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        import torch

        box = [value]
        with _lost_process_reported():
            torch.distributed.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


ALONE = Group()


def sync_batchnorm(
    group: Group, device: str, wanted: bool, warn: Callable[[str], None], *modules: nn.Module
) -> Callable[[], None]:
    """Let the BatchNorms inside `modules` take their training statistics over the whole batch.

    torch offers that between processes on CUDA only. The new layers share parameters and buffers with the old ones.

    Args:
        group: The processes of the run.
        device: Where this process trains.
        wanted: `train.sync_batchnorm`.
        warn: Called where each rank keeps statistics of its own.
        modules: Networks to change in place.

    Returns:
        A function that puts the old layers back.
    """
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
            f"BatchNorm takes its statistics over each rank's part of a batch, 1/{group.size} of it ({why}); "
            "those of rank 0 are kept"
        )
        return lambda: None
    convert: Callable[[nn.Module], nn.Module] = cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm
    others = [layer for _, _, layer in norms if type(layer).forward is not nn.modules.batchnorm._BatchNorm.forward]
    if others:  # torch's conversion would drop what they do besides, such as the activation of timm's
        warn(
            f"{len(others)} of {len(norms)} BatchNorms ({type(others[0]).__name__}) take their statistics over each "
            f"rank's part of a batch, 1/{group.size} of it; those of rank 0 are kept"
        )
    norms = [entry for entry in norms if entry[2] not in others]
    for parent, name, layer in norms:
        setattr(parent, name, convert(layer))

    def back() -> None:
        for parent, name, layer in norms:
            layer.train(parent.training)
            setattr(parent, name, layer)

    return back


def _device() -> str:
    """Return the device for small messages: nccl sends none from the CPU."""
    import torch

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


@contextmanager
def _lost_process_reported() -> Iterator[None]:
    """Raise StageError with one sentence, instead of a socket's message, when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        # gloo begins with the place in its source and ends with advice
        first = re.sub(r"^\[[^]]*\] *", "", str(error).strip())
        reason = re.split(r"\. |\n", first, maxsplit=1)[0] or "no message"
        raise StageError(
            f"another process of this run is gone ({reason}); run the same command again to resume"
        ) from error


def under_torchrun() -> bool:
    """Return whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[tuple[Group, str]]:
    """Connect the processes, by nccl on CUDA and gloo on the CPU, and yield (the group, this process's device).

    `cuda` becomes the GPU of this process (LOCAL_RANK). Raises UsageError if one GPU is named for all processes, and
    MissingError if the machine has fewer GPUs than processes.
    """
    if not under_torchrun():
        yield ALONE, device
        return
    import torch

    if device.startswith("cuda:"):
        raise UsageError(f"--device {device}: under torchrun every process takes its own GPU; use cuda or cpu")
    cuda = device == "cuda"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        needed = max(local + 1, processes)
        if needed > gpus:  # every process reports it, and none waits for the others
            raise MissingError(
                f"torch sees {gpus} CUDA devices here for {needed} processes; start fewer: --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(local)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", timeout=STEP_TIMEOUT, device_id=torch.device("cuda", local) if cuda else None
    )
    # gloo whatever the device: a wait of hours keeps no GPU busy, and a rank 0 that is gone is noticed at once.
    control = torch.distributed.new_group(backend="gloo", timeout=BROADCAST_TIMEOUT)
    yield (
        Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), control),
        f"cuda:{local}" if cuda else device,
    )
    with _lost_process_reported():
        # Nobody closes its connections while another one still works.
        torch.distributed.all_reduce(torch.zeros(1), group=control)  # type: ignore[arg-type]


def leave(code: int) -> NoReturn:
    """End a process of a group at once, when its work is done and written.

    gloo's threads can abort an interpreter that shuts down ("terminate called without an active exception", seen once
    in eight runs with torch 2.15), and torchrun would then report the whole run as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
