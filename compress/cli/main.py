"""The entry point. Everything heavy is imported inside the commands, so that help and a wrong recipe need no torch."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence

import click

from compress import __version__
from compress.cli import error_exit, info_commands, recipe_commands, run_commands
from compress.core.console import print_line
from compress.core.errors import CompressError, Interrupted, UsageError


class CommandGroup(click.Group):
    """Commands in the order in which they were added; a wrong name is answered with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self.commands)}"
            raise UsageError(f"no command {args[0]!r} ({hint})")
        return super().resolve_command(ctx, args)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option(
    "--traceback", is_flag=True, help="Show where an error comes from; stands anywhere. Also: COMPRESS_TRACEBACK=1."
)
def cli(traceback: bool) -> None:
    """Make an image classifier small enough for a device: from a recipe to a verified int8 ONNX file.

    Exit codes: 0 done, every requirement met; 2 wrong usage or recipe; 3 something is missing; 4 a stage failed;
    5 a requirement is not met; 6 undecided; 130 interrupted.
    """


for command in (
    recipe_commands.run,
    recipe_commands.check,
    recipe_commands.show,
    info_commands.schema,
    info_commands.recipes,
    info_commands.methods,
    info_commands.models,
    recipe_commands.data,
    recipe_commands.teachers,
    recipe_commands.plan,
    run_commands.verify,
    run_commands.report,
    run_commands.analyze,
    run_commands.compare,
    info_commands.doctor,
):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. A bug is one line and exit 1, by the exception hook."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    traceback = "--traceback" in arguments or os.environ.get("COMPRESS_TRACEBACK", "") not in ("", "0")
    # The flag may stand behind the command too, where click would not know it.
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not traceback:
        sys.excepthook = error_exit.one_line
    signal.signal(signal.SIGTERM, error_exit.as_interrupt)
    # Read when torch is loaded: idle threads spin briefly and then sleep. libgomp's default is meant for a machine that
    # runs nothing else; beside other busy processes a spinning thread occupies the core that the awaited thread needs.
    # benchmarks/neighbours.py measures both.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        # click's own `main` would print a blank line before an interrupt and exit with 1 on a closed pipe.
        with cli.make_context("compress", arguments) as context:
            return int(cli.invoke(context))
    except click.exceptions.Exit as finished:  # --help, --version
        return finished.exit_code
    except (CompressError, click.ClickException, click.Abort, KeyboardInterrupt, OSError) as error:
        if traceback:
            sys.excepthook(type(error), error, error.__traceback__)
        code, message = error_exit.explain(error, arguments)
        if message and code != Interrupted.exit_code:  # torchrun interrupts those beside the one that failed
            error_exit.hand_to_torchrun(message)
        if message and not error_exit.reported_by_main_rank(error):
            print_line(message, sys.stderr)
        return code
