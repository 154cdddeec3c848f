"""Reader of anyone's own videos: annotations as csv, JSON lines or CVAT XML, beside the videos.

    data_dir/train.csv, validation.csv          or .jsonl or .xml; or folders train/, validation/ of such files;
                                                or annotations.csv or metadata.jsonl for all splits, with a `split`
    data_dir/classes.txt                        names of the classes in the order of their ids; not needed
    data_dir/videos/<video>                     or in `data_dir/<split>/` or `data_dir` itself

Boxes are annotated at moments, as in AVA, or in every frame, as tubes. At moments, a row of the csv is an action of
somebody; `track_id` is not needed:

    video,timestamp,x1,y1,x2,y2,label,track_id
    kitchen.mp4,2.5,0.10,0.20,0.45,0.95,walk,0

In every frame, a row is an action in one frame; frames count from 0 in the video, and `track_id` joins them to tubes:

    video,frame,x1,y1,x2,y2,label,track_id
    kitchen.mp4,62,0.10,0.20,0.45,0.95,walk,0

JSON lines say the same of somebody at a moment, or through all frames:

    {"video": "kitchen.mp4", "timestamp": 2.5, "box": [0.1, 0.2, 0.45, 0.95], "labels": ["walk", "carry"]}
    {"video": "kitchen.mp4", "frames": [62, 63], "boxes": [[0.1, 0.2, 0.4, 0.9], [0.1, 0.2, 0.5, 0.9]], "label": "sit"}

XML is that of `classquery.data.annotations.cvat`, for one video each, which has the name of `<source>` or of the XML
file.

The classes are those of `classes.txt`, or all names in the annotations of both splits in alphabetical order: the same
for training and validation.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset

from classquery.data.annotations.cvat import read_cvat_video
from classquery.data.annotations.schema import (
    VIDEO_SUFFIXES,
    AnnotationError,
    ProblemCollector,
    closest,
    parse_box,
    shorten,
    to_dataset,
)
from classquery.data.video.frame_folder import count_frames, read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError


CLASSES_FILE = "classes.txt"
FORMATS = (".csv", ".jsonl", ".xml")
_SPLITS = {"train": ("train",), "validation": ("validation", "val"), "val": ("validation", "val")}
_OTHER_SPLITS = ("test",)  # May be there, but nobody asks for it.
_ALL_SPLITS = ("annotations", "metadata")
_NAMES_OF_VIDEO = ("video", "file_name")  # The latter as in `datasets`' folders of videos.
_CORNERS = ("x1", "y1", "x2", "y2")
_MAX_TRACK_ID = 2**31 - 1


class _Entry(NamedTuple):
    """What a file says of somebody, at a moment or through frames."""

    place: str
    video: str
    timestamp: float | None
    frames: Sequence[int] | None  # None at a moment.
    boxes: Sequence[Sequence[Any]]
    labels: Sequence[str]
    track_id: int | None
    size: tuple[int, int] | None = None  # Width and height in pixels that the boxes are meant in, if the file says so.


class _Content(NamedTuple):
    """All entries of a split, and the videos that are annotated from the first frame to before another one."""

    entries: list[_Entry]
    num_frames: dict[str, int | None]


class _Video(NamedTuple):
    path: Path
    source: Literal["video", "frames"]
    num_frames: int
    height: int
    width: int
    fps: float


class _Actor(NamedTuple):
    """An entry after all checks: boxes in [0, 1], labels by number."""

    place: str
    video: str
    timestamp: float | None
    frames: Sequence[int] | None
    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    track_id: int | None


def load_custom(
    data_dir: str | Path,
    split: str,
    *,
    box_format: Literal["normalized", "pixel"] = "normalized",
    timestamp_offset: float = 0.0,
    frames_fps: float = 30.0,
    require_videos: bool = True,
) -> Dataset:
    """Read the annotations of one split, and look into every video once, to compare them with it.

    Args:
        data_dir: Folder with the annotations and the videos, see above.
        split: "train" or "validation" ("val" means the same).
        box_format: Whether corners are fractions of width and height, or pixels. Those of CVAT are always pixels.
        timestamp_offset: What the annotations call the start of the videos, in seconds.
        frames_fps: Frames per second of videos that are folders of numbered images.
        require_videos: Whether missing videos are an error; otherwise everything that they would tell is null.

    Returns:
        Rows with `ACTION_FEATURES`, in the order of the annotations: for `timestamp` one per keyframe, which are told
        apart to the millisecond, for `frames` one per video with its tubes. `clip_id` is the name of the video without
        its suffix, and at keyframes the timestamp. Boxes up to a thousandth of the frame, or a pixel, outside of it
        are cut off at its edge.

    Raises:
        AnnotationError: With all problems, by row.
        FileNotFoundError: If there are no annotations, or videos are missing; names them and the folders searched.
        ValueError: If there is no such split or box format.
    """
    if split not in _SPLITS or box_format not in ("normalized", "pixel"):
        raise ValueError(
            f'split must be one of {list(_SPLITS)} and box_format "normalized" or "pixel", got {split!r} and '
            f"{box_format!r}"
        )
    data_dir = Path(data_dir)
    files, hold_all_splits = _annotation_files(data_dir, split)
    folders = [data_dir / "videos", *(data_dir / name for name in _SPLITS[split]), data_dir]
    problems = ProblemCollector(files[0] if len(files) == 1 else data_dir)
    content = _read_files(
        files, problems, folders, _SPLITS[split] if hold_all_splits else None, _read_classes(data_dir)
    )
    paths = {name: _locate(name, folders) for name in content.num_frames}
    videos = _look_into(paths, content.num_frames, frames_fps, problems)
    labels = {name: label for label, name in enumerate(_class_names(data_dir))}
    actors = []
    for entry in content.entries:
        with problems.at(entry.place):
            actors.append(_check(entry, labels, videos.get(entry.video), box_format, timestamp_offset))
    # Those without boxes are meant in pixels of videos that are missing.
    rows = _rows([actor for actor in actors if actor.boxes], videos, timestamp_offset, problems)
    problems.raise_if_any()
    missing = [name for name, path in paths.items() if path is None]
    if missing and require_videos:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} videos are not in {', '.join(map(str, folders))} "
            f"(as {', '.join(VIDEO_SUFFIXES)}, or as folders of frames): {shorten(missing)}"
        )
    return to_dataset(rows)


def load_custom_labels(data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes, 0-based; from `classes.txt`, or from the annotations of all splits.

    Raises:
        AnnotationError: If there are none, or one is listed twice.
        FileNotFoundError: If there are no annotations.
    """
    names = _class_names(Path(data_dir))
    if not names or len(set(names)) < len(names):
        repeated = shorten(sorted({name for name in names if names.count(name) > 1}))
        raise AnnotationError(f"{data_dir} must name every class once, got {repeated or 'none'}")
    return dict(enumerate(names))


