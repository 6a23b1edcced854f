"""Execution providers: which the installed onnxruntime has, and which nodes of a model really run in the one that was asked for.

Standard library, numpy and onnxruntime only; runs on Python 3.8, because it travels inside the bundle. onnxruntime gives the CPU whatever a
provider does not take, without a word; what ran where is read from the profile of a run.
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

# What the test suite runs models in; every other provider is built into some onnxruntime and was never run by it.
RUN_BY_SUITE = (CPU, "OpenVINOExecutionProvider")
# The package that brings a provider, where it is not the plain one.
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
_RUNS = 3  # the first one compiles in some providers; the last one counts


@dataclass(frozen=True)
class Placement:
    """Where the nodes of one model ran. `asked`: the provider; `nodes` of `of` ran there (a compiled part of the graph is one node).

    `time_share`: of the time of all nodes, as the profile of the host shows it (None: no profile); `elsewhere`: operators that ran on the CPU
    and their number.
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
    """Of the installed onnxruntime, in its own order of preference."""
    return list(onnxruntime.get_available_providers())


def known(name: str) -> str:
    """In words: whether the test suite has ever run a model in a provider."""
    return "(run by the test suite)" if name in RUN_BY_SUITE else "(built only: never run by the test suite)"


def resolve(name: str) -> str:
    """onnxruntime's own name of a provider, however it is written: `openvino` is OpenVINOExecutionProvider. Raises UnavailableError."""
    there = available()
    found = next((one for one in there if _stem(one) == _stem(name)), None)
    if found is not None:
        return found
    listed = next((one for one in onnxruntime.get_all_providers() if _stem(one) == _stem(name)), None)
    package = PACKAGES.get(listed or "")
    then = (
        f"install it with: python -m pip install {package}"
        if package
        else "it needs a build of onnxruntime that has it"
    )
    what = f"no {listed}" if listed else f"no execution provider {name!r}"
    raise UnavailableError(
        f"{what} in onnxruntime {onnxruntime.__version__} here, which has {', '.join(there)}; {then}"
    )


def _stem(name: str) -> str:
    return re.sub(r"executionprovider$", "", name.lower())


def place(path: Path, images: np.ndarray, provider: str, threads: int) -> Placement:
    """Run a model and read from the profile what ran in `provider`. `images` uint8 (N, H, W, 3), at least one. Raises ExportError."""
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(path, threads, provider, profile=str(Path(folder) / "profile"))
        for _ in range(_RUNS):
            model.run(images[:1])
        events = json.loads(Path(model.session.end_profiling()).read_text(encoding="utf-8"))
    return counted(events, provider, provider in model.session.get_providers())


def counted(events: List[Dict[str, Any]], provider: str, started: bool) -> Placement:
    """From a profile's events; `started`: whether the session has the provider at all."""
    ran: Dict[Tuple[str, str], Tuple[str, str, float]] = {}
    for event in events:
        about = event.get("args") or {}
        if event.get("cat") == "Node" and "provider" in about and str(event.get("name")).endswith("_kernel_time"):
            ran[str(event["name"]), str(about.get("node_index"))] = (
                about["provider"],
                about.get("op_name", "?"),
                float(event["dur"]),
            )  # the last run
    there = [one for one in ran.values() if one[0] == provider]
    elsewhere = Counter(operator for place_, operator, _ in ran.values() if place_ != provider)
    whole = sum(one[2] for one in ran.values())
    share = sum(one[2] for one in there) / whole if whole else 0.0
    return told(provider, len(there), len(ran), share, elsewhere, started)


def told(
    provider: str, nodes: int, of: int, share: float | None, elsewhere: Dict[str, int], started: bool = True
) -> Placement:
    """The placement with its sentence."""
    ordered = Counter(elsewhere)
    return Placement(
        provider, nodes, of, share, dict(ordered.most_common()), _sentence(provider, nodes, of, share, ordered, started)
    )


def _sentence(provider: str, nodes: int, of: int, share: float | None, elsewhere: Counter, started: bool) -> str:
    if nodes == 0:
        why = "it took none of them" if started else "it could not be started"
        return f"asked for {provider}: 0 of {of} nodes ran there, all fell back to the CPU ({why})"
    if nodes == of:
        return (
            f"asked for {provider}: all {of} nodes ran there"
            if of > 1
            else f"asked for {provider}: the whole graph ran there, as one node"
        )
    rest = ", ".join(f"{operator} x{count}" if count > 1 else operator for operator, count in elsewhere.most_common(5))
    time = "" if share is None else f", {share:.0%} of the time"
    return f"asked for {provider}: {nodes} of {of} nodes ran there{time}; on the CPU: {rest}{', ...' if len(elsewhere) > 5 else ''}"
