"""A warning about a student that ships larger than the recipe's network. Torch-free."""

from __future__ import annotations

TOLERATED_INCREASE = 0.1  # share by which the shipped network may exceed the plain student without a warning


def size_increase_warning(name: str, plain: tuple[int, int], shipped: tuple[int, int]) -> str | None:
    """Return a warning if the shipped network is over a tenth larger than the plain student.

    Args:
        name: The student.
        plain: Parameters and multiply-accumulates of the plain student.
        shipped: The same of the network that ships.
    """
    increase = [after / before - 1 for before, after in zip(plain, shipped, strict=True)]
    if all(after <= before * (1 + TOLERATED_INCREASE) for before, after in zip(plain, shipped, strict=True)):
        return None
    return (
        f"the shipped {name} is larger than {name} itself: {shipped[0]:,} parameters instead of {plain[0]:,} "
        f"({100 * increase[0]:+.0f} %), {shipped[1]:,} multiply-accumulates instead of {plain[1]:,} "
        f"({100 * increase[1]:+.0f} %); compare it with students of that size"
    )
