"""A web server for one browser: a bundle and onnxruntime-web on 127.0.0.1 behind a random path, and a place to answer to."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Iterator
from urllib.parse import parse_qsl, unquote, urlsplit

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".jpg": "image/jpeg",
}
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",  # both together isolate the page: threads, and a clock of 5 microseconds
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MOST_BYTES = 256_000_000  # of one message

Hear = Callable[[str, dict[str, str], bytes], bytes]  # kind, parameters, body -> JSON


@contextmanager
def serving(folders: dict[str, Path], hear: Hear) -> Iterator[str]:
    """Serve each folder under its name until the block ends; the address of their parent, which ends in a slash.

    What the page posts to `post/<kind>` goes to `hear`, one message at a time. Whoever does not know the address gets 404.
    """
    secret = secrets.token_urlsafe(24)
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                pass  # the browser was ended while it spoke

        def log_message(self, format: str, *values: object) -> None:
            """Nothing is logged."""

        def do_GET(self) -> None:
            found = _file(folders, self.path, secret)
            if found is None:
                self._say(404, b"", "text/plain")
            else:
                self._say(200, found.read_bytes(), TYPES.get(found.suffix, "application/octet-stream"))

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            kind = parts.path.removeprefix(f"/{secret}/post/")
            length = self.headers.get("Content-Length", "")
            if kind == parts.path or "/" in kind or not length.isdigit() or int(length) > MOST_BYTES:
                self.close_connection = True
                self._say(404, b"", "text/plain")
                return
            body = self.rfile.read(int(length))
            with turn:
                answer = hear(kind, dict(parse_qsl(parts.query)), body)
            self._say(200, answer, "application/json")

        def _say(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{secret}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _file(folders: dict[str, Path], target: str, secret: str) -> Path | None:
    """The file behind a request's path; None where it is none of ours."""
    parts = unquote(urlsplit(target).path).split("/")
    if len(parts) < 4 or not secrets.compare_digest(parts[1].encode(), secret.encode()) or parts[2] not in folders:
        return None
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts[3:]):
        return None
    found = folders[parts[2]].joinpath(*parts[3:])
    return found if found.is_file() else None
