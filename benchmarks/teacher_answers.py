"""Ask a teacher once, in large batches, for every logit that the trainings of several seeds will want.

Trainings that run beside each other otherwise ask the teacher each for itself. The answers lie in the cache of
`--artifacts`, where each training finds them; they are of no use on another machine and are not part of a state.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from compress.core.console import Console
from compress.core.locks import locked
from compress.core.store import Store
from compress.data.augment import views
from compress.pipeline.workflow import Workflow
from compress.recipe import loader
from compress.recipe.defaults import resolve
from compress.training import build
from compress.training.teacher.signals import teacher_cache

READS_LOGITS_ALONE = ("kd", "kd_standardized", "dkd", "dist", "dhkd")


def ask(path: Path, changes: tuple[str, ...], method: str, seeds: Iterable[int], device: str, artifacts: Path) -> None:
    """Fill the cache with the logits of all epochs of these seeds; train the teacher first where it is not there yet.

    Do nothing for a method that reads more than logits: the cache does not hold maps.
    """
    if method not in READS_LOGITS_ALONE:
        return
    loaded = loader.load(path, changes)
    settings = resolve(loaded.recipe)
    store = Store(artifacts, device, Console())
    work = Workflow(loaded, settings, store)
    _, selected = work.selected()
    data, images = work.training, build.load_images(work.training, device)
    cache = teacher_cache(
        selected.teacher,
        data,
        len(images.images),
        device=device,
        cache=store.root / "cache",
        warn=store.console.warn,
    )
    whole = images.images
    if cache.file is None or not cache.enabled or not isinstance(whole, Tensor) or data.distortion is not None:
        return

    def pixels(index: Tensor, view: Tensor) -> Tensor:
        return views.apply_views(whole, index, view, data.augment, data.image_size)

    index = images.train_index
    with locked(cache.file.with_suffix(".asked.lock")):  # a second script finds them instead of asking, too
        cache.ensure_loaded()
        before = cache.used
        store.console.line(
            f"teacher {selected.teacher.network.model}: asked for all logits first, {before:,} are known"
        )
        for seed in seeds:
            for epoch in range(1, (settings.train.epochs or 1) + 1):
                view = views.views_of_epoch(
                    len(whole), epoch, seed, data.augment, settings.train.views, data.image_size
                )
                cache.prefetch_logits(index, view.to(device)[index], pixels)
        cache.save()
    store.console.line(f"teacher {selected.teacher.network.model}: {cache.used - before:,} logits are new")
