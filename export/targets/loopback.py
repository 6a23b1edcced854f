"""A web server for one browser: serves a bundle and onnxruntime-web on 127.0.0.1 and receives the page's messages."""

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
    # These two isolate the page, which gives it threads and a clock of 5 microseconds.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MAX_MESSAGE_BYTES = 256_000_000

# From kind, parameters and body of a message to the reply, JSON.
Receive = Callable[[str, dict[str, str], bytes], bytes]


@contextmanager
def serving(folders: dict[str, Path], receive: Receive) -> Iterator[str]:
    """Serve each folder under its name until the block ends.

    Yields the address of their parent, which ends in a slash and contains a random secret; requests without it get 404.
    What the page posts to `post/<kind>` goes to `receive`, one message at a time.
    """
    secret = secrets.token_urlsafe(24)
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                pass  # the browser was ended in the middle of a request

        def log_message(self, format: str, *values: object) -> None:
            """Log nothing."""

        def do_GET(self) -> None:
            found = _file(folders, self.path, secret)
            if found is None:
                self._reply(404, b"", "text/plain")
            else:
                self._reply(200, found.read_bytes(), TYPES.get(found.suffix, "application/octet-stream"))

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            kind = parts.path.removeprefix(f"/{secret}/post/")
            length = self.headers.get("Content-Length", "")
            if kind == parts.path or "/" in kind or not length.isdigit() or int(length) > MAX_MESSAGE_BYTES:
                self.close_connection = True
                self._reply(404, b"", "text/plain")
                return
            body = self.rfile.read(int(length))
            with turn:
                answer = receive(kind, dict(parse_qsl(parts.query)), body)
            self._reply(200, answer, "application/json")

        def _reply(self, status: int, body: bytes, kind: str) -> None:
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
    """Return the file behind a request's path, or None if it is not one of ours."""
    parts = unquote(urlsplit(target).path).split("/")
    if len(parts) < 4 or not secrets.compare_digest(parts[1].encode(), secret.encode()) or parts[2] not in folders:
        return None
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts[3:]):
        return None
    found = folders[parts[2]].joinpath(*parts[3:])
    return found if found.is_file() else None
