"""Accuracy after training in bf16 and in float32, and what a teacher gains in both: the flagship, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/precision_accuracy.py --seeds 10 --alone 5

Runs on CPU or CUDA. The student trains under DHKD and alone, each in bf16 and in float32, from the same seeds: 30
trainings. Every run is an ordinary `compress run`, cached in --artifacts, where an interrupted benchmark resumes.
Accuracy is that of the int8 file on the test images, which `validate` reads once. The number of threads changes the
order of sums and so the last bits of a training; the result records it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import result_file
from compare_methods import HERE, bare, by_seed, run, table_row

RECIPE = HERE.parent / "recipes" / "mobilenet.yaml"
METHODS, PRECISIONS = ("dhkd", "none"), ("bf16", "float32")


@click.command()
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(1, 10))
@click.option("--alone", type=click.IntRange(1, 10), help="seeds of the student alone  [default: as many]")
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "precision-accuracy.json", help="the result"
)
def main(seeds: int, alone: int | None, artifacts: Path, out: Path) -> None:
    """Train, compare, print a table and write the numbers after every seed."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        method: {precision: [] for precision in PRECISIONS} for method in METHODS
    }
    common: dict[str, Any] = {}
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    for seed in range(seeds):
        for method in METHODS if seed < (alone or seeds) else METHODS[:1]:
            for precision in PRECISIONS:
                row = run(RECIPE, method, seed, artifacts, (f"train.precision={precision}",))
                common = row.pop("_common", common)
                runs[method][precision].append(row)
        content = {
            "command": threads + result_file.command("precision_accuracy.py"),
            **common,
            "bf16_against_float32": {
                method: table_row(runs[method]["bf16"], by_seed(runs[method]["float32"])) for method in METHODS
            },
            "dhkd_against_plain": {
                name: table_row(runs["dhkd"][name], by_seed(runs["none"][name])) for name in PRECISIONS
            },
            "plain": {name: table_row(runs["none"][name], {}) for name in PRECISIONS},
            "runs": {
                method: {name: [bare(row) for row in rows] for name, rows in some.items()}
                for method, some in runs.items()
            },
        }
        result_file.write(out, content)
    print("\n".join(lines(content)))
    print(f"written: {out}")


def lines(content: dict[str, Any]) -> list[str]:
    """Return the table in Markdown: means in per cent, gains in points with 95 % intervals over seeds."""
    out = ["| student | seeds | bf16, % | float32, % | bf16 over float32, points |", "|---|---|---|---|---|"]
    for method, name in (("dhkd", "by DHKD"), ("none", "alone")):
        both = [
            content["dhkd_against_plain" if method == "dhkd" else "plain"][precision]["top1"]
            for precision in PRECISIONS
        ]
        out.append(
            f"| {name} | {both[0]['n']} | {_top1(both[0])} | {_top1(both[1])} | "
            f"{_gain(content['bf16_against_float32'][method])} |"
        )
    rows = [content["dhkd_against_plain"][precision] for precision in PRECISIONS]
    count = len(rows[0]["gain_points"]["each"])
    return [*out, f"| DHKD over plain, points | {count} | {' | '.join(_gain(row) for row in rows)} | |"]


def _top1(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f}" + (f" ± {found['sd']:.2f}" if found["sd"] is not None else "")


def _gain(row: dict[str, Any]) -> str:
    gain = row["gain_points"]
    return f"{gain['mean']:+.2f}" + (f" [{gain['ci95'][0]:.2f}, {gain['ci95'][1]:.2f}]" if gain["ci95"] else "")


if __name__ == "__main__":
    main()
