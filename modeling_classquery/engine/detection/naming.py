"""One name for each video, wherever results say what they belong to: folders, tables, annotations, the web page."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from classquery.engine.detection.video_sources import Source, local_path


# What some file system or shell refuses.
_NOT_IN_FOLDERS = re.compile(r"""[\x00-\x1f\x7f<>:"/\\|?*']""")
_DEVICES_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_FOLDER_NAME = 100


@dataclass(frozen=True)
class VideoName:
    """What a video is called among those of a run."""

    file: str
    """The end of its path that no other has, mostly the name of the file: what tables and annotations say, and where
    readers look for it in the folder of a data set. Bytes that are not UTF-8 are escaped."""
    stem: str
    """The same without the suffix of a file."""
    folder: str
    """Name of the folder with its results: allowed on all systems, and not that of another video either where case and
    the form of accents do not count."""

    @property
    def video_id(self) -> str:
        """What it is called where suffixes are left out and folders are not named, as in AVA."""
        is_plain = "/" not in self.file and _folded(_as_folder(self.stem)) == _folded(self.folder)
        return self.stem if is_plain else self.folder


def name_videos(sources: Sequence[Source], *, reserved: Collection[str] = ()) -> list[VideoName]:
    """Name videos so that no two are called alike; the order does not matter.

    Of two paths, as many folders are named as tell them apart: `room_a/1.mp4` and `room_b/1.mp4`.

    Args:
        sources: Single videos, as `list_sources` returns them.
        reserved: Names that no folder may have.
    """
    files = _file_names(sources)
    stems = [_without_suffix(file, source) for file, source in zip(files, sources, strict=True)]
    candidates = [
        [_as_folder(stem), _as_folder(file), _marked(_as_folder(stem), file)]
        for stem, file in zip(stems, files, strict=True)
    ]
    folders = _first_unique(candidates, _folded, taken={_folded(name) for name in reserved})
    return [VideoName(*names) for names in zip(files, stems, folders, strict=True)]


def _file_names(sources: Sequence[Source]) -> list[str]:
    """The shortest ends of the paths that are not alike."""
    paths = [_parts_of(source) for source in sources]
    ends = [["/".join(path[-depth:]) for depth in range(1, len(path) + 1)] for path in paths]
    stems = [[_without_suffix(end, source) for end in of_path] for of_path, source in zip(ends, sources, strict=True)]
    # More folders do not tell apart what differs in the suffix, case or accents only: these share the depth.
    depths = {_folded(of_path[-1]): of_path for of_path in stems}
    chosen = _first_unique(list(depths.values()), _folded)
    depths = {whole: stem.count("/") for whole, stem in zip(depths, chosen, strict=True)}
    files = [_printable(of_path[depths[_folded(own[-1])]]) for of_path, own in zip(ends, stems, strict=True)]
    # URLs that differ behind their path, or frames in memory.
    marks = [f"{source} {number}" if isinstance(source, str) else str(number) for number, source in enumerate(sources)]
    return _first_unique([[file, _marked(file, mark)] for file, mark in zip(files, marks, strict=True)], str)


def _first_unique(
    candidates: Sequence[Sequence[str]], fold: Callable[[str], str], taken: Collection[str] = ()
) -> list[str]:
    """Choose of each row the first name that no other has: those that are alike go on to their next one together."""
    chosen = [0] * len(candidates)
    while True:
        names = [row[index] for row, index in zip(candidates, chosen, strict=True)]
        counts = Counter(map(fold, names))
        alike = [
            number
            for number, name in enumerate(names)
            if (counts[fold(name)] > 1 or fold(name) in taken) and chosen[number] + 1 < len(candidates[number])
        ]
        if not alike:
            return names
        for number in alike:
            chosen[number] += 1


def _parts_of(source: Source) -> list[str]:
    """Split a path or an address; without user, password and query, which nobody wants to see in files."""
    path = local_path(source)
    if path is not None:
        parts = Path(os.path.abspath(path)).parts[1:]
    elif isinstance(source, str) and "://" in source:
        host, *folders = re.split(r"[?#]", source.partition("://")[2])[0].split("/")
        parts = [host.rpartition("@")[2], *map(unquote, folders)]
    else:
        parts = [f"camera {source}" if isinstance(source, str | int) else "array"]
    return [part for part in parts if part] or ["video"]


def _without_suffix(name: str, source: Source) -> str:
    path = local_path(source)
    is_file = path is not None and not os.path.isdir(path)
    return os.path.splitext(name)[0] if is_file or isinstance(source, str) and "://" in source else name


def _folded(name: str) -> str:
    """What is left of a name where neither case, nor the form of accents, nor blanks at its end count."""
    return unicodedata.normalize("NFKC", name).casefold().strip(" .")


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _marked(name: str, text: str) -> str:
    """A name that differs where `text` does."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:6]}{suffix}"


def _as_folder(name: str) -> str:
    """A name that all systems take for a folder."""
    folder = _NOT_IN_FOLDERS.sub("_", name)[:_MAX_FOLDER_NAME].strip(" .") or "video"
    return f"{folder}_" if _DEVICES_OF_WINDOWS.fullmatch(folder) else folder
