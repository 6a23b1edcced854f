"""Arguments and options that commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compress.core.errors import UsageError


def _device_name(ctx: click.Context, option: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
        raise UsageError(f"--device {value}: expected auto, cpu, cuda, cuda:N or mps")
    return value


class _Folder(click.Path):
    """A path that must not be empty: an unset variable would otherwise mean the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            raise UsageError("--artifacts: expected a folder, got an empty name")
        return super().convert(value, param, ctx)


def _folder(ctx: click.Context, option: click.Parameter, value: Path) -> Path:
    """Check that results can be kept there: neither a file nor below one."""
    there = next(place for place in (value.absolute(), *value.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"--artifacts {value}: {there} is a file; name a folder")
    return value


_recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
_set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as train.epochs=2.",
)
_code_option = click.option(
    "--allow-code",
    is_flag=True,
    help="Let the recipe name networks of your own (package.module:function), whose code is then run.",
)
artifacts_option = click.option(
    "--artifacts",
    type=_Folder(path_type=Path),
    callback=_folder,
    default=Path("artifacts"),
    show_default=True,
    envvar="COMPRESS_ARTIFACTS",
    help="Where results are kept.",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    callback=_device_name,
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="Where training runs.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only warnings and the verdict.")
run_argument = click.argument("run_name", metavar="RUN")


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add RECIPE, --set and --allow-code to a command."""
    return _recipe_argument(_set_option(_code_option(command)))