def _class_names(data_dir: Path) -> list[str]:
    names = _read_classes(data_dir)
    if names is not None:
        return names
    files = {path for names in _SPLITS.values() for path in _find_files(data_dir, names)}
    # What is wrong is said when the annotations themselves are loaded.
    content = _read_files(
        sorted(files) or _annotation_files(data_dir, "train")[0], ProblemCollector(data_dir), (), None, None
    )
    return sorted({label for entry in content.entries for label in entry.labels})


def _read_classes(data_dir: Path) -> list[str] | None:
    path = data_dir / CLASSES_FILE
    if not path.is_file():
        return None
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


# Files


def _annotation_files(data_dir: Path, split: str) -> tuple[list[Path], bool]:
    """Return the files of a split, and whether they hold all splits, told apart by a column."""
    files = _find_files(data_dir, _SPLITS[split])
    if files:
        return files, False
    files = [path for path in _find_files(data_dir, _ALL_SPLITS) if path.parent == data_dir and path.suffix != ".xml"]
    if not files:
        name = _SPLITS[split][0]
        raise FileNotFoundError(
            f"No annotations of the split {split!r} in {data_dir}: give {name}.csv, {name}.jsonl or {name}.xml, a "
            f"folder {name}/ with such files, or annotations.csv with a column `split`."
        )
    return files, True


