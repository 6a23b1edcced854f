"""A bundle in headless Chromium with onnxruntime-web: real answers, planted faults, and messages for missing tools.

Needs Chromium or Chrome and npm (Debian: apt-get install chromium npm); skips with the reason without them.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from torch import nn

from compress.core.errors import MissingError, StageError, UsageError
from compress.stages import device
from export import runtime
from export.bundle import write
from export.bundle.write import Shipped
from export.graph.from_torch import to_onnx
from export.int8.quantize import quantize
from export.runtime import answers
from export.targets import (
    DeviceFailed,
    Unreachable,
    VerifySettings,
    WrongTarget,
    browser,
    dispatch,
    loopback,
    onnxruntime_web,
    parse,
)
from export.targets.chromium import BROWSERS

SIZE, CLASSES = 16, ("red", "green", "blue", "grey")
PAGE = Path(browser.__file__).parents[1] / "bundle" / "page"


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium or Chrome; install it with: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def ort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web as a user gets it: `npm ci` from the lock file into an empty cache."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm; install it with: apt-get install npm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            return onnxruntime_web.folder(None, lambda text: None)
        except Unreachable as error:
            pytest.skip(f"npm does not reach its registry: {error}")


def _images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise in which one channel (or none) is brighter: uint8 (N, S, S, 3) and labels (N,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count)
    tint = np.eye(4, 3, dtype=np.int64)[labels] * random.integers(20, 56, (count, 1))
    return (random.integers(0, 200, (count, SIZE, SIZE, 3)) + tint[:, None, None, :]).astype(np.uint8), labels


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, len(CLASSES)),
    )
    images, labels = _images(512, seed=3)
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.45) / 0.25, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(60):
        part = slice(step % 8 * 64, step % 8 * 64 + 64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[part]), y[part]).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> write.Bundle:
    """A float file of each layout, one int8 file for browsers and one for another processor."""
    folder = tmp_path_factory.mktemp("shipped")
    network, calibration = _network(), _images(64, seed=2)[0]
    for name, layout in (("float", "uint8_nhwc"), ("planes", "float_nchw")):
        to_onnx(
            network,
            folder / f"{name}.onnx",
            runtime.Contract(CLASSES, SIZE, (0.45,) * 3, (0.25,) * 3, layout, "compress 0"),
        )
    models = [Shipped(folder / "float.onnx", "student", "fp32"), Shipped(folder / "planes.onnx", "student", "fp32")]
    for isa in ("web", "arm64"):
        quantize(folder / "float.onnx", folder / f"{isa}.onnx", calibration, isa=isa)
        models.append(Shipped(folder / f"{isa}.onnx", "student", "int8", isa))
    images, labels = _images(50, seed=1)
    return write.write(folder / "bundle", models, images, labels, resize=SIZE)


def _ask(zipped: Path, work: Path, ort: Path, more: str = "", *, limit: float = 120, **settings: object) -> dict:
    asked = VerifySettings(**{"repeats": 64, **settings})  # type: ignore[arg-type]
    return dispatch.verify(zipped, parse(f"browser?ort={ort}{more}"), work, asked, limit_seconds=limit)


@pytest.mark.slow
def test_a_browser_gives_the_bundles_expected_answers(
    chromium: str, ort: Path, shipped: write.Bundle, tmp_path: Path
) -> None:
    answer = _ask(shipped.archive, tmp_path, ort)

    rows = {row["file"]: row for row in answer["models"]}
    assert answer["ok"] is True and dispatch.describe_failure(answer) is None
    assert (
        answer["host"]["isa"] == "web"
        and "HeadlessChrome" in answer["host"]["user_agent"]
        and answer["host"]["cores"] >= 1
    )
    assert (
        answer["onnxruntime"] == f"onnxruntime-web {onnxruntime_web.VERSION}, wasm"
        and answer["host"]["memory_bytes"] is None
    )
    assert answer["host"]["isolated"] is True and answer["host"]["clock_step_ms"] < 0.02
    for name in ("float.onnx", "planes.onnx"):
        assert rows[name]["ok"] is True and rows[name]["agreement"] == 1.0 and rows[name]["max_abs_diff"] < 1e-4
    assert rows["web.onnx"]["ok"] is True and rows["web.onnx"]["agreement"] >= 0.98 and rows["web.onnx"]["top1"] > 0.9
    if runtime.isa() == "x86-vnni":  # unsigned activations, sums of 32 bits on both
        assert rows["web.onnx"]["max_abs_diff"] < 1e-5  # the same integers; their last product is a float's
    assert (
        rows["arm64.onnx"]["ok"] is None
        and rows["arm64.onnx"]["note"] == "built for arm64, this is web"
        and rows["arm64.onnx"]["latency_ms"] is None
    )
    timed = rows["web.onnx"]
    assert timed["latency_ms"]["runs"] in (64, 192) and timed["latency_ms"]["threads"] == 1
    low, high = timed["latency_ms"]["p50_ci95"]
    assert 0 < low <= timed["latency_ms"]["p50"] <= high and set(timed["speedup_over"]) == {"float.onnx", "planes.onnx"}
    assert timed["first_run_ms"] > 0 and timed["load_ms"] > 0 and timed["contaminated"] in (True, False)
    assert (
        answer["photos"]["status"] == "ok"
        and answer["photos"]["decoder"] == "the browser"
        and len(answer["photos"]["pictures"]) == 8
    )
    assert (
        max(picture["mean_abs_diff"] for picture in answer["photos"]["pictures"]) < 1.0
    )  # the page resizes as training did
    assert [row["target"] for row in device.rows(answer, "browser")] == ["browser"] * 4 and answer["file"] == "web.onnx"
    if answer["host"]["webgpu"] is None:
        assert answer["remarks"][0].startswith("WebGPU: this browser gives no adapter")
    elif answer["host"]["webgpu"]["software"]:
        assert answer["remarks"][0].startswith("WebGPU: only an adapter in software")


@pytest.mark.slow
@pytest.mark.extended
def test_webgpu_in_software_is_verified_but_not_timed(
    chromium: str, ort: Path, shipped: write.Bundle, tmp_path: Path
) -> None:
    """A processor that emulates a GPU: WebGPU's own kernels and answers, which nodes they took, and no time."""
    answer = _ask(shipped.archive, tmp_path, ort, "&provider=all", repeats=16)
    if answer["host"]["webgpu"] is None:
        pytest.skip("this browser gives no WebGPU adapter")

    (webgpu,) = answer["also"]
    rows = {row["file"]: row for row in webgpu["models"]}
    assert (
        answer["onnxruntime"].endswith(", wasm")
        and webgpu["onnxruntime"].endswith(", webgpu")
        and answer["ok"] is webgpu["ok"] is True
    )
    assert rows["float.onnx"]["agreement"] == 1.0 and rows["float.onnx"]["max_abs_diff"] < 1e-3
    for name in ("float.onnx", "planes.onnx"):
        placed = rows[name]["provider"]
        assert (
            placed["asked"] == browser.WEBGPU
            and 0 < placed["nodes"] == placed["of"]
            and placed["sentence"].endswith("nodes ran there")
        )
    placed = rows["web.onnx"]["provider"]  # WebGPU has no integer kernels for it: what fell back is named
    assert (
        0 < placed["nodes"] < placed["of"]
        and placed["elsewhere"]["QuantizeLinear"] >= 3
        and "QuantizeLinear x" in placed["sentence"]
    )
    if answer["host"]["webgpu"]["software"]:
        assert (
            webgpu["not_timed"] == "a software adapter"
            and rows["float.onnx"]["latency_ms"] is None
            and answer["models"][0]["latency_ms"]["p50"] > 0
        )


