"""What on_gpu.py does, in its order, and what a step's result says in one line.

DHKD's settings come from validation: searched on resnet56 -> resnet20, which ResNet-8x4 takes over, and searched anew,
one round, on MobileNetV2. ShuffleNetV2 has those that its recipe holds, which the paper's authors publish for the pair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reproduce
import result_file
from compare_methods import published

ROOT = Path(__file__).parents[1]
FOUND = "{found}"  # in a command: DHKD's settings as a search found them
WORDS = {"passed": "met", "outside": "missed", "undecided": "undecided"}
TINY = (  # few steps that do not diverge, on images of 16x16
    "data.image_size=16", "train.batch_size=16", "train.lr=0.01", "teacher.candidates.0.train.batch_size=8",
    "teacher.candidates.0.train.lr=0.001", "teacher.candidates.0.train.epochs=1",
)  # fmt: skip
Row = tuple[str, str, str]  # what was measured, verdict, sentence


@dataclass(frozen=True)
class Given:
    """What the command line says: where things are, and whether it is only a rehearsal."""

    data: Path | None
    teacher: Path | None
    device: str
    artifacts: Path
    rehearse: bool

    @property
    def results(self) -> Path:
        """Name the folder of result files; a rehearsal's are worth nothing and stay with its trainings."""
        return self.artifacts / "results" if self.rehearse else ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Step:
    """A part of the work: commands that run beside each other, and the result files that they write.

    `found`: the search whose settings a command takes. `shares`: its trainings share the GPU, through CUDA MPS.
    `codes`: exit codes of a command that came to its end.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    results: tuple[str, ...] = ()
    found: str | None = None
    shares: bool = False
    codes: tuple[int, ...] = (0,)

    def told(self, results: dict[str, Any]) -> list[list[str]]:
        """Return the commands with the settings that were found."""
        settings = f"distill.dhkd={json.dumps(results[self.found]['found'])}" if self.found else ""
        return [[settings if word == FOUND else word for word in command] for command in self.commands]


def steps(given: Given) -> tuple[Step, ...]:
    """List all steps in their order."""
    tests = ROOT / "tests" / ("training/engine/test_choose.py" if given.rehearse else "")
    first, second = "search-resnet56-resnet20.json", "search-resnet56-mobilenet_v2.json"
    mobile = ("--taught-by", "resnet56")
    own, theirs = _teacher(given), ()
    speed = _speed(given, "train_speed", ("--rounds", "1", "--pictures", "300" if given.rehearse else "12800"))
    roof = _speed(given, "roofline", ("--steps", "3", "--batch", "8") if given.rehearse else ())
    return (
        Step("tests", (("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(tests)),), codes=(0, 1)),
        _search(given, "resnet56-resnet20", first, own, rounds=2),
        _trained(given, "resnet56-resnet20", ("dhkd", "kd"), own, first),
        _search(given, "vgg13-mobilenet_v2", second, (*own, *mobile), rounds=1),
        _trained(given, "vgg13-mobilenet_v2", ("dhkd", "kd"), (*own, *mobile), second),
        _trained(given, "resnet32x4-resnet8x4", ("teacher",), theirs),
        # one method at a time: checkpoints of six such students and the teacher's weights outgrow what may travel
        *(_trained(given, "resnet32x4-resnet8x4", (one,), theirs, first) for one in ("dhkd", "kd")),
        *(_trained(given, "resnet32x4-shufflenet_v2", (one,), theirs) for one in ("dhkd", "kd")),
        *(
            [Step("speed", (*speed.commands, *roof.commands), (*speed.results, *roof.results))]
            if given.rehearse
            else [speed, roof]
        ),
    )


def _common(given: Given) -> tuple[str, ...]:
    data = () if given.data is None else ("--data", str(given.data))
    tiny = [part for one in TINY for part in ("--set", one)] if given.rehearse else []
    return (*data, "--device", given.device, "--artifacts", str(given.artifacts), *tiny)


def _teacher(given: Given) -> tuple[str, ...]:
    return () if given.teacher is None else ("--teacher", str(given.teacher))


def _out(given: Given, name: str) -> tuple[str, ...]:
    """Name the result file where it is not the script's own choice."""
    return ("--out", str(given.results / name)) if given.rehearse else ()


