"""Weights in files: read without running code, loaded into a network, written with equal bytes for equal weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from compress.core.errors import MissingError, StageError
from compress.models.checkpoint_files import as_float32, read_content, some
from compress.models.layer_names import head_keys, is_counter, renamed, strip_prefixes
from compress.models.weight_choice import take_weights


def embedded_teacher(model: str) -> Path:
    """Return the file of the teacher that ships with the package for the embedded data.

    Raises:
        MissingError: There is none for this network.
    """
    path = Path(str(resources.files("compress"))) / "models" / "weights" / f"{model}-fashion.safetensors"
    if not path.is_file():
        have = (
            ", ".join(
                sorted(p.name.removesuffix("-fashion.safetensors") for p in path.parent.glob("*-fashion.safetensors"))
            )
            or "none"
        )
        raise MissingError(
            f"no embedded weights for {model} (available: {have}); "
            "train it here: remove `weights: embedded` from the candidate"
        )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a file from where training scripts put it; see `read_content` for files and errors.

    Tensors are on the CPU, half precision becomes float32, and common prefixes are removed from the keys.
    """
    content = read_content(path)
    default = content.default
    if default is None and len(content.states) > 1:
        raise StageError(f"weights: {path} holds several state dicts ({some(content.states)}); name one: weights_key")
    state = content.states[next(iter(content.states)) if default is None else default]
    return as_float32(strip_prefixes(state))


def load_file(
    model: nn.Module, path: Path, *, key: str | None = None, new_head: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Load a checkpoint into a network; see `take_weights` and `load_state`.

    Returns:
        A sentence on what was taken from the file, and the keys that keep their fresh initialization.
    """
    taken = take_weights(path, model, key)
    return taken.note, load_state(model, taken.state, source=str(path), new_head=new_head)


def load_state(model: nn.Module, state: dict[str, Tensor], *, source: str, new_head: bool = False) -> tuple[str, ...]:
    """Load a state dict into a network; every key and shape must match.

    Missing `num_batches_tracked` counters are tolerated: BatchNorm with a fixed momentum does not read them.

    Args:
        model: The network to load into.
        state: The state dict, possibly with other names for the same layers.
        source: What the error message calls the state dict.
        new_head: Whether the last Linear stays fresh if the checkpoint has another number of classes.

    Returns:
        The keys that keep their fresh initialization.

    Raises:
        StageError: Keys are missing, unexpected or of another shape, or values are not finite.
    """
    expected = model.state_dict()
    given = renamed(strip_prefixes(state), expected)
    wrong = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    head = head_keys(model)
    other_head = (
        bool(wrong)
        and set(wrong) <= set(head)
        and all(given[key].shape[1:] == expected[key].shape[1:] for key in wrong)
    )
    fresh = tuple(wrong) if new_head and other_head else ()
    wrong = [key for key in wrong if key not in fresh]
    missing = [key for key in expected if key not in given and not is_counter(key)]
    headless = bool(missing) and set(missing) == set(head)
    if headless and new_head:
        fresh, missing = head, []
    unexpected = [key for key in given if key not in expected and not is_counter(key)]
    if wrong or missing or unexpected:
        parts = [f"{len(missing)} missing ({some(missing)})"] if missing else []
        parts += [f"{len(unexpected)} unexpected ({some(unexpected)})"] if unexpected else []
        shapes = [f"{key} is {_shape(given[key])} in the file, {_shape(expected[key])} in the network" for key in wrong]
        parts += [f"{len(wrong)} of another shape ({some(shapes)})"] if wrong else []
        what = "for another number of classes" if other_head and not (missing or unexpected) else "of another network"
        if headless and not (wrong or unexpected):
            what = "without its last layer; with `train` a new one is fitted"
        raise StageError(f"{source} does not fit {type(model).__name__}: {', '.join(parts)}; it is a checkpoint {what}")
    bad = [key for key in expected if key in given and not torch.isfinite(given[key]).all()]
    if bad:
        raise StageError(f"{source} holds values that are not finite in {some(bad)}; take an earlier checkpoint")
    model.load_state_dict(
        {key: tensor for key, tensor in given.items() if key in expected and key not in fresh}, strict=False
    )
    return fresh


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a scalar"


def save_state(model: nn.Module, path: Path, half: bool = False) -> None:
    """Write the weights as safetensors: keys without prefixes, CPU tensors, equal bytes for equal weights.

    Args:
        model: The network.
        path: File to write.
        half: Whether to store convolution and linear weights in float16. Vectors (BatchNorm, biases) stay float32: they
            are small and have a wide range.
    """
    state = strip_prefixes({key: tensor.detach().cpu() for key, tensor in model.state_dict().items()})
    tensors: dict[str, Tensor] = {}
    for key in sorted(state):
        tensor = state[key].half() if half and state[key].is_floating_point() and state[key].dim() > 1 else state[key]
        tensors[key] = tensor.clone(memory_format=torch.contiguous_format)  # the same bytes for channels_last
    # Not save_file: its files are readable by their owner alone, whatever the umask is.
    path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
