"""The built site: it builds strictly, loads nothing from elsewhere, and works with the network off."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docs_hooks
import pytest

from export.targets.chromium import BROWSERS, FLAGS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# Opens every page in turn in a frame and notes what it loaded, then writes all of it into its own body.
VISIT = """<!doctype html><title>visit</title><body><script>
const pages = PAGES, found = {};
function visit(place) {
  if (place === pages.length) {
    document.body.textContent = JSON.stringify(found);
    return;
  }
  const frame = document.createElement("iframe");
  frame.width = 1200;
  frame.height = 900;
  frame.onload = () => setTimeout(() => {
    const inner = frame.contentWindow;
    found[pages[place]] = {
      loaded: inner.performance.getEntriesByType("resource").map((entry) => entry.name),
      scripts: inner.document.documentElement.classList.contains("js"),
      broken: [...inner.document.images].filter((one) => !one.naturalWidth).map((one) => one.src),
    };
    frame.remove();
    visit(place + 1);
  }, 300);
  frame.src = pages[place];
  document.body.append(frame);
}
visit(0);
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """A server of the site that allows pages nothing but itself and keeps what the browser reports as refused."""

    refused: list[dict[str, str]]

    def end_headers(self) -> None:
        own = "default-src 'self' 'unsafe-inline' data: blob:; report-uri /refused"
        self.send_header("Content-Security-Policy", own)
        super().end_headers()

    def do_POST(self) -> None:
        report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["csp-report"]
        self.refused.append({"page": report["document-uri"], "address": report["blocked-uri"]})
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium or Chrome; install it with: apt-get install chromium")
    return found


@pytest.fixture
def served(site: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    refused: list[dict[str, str]] = []
    handler = functools.partial(type("Site", (Handler,), {"refused": refused}), directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", refused
        server.shutdown()
        thread.join()


def opened(chromium: str, url: str, profile: Path) -> str:
    """Return a page's HTML after its scripts have run, in a browser without a network."""
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # its sandbox refuses root
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    flags = [*FLAGS, *root, offline, "--disable-gpu", f"--user-data-dir={profile}"]
    command = [chromium, *flags, "--virtual-time-budget=120000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout


@pytest.mark.extended
def test_the_pages_load_nothing_from_elsewhere(
    site: Path, chromium: str, served: tuple[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    url, refused = served
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    pages = [page for page in pages if page != "404.html"]
    assert len(pages) > 30 and "index.html" in pages
    foreign = '<!doctype html><html class="js"><script src="https://example.com/x.js"></script></html>'
    (site / "foreign.html").write_text(foreign, encoding="utf-8")
    visit = VISIT.replace("PAGES", json.dumps([*pages, "foreign.html"]))
    (site / "visit.html").write_text(visit, encoding="utf-8")
    try:
        body = re.search(r"<body>(.*)</body>", opened(chromium, url + "visit.html", tmp_path), re.DOTALL)
    finally:
        (site / "visit.html").unlink()
        (site / "foreign.html").unlink()
    assert body is not None
    found = json.loads(html.unescape(body[1]))
    assert sorted(found) == sorted([*pages, "foreign.html"])
    # The page that does load something shows that the browser reports it.
    assert [(one["page"], one["address"]) for one in refused] == [(url + "foreign.html", "https://example.com/x.js")]
    for page in pages:
        assert found[page]["scripts"] and not found[page]["broken"], page
        assert found[page]["loaded"], page
        assert [name for name in found[page]["loaded"] if not name.startswith((url, "data:", "blob:"))] == [], page


def test_a_page_opens_from_the_file_system(site: Path, chromium: str, tmp_path: Path) -> None:
    seen = opened(chromium, (site / "guides" / "photos.html").as_uri(), tmp_path)
    assert re.search(r'<html[^>]*class="js', seen) and "Lay out the folder" in seen


def test_no_built_file_names_a_script_style_or_image_elsewhere(site: Path) -> None:
    wrong = []
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*>", text)
        wrong += [
            (path.name, tag) for tag in tags if re.search(r"\b(?:src|href|data|srcset)=[\"']?(?:https?:)?//", tag)
        ]
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        wrong += [(path.name, url) for url in re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", text)]
    assert wrong == []


def test_a_formula_is_drawn_as_one_shape_in_the_texts_colour(site: Path) -> None:
    drawn = docs_hooks.formula(r"\dfrac{a}{b} + \sum_{n=1}^{N} x_n")
    assert drawn.count("<path") == 1 and 'fill="currentColor"' in drawn and "aria-label=" in drawn
    assert docs_hooks.formula("a < b").count("&lt;") == 1
    page = (site / "explanation" / "methods.html").read_text(encoding="utf-8")
    assert page.count('<svg role="img"') == 2 and "\\dfrac" not in re.sub(r'aria-label="[^"]*"', "", page)


def test_a_mirrored_page_keeps_the_links_that_the_site_has() -> None:
    text = "[a](docs/guides/photos.md#x) [b](https://example.com) `docs/` [c](CHANGELOG.md) [d](LICENSE) [e](#y)"
    found = "[a](../guides/photos.md#x) [b](https://example.com) `docs/` [c](../changelog.md) d [e](#y)"
    assert docs_hooks.relinked(text, depth=1) == found
    assert docs_hooks.relinked(text, depth=0).startswith("[a](guides/photos.md#x)")
