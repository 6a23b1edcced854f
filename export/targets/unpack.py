"""Unpack a bundle's zip and read its list of checksums."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

from export.targets import DeviceFailed

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


def unpacked(bundle: Path, folder: Path) -> Path:
    """Unpack a bundle into `folder` and return the folder of manifest.json. Raises DeviceFailed on a damaged zip."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise DeviceFailed(
            f"{bundle} is damaged ({error}); make it again with: compress run --force validate"
        ) from error
    return next((path.parent for path in sorted(folder.rglob("manifest.json"))), folder)


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 by name of all files of a bundle except the list itself, in its order. Raises DeviceFailed."""
    listing = folder / "checksums.sha256"
    if not listing.is_file():
        raise DeviceFailed("the bundle has no checksums.sha256; make it again with: compress run --force validate")
    found = {}
    for line in listing.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not _NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise DeviceFailed(
                f"checksums.sha256 names {name!r}, which is not a plain file name; make the bundle again"
            )
        found[name] = digest
    return found