def _find_files(data_dir: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of these names, and all those in folders of these names."""
    paths = [path for name in names for path in (*data_dir.glob(f"{name}.*"), *data_dir.glob(f"{name}/*.*"))]
    return sorted(path for path in paths if path.suffix.lower() in FORMATS)


def _read_files(
    files: Sequence[Path],
    problems: ProblemCollector,
    folders: Sequence[Path],
    splits: Sequence[str] | None,
    classes: list[str] | None,
) -> _Content:
    """Read the entries of some splits; all of them, and what is not in the splits' columns, for None."""
    content = _Content([], {})
    for path in files:
        prefix = f"{path.name}, " if len(files) > 1 else ""
        if path.suffix.lower() == ".xml":
            with problems.at(str(path.name)):
                _read_xml(path, prefix, problems, folders, classes, content)
            continue
        for number, row in _rows_of(path, prefix, problems):
            place = f"{prefix}row {number}"
            with problems.at(place):
                if splits is None or _split_of(row) in splits:
                    entry = _parse_row(place, row)
                    content.entries.append(entry)
                    content.num_frames.setdefault(entry.video, None)
    return content


def _rows_of(path: Path, prefix: str, problems: ProblemCollector) -> Iterator[tuple[int, dict[str, Any]]]:
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    try:
        yield from read(path, prefix, problems)
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path} is no text in UTF-8, save it as such: {error}") from error


def _split_of(row: Mapping[str, Any]) -> str:
    known = (*dict.fromkeys(name for names in _SPLITS.values() for name in names), *_OTHER_SPLITS)
    split = row.get("split")
    if split not in known:
        raise AnnotationError(f"`split` must be one of {', '.join(known)}, got {split!r}")
    return split


def _csv_rows(path: Path, prefix: str, problems: ProblemCollector) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each row, the header being 1, and its cells that are not empty by the name of the column."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _check_header(path, reader.fieldnames or [])
        for cells in reader:
            with problems.at(f"{prefix}row {reader.line_num}"):
                if None in cells or None in cells.values():
                    raise AnnotationError(f"a row needs {len(reader.fieldnames)} cells, as the header has")
                yield reader.line_num, {name: cell.strip() for name, cell in cells.items() if cell.strip()}


def _check_header(path: Path, columns: Sequence[str]) -> None:
    needed = (_NAMES_OF_VIDEO, ("timestamp", "frame"), *((name,) for name in (*_CORNERS, "label")))
    for names in needed:
        if not set(names) & set(columns):
            raise AnnotationError(
                f"{path} has no column {' or '.join(names)}; the header must be video,timestamp,x1,y1,x2,y2,label or "
                f"video,frame,x1,y1,x2,y2,label,track_id, separated by commas, got {','.join(columns)!r}"
            )


def _json_rows(path: Path, prefix: str, problems: ProblemCollector) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            with problems.at(f"{prefix}row {number}"):
                row = _parse_json(line)
                if row is not None:
                    yield number, row


def _parse_json(line: str) -> dict[str, Any] | None:
    """Parse one line; None if it is empty."""
    try:
        row = json.loads(line) if line.strip() else None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"no valid JSON: {error}") from None
    if not isinstance(row, dict | None):
        raise AnnotationError(f"must be an object, got {line.strip()}")
    return row


def _read_xml(
    path: Path,
    prefix: str,
    problems: ProblemCollector,
    folders: Sequence[Path],
    classes: list[str] | None,
    content: _Content,
) -> None:
    video = read_cvat_video(path, problems, classes, prefix=prefix)
    name = next((name for name in (video.source, path.stem) if _locate(name, folders)), video.source)
    content.num_frames[name] = video.num_frames
    size = video.width, video.height
    content.entries.extend(
        _Entry(place, name, None, frames.tolist(), boxes.tolist(), [label], track_id, size)
        for place, track_id, label, frames, boxes in video.tubes
    )


# Rows


def _parse_row(place: str, row: Mapping[str, Any]) -> _Entry:
    """Parse a row of a csv, or a line of JSON, which differ in the names of what is given once or several times."""
    video = next((row[name] for name in _NAMES_OF_VIDEO if row.get(name)), None)
    if not isinstance(video, str):
        raise AnnotationError(f"`video` must name a video, got {video!r}")
    is_keyframe = row.get("timestamp") is not None
    if is_keyframe == (row.get("frames", row.get("frame")) is not None):
        raise AnnotationError("needs either a timestamp, or frames")
    timestamp = _number(row["timestamp"], "timestamp") if is_keyframe else None
    frames = None if is_keyframe else [_whole_number(frame, "frame") for frame in _listed(row, "frames", "frame")]
    repeated = [frame for frame, times in Counter(frames).items() if times > 1]
    if repeated:
        raise AnnotationError(f"frame {repeated[0]} is listed twice")
    track_id = None if row.get("track_id") is None else _whole_number(row["track_id"], "track_id")
    if "frame" in row and track_id is None:
        raise AnnotationError("with `frame`, `track_id` must say which boxes belong together")
    boxes = [[row.get(name) for name in _CORNERS]] if "x1" in row else _listed(row, "boxes", "box")
    if not all(isinstance(box, list) for box in boxes):
        raise AnnotationError(f"a box has four corners x1, y1, x2, y2, got {boxes}")
    labels = _listed(row, "labels", "label")
    if not labels or not all(isinstance(label, str) and label for label in labels):
        raise AnnotationError(f"`label` must be the name of a class, got {labels}")
    return _Entry(place, video, timestamp, frames, boxes, labels, track_id)


