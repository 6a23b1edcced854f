"""Takes the tensors out of a checkpoint that contains code, which is run: only for files whose origin you trust.

    python -m compress.models.trusted_checkpoint FILE

writes FILE's name with `.tensors.pt`: the same nested dictionaries, with modules as their state dicts and arrays as
tensors, and nothing else. `weights:` reads that file as any other, with the same choice among several state dicts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MAX_DEPTH = 6


def tensors_of(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return the tensors in a value, in dictionaries of the same keys; None where there are none."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.copy())
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping) or depth == 0:
        return None
    found = {str(key): tensors_of(item, depth - 1) for key, item in value.items()}
    return {key: item for key, item in found.items() if item is not None} or None


def main(arguments: list[str]) -> int:
    """Convert one file; return the exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("usage: python -m compress.models.trusted_checkpoint FILE", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        found = tensors_of(torch.load(path, weights_only=False, map_location="cpu"))
    except Exception as error:  # the file's own code may raise anything
        print(f"{path}: its code could not be run here ({type(error).__name__}: {error})", file=sys.stderr)
        return 4
    if found is None:
        print(f"{path}: holds no tensors", file=sys.stderr)
        return 4
    target = path.with_name(f"{path.stem}.tensors.pt")
    torch.save(found, target)
    print(f"written: {target}; name it in the recipe: weights: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
