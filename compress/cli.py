"""The command line. Everything heavy is imported inside the commands: help and a wrong recipe answer without torch."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from compress import exits
from compress.console import Console, say
from compress.errors import CompressError, MissingError, StageError, UsageError
from compress.stages import STAGES


class Group(click.Group):
    """Commands in the order of this file; a wrong one is answered with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self.commands)}"
            raise UsageError(f"no command {args[0]!r} ({hint})")
        return super().resolve_command(ctx, args)


def _device_name(ctx: click.Context, option: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
        raise UsageError(f"--device {value}: expected auto, cpu, cuda, cuda:N or mps")
    return value


recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe, such as train.epochs=2."
)
code_option = click.option(
    "--allow-code", is_flag=True, help="Let the recipe name networks of your own (package.module:function), whose code is then run."
)
artifacts_option = click.option(
    "--artifacts",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts"),
    show_default=True,
    envvar="COMPRESS_ARTIFACTS",
    help="Where results are kept.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, callback=_device_name, metavar="auto|cpu|cuda|cuda:N|mps", help="Where training runs."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only warnings and the verdict.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compress", message="%(prog)s %(version)s")
@click.option("--traceback", is_flag=True, help="Show where an error comes from; stands anywhere. Also: COMPRESS_TRACEBACK=1.")
def cli(traceback: bool) -> None:
    """Make an image classifier small enough for a device: from a recipe to a verified int8 ONNX file.

    Exit codes: 0 done, every requirement met; 2 wrong usage or recipe; 3 something is missing; 4 a stage failed;
    5 a requirement is not met; 6 undecided; 130 interrupted.
    """


