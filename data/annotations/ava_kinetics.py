"""Reader of AVA-Kinetics: a csv of seven columns, without a header, over clips of Kinetics.

    video_id,time,x1,y1,x2,y2,action_id

Boxes are corners as fractions of the frame. Times are seconds of the whole source video, and the clip of it that
Kinetics has, `<id>_<start>_<end>.mp4`, begins at its start: 12.0 in `x_000010_000020.mp4` is its second 2. There is
no person id, so rows of one box are one person, whom nobody links over time. A row of an id and a time alone is a
frame without people. Names of the classes are those of a `*.pbtxt` beside the csv, or AVA's. Source:
tools/data/ava_kinetics of open-mmlab/mmaction2@4d6c934.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from classquery.data.annotations.ava import AVA_LABELS, parse_label_map
from classquery.data.annotations.collecting import four_numbers, reading
from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.schema import VIDEO_SUFFIXES, AnnotationError
from classquery.data.annotations.values import number, whole_number
from classquery.data.hints import closest


_NUM_COLUMNS = 7
_ROW = re.compile(r"[^,\s][^,]*,\d+(\.\d*)?(,-?[\d.]+([eE]-?\d+)?){4},\d+")
_EMPTY_ROW = re.compile(r"[^,\s][^,]*,\d+(\.\d*)?,*")
_CLIP = re.compile(r"(.+)_(\d{6})_(\d{6})")


def sniff_ava_kinetics(source: Source) -> bool:
    """Whether the first row with a box has seven columns."""
    for line in source.head.splitlines():
        if not _EMPTY_ROW.fullmatch(line.strip()):
            return _ROW.fullmatch(line.strip()) is not None
    return False


def read_ava_kinetics(sources: Sequence[Source], context: Context) -> Content:
    """Read rows, and find the clip of each."""
    content = Content(box_format="normalized")
    clips = _clips(context)
    for source in sources:
        names = _class_names(source.path, content)
        people: dict[tuple[str, float, tuple[float, ...]], tuple[str, list[str]]] = {}
        for line_number, cells in enumerate(csv.reader(io.StringIO(source.text())), start=1):
            place = source.place(f"row {line_number}")
            with reading(context, place):
                if len(cells) != _NUM_COLUMNS or not any(cells[2:]):
                    content.ignored["rows without a box (frames without people)"] += bool(cells)
                    continue
                seconds, action = number(cells[1], "the time"), whole_number(cells[6], "the action")
                if action not in names:
                    raise AnnotationError(f"unknown action {action}{closest(str(action), map(str, names))}")
                box = four_numbers(cells[2:6])
                _, labels = people.setdefault((cells[0], seconds, box), (place, []))
                labels.append(names[action])
        for (video_id, seconds, box), (place, labels) in people.items():
            for video, start in _clips_at(clips, video_id, seconds):
                content.videos.setdefault(video, VideoClaim())
                content.entries.append(
                    Entry(place, video, [box], tuple(dict.fromkeys(labels)), timestamp=seconds - start)
                )
                break
            else:
                content.ignored["boxes at times that no clip has"] += 1
    return content


def _class_names(path: Path, content: Content) -> Mapping[int, str]:
    found = sorted({*path.parent.glob("*.pbtxt"), *path.parent.parent.glob("*.pbtxt")})
    content.notes.append(f"classes: {found[0].name}" if found else "classes: AVA's 80, as no .pbtxt is beside")
    return parse_label_map(found[0]) if found else dict(enumerate(AVA_LABELS, start=1))


def _clips(context: Context) -> Mapping[str, list[tuple[str, int, int]]]:
    """Return name, start and end of the clips that are there, by the id of their source."""
    clips: dict[str, list[tuple[str, int, int]]] = {}
    for path in context.list_videos():
        match = _CLIP.fullmatch(path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name)
        if match:
            clips.setdefault(match[1], []).append((path.name, int(match[2]), int(match[3])))
    return clips


def _clips_at(
    clips: Mapping[str, list[tuple[str, int, int]]], video_id: str, seconds: float
) -> Iterator[tuple[str, float]]:
    """Yield the clips that show a moment of a source, or the source itself if there are no clips of it."""
    if video_id not in clips:
        yield video_id, 0.0
    yield from ((name, start) for name, start, end in clips.get(video_id, ()) if start < seconds < end)


AVA_KINETICS = Format(
    "ava_kinetics", "AVA-Kinetics csv", sniff_ava_kinetics, read_ava_kinetics, companions=("*.pbtxt",)
)
