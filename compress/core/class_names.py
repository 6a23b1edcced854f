"""Names of classes, which compare equal in whatever Unicode form a file system or an editor wrote them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable


def nfc(name: str) -> str:
    """Return a class name in Unicode's composed form, in which names are compared; macOS writes the other one."""
    return unicodedata.normalize("NFC", name)


def loosely(name: str) -> str:
    """Return what is left of a name without its Unicode form, case and surrounding space."""
    return nfc(unicodedata.normalize("NFKC", name)).casefold().strip()


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ in nothing but form, case or surrounding space."""
    groups = defaultdict(list)
    for name in names:
        groups[loosely(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]
