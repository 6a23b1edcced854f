"""Choose DHKD's settings for a pair on validation images, which are kept apart from the training images.

    python benchmarks/search_settings.py resnet56-resnet20 --data cifar100.npz --teacher resnet56.safetensors
    python benchmarks/search_settings.py resnet56-resnet20 --data cifar100.npz --together 6     six at once, on a GPU

The first round tries each weight of the auxiliary loss with a plain head (linear, gradients as they are) and with the
head of the paper's one published pair (nonlinear, gradients aligned). The second round starts from the best of these
and changes one setting at a time: temperature, head, alignment. A student trains for 60 epochs of the recipe's
schedule, shortened. It is scored by its mean validation accuracy over the last tenth of its epochs. One seed each:
settings that differ by less than the spread of seeds are not told apart.

The test images take no part: the file that the students read does not hold them. Trainings are cached in --artifacts,
and an interrupted search goes on in their epochs.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import click
import collapse
import numpy as np
import reproduce
import result_file
import teacher_answers

from compress.core.errors import CompressError
from compress.core.files import write_atomically
from compress.pipeline import run as pipeline
from compress.recipe import loader

Settings = dict[str, Any]
METHOD, SEED = "dhkd", 0
ALPHAS, TEMPERATURE = (0.3, 1.0, 3.0), 2.0
HEADS = (("linear", "none"), ("nonlinear", "all"))  # head and alignment of the first round
CHANGES: tuple[Settings, ...] = (  # of the second round, each alone
    {"temperature": 1.0},
    {"temperature": 4.0},
    {"temperature": 8.0},
    {"head": "linear"},
    {"head": "nonlinear"},
    {"align": "none"},
    {"align": "all"},
    {"align": "shared"},
)


def first_round(alphas: tuple[float, ...] = ALPHAS) -> list[Settings]:
    """List the settings that the search begins with."""
    return [
        {"alpha": alpha, "temperature": TEMPERATURE, "head": head, "align": align}
        for head, align in HEADS
        for alpha in alphas
    ]


def second_round(tried: list[Settings], best: Settings) -> list[Settings]:
    """List what differs from the best settings in one respect and was not tried."""
    return [one for change in CHANGES if (one := {**best, **change}) not in tried]


def score(accuracies: list[float]) -> float:
    """Average the validation accuracy over the last tenth of the epochs, per cent."""
    return 100 * statistics.mean(accuracies[-max(1, len(accuracies) // 10) :])


@click.command()
@click.argument("pair", type=click.Choice(sorted(path.stem for path in reproduce.recipe_of("").parent.glob("*.yaml"))))
@click.option("--data", type=click.Path(path_type=Path), help="as of reproduce.py")
@click.option("--teacher", type=click.Path(path_type=Path), help="checkpoint of the teacher; default: trained here")
@click.option("--taught-by", metavar="MODEL", help="another teacher than the pair's")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1, 2))
@click.option("--alpha", "alphas", multiple=True, type=float, help="weights of the first round; default: 0.3, 1, 3")
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(2))
@click.option("--validation", default=5000, show_default=True, type=click.IntRange(10), help="training images to keep")
@click.option("--together", default=1, show_default=True, type=click.IntRange(1, 10), help="students at once")
@click.option("--only", type=click.IntRange(0), hidden=True, help="train this candidate; the whole command finds it")
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", help="further overrides of the recipe")
@click.option("--device", default="auto", show_default=True)
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/search-PAIR.json")
def main(
    pair: str, data: Path | None, teacher: Path | None, taught_by: str | None, rounds: int, alphas: tuple[float, ...],
    epochs: int, validation: int, together: int, only: int | None, more: tuple[str, ...], device: str, artifacts: Path,
    out: Path | None,
) -> None:  # fmt: skip
    """Train candidates of PAIR round by round; print and write the settings with the best validation accuracy."""
    command = result_file.command("search_settings.py")
    shown = pair if taught_by is None else f"{taught_by}-{pair.split('-')[1]}"
    out = out or reproduce.result_file.RESULTS / f"search-{shown}.json"
    listed = artifacts / f"search-{shown}-candidates.json"
    try:
        changes = (
            *reproduce.teacher_of(pair, teacher, taught_by, None),
            *_short(pair, epochs),
            *_stored(data, artifacts.absolute() / f"search-{shown}.npz", validation),
            f"seed={SEED}",
            *more,
        )
        search = _Search(pair, changes, pipeline.resolve_device(device), artifacts)
        if only is not None:
            search.train(json.loads(listed.read_text())[only])
            return
        for number in range(rounds):
            new = second_round(search.tried, search.found()) if number else first_round(alphas or ALPHAS)
            search.tried += new
            if together > 1:
                write_atomically(listed, json.dumps(search.tried).encode())
                teacher_answers.ask(reproduce.recipe_of(pair), changes, METHOD, (SEED,), search.device, artifacts)
                places = range(len(search.tried) - len(new), len(search.tried))
                reproduce.at_once(places, together, artifacts / f"search-{shown}", "candidate")
            search.rows += [search.train(one) for one in new]
    except CompressError as error:
        print(f"{error}\nwhat is done is kept; to go on: {command}", file=sys.stderr)
        sys.exit(error.exit_code)
    content = {
        "command": command, "pair": shown, "method": METHOD, "epochs": epochs, "validation_images": validation,
        "found": search.found(), "rows": search.rows, "environment": result_file.environment(search.device),
    }  # fmt: skip
    result_file.write(out, content)
    for row in sorted(search.rows, key=lambda row: -row["validation_top1"]):
        print(f"{row['validation_top1']:.2f} %  {row['settings']}")
    print(f"written: {out}")


class _Search:
    """Trains candidates and remembers them."""

    def __init__(self, pair: str, changes: tuple[str, ...], device: str, artifacts: Path) -> None:
        self.pair, self.changes, self.device, self.artifacts = pair, changes, device, artifacts
        self.tried: list[Settings] = []
        self.rows: list[dict[str, Any]] = []

    def train(self, settings: Settings) -> dict[str, Any]:
        """Train a student with these settings, or find it in the cache: its row."""
        chosen = (f"distill.method=[{METHOD}]", f"distill.{METHOD}={json.dumps(settings)}", *self.changes)
        done = collapse.trained(reproduce.recipe_of(self.pair), chosen, self.device, self.artifacts)
        each = done["columns"]["top1_validation"]
        return {"settings": settings, "validation_top1": score(each), "each_epoch": each, "seconds": done["seconds"]}

    def found(self) -> Settings:
        """Return the settings with the best validation accuracy so far."""
        best: Settings = max(self.rows, key=lambda row: row["validation_top1"])["settings"]
        return best


def _short(pair: str, epochs: int) -> tuple[str, ...]:
    """Shorten the recipe's training: the learning rate falls at the same shares of it."""
    train = loader.load(reproduce.recipe_of(pair)).recipe.train
    assert train.epochs is not None  # recipes of published pairs name them
    places = {round(one * epochs / train.epochs) for one in train.schedule.milestones}
    milestones = sorted(one for one in places if 1 <= one < epochs) or [1]
    return f"train.epochs={epochs}", f"train.schedule.milestones={json.dumps(milestones)}"


def _stored(source: Path | None, path: Path, validation: int) -> tuple[str, ...]:
    """Write the training images alone, with a black image of each class in the test images' place."""
    arrays = reproduce.load_cifar100(source)
    labels = np.arange(len(arrays["class_names"]))
    black = np.zeros((len(labels), *arrays["train_images"].shape[1:]), np.uint8)
    return reproduce.stored({**arrays, "test_images": black, "test_labels": labels}, path, validation)


if __name__ == "__main__":
    main()
