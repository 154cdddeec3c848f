"""What readers of several formats share: names of videos and attributes, and boxes collected to tubes."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from classquery.data.annotations.entries import Content, Context, Entry, Source
from classquery.data.annotations.schema import AnnotationError, parsing, quote
from classquery.data.annotations.values import number
from classquery.data.video.index import VideoInfo
from classquery.data.video.reader import ClipReader, VideoReadError


# What people call the attribute that is the class, and the one that says who it is; the first that is there counts.
CLASS_ATTRIBUTES = ("action", "activity", "behavior", "behaviour", "label", "class")
TRACK_ATTRIBUTES = (
    *("track", "person", "actor", "individual", "animal", "instance", "subject", "player", "identity"),
    *("id", "pid", "who", "name"),
)
NO_ACTION = ("", "none", "__undefined__")  # Values of it that are no class, in lower case.
MAX_FRAME = 2_000_000  # Eighteen hours at 30 frames per second: what goes on after it is a slip.

_ENDINGS = ("name", "number", "label", "class", "type", "category", "tag", "id")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")


@contextmanager
def reading(context: Context, place: str) -> Iterator[None]:
    """Note whatever is wrong with one item of a file as a problem of its place, and go on after it."""
    with context.problems.at(place), parsing("cannot be understood", "export it again"):
        yield


def note_once(content: Content, note: str) -> None:
    """Take down how a file was understood, which may be the same for many of its parts."""
    if note not in content.notes:
        content.notes.append(note)


def find_attributes(names: Iterable[str], meanings: Sequence[str]) -> list[str]:
    """Return the names that mean the first of the meanings that any has.

    `Actions`, `action 2`, `action_label` and `person_action` mean "action".
    """
    names = list(names)
    for meaning in meanings:
        found = [name for name in names if meaning in _stems(name)]
        if found:
            return found
    return []


def _stems(name: str) -> set[str]:
    words = re.findall(r"[a-z]+", name.lower()) or [""]
    stems = {"".join(words), words[-1]}
    stems |= {stem.removesuffix(ending) for stem in stems for ending in _ENDINGS}
    return stems | {stem.removesuffix("s") for stem in stems} | {f"{stem.removesuffix('ies')}y" for stem in stems}


def as_track(value: Any) -> int | str | None:
    """Return who it is: a number where the text is one, None where it is empty."""
    text = str("" if value is None else value).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text or None


def in_file(source: Source, track: int | str | None) -> tuple[str, int | str] | None:
    """Return who it is where the same track of the same video in another file is somebody else."""
    return None if track is None else (source.name, track)


def as_labels(values: Iterable[Any]) -> tuple[str, ...] | None:
    """Return what of some values is a class, each once; None if they are all empty, so that nobody said what it is."""
    texts = []
    for value in values:
        if not isinstance(value, str | int | float | None):
            raise AnnotationError(f"a class must be text, got {quote(value)}")
        texts.append("" if value is None else str(value).strip())
    labels = tuple(dict.fromkeys(text for text in texts if text.lower() not in NO_ACTION))
    return labels if any(texts) else None


@lru_cache(maxsize=1024)
def video_names(reference: str) -> tuple[str, ...]:
    """Return the names that a video may have here, whose path, link or upload a tool names.

    Label Studio puts eight hexadecimal digits before the names of uploads, and writes files of its server as
    `/data/local-files/?d=folder/clip.mp4`.
    """
    local = reference.partition("?d=")[2] or reference.partition("?")[0]
    names = [reference, local, unquote(local)]
    last = [re.split(r"[\\/]", name)[-1] for name in names]
    return tuple(dict.fromkeys([*names, *last, *(_UPLOAD_PREFIX.sub("", name) for name in last)]))


def look_at_video(context: Context, names: Iterable[str]) -> VideoInfo | None:
    """Open the video that has one of these names; None if there is none, or a folder of frames, or it is damaged."""
    path = next((path for path in map(context.find_video, names) if path is not None), None)
    if path is None or not path.is_file():
        return None
    try:
        return ClipReader().info(path)
    except VideoReadError:
        return None  # Told when the annotations are compared with it.


def four_numbers(values: Any, name: str = "a box") -> tuple[float, float, float, float]:
    """Return four numbers of a list.

    Raises:
        AnnotationError: If there are others.
    """
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise AnnotationError(f"{name} has four numbers, got {quote(values)}")
    first, second, third, fourth = (number(value, f"a number of {name}") for value in values)
    return first, second, third, fourth


def corners_of(values: Any) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of a box given as x, y, width and height."""
    x, y, width, height = four_numbers(values, "a box x, y, width, height")
    return x, y, x + width, y + height


class TubeCollector:
    """Collects boxes of single frames to entries: one for all frames in which somebody does the same.

    Args:
        content: Where `finish` puts them.
    """

    def __init__(self, content: Content):
        self._content = content
        self._tubes: dict[tuple, dict[int, Sequence[float]]] = {}
        self._alone: dict[tuple, Entry] = {}

    def add(
        self,
        place: str,
        video: str,
        track_id: int | str | tuple[str, int | str] | None,
        labels: Collection[str] | None,
        frame: int,
        box: Sequence[float],
    ) -> None:
        """Add a box; twins that agree are one, and so are boxes of nobody in particular that are the same.

        Args:
            place: How messages name the track, or the box itself where it has none.
            video: As the file names it.
            track_id: Who it is.
            labels: What they do there; None if nobody said it.
            frame: 0-based.
            box: Corners.

        Raises:
            AnnotationError: If the frame does not exist, or somebody has another box there.
        """
        if not 0 <= frame <= MAX_FRAME:
            raise AnnotationError(f"the frame must be one from 0 on, got {frame} counted from 0")
        if track_id is None:
            key = (video, frame, *box)
            known = self._alone.setdefault(key, Entry(place, video, [box], None, [frame]))
            if labels is not None:
                self._alone[key] = known._replace(labels=tuple(dict.fromkeys([*(known.labels or ()), *labels])))
            return
        boxes = self._tubes.setdefault((place, video, track_id, None if labels is None else tuple(labels)), {})
        if boxes.setdefault(frame, box) != box:
            who = track_id[1] if isinstance(track_id, tuple) else track_id
            raise AnnotationError(f"{who} has two boxes in frame {frame}, counted from 0")

    def finish(self) -> None:
        """Put all tubes into the content, in the order of their first boxes, behind boxes of nobody in particular."""
        self._content.entries += self._alone.values()
        for (place, video, track_id, labels), boxes in self._tubes.items():
            self._content.entries.append(
                Entry(place, video, list(boxes.values()), labels, list(boxes), track_id=track_id)
            )
        self._tubes.clear()
        self._alone.clear()
