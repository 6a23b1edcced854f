"""Names that look like markup stay text in HTML, attributes, SVG and scripts, as Chromium reads the page.

Skips with the reason where there is no Chromium or Chrome (Debian: apt-get install chromium).
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.report.page import render
from compress.report.templating import environment
from export.targets.chromium import BROWSERS, FLAGS

RUN = Path(__file__).parent / "fixtures" / "mobilenet-0.1.0"
HOSTILE = (
    "<script>alert(1)</script>",
    "</script>",
    '" onload="alert(1)',
    "' onerror='alert(1)",
    "<img src=x onerror=alert(1)>",
    "</style><svg onload=alert(1)>",
    "<!--",
    "]]>",
    "{{ 7 * 7 }}{% raw %}",
    r'&lt;b&gt; id="x" #1d2126 \1',
)
# Counts the dialogs, before anything of the page is read.
PROBE = "<script>window.dialogs = 0; alert = confirm = prompt = () => { window.dialogs += 1; };</script>"
DATA = """<script type="application/json" id="data">{{ names | tojson }}</script>
<script>window.names = {{ names | tojson }};</script>
"""
COLLECT = """<script>
addEventListener("load", () => setTimeout(() => {
  const texts = (selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent);
  const all = [...document.querySelectorAll("*")];
  const result = {
    dialogs: window.dialogs,
    scripts: document.querySelectorAll("script, iframe, object, embed, link").length,
    handlers: all.flatMap((one) => one.getAttributeNames()).filter((name) => name.startsWith("on")),
    classes: texts(".classes .name"),
    images: [...document.images].map((one) => one.alt),
    loaded: performance.getEntriesByType("resource").map((one) => one.name)
      .filter((name) => !name.startsWith("data:")),
    svg: texts("figure svg text"),
    labels: [...document.querySelectorAll("figure svg")].map((one) => one.getAttribute("aria-label")),
    data: JSON.parse(document.getElementById("data").textContent),
    names: window.names,
    title: document.title,
  };
  const shown = document.createElement("pre");
  shown.id = "result";
  shown.textContent = JSON.stringify(result);
  document.body.replaceChildren(shown);
}, 100));
</script>
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium or Chrome; install it with: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a real run whose classes, and one more of everything else, have hostile names."""
    folder = Path(shutil.copytree(RUN, tmp_path_factory.mktemp("hostile") / "run"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report |= {"recipe": HOSTILE[0], "classes": list(HOSTILE), "warnings": list(HOSTILE)}
    for row, name in zip(report["per_class"], HOSTILE, strict=True):
        row |= {"class": name, "worse": True}
    report["analysis"]["features"]["classes"] = list(HOSTILE)
    report["teacher"]["candidates"][0]["model"] = report["device"][0]["cpu"] = HOSTILE[4]
    report["environment"][HOSTILE[2]] = HOSTILE[3]
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with np.load(folder / "latency.npz") as stored:
        samples = dict(stored)
    samples |= {name: np.full(9, 0.3 + 0.01 * place) for place, name in enumerate(HOSTILE)}
    np.savez_compressed(folder / "latency.npz", **samples)
    with np.load(folder / "pictures.npz") as stored:
        arrays = dict(stored)
    arrays["labels"] = np.arange(len(arrays["labels"])) % len(HOSTILE)
    np.savez_compressed(folder / "pictures.npz", **arrays)
    return render(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(chromium: str, page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Chromium makes of the page."""
    folder = tmp_path_factory.mktemp("chromium")
    scripts = environment().from_string(DATA).render(names=HOSTILE)
    probed = page.replace("<head>", f"<head>{PROBE}", 1)
    before, end = probed.rsplit("</body>", 1)
    (folder / "page.html").write_text(f"{before}{scripts}{COLLECT}</body>{end}", encoding="utf-8")
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [chromium, *FLAGS, *root, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000"]
    dumped = subprocess.run(
        [*command, "--dump-dom", (folder / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', dumped.stdout, re.DOTALL)
    assert found, dumped.stdout[-2000:] + dumped.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.slow
def test_nothing_runs_and_nothing_is_loaded(seen: dict[str, Any]) -> None:
    own_scripts = 4
    assert (seen["dialogs"], seen["scripts"], seen["handlers"], seen["loaded"]) == (0, own_scripts, [], [])


def test_a_name_is_its_own_text_in_html(seen: dict[str, Any]) -> None:
    assert sorted(seen["classes"]) == sorted(HOSTILE)
    assert seen["title"] == f"{HOSTILE[0]}: passed"


def test_a_name_is_its_own_text_in_an_attribute(seen: dict[str, Any]) -> None:
    assert {f"test image of {name}" for name in HOSTILE} <= set(seen["images"])
    assert all(any(f"{name} 0." in label for label in seen["labels"]) for name in HOSTILE)


def test_a_name_is_its_own_text_in_a_drawing(seen: dict[str, Any]) -> None:
    lines = [text for text in seen["svg"] if text.endswith(" ms")]
    for name in HOSTILE:
        assert any(text.startswith(f"{name}: 0.") for text in lines), name
    assert {"</script>", "<!--", "]]>"} <= set(seen["svg"])  # classes of the matrix and the legend


def test_a_name_is_its_own_text_in_a_script(seen: dict[str, Any]) -> None:
    assert seen["data"] == seen["names"] == list(HOSTILE)


def test_the_page_itself_has_no_script(page: str) -> None:
    assert "<script" not in page
