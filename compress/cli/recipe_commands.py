"""Commands on a recipe: run, check, show, teachers, plan."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

import click

from compress.cli.options import artifacts_option, device_option, quiet_option, recipe_options
from compress.core.console import Console, print_line, table
from compress.core.errors import UsageError
from compress.core.plural import agree, plural
from compress.stages import STAGES


@click.command()
@recipe_options
@device_option
@artifacts_option
@click.option(
    "--until", type=click.Choice(STAGES), metavar="STAGE", help=f"Stop after this stage: {', '.join(STAGES)}."
)
@click.option(
    "--force",
    type=click.Choice(STAGES),
    multiple=True,
    metavar="STAGE",
    help="Run this stage again, even if its result is there.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The content of report.json on stdout, with --until what was run; everything else on stderr.",
)
@quiet_option
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    allow_code: bool,
    device: str,
    artifacts: Path,
    until: str | None,
    force: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a recipe from teacher to verdict; what is done already is reused."""
    loaded = _load(recipe, overrides, allow_code)
    from compress.pipeline import run as pipeline

    console = Console(quiet=quiet, json=as_json)
    result = pipeline.run(loaded, artifacts=artifacts, device=device, until=until, force=force, console=console)
    console.result(result.report or result.stopped)
    return result.exit_code


@click.command()
@recipe_options
def check(recipe: Path, overrides: tuple[str, ...], allow_code: bool) -> int:
    """Report every mistake of a recipe at once, and what a run would refuse of its data, networks and weights.

    Nothing is trained.
    """
    loaded = _load(recipe, overrides, allow_code)
    from compress.commands.check import check as check_recipe

    console = Console()
    notes, missing = check_recipe(loaded)
    for note in (*loaded.warnings, *notes, *missing):
        console.notice(str(note))
    console.line(
        f"{recipe}: ok"
        + (
            f", but {plural(len(missing), 'thing')} that a run needs {agree(len(missing), 'is', 'are')} not there yet"
            if missing
            else ""
        )
    )
    return 0


@click.command()
@recipe_options
@artifacts_option
def show(recipe: Path, overrides: tuple[str, ...], allow_code: bool, artifacts: Path) -> int:
    """Print the resolved recipe: every key, defaults filled in."""
    from compress.recipe.defaults import resolve
    from compress.recipe.loader import dump

    loaded = _load(recipe, overrides, allow_code)
    for warning in loaded.warnings:
        print_line(f"note: {warning}", sys.stderr)
    if loaded.recipe.student.choose is not None:
        print_line(f"note: {_picked(loaded, artifacts)}", sys.stderr)
    print_line(dump(resolve(loaded.recipe)).rstrip(), sys.stdout)
    return 0


@click.command()
@recipe_options
@artifacts_option
@quiet_option
@click.option("--html", type=click.Path(path_type=Path), help="Also write a page with images as training sees them.")
def data(
    recipe: Path, overrides: tuple[str, ...], allow_code: bool, artifacts: Path, quiet: bool, html: Path | None
) -> int:
    """Read the data as a run would: images by class and part, near-duplicates, what the test part can certify.

    Nothing is trained; a run finds the decoded images in the cache.
    """
    loaded = _load(recipe, overrides, allow_code)
    from compress.commands.describe_data import describe_data

    found = describe_data(loaded, artifacts, Console(quiet=quiet))
    table(found.rows)
    for line in found.lines:
        print_line(line, sys.stdout)
    if html is not None:
        from compress.commands import data_page

        data_page.write(found, loaded.name, html, images=loaded.recipe.shows_images)
        print_line(f"page: {html}", sys.stdout)
    return 0


@click.command()
@recipe_options
@device_option
@artifacts_option
@quiet_option
def teachers(
    recipe: Path, overrides: tuple[str, ...], allow_code: bool, device: str, artifacts: Path, quiet: bool
) -> int:
    """Train or load the teacher candidates alone; print the table that one is chosen from."""
    loaded = _load(recipe, overrides, allow_code)
    from compress.pipeline import run as pipeline
    from compress.verdict import teacher_choice

    rows = pipeline.teachers(loaded, artifacts=artifacts, device=device, console=Console(quiet=quiet))
    proxy = rows[0]["proxy_rank"] is not None
    ranking = ("rank", "student, proxy", "rank by proxy", "against the best") if proxy else ()
    header = ("", "model", "validation", *ranking, "parameters", "MACs", "time", "origin")
    cells = [
        (
            "*" if row["chosen"] else "",
            row["model"],
            f"{100 * row['top1_validation']:.2f} %",
            *(
                (
                    str(row["rank"]),
                    f"{100 * row['proxy_top1_validation']:.2f} %",
                    str(row["proxy_rank"]),
                    teacher_choice.behind_best(row) or "-",
                )
                if proxy
                else ()
            ),
            f"{row['params']:,}",
            "-" if row["macs"] is None else f"{row['macs']:,}",
            f"{row['seconds']:.1f} s",
            row["origin"],
        )
        for row in rows
    ]
    table([header, *cells])
    return 0


@click.command()
@recipe_options
@artifacts_option
@click.option(
    "--neighbours", type=click.IntRange(0, 20), default=6, show_default=True, help="How many other networks to try."
)
@click.option("--force", is_flag=True, help="Measure again, even if the results are there.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON on stdout; everything else on stderr.")
@quiet_option
def plan(
    recipe: Path,
    overrides: tuple[str, ...],
    allow_code: bool,
    artifacts: Path,
    neighbours: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Before any training: export, quantise and time the networks with random weights; judge the recipe's limits."""
    loaded = _load(recipe, overrides, allow_code)
    from compress.pipeline import run as pipeline

    console = Console(quiet=quiet, json=as_json)
    result = pipeline.plan(loaded, artifacts=artifacts, neighbours=neighbours, force=force, console=console)
    console.result(result.report)
    return result.exit_code


def _load(path: Path, overrides: tuple[str, ...], allow_code: bool) -> Any:
    from compress.recipe import loader, shipped

    if not path.exists():
        known = [str(found) for found in Path("recipes").rglob("*.yaml")]
        named = [text for text in known if Path(text).stem == path.stem] or difflib.get_close_matches(
            str(path), known, n=1
        )
        hint = f"did you mean {named[0]}?" if named else "`compress recipes` lists what there is"
        if not named and path.stem in shipped.names():
            hint = f"the package has one: compress recipes --copy {path.stem}"
        raise UsageError(f"{path}: no such recipe ({hint})")
    if allow_code:  # a network of one's own is looked for beside the recipe and in the working folder
        sys.path += [folder for folder in (str(path.resolve().parent), str(Path.cwd())) if folder not in sys.path]
    return loader.load(path, overrides, allow_code=allow_code)


def _picked(loaded: Any, artifacts: Path) -> str:
    """What `student.choose` picked in the recipe's last plan, where that plan was asked the same."""
    import json

    path = artifacts / "plans" / f"{loaded.name}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("asked") != loaded.recipe.student.model_dump(mode="json", by_alias=True):
        return f"student.choose: nothing is picked yet; pick with: compress plan {loaded.path}"
    return f"{kept['choose']['sentence']} ({path}, on {kept['host']['cpu']})"
