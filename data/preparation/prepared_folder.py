"""The folder that `prepare` writes: what in it is its own work. Nothing else is ever written or replaced."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from classquery.data.annotations.schema import shorten
from classquery.data.whole_files import replacing


RECORD_FILE = "prepared.jsonl"
VIDEO_FOLDER = "videos"


class PreparedFolder:
    """What `prepared.jsonl` says of a folder; a file is claimed there before it is written.

    Args:
        path: The folder, which need not be there.
    """

    def __init__(self, path: Path):
        self.path = path
        self.videos: dict[str, dict[str, Any]] = {}
        """By their names below `videos/`: what each was made of and how; only the name while it is not finished."""
        self._files: dict[str, str | None] = {}
        """Digests of other files, by their paths in the folder; None while they may be anything."""
        record_file = path / RECORD_FILE
        for line in record_file.read_bytes().splitlines() if record_file.is_file() else []:
            record = _parse(line)
            if record.get("kind") == "file":
                self._files[record["name"]] = record.get("digest")
            elif record:
                self.videos[record["name"]] = record

    def require_free(self, videos: Iterable[str], files: Iterable[str], originals: Iterable[Path]) -> None:
        """Refuse to write where there is something else than the work of `prepare`.

        Args:
            videos: Names of videos to write, below `videos/`.
            files: Paths of other files to write, in the folder.
            originals: What must stay as it is.

        Raises:
            ValueError: Lists all places outside of the folder, on originals, or of files that are somebody else's.
        """
        videos, files = list(videos), list(files)
        places = {f"{VIDEO_FOLDER}/{name}": name in self.videos for name in videos}
        places |= {file: self._is_own_file(file) for file in files} | {RECORD_FILE: True}
        problems = [
            (
                _leaving(videos),
                "name videos by a path below the folder of videos, not by an absolute one or one with ..",
            ),
            (self._linked_out(places), "these places are behind links that lead out of it: remove the links"),
            (self._originals(places, originals), "these are the originals themselves: choose another folder"),
            (
                [place for place, is_own in places.items() if not is_own and os.path.lexists(self.path / place)],
                "these files are not of `prepare`, or were changed since: move them, or choose another folder",
            ),
        ]
        found = [f"{remedy} ({len(names)}: {shorten(names)})" for names, remedy in problems if names]
        if found:
            raise ValueError(f"nothing was written to {self.path}: {'; '.join(found)}")

    def _is_own_file(self, file: str) -> bool:
        path = self.path / file
        return file in self._files and (self._files[file] is None or digest_of_file(path) == self._files[file])

    def _linked_out(self, places: Iterable[str]) -> list[str]:
        folder = self.path.resolve()
        return [place for place in places if not (self.path / place).resolve().is_relative_to(folder)]

    def _originals(self, places: Iterable[str], originals: Iterable[Path]) -> list[str]:
        identities = {_identity(path) for path in originals} - {None}
        return [place for place in places if _identity(self.path / place) in identities]

    def claim(self, videos: Iterable[str], files: Iterable[str]) -> None:
        """Note that files will be made here, so that another run knows them for its own after this one is killed.

        The records are written anew: a run that was killed may have left half a line.
        """
        self.videos = {name: {"name": name} for name in videos} | self.videos
        self._files |= dict.fromkeys(files)
        records = [*self.videos.values(), *(_file_record(*item) for item in self._files.items())]
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(self.path / RECORD_FILE) as partial_path:
            partial_path.write_text("".join(map(_line, records)), encoding="utf-8")

    def note_file(self, file: str) -> None:
        """Note how a file was left, so that it is not replaced when somebody has changed it."""
        append_record(self.path, _file_record(file, digest_of_file(self.path / file)))


def append_record(data_dir: Path, record: dict[str, Any]) -> None:
    """Add a record; one write of one line, so that those of several processes do not mix."""
    with (data_dir / RECORD_FILE).open("a", encoding="utf-8") as records:
        records.write(_line(record))


def digest_of_file(path: Path) -> str | None:
    """Return what tells a file from any other; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("name"), str) else {}


def _file_record(file: str, digest: str | None) -> dict[str, Any]:
    return {"name": file, "kind": "file", "digest": digest}


def _leaving(names: Iterable[str]) -> list[str]:
    paths = {name: PurePosixPath(name.replace(os.sep, "/")) for name in names}
    return [name for name, path in paths.items() if path.is_absolute() or ".." in path.parts or Path(name).drive]


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is the same for a file by whichever path, link or spelling it is reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
