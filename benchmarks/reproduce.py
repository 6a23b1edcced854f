"""The papers' protocol for one pair and one method on CIFAR-100, and a verdict against the published number.

    python benchmarks/reproduce.py resnet56-resnet20 dhkd --data cifar100.npz --teacher resnet56.safetensors
    # three seeds at once on a GPU
    python benchmarks/reproduce.py resnet56-resnet20 dhkd --data cifar100.npz --together 3
    # a trial, which is never judged
    python benchmarks/reproduce.py resnet56-resnet20 dhkd --data cifar100.npz --epochs 1 --subset 5000
    # the teacher alone
    python benchmarks/reproduce.py resnet32x4-resnet8x4 teacher --data cifar100.npz
    # another teacher
    python benchmarks/reproduce.py vgg13-mobilenet_v2 kd --taught-by resnet56 --teacher resnet56.safetensors

Needs a GPU for 3 x 240 epochs; on a CPU the time is estimated and printed first. Published numbers come from training
on all 50,000 images and are the best of 240 epochs by the 10,000 test images. To be compared with them, a run must do
the same. So here, and nowhere else, the test images take the place of the validation images: they are watched after
every epoch, nothing is trained or calibrated on them, and the last epoch still ships. Settings are those of
recipes/cifar100. Every run is cached in --artifacts; an interrupted one resumes in its epoch.
"""

from __future__ import annotations

import csv
import io
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import collapse
import numpy as np
import result_file
import teacher_answers
from compare_methods import METHODS, overrides, published
from seeds import interval, mean, needed

from compress.cli import error_exit
from compress.core.console import Console, duration
from compress.core.errors import CompressError, Interrupted, MissingError, UsageError
from compress.core.files import write_atomically
from compress.core.locks import locked
from compress.core.store import Store
from compress.data.sources import cifar, npz
from compress.data.splits import carve, stratified
from compress.pipeline import run as pipeline
from compress.pipeline.workflow import Workflow
from compress.recipe import loader
from compress.recipe.defaults import resolve

HERE = Path(__file__).parent
MOBILE = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
EXIT_CODES = {"passed": 0, "outside": 5, "undecided": 6, "not judged": 0}
# Training images a class in the estimate of time.
SAMPLE = 12


def band(pair: str, method: str) -> float:
    """Return how many points a mean of best epochs may be away from the published one.

    Papers that reran each other differ by about this: 0.5 for ResNets and VGGs, 1.0 for wide ResNets, 0.8 for mobile
    students; 0.6 for the student alone.
    """
    if method == "none":
        return 0.6
    if pair.split("-")[1] in MOBILE and method != "teacher":
        return 0.8
    return 1.0 if pair.startswith("wrn") else 0.5


def judge(best: Sequence[float], published_top1: float, half_width: float) -> dict[str, Any]:
    """Compare the mean of several seeds' best epochs with a published number.

    passed: the 95 % interval of the mean lies within the band; outside: it lies beside it; undecided: it touches an
    edge, or there is one seed. `mean_within_band` is about the mean alone, as the papers compare.

    Args:
        best: top-1 of the best epoch of each seed, in per cent.
        published_top1: in per cent.
        half_width: of the band, in points.
    """
    ends, middle = interval(best), statistics.mean(best)
    low, high = published_top1 - half_width, published_top1 + half_width
    if ends is None:
        verdict, why = "undecided", "one seed has no interval; run three"
    elif low <= ends[0] and ends[1] <= high:
        verdict, why = "passed", "the whole interval lies within the band"
    elif ends[1] < low or high < ends[0]:
        verdict, why = "outside", f"the whole interval lies {'below' if ends[1] < low else 'above'} the band"
    else:
        more = needed(best, low, high)
        count = f"about {more}" if more else "more than ten"
        verdict, why = "undecided", f"the interval touches the band's edge; {count} seeds would settle it"
    interval_text = "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"
    count = f"{len(best)} seed{'' if len(best) == 1 else 's'}"
    measured = f"{middle:.2f}{interval_text} % over {count}"
    known = f"published {published_top1:.2f}, band {low:.2f} to {high:.2f}"
    sentence = f"{verdict}: {measured}; {known}: {why}"
    return {
        "verdict": verdict,
        "mean_within_band": low <= middle <= high,
        "published_top1": published_top1,
        "band": [low, high],
        "sentence": sentence,
    }


