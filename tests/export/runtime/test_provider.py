"""Execution providers: what really ran where, silent fallback, and what the installed onnxruntime does not have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compress.core.errors import MissingError, StageError
from compress.stages import device
from compress.stages.support import device_session
from export import runtime, verify
from export.bundle import write
from export.bundle.write import Shipped
from export.runtime import provider
from export.targets import VerifySettings, WrongTarget, dispatch, parse

AZURE, OPENVINO = "AzureExecutionProvider", "OpenVINOExecutionProvider"
OPENVINO_PACKAGE = "onnxruntime-openvino==1.24.1"


@pytest.fixture(scope="module")
def shipped(
    fp32: Path, int8: Path, images: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> write.Bundle:
    models = [Shipped(fp32, "student", "fp32"), Shipped(int8, "student", "int8", "x86-vnni")]
    return write.write(tmp_path_factory.mktemp("shipped") / "bundle", models, images[:16], labels[:16])


@pytest.fixture
def azure() -> str:
    """In the plain wheel for Linux and Windows: it is there and takes no node of such a model."""
    if AZURE not in provider.available():
        pytest.skip(f"this onnxruntime has no {AZURE}, so there is nothing that falls back")
    return AZURE


def test_the_cpu_provider_runs_all_nodes(shipped: write.Bundle, tmp_path: Path) -> None:
    answer = verify.verify(shipped.folder, repeats=16, provider="cpu")

    assert answer["ok"] and answer["remarks"] == ["CPUExecutionProvider (run by the test suite)"]
    for row in answer["models"]:
        assert row["provider"]["asked"] == runtime.CPU and row["provider"]["nodes"] == row["provider"]["of"] > 3
        assert row["provider"]["time_share"] == 1.0 and row["provider"]["elsewhere"] == {}


def test_a_silent_fallback_is_named_and_fails(
    azure: str, shipped: write.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = verify.main(
        [str(shipped.folder), "--provider", "azure", "--json", str(tmp_path / "a.json"), "--repeats", "16"]
    )

    answer, said = json.loads((tmp_path / "a.json").read_text()), capsys.readouterr().out
    assert done == 4 and answer["ok"] is False and answer["not_timed"] == f"no node ran in {AZURE}"
    row = answer["models"][0]
    placed = f"0 of {row['provider']['of']} nodes ran there, all fell back to the CPU (it took none of them)"
    sentence = f"asked for {AZURE}: {placed}"
    assert row["ok"] is False and row["note"] == row["provider"]["sentence"] == sentence and row["latency_ms"] is None
    assert row["agreement"] == 1.0 and sum(row["provider"]["elsewhere"].values()) == row["provider"]["of"] > 3
    assert (
        sentence in said
        and f"{AZURE} (built only: never run by the test suite)" in said
        and "WRONG ANSWERS" not in said
    )


def test_a_silent_fallback_on_a_target_is_named(azure: str, shipped: write.Bundle, tmp_path: Path) -> None:
    answer = device_session.ask("local?provider=Azure", shipped.archive, tmp_path, VerifySettings(repeats=16))

    assert dispatch.describe_failure(answer) == f"small.fp32.onnx: {answer['models'][0]['provider']['sentence']}"
    rows = device.rows(answer, parse("local?provider=Azure").shown)
    assert [row["target"] for row in rows] == ["local?provider=Azure"] * 2 and rows[0]["provider"]["nodes"] == 0
    assert verify.verify(shipped.folder, latency=False)["models"][0]["provider"] is None


def test_an_unavailable_provider_is_exit_3(
    shipped: write.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ", ".join(provider.available())
    absent = next(
        name for name in ("CoreMLExecutionProvider", "QNNExecutionProvider") if name not in provider.available()
    )
    assert verify.main([str(shipped.folder), "--provider", "nonsense"]) == 3
    said = (
        f"no execution provider 'nonsense' in onnxruntime {onnxruntime.__version__} here, which has {there}; "
        "it needs a build of onnxruntime that has it"
    )
    assert capsys.readouterr().err.strip() == said
    with pytest.raises(
        MissingError, match=f"^local: no {absent} in onnxruntime .* here, which has {there}; it needs"
    ) as raised:
        device_session.ask(f"local?provider={absent}", shipped.archive, tmp_path, VerifySettings())
    assert raised.value.exit_code == 3
    if OPENVINO not in provider.available():
        with pytest.raises(
            runtime.UnavailableError, match="install it with: python -m pip install onnxruntime-openvino$"
        ):
            provider.resolve("openvino")
    with pytest.raises(MissingError, match="local: /no/python cannot be run"):
        device_session.ask("local?python=/no/python", shipped.archive, tmp_path, VerifySettings())


def test_provider_names_are_resolved_and_parsed() -> None:
    assert provider.resolve("cpu") == provider.resolve("CPUExecutionProvider") == runtime.CPU
    assert parse("local?provider=openvino").shown == "local?provider=openvino" and parse("local").shown == "local"
    assert (
        parse("ssh://pi@board?provider=acl").shown == "ssh://pi@board?provider=acl"
        and parse("ssh://pi@board?provider=acl").name == "ssh://pi@board"
    )
    assert (
        parse("browser?provider=wasm").shown == "browser"
        and parse("browser?provider=webgpu").shown == "browser?provider=webgpu"
    )
    assert VerifySettings(provider="acl").arguments()[-2:] == ["--provider", "acl"]
    for wrong in ("local?provider=a;b", "ssh://pi@board?provider=", "local?wheels=push"):
        with pytest.raises(WrongTarget):
            parse(wrong)


def _event(name: str, place: str, operator: str, micros: int, index: int) -> dict:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": micros,
        "args": {"provider": place, "op_name": operator, "node_index": str(index)},
    }


def test_a_partial_fallback_is_counted() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "dur": 900},
        {"cat": "Node", "name": "a_fence_before", "dur": 1, "args": {"op_name": "Conv"}},
        _event("a", "XnnpackExecutionProvider", "Conv", 9999, 0),
        _event("a", "XnnpackExecutionProvider", "Conv", 90, 0),
        _event("b", "XnnpackExecutionProvider", "Conv", 50, 1),
        _event("c", runtime.CPU, "Mul", 30, 2),
        _event("d", runtime.CPU, "Mul", 20, 3),
        _event("e", runtime.CPU, "Softmax", 10, 4),
    ]
    found = provider.placement_from_profile(events, "XnnpackExecutionProvider", True)

    assert (found.nodes, found.of, found.time_share, found.elsewhere) == (
        2,
        5,
        0.7,
        {"Mul": 2, "Softmax": 1},
    )  # the first run does not count
    assert (
        found.sentence
        == "asked for XnnpackExecutionProvider: 2 of 5 nodes ran there, 70% of the time; on the CPU: Mul x2, Softmax"
    )
    assert provider.placement_from_profile(events[5:], "XnnpackExecutionProvider", False).sentence.endswith(
        "all fell back to the CPU (it could not be started)"
    )


@pytest.mark.slow
def test_openvino_runs_nodes_and_the_profile_shows_it(shipped: write.Bundle, tmp_path: Path) -> None:
    """The other provider of TESTED: Intel's, on whatever x86 this is, from a wheel of its own."""
    assert set(provider.TESTED) == {runtime.CPU, OPENVINO}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--no-deps",
    ]
    done = subprocess.run(
        [*install, OPENVINO_PACKAGE, "numpy", "flatbuffers", "packaging"], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(
            f"{OPENVINO_PACKAGE} cannot be installed here: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )

    answer = device_session.ask(
        f"local?python={python}&provider=openvino",
        shipped.archive,
        tmp_path,
        VerifySettings(repeats=64),
        limit_seconds=200,
    )

    row = answer["models"][0]
    assert (
        row["provider"]["asked"] == OPENVINO and row["provider"]["nodes"] >= 1 and row["provider"]["time_share"] > 0.5
    )
    assert row["ok"] is True and row["agreement"] == 1.0 and row["latency_ms"]["p50"] > 0
    assert (
        answer["remarks"] == [f"{OPENVINO} (run by the test suite)"]
        and answer["onnxruntime"] == OPENVINO_PACKAGE.partition("==")[2]
    )
    if runtime.isa() == "x86-vnni":
        assert answer["models"][1]["provider"]["nodes"] >= 1 and answer["models"][1]["ok"] is not None
    with pytest.raises(StageError, match="did not answer within"):
        device_session.ask(
            f"local?python={python}&provider=openvino", shipped.archive, tmp_path, VerifySettings(), limit_seconds=0.05
        )
