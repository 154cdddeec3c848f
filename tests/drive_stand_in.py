"""A stand-in for Google Drive and for a plain file server on loopback, and what leads `requests` there.

It plays the pages that come instead of a file, ranges with and without a changed file, and broken transfers.
"""

import hashlib
import http.server
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from requests.adapters import HTTPAdapter


# The warning before a file that is too large to be scanned, in one line as it comes, and pages that lead nowhere.
NOTICE = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="submit" value="Download anyway"/><input type="hidden" name="id" value="{id}">
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="12345678-stand-in"></form></body></html>""".replace("\n", "")
QUOTA = """<html><head><title>Google Drive - Quota exceeded</title></head><body>
<a href="https://accounts.google.com/ServiceLogin">Sign in</a>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""
ELSEWHERE = NOTICE.replace("drive.usercontent.google.com", "files.example.org")
UNKNOWN = "<html><head><title>Something new</title></head><body>Hello</body></html>"
REDIRECTS = {
    "login": "https://accounts.google.com/v3/signin/identifier?continue=drive",
    "consent": "https://consent.google.com/ml?continue=drive",
    "robot": "https://www.google.com/sorry/index?continue=drive",
}


@dataclass
class StoredFile:
    """A file, and how the server behaves about it."""

    content: bytes
    page: str = "notice"
    """What comes first: "notice", "endless notice", "quota", "elsewhere", "unknown", "missing", a name of `REDIRECTS`,
    or "file" for nothing."""
    breaks: list[int] = field(default_factory=list)
    """Bytes before which every transfer breaks off that begins before them."""
    takes_ranges: bool = True


class DriveStandIn(http.server.ThreadingHTTPServer):
    """The server."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, StoredFile] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """Host, path and range of each request."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_) -> None:
        """Keep quiet about clients that have read enough."""

    def lead_there(self, monkeypatch) -> None:
        """Send what `requests` sends to any host to this one."""
        send = HTTPAdapter.send

        def send_here(adapter, request, **options):
            address = request.url
            parts = urlsplit(address)
            request.headers["X-Host"] = parts.hostname
            request.url = f"http://127.0.0.1:{self.server_port}{parts.path}?{parts.query}"
            response = send(adapter, request, **options)
            response.url = request.url = address
            return response

        monkeypatch.setattr(HTTPAdapter, "send", send_here)

    @property
    def transfers(self) -> list[str | None]:
        """Ranges of the requests for a file itself."""
        return [requested for _, path, requested in self.requests if path.startswith("/download")]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DriveStandIn

    def log_message(self, *_) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        host, parts = self.headers["X-Host"], urlsplit(self.path)
        self.server.requests.append((host, self.path, self.headers.get("Range")))
        file_id = parse_qs(parts.query).get("id", [parts.path.rpartition("/")[2]])[0]
        stored = self.server.files.get(file_id)
        if host in ("accounts.google.com", "consent.google.com", "www.google.com"):
            self._page("<html><title>Sign in - Google Accounts</title></html>")
        elif stored is None or stored.page == "missing":
            self._page("<html><title>Error 404 (Not Found)</title></html>", 404)
        elif parts.path == "/download" and stored.page != "endless notice" or host == "files.example.org":
            self._file(stored)
        elif stored.page in REDIRECTS:
            self._send(b"", 303, Location=REDIRECTS[stored.page])
        elif stored.page == "file":
            self._send(b"", 303, Location=f"https://drive.usercontent.google.com/download?id={file_id}")
        else:
            pages = {"quota": QUOTA, "elsewhere": ELSEWHERE, "unknown": UNKNOWN}
            self._page(pages.get(stored.page, NOTICE).format(id=file_id))

    def _page(self, text: str, status: int = 200) -> None:
        self._send(text.encode(), status, **{"Content-Type": "text/html; charset=utf-8"})

    def _file(self, stored: StoredFile) -> None:
        etag = f'"{hashlib.md5(stored.content).hexdigest()}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": etag}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        is_same = self.headers.get("If-Range", etag) == etag
        if wanted and stored.takes_ranges and is_same:
            start, size = int(wanted[1]), len(stored.content)
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            self._send(stored.content[start:], 206, [at - start for at in stored.breaks], **headers)
        else:
            self._send(stored.content, 200, stored.breaks, **headers)

    def _send(self, content: bytes, status: int, breaks: list[int] | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if ahead := [at for at in breaks or () if at > 0]:
            content = content[: min(ahead)]
            self.close_connection = True
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
