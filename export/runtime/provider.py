"""Execution providers: which ones onnxruntime has, and which nodes of a model really run in the requested one.

onnxruntime silently falls back to the CPU for nodes that a provider does not take, so the placement is read from the
profile of a run. Standard library, numpy and onnxruntime only; runs on Python 3.8, because it travels in the bundle.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import onnxruntime

from export.runtime import CPU, Model, UnavailableError

# Providers that the test suite runs models in; it has never run any other.
TESTED = (CPU, "OpenVINOExecutionProvider")
# The package that brings a provider, if it is not plain onnxruntime.
PACKAGES = {
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "DmlExecutionProvider": "onnxruntime-directml",
    "QNNExecutionProvider": "onnxruntime-qnn",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "WebGpuExecutionProvider": "onnxruntime-webgpu",
    "CANNExecutionProvider": "onnxruntime-cann",
}
# Some providers compile in the first run; the last run counts.
_RUNS = 3


@dataclass(frozen=True)
class Placement:
    """Where the nodes of one model ran.

    Attributes:
        asked: the requested provider.
        nodes: how many nodes ran there; a compiled part of the graph is one node.
        of: how many nodes there are.
        time_share: share of the time of all nodes, by the profile of the host; None without a profile.
        elsewhere: operators that ran on the CPU, and their number.
        sentence: all of it in words.
    """

    asked: str
    nodes: int
    of: int
    time_share: float | None
    elsewhere: Dict[str, int]
    sentence: str

    def as_json(self) -> Dict[str, Any]:
        return asdict(self)


def available() -> List[str]:
    """Return the providers of the installed onnxruntime, in its own order of preference."""
    return list(onnxruntime.get_available_providers())


def known(name: str) -> str:
    """Return in words whether the test suite runs models in a provider."""
    return "(run by the test suite)" if name in TESTED else "(built only: never run by the test suite)"


def resolve(name: str) -> str:
    """Return onnxruntime's own name of a provider: `openvino` is OpenVINOExecutionProvider.

    Raises UnavailableError if the installed onnxruntime does not have it.
    """
    there = available()
    found = next((one for one in there if _stem(one) == _stem(name)), None)
    if found is not None:
        return found
    known_elsewhere = next((one for one in onnxruntime.get_all_providers() if _stem(one) == _stem(name)), None)
    package = PACKAGES.get(known_elsewhere or "")
    then = (
        f"install it with: python -m pip install {package}"
        if package
        else "it needs a build of onnxruntime that has it"
    )
    what = f"no {known_elsewhere}" if known_elsewhere else f"no execution provider {name!r}"
    raise UnavailableError(
        f"{what} in onnxruntime {onnxruntime.__version__} here, which has {', '.join(there)}; {then}"
    )


def _stem(name: str) -> str:
    return re.sub(r"executionprovider$", "", name.lower())


def measure_placement(path: Path, images: np.ndarray, provider: str, threads: int) -> Placement:
    """Run a model and read from its profile which nodes ran in a provider.

    Args:
        path: the model's file.
        images: uint8 (N, H, W, 3), at least one.
        provider: onnxruntime's name of the provider.
        threads: intra-op threads.

    Raises:
        ExportError: the model cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(path, threads, provider, profile=str(Path(folder) / "profile"))
        for _ in range(_RUNS):
            model.run(images[:1])
        events = json.loads(Path(model.session.end_profiling()).read_text(encoding="utf-8"))
    return placement_from_profile(events, provider, provider in model.session.get_providers())


def placement_from_profile(events: List[Dict[str, Any]], provider: str, started: bool) -> Placement:
    """Return the placement that a profile shows.

    Args:
        events: the profile's events.
        provider: the requested provider.
        started: whether the session has the provider at all.
    """
    ran: Dict[Tuple[str, str], Tuple[str, str, float]] = {}
    for event in events:
        about = event.get("args") or {}
        if event.get("cat") == "Node" and "provider" in about and str(event.get("name")).endswith("_kernel_time"):
            # A later run overwrites an earlier one.
            key = str(event["name"]), str(about.get("node_index"))
            ran[key] = about["provider"], about.get("op_name", "?"), float(event["dur"])
    there = [one for one in ran.values() if one[0] == provider]
    elsewhere = Counter(operator for where, operator, _ in ran.values() if where != provider)
    whole = sum(one[2] for one in ran.values())
    share = sum(one[2] for one in there) / whole if whole else 0.0
    return describe_placement(provider, len(there), len(ran), share, elsewhere, started)


def describe_placement(
    provider: str, nodes: int, of: int, share: float | None, elsewhere: Dict[str, int], started: bool = True
) -> Placement:
    """Return a placement with its sentence; the arguments are the fields of Placement, and whether it was started."""
    ordered = Counter(elsewhere)
    return Placement(
        provider, nodes, of, share, dict(ordered.most_common()), _sentence(provider, nodes, of, share, ordered, started)
    )


def _sentence(provider: str, nodes: int, of: int, share: float | None, elsewhere: Counter[str], started: bool) -> str:
    if nodes == 0:
        why = "it took none of them" if started else "it could not be started"
        return f"asked for {provider}: 0 of {of} nodes ran there, all fell back to the CPU ({why})"
    if nodes == of:
        what = f"all {of} nodes ran there" if of > 1 else "the whole graph ran there, as one node"
        return f"asked for {provider}: {what}"
    rest = ", ".join(f"{operator} x{count}" if count > 1 else operator for operator, count in elsewhere.most_common(5))
    time = "" if share is None else f", {share:.0%} of the time"
    more = ", ..." if len(elsewhere) > 5 else ""
    return f"asked for {provider}: {nodes} of {of} nodes ran there{time}; on the CPU: {rest}{more}"
