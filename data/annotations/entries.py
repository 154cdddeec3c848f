"""What a file of annotations says, whichever tool wrote it, and what a format is."""

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from classquery.data.annotations.schema import ProblemCollector, parsing


_HEAD_BYTES = 2**16


class Entry(NamedTuple):
    """What a file says of somebody: the same actions at one moment, or through frames.

    Exactly one of `frames` and `timestamp` is given. Entries of one video and one track are one actor: the boxes they
    both have in a frame must agree, and their labels there add up.
    """

    place: str
    """Where the file says so, for messages: `Source.place`."""
    video: str
    """As the file names it; `VideoClaim` has other names to look for."""
    boxes: Sequence[Sequence[Any]] | np.ndarray
    """(n, 4), corners x1, y1, x2, y2 in the unit of `Content.box_format`; one box for each frame."""
    labels: Sequence[str] | None = ()
    """Names of classes; none where somebody does nothing that is a class. None where nobody said what they do."""
    frames: Sequence[int] | np.ndarray | None = None
    """(n,), 0-based in the video, none twice."""
    timestamp: float | None = None
    """Seconds, on the clock of the annotations."""
    track_id: int | str | tuple[str, int | str] | None = None
    """None where the file does not say who it is: the entry is an actor of its own. A pair of `Source.name` and a
    number or name where the same track of the same video in another file is somebody else."""
    is_ignored: bool = False
    """Whether it is nobody, but a region in which nobody looked for people."""


NOBODY = -1
"""In place of a track that is not given, and of the label of somebody who does nothing that is a class."""
UNKNOWN = -2
"""In place of a label, where nobody said what somebody does."""
IGNORED = -3
"""In place of a label, where the box is a region in which nobody looked for people."""


class BoxTable(NamedTuple):
    """One row for each box and label, of one split."""

    videos: list[str]
    labels: list[str]
    place_of: Callable[[int], str]
    """Names the place of a row in the files."""
    is_moment: np.ndarray
    """Boolean (n,): at a moment, rather than in a frame."""
    video: np.ndarray
    """int32 (n,), index of `videos`."""
    time: np.ndarray
    """float64 (n,), seconds or number of the frame."""
    corners: np.ndarray
    """float64 (n, 4), x1, y1, x2, y2."""
    label: np.ndarray
    """int32 (n,), index of `labels`, `NOBODY`, `UNKNOWN` or `IGNORED`."""
    track: np.ndarray
    """int32 (n,), who it is within the video, or `NOBODY`."""
    entry: np.ndarray
    """int32 (n,), rows of one entry are one actor, where there is no track."""
    place: np.ndarray
    """int32 (n,), argument of `place_of`."""

    @property
    def num_rows(self) -> int:
        """n."""
        return len(self.video)

    def take(self, rows: np.ndarray) -> "BoxTable":
        """Return some of the rows, by a mask or by their numbers; itself, for all of them in their order."""
        is_all = rows.all() if rows.dtype == bool else np.array_equal(rows, np.arange(self.num_rows))
        return self if is_all else BoxTable(*self[:3], *(column[rows] for column in self[3:]))

    def where(self, row: int) -> str:
        """Name the place of a row in the files."""
        return self.place_of(int(self.place[row]))


@dataclass
class VideoClaim:
    """What a file says of a video itself; everything may be unknown."""

    names: Sequence[str] = ()
    """Names to look for, the likeliest first; by default the name that the entries use, then the last part of it."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of the frames that the boxes were drawn in."""
    fps: float | None = None
    num_frames: int | None = None
    """Frames of the whole video."""
    annotated_frames: range | np.ndarray | None = None
    """Frames in which everybody was looked for, ascending; None for all."""
    annotated_labels: frozenset[str] | None = None
    """Names of the classes that were looked for; None for all."""
    group: str | None = None
    """What videos have in common that are not to be divided into training and validation, as a place or a day."""
    is_named: bool = True
    """Whether the file names the video; otherwise the only one that is there will do."""

    def joined(self, other: "VideoClaim | None") -> "VideoClaim":
        """Return what two files say of one video, of which they may each have annotated some frames."""
        if other is None:
            return self
        frames = None
        if self.annotated_frames is not None and other.annotated_frames is not None:
            frames = np.union1d(self.annotated_frames, other.annotated_frames)
        labels = None
        if self.annotated_labels is not None and other.annotated_labels is not None:
            labels = self.annotated_labels | other.annotated_labels
        return VideoClaim(
            self.names or other.names,
            self.size or other.size,
            self.fps or other.fps,
            self.num_frames or other.num_frames,
            frames,
            labels,
            self.group or other.group,
            self.is_named or other.is_named,
        )


