"""Commands on a finished run's folder: verify, report, analyze, compare."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import click

from compress.cli.options import artifacts_option, quiet_option, run_argument
from compress.core.console import Console, print_line
from compress.core.errors import MissingError
from compress.core.latest_run import LINK, latest_run


@click.command()
@run_argument
@click.option(
    "--target",
    metavar="TARGET",
    help="The device (default: the one that the recipe names): local, browser, ssh://user@host[:port][/folder], or "
    "adb://SERIAL?python=/path. Options: ?python=/path (has numpy and onnxruntime), ?wheels=push (packages come from "
    "this machine), ?config=FILE (of ssh), ?provider=NAME (an execution provider of the device's onnxruntime). Options "
    "of browser: ?binary=/path, ?ort=/path (onnxruntime-web), ?provider=wasm, webgpu or all.",
)
@click.option(
    "--preprocess",
    metavar="CMD",
    help="The application's photo decoder on the device: gets a path, writes RGB bytes to stdout.",
)
@click.option(
    "--sustained",
    type=click.IntRange(1, 86400),
    metavar="SECONDS",
    help="Also run the device's file for so many seconds without a pause.",
)
@artifacts_option
@quiet_option
def verify(
    run_name: str, target: str | None, preprocess: str | None, sustained: int | None, artifacts: Path, quiet: bool
) -> int:
    """Run a finished run's bundle on a device and merge the answer into its report.

    The limits on time and memory are judged by that device's numbers.
    """
    folder = find_run(run_name, artifacts)
    from compress.commands.verify import verify as verify_run
    from compress.verdict import requirements

    report = verify_run(folder, target=target, preprocess=preprocess, sustained=sustained, console=Console(quiet=quiet))
    return requirements.exit_code(report.status)


@click.command()
@run_argument
@artifacts_option
def report(run_name: str, artifacts: Path) -> int:
    """Write report.html again from a run's numbers."""
    folder = find_run(run_name, artifacts)
    from compress.report.page import render

    print_line(str(render(folder)), sys.stdout)
    return 0


@click.command()
@run_argument
@click.option(
    "--against",
    multiple=True,
    metavar="RUN",
    help="Another run whose training curves stand beside this one's; may be repeated.",
)
@artifacts_option
@quiet_option
def analyze(run_name: str, against: tuple[str, ...], artifacts: Path, quiet: bool) -> int:
    """Add to a finished run's report what its distillation did.

    That is gradients, correlations of logits, features and calibration.
    """
    folder, others = find_run(run_name, artifacts), [find_run(name, artifacts) for name in against]
    from compress.commands.analyze.run import analyze as analyze_run

    print_line(str(analyze_run(folder, against=others, artifacts=artifacts, console=Console(quiet=quiet))), sys.stdout)
    return 0


@click.command()
@click.argument("run_names", metavar="RUN RUN...", nargs=-1, required=True)
@artifacts_option
def compare(run_names: tuple[str, ...], artifacts: Path) -> int:
    """Show runs side by side."""
    folders = [find_run(name, artifacts) for name in run_names]
    from compress.report.compare import compare as compare_runs

    print_line(compare_runs(folders), sys.stdout)
    return 0


def find_run(text: str, artifacts: Path) -> Path:
    """Return the folder of a run: RUN is the folder itself, or a recipe's name for its newest finished run.

    Raises MissingError.
    """
    given = Path(text)
    if (given / "report.json").is_file():
        return given.resolve() if ".." in given.parts else given
    runs = artifacts / "runs"
    # `latest` by its path is no folder where it is a text file.
    latest = latest_run(given.parent if given.name == LINK else runs / text)
    if latest is not None and (latest / "report.json").is_file():
        return latest
    if given.is_dir():
        raise MissingError(f"{text}: there is no report.json in this folder; finish the run with: compress run RECIPE")
    names = sorted(path.name for path in runs.iterdir() if latest_run(path) is not None) if runs.is_dir() else []
    close = difflib.get_close_matches(text, names, n=1)
    known = f"did you mean {close[0]!r}?" if close else f"finished runs in {runs}: {', '.join(names) or 'none'}"
    recipe = Path("recipes") / f"{given.stem}.yaml"
    how = (
        f"make one with: compress run {recipe}"
        if recipe.is_file()
        else "give the folder of a run, or where runs lie with --artifacts"
    )
    raise MissingError(f"no finished run {text!r} ({known}); {how}")
