"""The benchmarks that compare methods and reproduce papers: what they run, how they judge."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import compare_methods
import numpy as np
import pytest
import reproduce
import seeds

from compress.core.errors import UsageError
from compress.data.splits import carve
from compress.recipe import loader
from compress.recipe.schema import METHOD_SECTIONS

ROOT = Path(__file__).parents[2]

CIFAR = sorted((ROOT / "recipes" / "cifar100").glob("*.yaml"))


@pytest.mark.parametrize("path", [compare_methods.EMBEDDED, *compare_methods.PAIRS], ids=lambda path: path.stem)
def test_every_method_is_compared_and_chosen_by_its_overrides(path: Path) -> None:
    chosen = [loader.load(path, compare_methods.overrides(method)).recipe.distill for method in compare_methods.METHODS]

    assert {one for distill in chosen for one in distill.method} == set(METHOD_SECTIONS)
    assert len({(distill.name, distill.kd.standardize) for distill in chosen}) == len(chosen)


@pytest.mark.parametrize("path", CIFAR, ids=lambda path: path.stem)
def test_published_numbers_are_those_of_the_recipes_heading(path: Path) -> None:
    head = " ".join(line.lstrip("# ") for line in path.read_text().split("name:")[0].splitlines())
    told = dict(re.findall(r"(teacher|student alone|dhkd \+ reviewkd|\w+) (\d\d\.\d\d)", head.split("Published")[1]))
    told["none"], told["dhkd+reviewkd"] = told.pop("student alone"), told.pop("dhkd + reviewkd")

    known = compare_methods.published()[path.stem]
    assert len(told) >= 13 and {name: known[name] for name in told} == {
        name: float(value) for name, value in told.items()
    }
    assert set(known) <= {"teacher", *compare_methods.METHODS}


# Reruns of published numbers by others. Sources: issues 8, 40 and 51 of mdistiller (DKD), NORM's reruns of plain
# students, RepDistiller (KD).
@pytest.mark.parametrize(
    ("pair", "method", "rerun", "within"),
    [
        ("resnet32x4-resnet8x4", "dkd", 76.19, True),
        ("resnet32x4-resnet8x4", "dkd", 75.80, False),
        ("wrn_40_2-wrn_16_2", "dkd", 75.50, True),  # 0.74 below: within a wide ResNet's band
        ("wrn_40_2-wrn_40_1", "dkd", 73.30, False),  # 1.51 below
        ("resnet56-resnet20", "none", 69.53, True),
        ("wrn_40_2-shufflenet_v1", "none", 71.63, False),  # 1.13 above
        ("vgg13-mobilenet_v2", "none", 64.81, True),
    ],
)
def test_published_reruns_get_the_expected_verdicts(pair: str, method: str, rerun: float, within: bool) -> None:
    close = [rerun - 0.001, rerun, rerun + 0.001]
    verdict = reproduce.judge(close, compare_methods.published()[pair][method], reproduce.band(pair, method))

    assert (verdict["mean_within_band"], verdict["verdict"]) == (within, "passed" if within else "outside")


def test_an_interval_that_touches_the_band_is_undecided() -> None:
    # DIST, ResNet-56 to ResNet-20: 71.75 with a standard deviation of 0.30.
    # Three seeds: 4.303 * 0.3 / sqrt(3) = 0.745 to each side.
    verdict = reproduce.judge([71.45, 71.75, 72.05], 71.75, 0.5)

    assert (verdict["verdict"], verdict["mean_within_band"]) == ("undecided", True)
    assert verdict["sentence"] == (
        "undecided: 71.75 [71.00, 72.50] % over 3 seeds; published 71.75, band 71.25 to 72.25: "
        "the interval touches the band's edge; about 4 seeds would settle it"
    )  # 3.182 * 0.3 / sqrt(4) = 0.477
    assert reproduce.judge([71.75], 71.75, 0.5)["verdict"] == "undecided"
    assert "more than ten" in reproduce.judge([71.0, 71.3, 71.6], 71.75, 0.5)["sentence"]


def test_a_mean_outside_the_band_is_outside_on_either_side() -> None:
    assert "below the band" in reproduce.judge([69.9, 70.0, 70.1], 71.75, 0.5)["sentence"]
    assert "above the band" in reproduce.judge([73.4, 73.5, 73.6], 71.75, 0.5)["sentence"]


def test_bands_follow_the_pair() -> None:
    wanted = {
        "resnet56-resnet20": 0.5,
        "vgg13-vgg8": 0.5,
        "wrn_40_2-wrn_40_1": 1.0,
        "vgg13-mobilenet_v2": 0.8,
        "wrn_40_2-shufflenet_v1": 0.8,
    }
    assert {pair: reproduce.band(pair, "kd") for pair in wanted} == wanted
    assert reproduce.band("wrn_40_2-wrn_40_1", "none") == 0.6


def test_test_images_are_watched_and_all_others_train() -> None:
    arrays = {"class_names": np.array(["a", "b", "c"])}
    for part, per_class, first in (("train", 5, 0), ("test", 2, 100)):
        labels = np.random.default_rng(1).permutation(np.repeat(np.arange(3), per_class))
        arrays |= {
            f"{part}_labels": labels,
            f"{part}_images": (first + np.arange(len(labels), dtype=np.uint8))[:, None, None, None].repeat(3, axis=3),
        }
    stored = reproduce.watched(arrays)
    train, held = carve(
        stored["train_labels"], 6, 0
    )  # as the product does with data.validation: 6 and its default seed

    for part, index in (("train", train), ("test", held)):
        pairs = zip(
            stored["train_images"][index, 0, 0, 0].tolist(), stored["train_labels"][index].tolist(), strict=True
        )
        wanted = zip(arrays[f"{part}_images"][:, 0, 0, 0].tolist(), arrays[f"{part}_labels"].tolist(), strict=True)
        assert sorted(pairs) == sorted(wanted)
    with pytest.raises(UsageError, match="another share of the test images"):
        reproduce.watched({**arrays, "test_labels": np.array([0, 0, 0, 1, 1, 2])})


def test_a_gain_is_paired_by_seed_and_a_failed_training_is_a_row() -> None:
    def run(seed: int, right: list[bool]) -> dict:
        fixed = {"params": 1, "macs": 2, "bytes": 3, "images_per_second": 4.0}
        return {
            "seed": seed,
            "top1": 100 * sum(right) / len(right),
            "fp32_top1": 50.0,
            "_right": np.array(right),
            **fixed,
        }

    plain = {0: run(0, [True, False, False, False]), 1: run(1, [True, True, False, False])}
    row = compare_methods.table_row([run(1, [True, True, True, False]), run(0, [True, True, False, False])], plain)

    assert row["gain_points"]["each"] == [25.0, 25.0] and row["top1"] == {
        "mean": 62.5,
        "sd": pytest.approx(17.678, abs=1e-3),
        "low": 50,
        "high": 75,
        "n": 2,
    }
    assert row["gain_ci95_of_each_seed"][0][0] < 25 < row["gain_ci95_of_each_seed"][0][1]
    failed = compare_methods.table_row([{"seed": 0, "failed": "the loss is not finite"}], plain)
    result = {
        "student": "s",
        "teacher": {"model": "t", "top1": 90.0},
        "test_pictures": 4,
        "table": {"kd": row, "at": failed},
    }
    assert compare_methods.lines("pair", result)[-2:] == [
        "| kd | 2 | 62.50 ± 17.68 | +25.00 [25.00, 25.00] | 1 | 3 | 4 |",
        "| at | failed: the loss is not finite | | | | | |",
    ]


def test_students_interval_of_three_seeds() -> None:
    low, high = seeds.interval([1.0, 2.0, 3.0]) or (0, 0)
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5)) and seeds.interval([1.0]) is None


def test_seeds_at_once_run_in_separate_processes(tmp_path, monkeypatch, capsys):
    script, told = tmp_path / "script.py", tmp_path / "told.txt"
    script.write_text(
        "import pathlib, sys, time\n"
        f"tell = lambda text: pathlib.Path({str(told)!r}).open('a').write(text + '\\n')\n"
        "tell('begin'); time.sleep(0.7); print(sys.argv[1:]); tell('end'); sys.exit(3 * int(sys.argv[-1] == '2'))\n"
    )
    monkeypatch.setattr("sys.argv", [str(script), "pair", "--together", "2"])

    reproduce.at_once(
        range(9), 2, tmp_path / "pair"
    )  # a seed that fails there fails again where its result is asked for

    running = [1 if line == "begin" else -1 for line in told.read_text().split()]
    count, said = len(running) // 2, capsys.readouterr().out.splitlines()
    assert (
        count in (3, 4) and max(sum(running[: end + 1]) for end in range(2 * count)) == 2
    )  # none begins behind the one that failed
    assert [f"seed {seed}: begins, see {tmp_path}/pair-{seed}.log" in said for seed in range(9)] == [True] * count + [
        False
    ] * (9 - count)
    assert "seed 0: done" in said and f"seed 2: ended with 3, see {tmp_path}/pair-2.log" in said
    for seed in range(count):
        assert (
            tmp_path / f"pair-{seed}.log"
        ).read_text() == f"['pair', '--together', '2', '--together', '1', '--only', '{seed}']\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_seeds_at_once_end_with_the_process_that_began_them(tmp_path, sent):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\nfrom pathlib import Path\n"
        "if '--only' in sys.argv:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Path(sys.argv[-1]).write_text('ended')))\n"
        "    Path(sys.argv[-1]).touch(); time.sleep(60)\n"
        f"else:\n    sys.path[:0] = [{str(ROOT / 'benchmarks')!r}, {str(ROOT)!r}]\n    import reproduce\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    from compress.core.errors import Interrupted\n"
        "    try:\n        reproduce.at_once(range(2), 2, Path('log'))\n"
        "    except Interrupted as error:\n        print(error)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in "01"):
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.send_signal(sent)
    out, _ = parent.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted; each training keeps its checkpoint"
    assert [(tmp_path / name).read_text() for name in "01"] == ["ended", "ended"]
