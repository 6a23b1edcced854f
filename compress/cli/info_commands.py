"""Commands that list what there is: schema, recipes, methods, models, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from compress.cli.options import artifacts_option
from compress.core.console import print_line, table
from compress.core.errors import MissingError, StageError


@click.command()
@click.option("--report", is_flag=True, help="Print the JSON Schema of report.json instead.")
def schema(report: bool) -> int:
    """Print the JSON Schema of recipes, for editors."""
    import json

    if report:
        from compress.report.schema import json_schema
    else:
        from compress.recipe.schema import json_schema
    print_line(json.dumps(json_schema(), indent=2), sys.stdout)
    return 0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--copy", metavar="NAME", help="Write the recipe NAME that comes with the package into this folder.")
def recipes(folder: Path | None, copy: str | None) -> int:
    """List the recipes under FOLDER (default: ./recipes where it exists, else those that come with the package)."""
    from compress.recipe import shipped

    if copy is not None:
        target = shipped.copy(copy, folder or Path())
        print_line(f"{target}: run it with: compress run {target}", sys.stdout)
        return 0
    if folder is None and not Path("recipes").is_dir():
        root = shipped.folder()
        table([(name, _first_comment(root / f"{name}.yaml")) for name in shipped.names()])
        return 0
    folder = folder or Path("recipes")
    files = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
    table([(str(path), _first_comment(path)) for path in files] or [(f"no recipes in {folder}", "")])
    return 0


@click.command()
def methods() -> int:
    """List the distillation methods."""
    from compress.recipe.schema import METHOD_SUMMARIES

    table(list(METHOD_SUMMARIES.items()))
    return 0


@click.command()
def models() -> int:
    """List the networks."""
    from compress.models import catalog

    rows = [(info.name, f"{info.summary}; images from {info.min_size} pixels") for info in catalog.NETWORKS.values()]
    table([*rows, (f"{catalog.TIMM}NAME", "any classifier of the package timm, as timm.list_models() names them")])
    return 0


@click.command()
@click.option(
    "--verdict",
    is_flag=True,
    help="Plant known faults and show that the verdict catches and names each; takes under a minute.",
)
@artifacts_option
def doctor(verdict: bool, artifacts: Path) -> int:
    """Report what this machine has: packages, CUDA, runtime, int8 instructions, memory, disk, data."""
    from compress.commands.doctor.environment import examine

    rows = examine(artifacts)
    missing = any(state == "missing" for _, state, _ in rows)
    if verdict and not missing:
        from compress.commands.doctor.environment import run_self_test

        return 0 if run_self_test(lambda line: print_line(line, sys.stdout)) else StageError.exit_code
    table(rows)
    return MissingError.exit_code if missing else 0


def _first_comment(path: Path) -> str:
    """Return the first comment line of a recipe, which says what it does."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
