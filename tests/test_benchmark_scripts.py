"""The benchmarks measure what they say: how often networks run, what is in a cache, and the ratios that they print."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import authors_loop
import numpy as np
import torch
from torch import Tensor, nn

PICTURES, BATCH, CLASSES = 12, 4, 3


def test_the_published_loop_runs_each_network_once_a_batch_and_two_backward_passes() -> None:
    ran = dict.fromkeys(("teacher", "student", "head", "backward"), 0)
    last: list[Tensor] = []

    def count(name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            ran[name] += 1

        return note

    def pooled() -> Iterator[Tensor]:
        while True:
            yield last[-1]

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES))

    teacher, student, head = network(), network(), nn.Linear(5, CLASSES)
    for name, module in (("teacher", teacher), ("student", student), ("head", head)):
        module.register_forward_hook(count(name))
    student[2].register_forward_hook(lambda _, inputs, out: last.append(out))
    student[0].weight.register_hook(count("backward"))  # both losses reach it
    before = [p.clone() for p in teacher.parameters()]
    images = np.random.default_rng(0).integers(0, 256, (PICTURES, 32, 32, 3), dtype=np.uint8)
    batches = authors_loop.loader(images, np.arange(PICTURES) % CLASSES, (0.5,) * 3, (0.25,) * 3, BATCH)
    optimizer = torch.optim.SGD([*student.parameters(), *head.parameters()], lr=0.1)
    seconds, seen = authors_loop.train(student, head, pooled(), teacher, batches, optimizer, device="cpu")
    count_of_batches = PICTURES // BATCH
    assert ran == {"teacher": count_of_batches, "student": count_of_batches, "head": count_of_batches, "backward": 2 * count_of_batches}
    assert seen == PICTURES and seconds > 0
    assert all(torch.equal(one, other) for one, other in zip(before, teacher.parameters(), strict=True))
