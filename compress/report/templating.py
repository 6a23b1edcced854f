"""The templates of report.html: every text is escaped, and a name that is not there is an error."""

from __future__ import annotations

import functools
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from compress.report.formats import MINUS

# Characters that HTML forbids even when escaped, and halves of surrogate pairs, which UTF-8 cannot carry.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# The hyphen in front of a number by itself; not that of a range, a date, a name, an option or an exponent.
HYPHEN = re.compile(r"(?<![^\s(\[])-(?=\d+(?:[.,]\d+)*(?![\w/-]|\.\w))")


@functools.cache
def environment() -> Environment:
    """Return the environment that renders the templates."""
    made = Environment(
        loader=PackageLoader("compress.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    made.filters["prose"] = prose
    return made


def prose(text: object) -> str:
    """Return a text to be read with true minus signs: report.json and the console stay ASCII."""
    return HYPHEN.sub(MINUS, str(text))


def _printable(value: Any) -> Any:
    """Replace the characters that a page cannot hold."""
    return FORBIDDEN.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value
