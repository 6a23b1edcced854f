"""What is said of a student that ships larger than the recipe names it. Torch-free."""

from __future__ import annotations

LARGER = 0.1  # share by which the shipped network may exceed the plain student without a word


def size_increase_warning(name: str, plain: tuple[int, int], shipped: tuple[int, int]) -> str | None:
    """A sentence where what ships has over a tenth more parameters or multiply-accumulates (each a pair) than the plain student."""
    growth = [after / before - 1 for before, after in zip(plain, shipped, strict=True)]
    if all(after <= before * (1 + LARGER) for before, after in zip(plain, shipped, strict=True)):
        return None
    return (
        f"what ships of {name} is larger than {name} itself: {shipped[0]:,} parameters instead of {plain[0]:,} ({100 * growth[0]:+.0f} %), "
        f"{shipped[1]:,} multiply-accumulates instead of {plain[1]:,} ({100 * growth[1]:+.0f} %); compare it with students of that size"
    )