def _listed(row: Mapping[str, Any], several: str, one: str) -> list[Any]:
    """Return what is given as a list, or by itself under another name; what is missing is an empty list."""
    values = row.get(several, [row[one]] if row.get(one) is not None else [])
    if not isinstance(values, list):
        raise AnnotationError(f"`{several}` must be a list, got {values!r}")
    return values


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise AnnotationError(f"{name} must be a number, got {value!r}")
    return number


def _whole_number(value: Any, name: str) -> int:
    number = _number(value, name)
    if number % 1 or not 0 <= number <= _MAX_TRACK_ID:
        raise AnnotationError(f"{name} must be a whole number from 0 on, got {value!r}")
    return int(number)


# Videos


def _locate(name: str, folders: Sequence[Path]) -> Path | None:
    """Find a video, with or without its suffix, or a folder of frames."""
    candidates = (folder / f"{name}{suffix}" for folder in folders for suffix in ("", *VIDEO_SUFFIXES))
    return next((path for path in candidates if path.is_file() or (path.is_dir() and path not in folders)), None)


def _look_into(
    paths: Mapping[str, Path | None],
    num_frames: Mapping[str, int | None],
    frames_fps: float,
    problems: ProblemCollector,
) -> dict[str, _Video | None]:
    """Describe the videos that are there and can be read, up to the last frame that anybody annotated, if known."""
    videos, names_by_id = {}, {}
    reader = ClipReader()
    for name, path in paths.items():
        with problems.at(name):
            other = names_by_id.setdefault(_video_id(name), name)
            if other != name:
                raise AnnotationError(f"its name must differ from {other} in more than the suffix")
            video = path and _describe(path, frames_fps, reader)
            if video and num_frames[name] is not None:
                video = video._replace(num_frames=min(video.num_frames, num_frames[name]))
            videos[name] = video
    return videos


def _describe(path: Path, frames_fps: float, reader: ClipReader) -> _Video:
    try:
        if path.is_dir():
            height, width = read_frame_folder(path, [0]).shape[1:3]
            return _Video(path, "frames", count_frames(path), height, width, frames_fps)
        info = reader.info(path)
    except VideoReadError as error:
        raise AnnotationError(str(error)) from error
    return _Video(path, "video", info.num_frames, info.height, info.width, info.frames_per_second)


def _video_id(name: str) -> str:
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in VIDEO_SUFFIXES else path.as_posix()


# Checks


def _check(
    entry: _Entry, labels: Mapping[str, int], video: _Video | None, box_format: str, timestamp_offset: float
) -> _Actor:
    """Check everything that an entry by itself can be wrong about; what takes the video, if that can be read."""
    unknown = next((label for label in entry.labels if label not in labels), None)
    if unknown is not None:
        raise AnnotationError(f"unknown class {unknown!r}{closest(unknown, labels)}")
    num_boxes = 1 if entry.frames is None else len(entry.frames)
    if len(entry.boxes) != num_boxes or not num_boxes:
        raise AnnotationError(f"needs one box for each frame, got {len(entry.boxes)} for {num_boxes}")
    if video is not None:
        _check_time(entry, video, timestamp_offset)
    in_pixels = box_format == "pixel" or entry.size is not None
    size = entry.size or (video and (video.width, video.height))
    # Without its video, nobody knows what pixels mean.
    boxes = [] if in_pixels and not size else [_unit_box(box, size if in_pixels else None) for box in entry.boxes]
    label_ids = sorted({labels[label] for label in entry.labels})
    return _Actor(entry.place, entry.video, entry.timestamp, entry.frames, boxes, label_ids, entry.track_id)


