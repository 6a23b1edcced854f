"""The command reference in docs/reference/commands.md, generated from the commands themselves.

`python -m compress.cli.reference_docs docs/reference/commands.md` rewrites the text between the page's two markers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from compress.cli.main import cli

BEGIN, END = "<!-- COMMAND REFERENCE BEGIN -->", "<!-- COMMAND REFERENCE END -->"


def markdown() -> str:
    """Return one section per command: usage, help text, options."""
    return "\n\n".join(_section(name, command) for name, command in cli.commands.items() if not command.hidden)


def between(text: str) -> str:
    """Return the text between a document's two markers. Raises ValueError where one is missing."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[begin:end].strip("\n")


def replaced(text: str) -> str:
    """Return the document with a fresh reference between its markers. Raises ValueError where one is missing."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n{markdown()}\n{text[end:]}"


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"compress {name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    if len(command.params) == 0:
        usage = context.command_path
    paragraphs = [_one_line(paragraph) for paragraph in (command.help or "").split("\n\n")]
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    rows = [_row(option, context) for option in options]
    table = ["| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows)] if rows else []
    return "\n\n".join([f"## compress {name}", f"```text\n{usage}\n```", *paragraphs, *table])


def _row(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag else f" {option.metavar or ('N' if _bounds(option) else option.make_metavar(context))}"
    names = ", ".join(_code(name + value) for name in (*option.opts, *option.secondary_opts))
    notes = [_one_line(option.help or "")]
    if bounds := _bounds(option):
        notes.append(f"From {bounds[0]} to {bounds[1]}.")
    if option.envvar:
        notes.append(f"Environment variable: `{option.envvar}`.")
    if option.multiple and "repeat" not in notes[0]:
        notes.append("Can be repeated.")
    return f"| {names} | {_default(option)} | {_escaped(' '.join(notes))} |"


def _bounds(option: click.Option) -> tuple[float, float] | None:
    """Return the ends of an option's closed range, if it has one."""
    kind = option.type
    if isinstance(kind, (click.IntRange, click.FloatRange)) and kind.min is not None and kind.max is not None:
        return kind.min, kind.max
    return None


def _default(option: click.Option) -> str:
    """Return the default as the command line takes it; nothing for flags and options that are off by default."""
    if option.is_flag or not option.show_default or option.default is None:
        return ""
    return f"`{option.default}`"


def _one_line(text: str) -> str:
    return " ".join(text.replace("\b", "").split())


def _code(text: str) -> str:
    """Return text as code in a table's cell. A vertical bar would need an escape that not every renderer removes."""
    return f"`{text}`" if "|" not in text else f"<code>{text.replace('|', '&#124;')}</code>"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(replaced(page.read_text(encoding="utf-8")), encoding="utf-8")
