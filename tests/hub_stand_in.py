"""A stand-in for the Hub's HTTP API on loopback: repositories in memory, with branches, commits and large files.

It answers what huggingface_hub asks for when repositories are created, committed to, listed and downloaded, with the
status codes and headers that it reads, and fails on demand.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote, urlparse


TOKEN = "hf_stand_in"
USER = "tester"
# Larger files go through the large-file protocol.
_REGULAR_SIZE = 4096


@dataclass
class Repository:
    """Branches, each a list of commits: (commit id, files by path)."""

    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(
        default_factory=lambda: {"main": [(_hash("initial commit"), {})]}
    )

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Last commit of a branch, or a commit by its id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in commits if commit[0] == revision), None)


def _hash(text: str | bytes) -> str:
    return hashlib.sha1(text.encode() if isinstance(text, str) else text).hexdigest()


def _is_large(content: bytes) -> bool:
    return len(content) > _REGULAR_SIZE


class HubStandIn(http.server.ThreadingHTTPServer):
    """The server; `url` is what HF_ENDPOINT has to be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: dict[str, int] = {}
        """Status by part of a path: how the next request to it fails. Set by `/stand-in/failures`."""
        self.halved: list[str] = []
        """Parts of paths whose downloads break off half-way. Set by `/stand-in/halved`."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """Files of a revision."""
        return self.repositories[kind, repo_id].at(revision)[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *_) -> None:
        """Keep quiet."""

    def _respond(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        for part in [part for part in self.server.failures if part in path]:
            self._send({"error": "the stand-in was told to fail"}, self.server.failures.pop(part))
            return
        for pattern, method, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                answer(self, **match.groupdict())
                return
        self._send({"error": f"no route {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815

    def _send(self, content: dict | list | bytes, status: int = 200, **headers: str) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET" and any(part in self.path for part in self.server.halved):
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(content)

    def _json(self) -> dict:
        return json.loads(self.body or b"{}")

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._send({"error": "Invalid username or password."}, 401)
        return False

    def _find(self, kind: str, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.repositories.get((kind, repo))
        if repository is None:
            self._send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        commit = repository.at(revision or "main")
        if commit is None:
            self._send({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        return commit

    def control(self, what: str) -> None:
        setattr(self.server, what, self._json())
        self._send({})

    def who_am_i(self) -> None:
        if self._may_write():
            self._send({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        if not self._may_write():
            return
        asked = self._json()
        kind = f"{asked.get('type') or 'model'}s"
        repo = f"{asked.get('organization') or USER}/{asked['name'].rpartition('/')[2]}"
        status = 409 if (kind, repo) in self.server.repositories else 200
        self.server.repositories.setdefault((kind, repo), Repository())
        prefix = "" if kind == "models" else f"{kind}/"
        self._send({"url": f"{self.server.url}/{prefix}{repo}", "id": repo, "name": repo}, status)

    def branch(self, kind: str, repo: str, revision: str) -> None:
        if self._may_write():
            branches = self.server.repositories[kind, repo].branches
            known = revision in branches
            branches.setdefault(revision, list(branches["main"]))
            self._send({}, 409 if known else 200)

    def validate(self) -> None:
        self._send({"errors": [], "warnings": []})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        found = self._may_write() and self._find(kind, repo, revision)
        if found:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > _REGULAR_SIZE else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in self._json()["files"]
            ]
            self._send({"files": files, "commitOid": found[0]})

    def large_batch(self, repo: str) -> None:
        if not self._may_write():
            return
        objects = []
        for asked in self._json()["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/large/{asked['oid']}", "header": {}}}
            known = {} if asked["oid"] in self.server.large_files else {"actions": upload}
            objects.append({"oid": asked["oid"], "size": asked["size"], **known})
        self._send({"transfer": "basic", "objects": objects})

    def large_upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large_files[oid] = self.body
        self._send({})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        if not (self._may_write() and self._find(kind, repo, revision)):
            return
        files = dict(self._find(kind, repo, revision)[1])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        branch = self.server.repositories[kind, repo].branches[revision]
        commit_id = _hash(f"{repo}{revision}{len(branch)}{sorted((p, _hash(c)) for p, c in files.items())}")
        branch.append((commit_id, files))
        address = f"{self.server.url}/{repo}/commit/{commit_id}"
        self._send({"success": True, "commitOid": commit_id, "commitUrl": address})

    def info(self, kind: str, repo: str, revision: str | None = None) -> None:
        found = self._find(kind, repo, revision)
        if found:
            siblings = [{"rfilename": path} for path in sorted(found[1])]
            self._send({"id": repo, "sha": found[0], "private": False, "tags": [], "siblings": siblings})

    def refs(self, kind: str, repo: str) -> None:
        branches = self.server.repositories[kind, repo].branches
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": "0" * 40} for name in branches]
        self._send({"branches": listed, "converts": [], "tags": []})

    def tree(self, kind: str, repo: str, revision: str, folder: str | None = None) -> None:
        found = self._find(kind, repo, revision)
        if found:
            prefix = f"{folder}/" if folder else ""
            inside = {path: content for path, content in sorted(found[1].items()) if path.startswith(prefix)}
            if folder and not inside:
                self._send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
                return
            folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {".", folder}
            entries = [{"type": "directory", "path": path, "oid": _hash(path), "size": 0} for path in sorted(folders)]
            entries += [_entry(path, content) for path, content in inside.items()]
            if "recursive=true" not in self.path.lower():
                entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
            self._send(entries)

    def paths(self, kind: str, repo: str, revision: str) -> None:
        found = self._find(kind, repo, revision)
        if found:
            self._send([_entry(path, found[1][path]) for path in self._json()["paths"] if path in found[1]])

    def resolve(self, repo: str, revision: str, path: str, kind: str | None = None) -> None:
        found = self._find(kind or "models", repo, revision)
        if not found:
            return
        commit, files = found
        if path not in files:
            self._send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        etag = hashlib.sha256(files[path]).hexdigest() if _is_large(files[path]) else _hash(files[path])
        content, about = files[path], {"X_Repo_Commit": commit, "ETag": f'"{etag}"'}
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part:
            start, stop = int(part[1]), min(int(part[2]) + 1, len(content))
            about["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._send(content[start:stop], 206, **about)
        else:
            self._send(content, **about)


def _entry(path: str, content: bytes) -> dict:
    large = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}
    return {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": _hash(content),
        **(large if _is_large(content) else {}),
    }


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_ROUTES = [
    ("/stand-in/(?P<what>failures|halved)", ("PUT",), _Handler.control),
    ("/api/whoami-v2", ("GET",), _Handler.who_am_i),
    ("/api/repos/create", ("POST",), _Handler.create),
    ("/api/validate-yaml", ("POST",), _Handler.validate),
    (rf"{_API}/branch/(?P<revision>.+)", ("POST",), _Handler.branch),
    (rf"{_API}/preupload/(?P<revision>[^/]+)", ("POST",), _Handler.preupload),
    (rf"{_API}/commit/(?P<revision>[^/]+)", ("POST",), _Handler.commit),
    (rf"{_API}/refs", ("GET",), _Handler.refs),
    (rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", ("GET",), _Handler.tree),
    (rf"{_API}/paths-info/(?P<revision>[^/]+)", ("POST",), _Handler.paths),
    (rf"{_API}(/revision/(?P<revision>[^/]+))?", ("GET", "HEAD"), _Handler.info),
    (rf"(/datasets)?/{_REPO}\.git/info/lfs/objects/batch", ("POST",), _Handler.large_batch),
    ("/large/(?P<oid>[0-9a-f]+)", ("PUT",), _Handler.large_upload),
    (
        rf"(/(?P<kind>datasets))?/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        ("GET", "HEAD"),
        _Handler.resolve,
    ),
]
