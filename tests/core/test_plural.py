"""Counts agree with their nouns and verbs."""

from __future__ import annotations

from compress.core.plural import agree, plural


def test_a_noun_agrees_with_its_count() -> None:
    assert [plural(count, "image") for count in (0, 1, 2, 2000)] == ["0 images", "1 image", "2 images", "2,000 images"]
    assert (plural(1, "class", "classes"), plural(3, "class", "classes")) == ("1 class", "3 classes")


def test_a_verb_agrees_with_its_count() -> None:
    assert [agree(count, "is", "are") for count in (0, 1, 2)] == ["are", "is", "are"]