def _changed(shipped: write.Bundle, folder: Path, change: Callable[[Path], None], *, signed: bool) -> Path:
    """The bundle with one fault; `signed`: with new checksums, as if it had been made like that."""
    copy = Path(shutil.copytree(shipped.folder, folder / "bundle"))
    change(copy)
    if signed:
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"] = {name: write._described(copy / name) for name in manifest["files"]}
        manifest["samples"]["arrays"] = write.npz_layout(copy / "samples.npz")
        (copy / "manifest.json").write_text(json.dumps(manifest))
        names = [*manifest["files"], "manifest.json"]
        (copy / "checksums.sha256").write_text(
            "".join(f"{hashlib.sha256((copy / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
        )
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        for path in sorted(path for path in copy.rglob("*") if path.is_file()):
            archive.write(path, f"bundle/{path.relative_to(copy)}")
    return folder / "b.zip"


def _other_answers(copy: Path) -> None:
    with np.load(copy / "samples.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["logits/web.onnx"] = np.roll(arrays["logits/web.onnx"], 1, axis=1)
    np.savez(copy / "samples.npz", **arrays)


@pytest.mark.slow
def test_wrong_answers_are_named(chromium: str, ort: Path, shipped: write.Bundle, tmp_path: Path) -> None:
    answer = _ask(_changed(shipped, tmp_path, _other_answers, signed=True), tmp_path, ort, latency=False)

    assert answer["ok"] is False and [row["ok"] for row in answer["models"]] == [True, True, False, None]
    complaint = dispatch.describe_failure(answer)
    assert (
        complaint is not None
        and complaint.startswith("wrong answers from web.onnx: it agrees on ")
        and answer["not_timed"] == "--no-latency"
    )


@pytest.mark.slow
def test_a_failing_page_reports_why(chromium: str, ort: Path, shipped: write.Bundle, tmp_path: Path) -> None:
    def broken(copy: Path) -> None:
        (copy / "float.onnx").write_bytes(b"not a model")

    with pytest.raises(StageError, match="^browser: .+") as raised:
        device.ask(
            f"browser?ort={ort}",
            _changed(shipped, tmp_path, broken, signed=True),
            tmp_path,
            VerifySettings(latency=False),
            limit_seconds=60,
        )
    assert raised.value.exit_code == 4 and "did not answer" not in str(raised.value)


def test_a_changed_file_is_refused_before_the_browser_starts(
    shipped: write.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = _changed(shipped, tmp_path, _other_answers, signed=False)
    for name in onnxruntime_web.FILES:
        (tmp_path / name).touch()
    with pytest.raises(
        DeviceFailed, match="browser: samples.npz was changed: its sha256 is not the one in checksums.sha256"
    ):
        _ask(zipped, tmp_path, tmp_path, "&binary=/bin/true")


@pytest.mark.slow
def test_a_page_timeout_is_reported(chromium: str, ort: Path, shipped: write.Bundle, tmp_path: Path) -> None:
    with pytest.raises(StageError) as raised:
        device.ask(f"browser?ort={ort}", shipped.archive, tmp_path, VerifySettings(repeats=10**7), limit_seconds=4)
    assert (str(raised.value), raised.value.exit_code) == ("browser: the page did not answer within 4 seconds", 4)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout if shutil.which("ps") else ""
    assert "repeats=10000000" not in left


def test_a_browser_that_exits_at_once_is_reported(shipped: write.Bundle, tmp_path: Path) -> None:
    for name in onnxruntime_web.FILES:
        (tmp_path / name).touch()
    with pytest.raises(DeviceFailed, match=r"browser: false ended with 1: no message"):
        _ask(shipped.archive, tmp_path, tmp_path, "&binary=false")


def test_missing_tools_are_exit_3_with_a_hint(
    shipped: write.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("export.targets.chromium.BROWSERS", ("chromium", "google-chrome"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def said(target: str) -> str:
        with pytest.raises(MissingError) as raised:
            device.ask(target, shipped.archive, tmp_path, VerifySettings())
        assert raised.value.exit_code == 3
        return str(raised.value)

    assert said("browser") == (
        "browser: neither Chromium nor Chrome is installed here; install it (Debian: apt-get install chromium), or "
        "name it: --target 'browser?binary=/path'"
    )
    assert (
        said("browser?binary=/no/such")
        == "browser: /no/such is not a program; name Chromium or Chrome: --target 'browser?binary=/path'"
    )
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert said("browser").startswith(
        "browser: npm is not installed here, which brings onnxruntime-web; install it (Debian: apt-get install npm), "
        "or "
    )
    assert said(f"browser?ort={tmp_path}").endswith(
        f"make it with: npm install onnxruntime-web@{onnxruntime_web.VERSION}"
    )
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    assert said("browser") == (
        "browser: npm could not install onnxruntime-web (code ENOTFOUND); see why with: "
        f"npm install onnxruntime-web@{onnxruntime_web.VERSION}"
    )
    with pytest.raises(UsageError, match="leave --preprocess out"):
        device.ask("browser", shipped.archive, tmp_path, VerifySettings(preprocess="x"))


def test_browser_targets_are_parsed() -> None:
    whole = parse("browser?binary=/opt/chrome&ort=~/ort&provider=wasm")
    assert (whole.name, whole.scheme, whole.binary, whole.ort, whole.provider) == (
        "browser",
        "browser",
        "/opt/chrome",
        "~/ort",
        "wasm",
    )
    assert parse("browser?provider=webgpu").shown == "browser?provider=webgpu" and parse("browser").provider is None
    for wrong, why in (
        ("browser?wheels=push", "no option 'wheels'; there are binary, ort, provider"),
        ("browser?provider=gl", "is wasm, webgpu or all, not"),
    ):
        with pytest.raises(WrongTarget, match=why):
            parse(wrong)


def test_the_server_serves_only_its_folders_to_callers_with_the_secret(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    for name in ("a.mjs", "b.wasm", "c.onnx"):
        (tmp_path / "site" / name).write_bytes(name.encode())
    (tmp_path / "secret.txt").write_text("x")
    heard: list[tuple[str, dict[str, str], bytes]] = []

    def hear(kind: str, more: dict[str, str], body: bytes) -> bytes:
        heard.append((kind, more, body))
        return b"{}"

    with loopback.serving({"bundle": tmp_path / "site"}, hear) as url:
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1" and parts.port and len(parts.path) > 30

        def get(
            path: str, method: str = "GET", body: bytes | None = None
        ) -> tuple[int, http.client.HTTPMessage, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0, timeout=10)
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.headers, content

        for name, kind in (
            ("a.mjs", "text/javascript"),
            ("b.wasm", "application/wasm"),
            ("c.onnx", "application/octet-stream"),
        ):
            status, headers, content = get(f"{parts.path}bundle/{name}")
            assert (status, headers["Content-Type"], content) == (200, kind, name.encode())
            assert (headers["Cross-Origin-Opener-Policy"], headers["Cross-Origin-Embedder-Policy"]) == (
                "same-origin",
                "require-corp",
            )
        for path in (
            "/",
            "/bundle/a.mjs",
            f"{parts.path}bundle/../secret.txt",
            f"{parts.path}bundle/%2e%2e/secret.txt",
            f"{parts.path}ort/a.mjs",
            f"{parts.path}bundle/",
            f"/x{parts.path[1:]}bundle/a.mjs",
        ):
            assert get(path)[0] == 404, path
        assert get(f"{parts.path}post/logits?file=a", "POST", b"12")[0] == 200 and heard == [
            ("logits", {"file": "a"}, b"12")
        ]
        assert get("/post/logits", "POST", b"12")[0] == 404 and len(heard) == 1
        with socket.socket() as outside:  # loopback alone: another address of this machine is free to bind
            outside.bind(("127.0.0.2", parts.port))


JUDGE = """
import {judge} from "PAGE/verify.js";
const read = (name) => JSON.parse(process.env[name], (key, value) => value === "nan" ? NaN : value);
const one = ({entry, logits, expected, labels}) => judge(entry, logits, expected, labels, 4);
console.log(JSON.stringify(read("CASES").map(one)));
"""


def test_the_page_judges_by_the_verifiers_rules(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node; install it with: apt-get install nodejs")
    random = np.random.default_rng(0)
    expected, labels = random.normal(size=(40, 4)).astype(np.float32), random.integers(0, 4, 40)
    base = {
        "file": "a",
        "sha256": "",
        "role": "student",
        "precision": "int8",
        "target": "web",
        "max_abs_diff": None,
        "min_agreement": 0.95,
    }
    closer = {**base, "precision": "fp32", "target": None, "max_abs_diff": 0.25}  # exact in float32
    cases = [
        (base, expected),
        ({**base, "target": "arm64"}, expected),
        *((closer, expected + np.float32(shift)) for shift in (0, 0.25, 0.5)),
    ]
    for flips in (1, 2, 3, 20):
        moved = expected.copy()
        moved[:flips] = np.roll(moved[:flips], 1, axis=1)
        cases.append((base, moved))
    broken = expected.copy()
    broken[3, 1] = np.nan
    cases += [(base, broken), (closer, broken)]
    samples = {"images": np.zeros((40, 1, 1, 3), np.uint8), "labels": labels, "logits/a": np.round(expected, 3)}
    cases = [(entry, np.round(logits, 3)) for entry, logits in cases]
    models: list = [browser._KnownAnswers(logits) for _, logits in cases]
    entries = [entry for entry, _ in cases]
    ours = [
        answers.judge({"a": model}, [entry], samples, "web")[0] for model, entry in zip(models, entries, strict=True)
    ]
    listed = [
        {
            "entry": entry,
            "logits": ["nan" if np.isnan(v) else float(v) for v in logits.ravel()],
            "expected": samples["logits/a"].ravel().tolist(),
            "labels": labels.tolist(),
        }
        for entry, logits in cases
    ]
    # Synthetic images have no right class.
    unlabelled = {name: values for name, values in samples.items() if name != "labels"}
    ours.append(answers.judge({"a": models[-3]}, entries[-3:-2], unlabelled, "web")[0])
    listed.append({**listed[-3], "labels": None})
    assert ours[-1]["top1"] is None
    script = tmp_path / "judge.mjs"
    shutil.copytree(PAGE, tmp_path / "page")
    (tmp_path / "page" / "package.json").write_text('{"type": "module"}')
    script.write_text(JUDGE.replace("PAGE", (tmp_path / "page").as_posix()))
    done = subprocess.run(
        ["node", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "CASES": json.dumps(listed)},
        check=True,
    )

    theirs = json.loads(done.stdout)
    assert {row["ok"] for row in ours} == {True, False, None}
    for our, their in zip(ours, theirs, strict=True):
        assert (our["ok"], our["note"]) == (their["ok"], their["note"])
        assert our["agreement"] == pytest.approx(their["agreement"])
        assert our["top1"] == (None if their["top1"] is None else pytest.approx(their["top1"]))
        assert our["max_abs_diff"] == (
            None if their["max_abs_diff"] is None else pytest.approx(their["max_abs_diff"], rel=1e-5, abs=1e-6)
        )


def test_the_lock_file_pins_one_version_and_names_no_registry() -> None:
    lock = json.loads((Path(onnxruntime_web.__file__).with_name("npm") / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages["node_modules/onnxruntime-web"]["version"] == onnxruntime_web.VERSION
    assert all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in packages.values())