@dataclass
class Content:
    """What the files of one format say.

    Example:
        >>> content = Content(box_format="pixel")
        >>> content.videos["a.mp4"] = VideoClaim(size=(640, 360))
        >>> content.entries.append(Entry(source.place("track 3"), "a.mp4", [[0, 0, 9, 9]], ["walk"], frames=[7]))
        >>> content.ignored["polygon"] += 1
    """

    box_format: Literal["normalized", "pixel"] | None = None
    """Unit of the boxes; pixels are those of `VideoClaim.size`, or of the video. None where the user has to say."""
    entries: list[Entry] = field(default_factory=list)
    tables: list[BoxTable] = field(default_factory=list)
    """The same as entries, for formats of millions of rows."""
    videos: dict[str, VideoClaim] = field(default_factory=dict)
    """By the name that the entries use; also those in which nobody is annotated."""
    ignored: Counter[str] = field(default_factory=Counter)
    """How many of what were left out on purpose: `{"skeleton": 3}`."""
    notes: list[str] = field(default_factory=list)
    """How the file was understood, to be printed: where each class came from, which attribute was taken for what."""
    warnings: list[str] = field(default_factory=list)
    """What is likely a misunderstanding: warned about in training, a problem in `check`."""


class Context(NamedTuple):
    """What a reader may need to know besides its files."""

    problems: ProblemCollector
    """Takes note of what is wrong by place: `with context.problems.at(source.place("row 3")): ...`."""
    classes: Collection[str] | None = None
    """The names in `classes.txt`, if there is one."""
    splits: Sequence[str] | None = None
    """Names of the split that is asked for, where one file holds all of them and tells them apart; None for all."""
    find_video: Callable[[str], Path | None] = lambda name: None
    """Finds a video by its name, with or without its suffix."""
    list_videos: Callable[[], Sequence[Path]] = lambda: ()
    """Lists whatever lies in the folders of videos, for formats that name only a part of it."""


class Source:
    """One file, read through the border that turns whatever a parser raises into an `AnnotationError`.

    Args:
        path: The file.
        name: What messages call it; nothing where it is the only one.
    """

    def __init__(self, path: Path, name: str = ""):
        self.path = path
        self.name = name

    def place(self, where: str = "") -> str:
        """Return how a message names a place in the file."""
        return ", ".join(part for part in (self.name, where) if part) or self.path.name

    @cached_property
    def head(self) -> str:
        """The first 64 KiB as text; bytes that are no UTF-8 are replaced."""
        with self.path.open("rb") as file:
            return file.read(_HEAD_BYTES).decode("utf-8-sig", errors="replace")

    def text(self) -> str:
        """Read the whole file as UTF-8.

        Raises:
            AnnotationError: If it is no such text.
        """
        with parsing(self.path, "it cannot be read as text"):
            return self.path.read_text(encoding="utf-8-sig")

    @cached_property
    def document(self) -> Any:
        """The file as one JSON document; raises as `text`."""
        with parsing(self.path, "it is no valid JSON, perhaps cut off: export it again"):
            return json.loads(self.text())

    @cached_property
    def json(self) -> Any:
        """The file as one JSON document, None if it is none: for `sniff`."""
        if self.head.lstrip()[:1] not in ("{", "["):
            return None
        try:
            return self.document
        except ValueError:
            return None

    def xml(self) -> ET.Element:
        """Parse the file as XML; raises as `text`."""
        with parsing(self.path, "it is no valid XML, perhaps cut off: export it again"):
            return ET.parse(self.path).getroot()


class Format(NamedTuple):
    """A way to write annotations down, of which `classquery.data.annotations.formats` keeps the list."""

    name: str
    """Short, for messages and tables: "cvat"."""
    title: str
    """What its users call it: "CVAT for video 1.1"."""
    sniff: Callable[[Source], bool]
    """Whether a file is of this format, by its content; must not raise."""
    read: Callable[[Sequence[Source], Context], Content]
    """Reads all its files of one split together. Raises an `AnnotationError` for a file that is wrong as a whole."""
    suffixes: tuple[str, ...] = ()
    """Files that are taken for this format where no content says what they are, so that its reader says why not."""
    companions: tuple[str, ...] = ()
    """Patterns of names of files that may lie beside, which `read` looks for by itself."""
    write: Callable[[Path, Iterable[Mapping[str, Any]], Mapping[int, str]], None] | None = None
    """Writes rows with `ACTION_FEATURES`, whose classes have these names by 0-based id; None if nothing does."""
