"""Make the embedded teacher: train it by the recipe beside its weights, and keep it in half precision with its log.

python tools/make_embedded_teacher.py [--artifacts DIR]
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from compress.core.console import Console
from compress.core.store import Store
from compress.models import checkpoints
from compress.pipeline import run, workflow
from compress.recipe import loader
from compress.recipe.defaults import resolve
from compress.training import build

WEIGHTS = Path(__file__).parents[1] / "compress" / "models" / "weights"


@click.command()
@click.option("--artifacts", default=Path("artifacts"), type=click.Path(path_type=Path), show_default=True)
def main(artifacts: Path) -> None:
    """Train, then write the weights and the log beside the recipe."""
    loaded = loader.load(WEIGHTS / "resnet8x4-fashion.yaml")
    console = Console()
    work = workflow.Workflow(loaded, resolve(loaded.recipe), Store(artifacts, run.resolve_device("cpu"), console))
    trained = work.candidates()[0]
    path = WEIGHTS / "resnet8x4-fashion.safetensors"
    checkpoints.save_state(build.load_network(trained.network, trained.weights, "cpu"), path, half=True)
    assert trained.history is not None  # it was trained here
    shutil.copyfile(trained.history.path, path.with_suffix(".csv"))
    console.line(f"{path}: {path.stat().st_size:,} bytes, validation {100 * trained.top1_validation:.2f} %")


if __name__ == "__main__":
    main()
