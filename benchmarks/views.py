"""Accuracy with few, more and all views of each image (`train.views`), and how often the teacher has to run.

    python benchmarks/views.py

Runs on CPU or CUDA. A ResNet-8 trains under DHKD on few of the embedded images with crops and flips (162 views an
image), where views matter most, taught by the embedded ResNet-8x4. A student that trains for n epochs sees at most n
views of an image, so a limit of n or more only changes which ones. Every run is an ordinary `compress run`, cached
under --artifacts in a folder of its limit, so that no limit profits from logits that were computed under another. Speed
is not compared, because it depends on what earlier seeds left in the cache; what counts is on how many views the
teacher had to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import result_file
from compare_methods import EMBEDDED, bare, by_seed, run, table_row

LIMITS = (1, 4, 16, None)
SPEED = "images_per_second"


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1))
@click.option(
    "--pictures",
    default=2000,
    show_default=True,
    type=click.IntRange(100, 7000),
    help="to train on, a tenth of them for validation",
)
@click.option("--method", default="dhkd", show_default=True)
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "views.json", help="the result")
def main(seeds: int, epochs: int, pictures: int, method: str, artifacts: Path, out: Path) -> None:
    """Train with every limit and every seed and compare with no limit."""
    same = (
        "data.augment=crop_flip",
        f"data.limit_train={pictures}",
        "teacher.candidates=[{model: resnet8x4, weights: embedded}]",
        f"train.epochs={epochs}",
        "quantize.scheme=none",
    )
    runs: dict[str, list[dict[str, Any]]] = {str(limit or "all"): [] for limit in LIMITS}
    common: dict[str, Any] = {}
    for seed in range(seeds):
        for limit in LIMITS:
            name = str(limit or "all")
            row = run(EMBEDDED, method, seed, artifacts / f"views-{name}", (*same, f"train.views={limit or 'null'}"))
            common = row.pop("_common", common)
            runs[name].append(row)
        everything = by_seed(runs["all"])
        content = {
            "command": result_file.command("views.py"),
            "method": method,
            "epochs": epochs,
            "pictures": pictures,
            **common,
            "table": {
                name: _without_speed(
                    {**table_row(rows, everything), "teacher_rows": [row.get("teacher_rows") for row in rows]}
                )
                for name, rows in runs.items()
            },
            "runs": {name: [_without_speed(row) for row in rows] for name, rows in runs.items()},
        }
        result_file.write(out, content)
    for name, row in content["table"].items():
        gain, rows = row.get("gain_points"), ", ".join(f"{count:,}" for count in row["teacher_rows"])
        against = f"  against all: {gain['mean']:+.2f} {gain['ci95']}" if gain else ""
        print(f"views {name:>3}: {row['top1']['mean']:.2f} %{against}  teacher ran on {rows} views (seed by seed)")
    print(f"written: {out}")


def _without_speed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in bare(row).items() if key != SPEED}


if __name__ == "__main__":
    main()
