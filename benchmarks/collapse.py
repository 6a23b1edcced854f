"""Two losses on one head compared with DHKD's two heads and with each loss alone: accuracy over several seeds.

    python benchmarks/collapse.py

Runs on CPU or CUDA. Trains the students of recipes/collapse/ as `compress run --until distill` does, cached in
--artifacts, so that an interrupted benchmark resumes. Reads validation images only. Writes
benchmarks/results/collapse.json and draws docs/collapse.svg from it.
"""

from __future__ import annotations

import csv
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import matplotlib
import result_file
from matplotlib.figure import Figure

from compress.core.console import Console
from compress.core.store import Store
from compress.pipeline.run import resolve_device
from compress.pipeline.workflow import Workflow
from compress.recipe import loader
from compress.recipe.defaults import resolve
from compress.report import plots
from export.runtime import host

ROOT = Path(__file__).parents[1]
ONE, TWO = (ROOT / "recipes" / "collapse" / f"{name}.yaml" for name in ("one_head", "two_heads"))
# What is trained: recipe, overrides, colour and line of its curve.
ARMS: dict[str, tuple[Path, tuple[str, ...], str, Any]] = {
    "cross-entropy alone": (ONE, ("distill.alpha=0",), "baseline", (0, (1, 1.2))),
    "BinaryKL alone": (ONE, ("distill.gamma=0",), "other", (0, (3, 1.5, 1, 1.5))),
    "both on one head": (ONE, (), "student", "solid"),
    "DHKD, two heads": (TWO, (), "teacher", (0, (5, 2))),
}
COLUMNS = ("ce", "cos_classifier", "cos_backbone", "top1_validation")


@click.command()
@click.option(
    "--seed",
    "seeds",
    default=(0, 1, 2),
    show_default=True,
    multiple=True,
    type=click.IntRange(0),
    help="may be repeated",
)
@click.option("--pair", is_flag=True, help="Only the two recipes, not each loss alone.")
@click.option("--device", default="auto", show_default=True)
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", default=result_file.RESULTS / "collapse.json", type=click.Path(path_type=Path))
@click.option("--plot", default=ROOT / "docs" / "collapse.svg", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, help="further overrides, given to every run")
def main(
    seeds: tuple[int, ...], pair: bool, device: str, artifacts: Path, out: Path, plot: Path, overrides: tuple[str, ...]
) -> None:
    """Train every arm with every seed; write the table and the curves."""
    place = resolve_device(device)
    chosen = {name: arm for name, arm in ARMS.items() if not (pair and arm[1])}
    rounds = [
        {
            name: trained(path, (*own, f"seed={seed}", *overrides), place, artifacts)
            for name, (path, own, _, _) in chosen.items()
        }
        for seed in seeds
    ]
    arms = {name: [one[name] for one in rounds] for name in chosen}
    settings = {
        path.stem: resolve(loader.load(path, overrides).recipe).model_dump(mode="json", by_alias=True)
        for path in (ONE, TWO)
    }
    here = host()
    options = [*(f"--seed {seed}" for seed in seeds), *["--pair"] * pair, *(f"--set {one}" for one in overrides)]
    content: dict[str, Any] = {
        "command": " ".join(["python benchmarks/collapse.py", *options]),
        "settings": {
            name: {
                "distill": {"method": one["distill"]["method"], **one["distill"]["dhkd"]},
                "student": one["student"],
                "train": one["train"],
            }
            for name, one in settings.items()
        },
        "arms": {
            name: {"overrides": list(ARMS[name][1]), "recipe": ARMS[name][0].stem, "final": _final(runs), "runs": runs}
            for name, runs in arms.items()
        },
        "environment": {"cpu": here.get("cpu"), "isa": here.get("isa"), "torch": version("torch"), "device": place},
    }
    result_file.write(out, content)
    for name, arm in content["arms"].items():
        print(
            f"{name:<22}validation top-1 {_shown(arm['final']['top1_validation'], 100)} %   "
            f"training ce {_shown(arm['final']['ce'], 1)}"
        )
    with matplotlib.rc_context(plots.STYLE):
        plot.write_text(plots.svg_of(_figure(arms)))
    print(f"written: {out}, {plot}")


def trained(path: Path, overrides: tuple[str, ...], device: str, artifacts: Path) -> dict[str, Any]:
    """One training: its columns by epoch."""
    loaded = loader.load(path, overrides)
    settings, store = resolve(loaded.recipe), Store(artifacts, device, Console())
    work = Workflow(loaded, settings, store)
    _, selected = work.selected()
    made = work.distill(next(work.students(selected.teacher)))
    with made.history.path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    known = [name for name in COLUMNS if name in rows[0]]
    return {
        "seed": settings.seed,
        "precision": made.precision,
        "threads": made.threads,
        "seconds": made.seconds,
        "images_per_second": made.images_per_second,
        "columns": {name: [round(float(row[name]), 5) for row in rows] for name in known},
    }


def _final(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and range of the last epoch over seeds."""
    last = {name: [run["columns"][name][-1] for run in runs] for name in runs[0]["columns"]}
    return {
        name: {"mean": statistics.mean(values), "low": min(values), "high": max(values), "each": values}
        for name, values in last.items()
    }


def _shown(spread: dict[str, Any], scale: float) -> str:
    return f"{scale * spread['mean']:.2f} [{scale * spread['low']:.2f} to {scale * spread['high']:.2f}]"


def _figure(arms: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy, cross-entropy and cosines by epoch: the line is the mean over seeds, the shade their range."""
    figure = Figure(figsize=(11.0, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("Top-1 on validation, %", "Cross-entropy in training", "Cosine of the two losses' gradients")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=8))
    for name, runs in arms.items():
        _, own, colour, dash = ARMS[name]
        _band(panels[0], runs, "top1_validation", 100.0, colour, dash, name)
        if "distill.gamma=0" not in own:
            _band(panels[1], runs, "ce", 1.0, colour, dash, None)
        if not own:
            _band(panels[2], runs, "cos_classifier", 1.0, colour, "solid", None, "classifier")
            _band(panels[2], runs, "cos_backbone", 1.0, colour, (0, (1, 1.2)), None, "backbone")
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    panels[1].yaxis.set_major_formatter("{x:g}")
    panels[1].yaxis.set_minor_formatter("")
    panels[2].set_xlim(right=1.28 * len(next(iter(arms.values()))[0]["columns"]["ce"]))
    panels[2].axhline(0.0, color=plots.INK, linewidth=1.0)
    figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=10, handlelength=2.6)
    return figure


def _band(
    axes: Any,
    runs: list[dict[str, Any]],
    column: str,
    scale: float,
    colour: str,
    dash: Any,
    label: str | None,
    note: str = "",
) -> None:
    if column not in runs[0]["columns"]:
        return
    by_epoch = [
        [scale * value for value in values] for values in zip(*(run["columns"][column] for run in runs), strict=True)
    ]
    epochs, mean = range(1, len(by_epoch) + 1), [statistics.mean(values) for values in by_epoch]
    axes.plot(epochs, mean, color=plots.COLOURS[colour], linestyle=dash, linewidth=1.9, label=label)
    axes.fill_between(
        epochs,
        [min(values) for values in by_epoch],
        [max(values) for values in by_epoch],
        color=plots.COLOURS[colour],
        alpha=0.15,
        linewidth=0,
    )
    if note:
        axes.annotate(
            note,
            (len(mean), mean[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=plots.COLOURS[colour],
        )


if __name__ == "__main__":
    main()
