"""The recipes that come with the package: in the checkout's `recipes/`, or inside an installed package."""

from __future__ import annotations

import difflib
from pathlib import Path

from compress.core.errors import MissingError, UsageError
from compress.core.files import write_atomically

PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Return the folder of the shipped recipes. Raises MissingError where the installation lacks it."""
    places = (PACKAGE / "recipes", PACKAGE.parent / "recipes")  # an installed package, a checkout
    found = next((place for place in places if (place / "mobilenet.yaml").is_file()), None)
    if found is None:
        raise MissingError(f"{places[0]}: the recipes are not installed; install the package again")
    return found


def names() -> list[str]:
    """Return what `--copy` takes: each recipe's path below the folder, without its suffix."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def copy(name: str, into: Path) -> Path:
    """Write the shipped recipe `name` into a folder and return the new file.

    Its comments name the file as it is called from that folder.

    Args:
        name: As `names` lists it, with or without `.yaml`.
        into: An existing folder.

    Returns:
        The path of the copy.

    Raises:
        UsageError: There is no such recipe, or a file of that name is there already.
    """
    name = name.removesuffix(".yaml")
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise UsageError(f"--copy {name}: no such recipe ({hint})")
    target = into / f"{Path(name).name}.yaml"
    if target.exists():
        raise UsageError(f"{target} is there already: move it away, or copy from another folder")
    text = (folder() / f"{name}.yaml").read_text(encoding="utf-8")
    write_atomically(target, text.replace(f"recipes/{name}.yaml", target.name).encode())
    return target