def _unit_box(corners: Sequence[Any], size: tuple[int, int] | None) -> tuple[float, float, float, float]:
    """Check a box and turn it into fractions of the frame; `size` is that of the frame if corners are pixels."""
    if size is None:
        return parse_box(corners, pixel_hint='say so with box_format="pixel"')
    pixels = [_number(corner, "a corner of a box") for corner in corners]
    width, height = size
    if len(pixels) != 4 or min(pixels) < -1 or max(pixels[::2]) > width + 1 or max(pixels[1::2]) > height + 1:
        raise AnnotationError(
            f"a box x1, y1, x2, y2 must lie in the {width} x {height} pixels of the frame, got {tuple(pixels)}"
        )
    return parse_box([min(max(pixel / side, 0.0), 1.0) for pixel, side in zip(pixels, size * 2, strict=True)])


def _check_time(entry: _Entry, video: _Video, timestamp_offset: float) -> None:
    outside = next((frame for frame in entry.frames or () if frame >= video.num_frames), None)
    if outside is not None:
        raise AnnotationError(f"frame {outside} is not in the video, which has frames 0 to {video.num_frames - 1}")
    duration = video.num_frames / video.fps
    if entry.timestamp is not None and not 0 <= entry.timestamp - timestamp_offset <= duration:
        raise AnnotationError(
            f"timestamp {entry.timestamp:g} is not in the video, which lasts from {timestamp_offset:g} to "
            f"{timestamp_offset + duration:.2f} s; timestamp_offset says what the annotations call its start"
        )


# Keyframes and tubes


class _Scene:
    """Everybody at one keyframe, or in one video."""

    def __init__(self) -> None:
        self._boxes: dict[tuple[Any, int | None], tuple] = {}  # Of somebody in a frame, with the place that says so.
        self._tubes: dict[tuple[Any, int], dict[int | None, str]] = {}  # Places by frame, of somebody and a label.

    def add(self, actor: _Actor) -> None:
        """Add what somebody does.

        Raises:
            AnnotationError: If a row repeats another one, or gives a track another box.
        """
        for frame, box in zip([None] if actor.frames is None else actor.frames, actor.boxes, strict=True):
            # Without a track, people at a keyframe are told apart by their boxes, and tubes by their rows.
            who = actor.track_id if actor.track_id is not None else (box if frame is None else actor.place)
            moment = "" if frame is None else f" in frame {frame}"
            other_box, place = self._boxes.setdefault((who, frame), (box, actor.place))
            if other_box != box:
                raise AnnotationError(f"track {who} has another box{moment} in {place}")
            for label in actor.labels:
                places = self._tubes.setdefault((who, label), {})
                if frame in places:
                    raise AnnotationError(f"repeats {places[frame]}{moment}")
                places[frame] = actor.place

    def tubes(self) -> list[dict[str, Any]]:
        """Return the tubes, one for all labels of somebody over the same frames."""
        labels: dict[tuple[Any, tuple], list[int]] = {}
        for (who, label), places in self._tubes.items():
            frames = tuple(places) if None in places else tuple(sorted(places))
            labels.setdefault((who, frames), []).append(label)
        return [
            {
                "track_id": who if isinstance(who, int) else None,
                "labels": sorted(labels_of_tube),
                "frames": None if frames == (None,) else list(frames),
                "boxes": [self._boxes[who, frame][0] for frame in frames],
            }
            for (who, frames), labels_of_tube in labels.items()
        ]


def _rows(
    actors: Sequence[_Actor], videos: Mapping[str, _Video | None], timestamp_offset: float, problems: ProblemCollector
) -> list[dict[str, Any]]:
    """Return a row per keyframe or, if tubes are annotated, per video, also of those with nobody in them."""
    have_tubes = not actors or actors[0].frames is not None
    scenes = {(name, None): _Scene() for name in videos} if have_tubes else {}
    for actor in actors:
        with problems.at(actor.place):
            if (actor.frames is not None) != have_tubes:
                raise AnnotationError("the rows of a split must all have a timestamp, or all frames")
            timestamp = None if have_tubes else round(actor.timestamp, 3)
            scenes.setdefault((actor.video, timestamp), _Scene()).add(actor)
    return [
        _row(name, videos.get(name), timestamp, timestamp_offset, scene) for (name, timestamp), scene in scenes.items()
    ]


def _row(
    name: str, video: _Video | None, timestamp: float | None, timestamp_offset: float, scene: _Scene
) -> dict[str, Any]:
    row = {"clip_id": _video_id(name), "tubes": scene.tubes()}
    if video is not None:
        row |= video._asdict() | {"video": str(video.path)}
    if timestamp is not None:
        row["clip_id"] += f"_{timestamp:.3f}"
        row |= {"timestamp": timestamp, "video_seconds": timestamp - timestamp_offset}
    return row