def watched(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the product's five arrays with the test images inside the training part.

    `data.validation` = their number carves them out again. Raises UsageError if the classes are not in the same
    proportion in both parts.
    """
    labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
    images = np.empty((len(labels), *arrays["train_images"].shape[1:]), np.uint8)
    for part, places in zip(("train", "test"), carve(labels, len(arrays["test_labels"]), 0), strict=True):
        for label in np.unique(labels):
            here, there = places[labels[places] == label], arrays[f"{part}_labels"] == label
            if len(here) != int(there.sum()):
                raise UsageError(
                    f"class {label} has another share of the test images than of the training images; "
                    "this is not CIFAR-100"
                )
            images[here] = arrays[f"{part}_images"][there]
    return {**arrays, "train_images": images, "train_labels": labels}


@click.command()
@click.argument(
    "pair", type=click.Choice(sorted(path.stem for path in (HERE.parent / "recipes" / "cifar100").glob("*.yaml")))
)
@click.argument("method", type=click.Choice((*METHODS, "teacher")))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option(
    "--only", type=click.IntRange(0, 9), help="train this seed and write no result; the whole command then finds it"
)
@click.option(
    "--together",
    default=1,
    show_default=True,
    type=click.IntRange(1, 10),
    help="so many seeds at once, a process each: a large GPU has room",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="npz file, or the folder of cifar-100-python; default: torchvision's copy",
)
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="checkpoint of the teacher; default: trained here by the recipe"
)
@click.option("--taught-by", metavar="MODEL", help="another teacher than the pair's; with it nothing was published")
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", help="further overrides of the recipe")
@click.option("--no-export", is_flag=True, help="train alone: neither ONNX nor int8, so the int8 accuracy is left out")
@click.option(
    "--epochs", type=click.IntRange(1), help="a trial: fewer epochs of the student (and of a teacher trained here)"
)
@click.option("--subset", type=click.IntRange(200, 49_999), help="a trial: so many training images")
@click.option("--device", default="auto", show_default=True)
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="default: benchmarks/results/reproduce-PAIR-METHOD.json; of a trial: in --artifacts",
)
def main(
    pair: str,
    method: str,
    seeds: int,
    only: int | None,
    together: int,
    data: Path | None,
    teacher: Path | None,
    taught_by: str | None,
    more: tuple[str, ...],
    no_export: bool,
    epochs: int | None,
    subset: int | None,
    device: str,
    artifacts: Path,
    out: Path | None,
) -> None:
    """Train METHOD on PAIR as the papers do and judge the mean of the best epochs.

    The method "teacher" trains the pair's teacher.
    """
    trial = epochs is not None or subset is not None
    shown = pair if taught_by is None else f"{taught_by}-{pair.split('-')[1]}"
    name = f"reproduce-{shown}-{method}"
    out = out or (artifacts / f"{name}-trial.json" if trial else result_file.RESULTS / f"{name}.json")
    command = result_file.command("reproduce.py")
    try:
        arrays = load_cifar100(data)
        changes = (
            *overrides("none" if method == "teacher" else method),
            *teacher_of(pair, teacher, taught_by, epochs),
            *((f"train.epochs={epochs}",) if epochs else ()),
            f"name={name}",
            *more,
        )
        if not trial and method != "teacher" and pipeline.resolve_device(device) == "cpu":
            print(_time(pair, changes, arrays, seeds), flush=True)
        if subset:
            arrays = _part(arrays, subset)
        changes = (
            *changes,
            *stored(
                watched(arrays),
                artifacts.absolute() / f"cifar100-watched{f'-{subset}' if subset else ''}.npz",
                len(arrays["test_labels"]),
            ),
        )
        print(
            "as in the papers, the test images are watched after every epoch: the warning that they are in both parts "
            "is right",
            flush=True,
        )
        run = _teacher_alone if method == "teacher" else _trained if no_export else _run
        runs: list[dict[str, Any]] = []
        if only is not None:
            row = run(pair, (*changes, f"seed={only}"), only, artifacts, device)
            print(f"seed {only}: best epoch {row['best']:.2f} %")
            return
        if together > 1 and method != "teacher":
            teacher_answers.ask(
                recipe_of(pair), changes, method, range(seeds), pipeline.resolve_device(device), artifacts
            )
            at_once(range(seeds), together, artifacts / name)
        for seed in range(1 if method == "teacher" else seeds):
            runs.append(run(pair, (*changes, f"seed={seed}"), seed, artifacts, device))
            content = {
                "command": command,
                "pair": shown,
                "method": method,
                "trial": trial,
                **_result(shown, method, runs, trial),
            }
            result_file.write(out, content)
    except CompressError as error:
        print(f"{error}\nwhat is done is kept; to go on: {command}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{content['sentence']}\nwritten: {out}")
    sys.exit(EXIT_CODES[content["verdict"]])


def load_cifar100(source: Path | None) -> dict[str, np.ndarray]:
    """Return CIFAR-100 as the product's five arrays. Raises MissingError if it is not there."""
    if source is not None and not source.exists():
        raise MissingError(f"{source} does not exist; --data wants an npz file or the folder of cifar-100-python")
    arrays, classes = (
        npz.load(source)
        if source and source.is_file()
        else cifar.load("cifar100", source or cifar.default_root(), download=False)
    )
    return {**arrays, "class_names": np.array(classes)}


def _part(arrays: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return so many of the training images, classes alike; the test images stay."""
    per_class = count // len(arrays["class_names"])
    index = stratified(arrays["train_labels"], per_class * len(arrays["class_names"]), 0)
    return {**arrays, **{key: arrays[key][index] for key in ("train_images", "train_labels")}}


def recipe_of(pair: str) -> Path:
    """Return the path of the pair's recipe."""
    return HERE.parent / "recipes" / "cifar100" / f"{pair}.yaml"


def teacher_of(pair: str, weights: Path | None, taught_by: str | None, epochs: int | None) -> tuple[str, ...]:
    """Return the overrides for the recipe's teacher. A checkpoint must reach the published accuracy of its kind.

    Raises UsageError if no accuracy of the checkpoint's network is published, MissingError without the file.
    """
    model = taught_by or pair.split("-")[0]
    if weights is None:
        return (
            *((f"teacher.candidates.0.model={model}",) if taught_by else ()),
            *((f"teacher.candidates.0.train.epochs={epochs}",) if epochs else ()),
        )
    expected = [row["teacher"] for name, row in published().items() if name.split("-")[0] == model]
    if not expected:
        raise UsageError(
            f"--taught-by {model}: no accuracy of this teacher is published, so a checkpoint cannot be checked"
        )
    if not weights.is_file():
        raise MissingError(f"{weights} does not exist; --teacher wants a checkpoint of {model}")
    candidate = {"model": model, "weights": str(weights.absolute()), "expect_top1": expected[0] / 100}
    return (f"teacher.candidates={json.dumps([candidate])}",)


def stored(arrays: dict[str, np.ndarray], path: Path, validation: int) -> tuple[str, ...]:
    """Write what the product reads; return the `--set` values that make it read that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with locked(path.with_suffix(".lock")):  # another process of --only may write and read it
        write_atomically(path, content.getvalue())
    constants = cifar.SETS["cifar100"]
    normalize = json.dumps({"mean": constants.mean, "std": constants.std})
    return (
        "data.source=npz",
        f"data.root={path}",
        f"data.validation={validation}",
        f"data.normalize={normalize}",
    )


def _time(pair: str, changes: tuple[str, ...], arrays: dict[str, np.ndarray], seeds: int) -> str:
    """Return how long the protocol takes on this CPU in words, from the first steps of teacher and student."""
    path = recipe_of(pair)
    settings = resolve(loader.load(path, changes).recipe)
    own = settings.teacher.candidates[0].train
    few = _part(
        {**arrays, **{key: arrays[key][:1000] for key in ("test_images", "test_labels")}},
        SAMPLE * len(arrays["class_names"]),
    )
    short = (
        "train.epochs=2",
        *(("teacher.candidates.0.train.epochs=2",) if own else ("teacher.candidates.0.expect_top1=null",)),
    )
    speed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "few.npz", **few)  # type: ignore[arg-type]
        told = (*changes, *short, "data.source=npz", f"data.root={folder}/few.npz", "data.validation=100")
        pipeline.run(
            loader.load(path, told),
            artifacts=Path(folder),
            device="cpu",
            until="distill",
            force=(),
            console=Console(quiet=True),
        )
        for stage in ("teacher", "distill"):
            for record in (Path(folder) / "cache" / stage).glob("*/stage.json"):
                speed[stage] = json.loads(record.read_text())["result"]["images_per_second"]
    passes = {"distill": seeds * (settings.train.epochs or 0), "teacher": (own.epochs or 0) if own else 0}
    seconds = sum(count * len(arrays["train_labels"]) / speed[stage] for stage, count in passes.items() if count)
    return (
        f"on this CPU the protocol takes about {duration(seconds)} ({speed['distill']:.0f} images/s of the student, "
        f"{passes['distill']} epochs"
        + (f"; {passes['teacher']} of the teacher" if passes["teacher"] else "")
        + "): it is meant for a GPU. What is done is kept, so it may be stopped. "
        "A trial, which is never judged: --epochs 1 --subset 5000"
    )


def _run(pair: str, changes: tuple[str, ...], seed: int, artifacts: Path, device: str) -> dict[str, Any]:
    """Make one `compress run`; return the best and the last epoch by the test images, in per cent."""
    loaded = loader.load(recipe_of(pair), (*changes, "distill.baseline=false", "require={}", "validate.repeats=16"))
    outcome = pipeline.run(loaded, artifacts=artifacts, device=device, until=None, force=(), console=Console())
    assert outcome.report is not None and outcome.run_folder is not None  # no --until
    with (outcome.run_folder / "history" / "student.csv").open() as stream:
        epochs = [100 * float(row["top1_validation"]) for row in csv.DictReader(stream)]
    report = outcome.report
    return {
        **_epochs(seed, epochs),
        "int8_of_last": next(
            (100 * row["top1"] for row in report["models"] if row["file"] == "student.int8.onnx"), None
        ),
        "teacher_top1": 100 * report["teacher"]["top1_validation"],
        "seconds": report["seconds"].get("distill"),  # of the student, from start to last epoch
        **{
            key: report["student"][key]
            for key in ("params", "macs", "precision", "threads", "images_per_second", "gpu")
        },
        "environment": {key: value for key, value in report["environment"].items() if key != "compress"},
    }


def _trained(pair: str, changes: tuple[str, ...], seed: int, artifacts: Path, device: str) -> dict[str, Any]:
    """Train one student and stop there; return the same row without the numbers of its files."""
    one = collapse.trained(recipe_of(pair), changes, pipeline.resolve_device(device), artifacts)
    epochs = [100 * value for value in one["columns"]["top1_validation"]]
    return {
        **_epochs(seed, epochs),
        **{key: one[key] for key in ("seconds", "precision", "threads", "images_per_second")},
        "environment": result_file.environment(pipeline.resolve_device(device)),
    }


def _teacher_alone(pair: str, changes: tuple[str, ...], seed: int, artifacts: Path, device: str) -> dict[str, Any]:
    """Train the pair's teacher, or check its checkpoint; its row has no student."""
    device = pipeline.resolve_device(device)
    loaded = loader.load(recipe_of(pair), changes)
    work = Workflow(loaded, resolve(loaded.recipe), Store(artifacts, device, Console()))
    teacher = work.selected()[1].teacher
    epochs = [100 * teacher.top1_validation]
    if teacher.history is not None:
        with teacher.history.path.open(newline="") as stream:
            epochs = [100 * float(row["top1_validation"]) for row in csv.DictReader(stream)]
    numbers = {key: getattr(teacher, key) for key in ("seconds", "precision", "threads", "images_per_second", "params")}
    return {**_epochs(seed, epochs), **numbers, "environment": result_file.environment(device)}


def _epochs(seed: int, epochs: list[float]) -> dict[str, Any]:
    """Sum up a training by its accuracy after each epoch, per cent."""
    best = max(epochs)
    return {
        "seed": seed,
        "best": best,
        "best_epoch": 1 + epochs.index(best),
        "last": epochs[-1],
        "epochs": len(epochs),
    }


def at_once(numbers: Sequence[int], together: int, log: Path, title: str = "seed") -> None:
    """Run this script once a number (`--only`), each in a process of its own, `together` of them at a time.

    No process begins behind one that failed: that one fails again, with its sentence, when its result is asked for.
    Raises: Interrupted on Ctrl-C or SIGTERM, when all have ended.
    """
    waiting, running = list(numbers), dict[int, subprocess.Popen[bytes]]()
    path = {seed: log.with_name(f"{log.name}-{seed}.log") for seed in waiting}
    before = signal.signal(signal.SIGTERM, error_exit.as_interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < together:
                seed = waiting.pop(0)
                print(f"{title} {seed}: begins, see {path[seed]}", flush=True)
                with path[seed].open("ab") as stream:
                    running[seed] = subprocess.Popen(
                        [sys.executable, *sys.argv, "--together", "1", "--only", str(seed)],
                        stdout=stream,
                        stderr=stream,
                        start_new_session=True,
                    )
            time.sleep(0.5)
            for seed, code in [
                (seed, code) for seed, process in running.items() if (code := process.poll()) is not None
            ]:
                del running[seed]
                print(f"{title} {seed}: {'done' if code == 0 else f'ended with {code}, see {path[seed]}'}", flush=True)
                waiting = waiting if code == 0 else []
    except KeyboardInterrupt:
        raise Interrupted("interrupted; each training keeps its checkpoint") from None
    finally:
        for process in running.values():
            process.terminate()  # not SIGINT, which what runs in the background of a shell ignores
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _result(pair: str, method: str, runs: list[dict[str, Any]], trial: bool) -> dict[str, Any]:
    """Return means, the verdict, and the runs."""
    best, known = [run["best"] for run in runs], published().get(pair, {}).get(method)
    if trial or known is None:
        why = "a trial" if trial else "there is no published number"
        verdict = {
            "verdict": "not judged",
            "sentence": f"not judged ({why}): best epoch {statistics.mean(best):.2f} %, mean of {len(best)}",
        }
    else:
        verdict = judge(best, known, band(pair, method))
    bare = [{key: value for key, value in run.items() if key != "environment"} for run in runs]
    return {
        **verdict,
        "best": mean(best),
        "last": mean([run["last"] for run in runs]),
        "runs": bare,
        "environment": runs[0]["environment"],
    }


if __name__ == "__main__":
    main()
