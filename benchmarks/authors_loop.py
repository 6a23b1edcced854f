"""The training loop of DHKD's published code, rewritten from its description; `train_speed.py` measures against it.

One image at a time goes through PIL transforms in a DataLoader without workers. The teacher runs at every step, two
backward passes are copied into flat vectors, projected and copied back, in float32 and torch's default layout, and the
metrics are read at every step.
Source: Yang et al. 2024 (arXiv 2411.08937) and the repository that it names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

MIN_PROBABILITY = 1e-8


class TransformedImages(Dataset):
    """Images uint8 (N, 32, 32, 3) as PIL images, transformed one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        from torchvision import transforms

        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index]), index


def loader(
    images: np.ndarray, labels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int
) -> DataLoader:
    """Return shuffled batches that are augmented in the training process."""
    return DataLoader(TransformedImages(images, labels, mean, std), batch_size=batch_size, shuffle=True, num_workers=0)


def binary_kl_norm(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the loss by its definition: KL of Bernoulli(1/2) and Bernoulli(sigmoid of the difference), clamped."""
    p = torch.sigmoid((student - teacher) / temperature).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    half = torch.full_like(p, 0.5)
    both = functional.kl_div(p.log(), half, reduction="sum") + functional.kl_div((1 - p).log(), half, reduction="sum")
    return temperature**2 * both / len(student)


def flat_gradient(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Run a backward pass; return all gradients in one vector, zero where the loss does not reach a parameter."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    parts = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    return torch.cat([part.flatten() for part in parts])


def aligned_step(optimizer: torch.optim.Optimizer, task: Tensor, auxiliary: Tensor) -> None:
    """Flatten two gradients, project the second where they conflict, and step with their sum."""
    first, second = flat_gradient(optimizer, task), flat_gradient(optimizer, auxiliary)
    dot = torch.dot(second, first)
    if dot < 0:
        second = second - dot / first.norm() ** 2 * first
    total, offset = first + second, 0
    optimizer.zero_grad(set_to_none=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = total[offset : offset + p.numel()].view_as(p).clone()
            offset += p.numel()
    optimizer.step()


def train(
    student: nn.Module,
    auxiliary: nn.Module,
    pooled: Iterator[Tensor],
    teacher: nn.Module,
    batches: DataLoader,
    optimizer: torch.optim.Optimizer,
    *,
    device: str,
    temperature: float = 2.0,
) -> tuple[float, int]:
    """Train for one pass over the loader; return its seconds and images.

    `pooled` yields the classifier's input of the student's last forward pass.
    """
    student.train()
    auxiliary.train()
    teacher.eval()
    seen, losses, hits = 0, 0.0, 0.0
    begin = time.perf_counter()
    for pixels, labels, _ in batches:
        pixels, labels = pixels.to(device), labels.to(device)
        logits = student(pixels)
        extra = auxiliary(next(pooled))
        with torch.no_grad():
            known = teacher(pixels)
        task = functional.cross_entropy(logits, labels)
        distance = binary_kl_norm(extra, known.detach(), temperature)
        losses += float((task + distance).detach()) * len(labels)
        hits += float((logits.argmax(1) == labels).float().sum())
        aligned_step(optimizer, task, distance)
        seen += len(labels)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin, seen
