"""A folder on loopback HTTP, which answers ranges, late, half or not at all as it is told."""

import http.server
import re
import threading
import time
from pathlib import Path


class HttpStore(http.server.ThreadingHTTPServer):
    """Serves a folder; `url` is its address."""

    daemon_threads = True

    def __init__(self, folder: Path, *, latency: float = 0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.latency = latency
        """Seconds before each answer."""
        self.failures: list[str] = []
        """How the next requests for parts of files fail: "stall", "half", "error" or "whole" (all of the file)."""
        self.num_requests = self.num_bytes = 0
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "HttpStore":
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpStore

    def log_message(self, *_) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        server = self.server
        server.num_requests += 1
        time.sleep(server.latency)
        path = server.folder / self.path.lstrip("/")
        if not path.is_file():
            self._send(404, b"")
            return
        content, part = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        failure = server.failures.pop(0) if part and server.failures else None
        if failure == "stall":
            server.stopped.wait(60)
        elif failure == "error":
            self._send(503, b"")
        elif part and failure != "whole":
            self._send(206, content[int(part[1]) : int(part[2]) + 1], is_half=failure == "half")
        else:
            self._send(200, content)

    def _send(self, status: int, content: bytes, *, is_half: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        content = content[: len(content) // 2] if is_half else content
        self.server.num_bytes += len(content)
        self.wfile.write(content)
        self.close_connection = is_half