@cli.command()
@recipe_argument
@set_option
@code_option
@device_option
@artifacts_option
@click.option("--until", type=click.Choice(STAGES), metavar="STAGE", help=f"Stop after this stage: {', '.join(STAGES)}.")
@click.option(
    "--force", type=click.Choice(STAGES), multiple=True, metavar="STAGE", help="Run this stage again, even if its result is there."
)
@click.option("--json", "as_json", is_flag=True, help="The content of report.json on stdout; everything else on stderr.")
@quiet_option
def run(
    recipe: Path, overrides: tuple[str, ...], allow_code: bool, device: str, artifacts: Path,
    until: str | None, force: tuple[str, ...], as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Run a recipe from teacher to verdict; what is done already is reused."""
    loaded = _load(recipe, overrides, allow_code)
    from compress import pipeline

    console = Console(quiet=quiet, json=as_json)
    outcome = pipeline.run(loaded, artifacts=artifacts, device=device, until=until, force=force, console=console)
    console.result(outcome.report)
    return outcome.exit_code


@cli.command()
@recipe_argument
@set_option
@code_option
def check(recipe: Path, overrides: tuple[str, ...], allow_code: bool) -> int:
    """Say every mistake of a recipe at once; build its networks without memory for weights."""
    loaded = _load(recipe, overrides, allow_code)
    from compress import probe

    console = Console()
    for note in (*loaded.notices, *probe.check(loaded)):
        console.notice(note)
    console.line(f"{recipe}: ok")
    return 0


@cli.command()
@recipe_argument
@set_option
@code_option
@artifacts_option
def show(recipe: Path, overrides: tuple[str, ...], allow_code: bool, artifacts: Path) -> int:
    """Print the resolved recipe: every key, defaults filled in."""
    from compress import recipe as recipes

    loaded = _load(recipe, overrides, allow_code)
    for notice in loaded.notices:
        say(f"note: {notice}", sys.stderr)
    if loaded.recipe.student.choose is not None:
        say(f"note: {_picked(loaded, artifacts)}", sys.stderr)
    say(recipes.dump(recipes.resolve(loaded.recipe)).rstrip(), sys.stdout)
    return 0


@cli.command()
def schema() -> int:
    """Print the JSON Schema of recipes, for editors."""
    import json

    from compress.schema import json_schema

    say(json.dumps(json_schema(), indent=2), sys.stdout)
    return 0


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("recipes"))
def recipes(folder: Path) -> int:
    """List the recipes under FOLDER (default: recipes)."""
    files = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
    _table([(str(path), _first_comment(path)) for path in files] or [(f"no recipes in {folder}", "")])
    return 0


@cli.command()
def methods() -> int:
    """List the distillation methods."""
    from compress.schema import METHOD_SUMMARIES

    _table(list(METHOD_SUMMARIES.items()))
    return 0


@cli.command()
def models() -> int:
    """List the networks."""
    from compress.models import catalog

    _table([(info.name, f"{info.summary}; pictures from {info.min_size} pixels") for info in catalog.NETWORKS.values()])
    return 0


@cli.command()
@recipe_argument
@set_option
@code_option
@device_option
@artifacts_option
@quiet_option
def teachers(recipe: Path, overrides: tuple[str, ...], allow_code: bool, device: str, artifacts: Path, quiet: bool) -> int:
    """Train or load the teacher candidates alone; print the table that one is chosen from."""
    loaded = _load(recipe, overrides, allow_code)
    from compress import pipeline, selection

    rows = pipeline.teachers(loaded, artifacts=artifacts, device=device, console=Console(quiet=quiet))
    proxy = rows[0]["proxy_rank"] is not None
    ranking = ("rank", "student, proxy", "rank by proxy", "against the best") if proxy else ()
    header = ("", "model", "validation", *ranking, "parameters", "MACs", "time", "origin")
    cells = [
        ("*" if row["chosen"] else "", row["model"], f"{100 * row['top1_validation']:.2f} %",
         *((str(row["rank"]), f"{100 * row['proxy_top1_validation']:.2f} %", str(row["proxy_rank"]), selection.behind_best(row) or "-") if proxy else ()),
         f"{row['params']:,}", "-" if row["macs"] is None else f"{row['macs']:,}", f"{row['seconds']:.1f} s", row["origin"])
        for row in rows
    ]  # fmt: skip
    _table([header, *cells])
    return 0


@cli.command()
@recipe_argument
@set_option
@code_option
@artifacts_option
@click.option("--neighbours", type=click.IntRange(0, 20), default=6, show_default=True, help="How many other networks to try.")
@click.option("--force", is_flag=True, help="Measure again, even if the results are there.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON on stdout; everything else on stderr.")
@quiet_option
def plan(recipe: Path, overrides: tuple[str, ...], allow_code: bool, artifacts: Path, neighbours: int, force: bool, as_json: bool, quiet: bool) -> int:
    """Before any training: export, quantise and time the networks with random weights; judge the recipe's limits."""
    loaded = _load(recipe, overrides, allow_code)
    from compress import pipeline

    console = Console(quiet=quiet, json=as_json)
    outcome = pipeline.plan(loaded, artifacts=artifacts, neighbours=neighbours, force=force, console=console)
    console.result(outcome.report)
    return outcome.exit_code


@cli.command()
@click.argument("run_name", metavar="RUN")
@click.option(
    "--target", metavar="TARGET",
    help="The device (default: the one that the recipe names): local, browser, ssh://user@host[:port][/folder], or adb://SERIAL?python=/path. "
    "Options: ?python=/path (has numpy and onnxruntime), ?wheels=push (packages come from here), ?config=FILE (of ssh), "
    "?provider=NAME (an execution provider that the device's onnxruntime has); of browser: ?binary=/path, ?ort=/path (onnxruntime-web), "
    "?provider=wasm, webgpu or all.",
)  # fmt: skip
@click.option("--preprocess", metavar="CMD", help="The application's photo decoder on the device: gets a path, writes RGB bytes to stdout.")
@click.option("--sustained", type=click.IntRange(1, 86400), metavar="SECONDS", help="Also run the file for the device so long without a pause.")
@artifacts_option
@quiet_option
def verify(run_name: str, target: str | None, preprocess: str | None, sustained: int | None, artifacts: Path, quiet: bool) -> int:
    """Run a finished run's bundle on a device, merge the answer into its report, and judge its limits on time and memory there."""
    folder = find_run(run_name, artifacts)
    from compress import on_device, verdict

    content = on_device.verify(folder, target=target, preprocess=preprocess, sustained=sustained, console=Console(quiet=quiet))
    return verdict.exit_code(content["status"])


@cli.command()
@click.argument("run_name", metavar="RUN")
@artifacts_option
def report(run_name: str, artifacts: Path) -> int:
    """Write report.html again from a run's numbers."""
    folder = find_run(run_name, artifacts)
    from compress.report import render

    say(str(render(folder)), sys.stdout)
    return 0


@cli.command()
@click.argument("run_name", metavar="RUN")
@click.option("--against", multiple=True, metavar="RUN", help="Another run whose training curves stand beside this one's; may be repeated.")
@artifacts_option
@quiet_option
def analyze(run_name: str, against: tuple[str, ...], artifacts: Path, quiet: bool) -> int:
    """Add to a finished run's report what its distillation did: gradients, correlations of logits, features, calibration."""
    folder, others = find_run(run_name, artifacts), [find_run(name, artifacts) for name in against]
    from compress.analyze import analyze as examine

    say(str(examine(folder, against=others, artifacts=artifacts, console=Console(quiet=quiet))), sys.stdout)
    return 0


@cli.command()
@click.argument("run_names", metavar="RUN RUN...", nargs=-1, required=True)
@artifacts_option
def compare(run_names: tuple[str, ...], artifacts: Path) -> int:
    """Show runs side by side."""
    folders = [find_run(name, artifacts) for name in run_names]
    from compress.report import compare as table

    say(table(folders), sys.stdout)
    return 0


@cli.command()
@click.option("--verdict", is_flag=True, help="Plant known faults and show that the verdict catches and names each; takes under a minute.")
@artifacts_option
def doctor(verdict: bool, artifacts: Path) -> int:
    """Say what this machine has: packages, CUDA, runtime, int8 instructions, memory, disk, data."""
    from compress.doctor import doctor as examine

    rows = examine(artifacts)
    missing = any(state == "missing" for _, state, _ in rows)
    if verdict and not missing:
        from compress.doctor import plant

        return 0 if plant(lambda line: say(line, sys.stdout)) else StageError.exit_code
    _table(rows)
    return MissingError.exit_code if missing else 0


def find_run(text: str, artifacts: Path) -> Path:
    """The folder of a run: RUN is the folder itself, or a recipe's name for its newest finished run. Raises MissingError."""
    given = Path(text)
    if (given / "report.json").is_file():
        return given
    runs = artifacts / "runs"
    latest = runs / text / "latest"
    if (latest / "report.json").is_file():
        return latest.resolve()
    if given.is_dir():
        raise MissingError(f"{text}: there is no report.json in this folder; finish the run with: compress run RECIPE")
    names = sorted(path.name for path in runs.iterdir() if (path / "latest").exists()) if runs.is_dir() else []
    close = difflib.get_close_matches(text, names, n=1)
    known = f"did you mean {close[0]!r}?" if close else f"finished runs in {runs}: {', '.join(names) or 'none'}"
    raise MissingError(f"no finished run {text!r} ({known}); make one with: compress run recipes/{given.stem}.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. A bug is one line and exit 1, by the exception hook."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    traceback = "--traceback" in arguments or os.environ.get("COMPRESS_TRACEBACK", "") not in ("", "0")
    # The flag may stand behind the command too, where click would not know it.
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not traceback:
        sys.excepthook = exits.one_line
    signal.signal(signal.SIGTERM, exits.as_interrupt)
    # Read when torch is loaded: idle threads spin briefly, then sleep. libgomp's own spinning is meant for a machine of one's own: beside other busy
    # processes it keeps the core that the awaited thread needs. What the choice costs and gains is measured by benchmarks/neighbours.py.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        # click's own `main` would put a blank line before an interrupt and answer a closed pipe with exit 1
        with cli.make_context("compress", arguments) as context:
            return int(cli.invoke(context))
    except click.exceptions.Exit as finished:  # --help, --version
        return finished.exit_code
    except (CompressError, click.ClickException, click.Abort, KeyboardInterrupt, OSError) as error:
        if traceback:
            sys.excepthook(type(error), error, error.__traceback__)
        code, message = exits.explain(error, arguments)
        if message and not exits.said_by_another(error):
            say(message, sys.stderr)
        return code


def _load(path: Path, overrides: tuple[str, ...], allow_code: bool) -> Any:
    from compress import recipe

    if not path.exists():
        known = [str(found) for found in Path("recipes").rglob("*.yaml")]
        named = [text for text in known if Path(text).stem == path.stem] or difflib.get_close_matches(str(path), known, n=1)
        hint = f"did you mean {named[0]}?" if named else "`compress recipes` lists those of this folder"
        raise UsageError(f"{path}: no such recipe ({hint})")
    if allow_code:  # a network of one's own is looked for beside the recipe and in the working folder
        sys.path += [folder for folder in (str(path.resolve().parent), str(Path.cwd())) if folder not in sys.path]
    return recipe.load(path, overrides, allow_code=allow_code)


def _picked(loaded: Any, artifacts: Path) -> str:
    """What `student.choose` picked in the recipe's last plan, where that plan was asked the same."""
    import json

    path = artifacts / "plans" / f"{loaded.name}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("asked") != loaded.recipe.student.model_dump(mode="json", by_alias=True):
        return f"student.choose: nothing is picked yet; pick with: compress plan {loaded.path}"
    return f"{kept['choose']['sentence']} ({path}, on {kept['host']['cpu']})"


def _first_comment(path: Path) -> str:
    """The first comment line of a recipe: what it does."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns, aligned to the left; the last is as long as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), sys.stdout)
