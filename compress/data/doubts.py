"""What is probably wrong with a set of pictures, as sentences: they go with the data stage's result into every run's report."""

from __future__ import annotations


def many(count: int, what: str) -> str:
    """`1 picture`, `1,200 pictures`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def leaked(count: int, what: str, then: str) -> str:
    """`count` training pictures have the same `what` (bytes, pixels) as a test picture; `then`: what is done about it."""
    return f"{many(count, 'training picture')} {'is' if count == 1 else 'are'} also in the test part (same {what}); {then}"