def _search(given: Given, pair: str, result: str, more: tuple[str, ...], rounds: int) -> Step:
    tiny = ("--epochs", "2", "--validation", "20", "--alpha", "0.3", "--alpha", "3") if given.rehearse else ()
    together = "1" if given.rehearse else "6"
    told = (pair, *_common(given), *more, "--rounds", str(rounds), "--together", together, *tiny, *_out(given, result))
    script = "benchmarks/search_settings.py"
    return Step(result.removesuffix(".json"), ((script, *told),), (result,), shares=not given.rehearse)


def _trained(
    given: Given, pair: str, methods: tuple[str, ...], more: tuple[str, ...], found: str | None = None
) -> Step:
    """Train three seeds a method by reproduce.py, the methods beside each other."""
    shown = f"resnet56-{pair.split('-')[1]}" if "--taught-by" in more else pair
    tiny = ("--epochs", "2", "--seeds", "2", "--no-export") if given.rehearse else ()
    few = "2" if pair == "resnet56-resnet20" else "1"  # a process a seed is rehearsed once
    together = ("--together", few if given.rehearse else "3")
    commands, results = [], []
    for method in methods:
        name = f"reproduce-{shown}-{method}.json"
        settings = ("--set", FOUND) if method == "dhkd" and found else ()
        told = (pair, method, *_common(given), *more, *together, *tiny, *settings, *_out(given, name))
        commands.append(("benchmarks/reproduce.py", *told))
        results.append(name)
    title = "-".join((shown, *methods))
    source = found if "dhkd" in methods else None
    return Step(title, tuple(commands), tuple(results), source, methods != ("teacher",), (0, 5, 6))


def _speed(given: Given, script: str, more: tuple[str, ...]) -> Step:
    pair = ("--pair", "resnet8:resnet8") if given.rehearse else ()
    result = result_file.path(script, given.device).name
    told = (f"benchmarks/{script}.py", "--device", given.device, *more, *pair, *_out(given, result))
    return Step(script, (told,), (result,))


def rows(step: Step, results: dict[str, Any], said: str) -> list[Row]:
    """Say what a step that is done found. `said`: the last line of its log."""
    if step.name == "tests":
        return [("tests marked gpu", "missed" if " failed" in said or " error" in said else "met", said)]
    return [_row(results[name]) for name in step.results]


def _row(content: dict[str, Any]) -> Row:
    if "found" in content:
        best = max(row["validation_top1"] for row in content["rows"])
        chosen = ", ".join(f"{key} {value}" for key, value in content["found"].items())
        return (
            f"settings of {content['pair']}",
            "found",
            f"{chosen}: {best:.2f} % validation, best of {len(content['rows'])}",
        )
    if "pictures_authors" in content:
        ratios = [
            f"{row['teacher']} -> {row['student']} {row['warm']['ratio']['median']:.1f}x" for row in content["rows"]
        ]
        return "speed against the published loop", "measured", ", ".join(ratios)
    if "peak_gflop_per_s" in content:
        shares = [f"{row['teacher']} -> {row['student']} {100 * row['share_of_peak']:.1f} %" for row in content["rows"]]
        return "a step's share of the peak", "measured", ", ".join(shares)
    return _judged(content)


def _judged(content: dict[str, Any]) -> Row:
    """Hold a mean of best epochs against the published number; of one seed its place beside the band is said, too."""
    pair, method, best = content["pair"], content["method"], content["best"]["each"]
    known = published().get(pair, {}).get(method)
    if known is None:
        mean = content["best"]["mean"]
        return f"{pair}, {method}", "not judged", f"{mean:.2f} %, mean of {len(best)}: nothing is published"
    verdict = reproduce.judge(best, known, reproduce.band(pair, method))
    word, sentence = WORDS[verdict["verdict"]], verdict["sentence"].split(": ", 1)[1]
    beside = "" if verdict["mean_within_band"] or word == "missed" else "; the mean lies outside the band"
    return f"{pair}, {method}", word, sentence + beside
