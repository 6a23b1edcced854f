"""Counts with their nouns and verbs, for messages."""

from __future__ import annotations


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Return a count with its noun: `1 image`, `2,000 images`. `nouns`: a plural that is not the noun with an `s`."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def agree(count: int, singular: str, several: str) -> str:
    """Return the verb or pronoun that agrees with a count: `is` or `are`, `it` or `them`."""
    return singular if count == 1 else several
