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

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset

from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.formats import read_annotations
from classquery.data.annotations.schema import (
    VIDEO_SUFFIXES,
    AnnotationError,
    AnnotationWarning,
    ProblemCollector,
    closest,
    parse_box,
    parsing,
    quote,
    shorten,
    to_dataset,
)
from classquery.data.annotations.values import SPLITS, number
from classquery.data.video.frame_folder import count_frames, read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError


CLASSES_FILE = "classes.txt"
_ALL_SPLITS = ("annotations", "metadata")
# Files that are no annotations, whatever is in them.
_OTHER_SUFFIXES = (*VIDEO_SUFFIXES, ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".zip", ".gz", ".tar", ".part")


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
    if split not in SPLITS or box_format not in ("normalized", "pixel"):
        raise ValueError(
            f'split must be one of {list(SPLITS)} and box_format "normalized" or "pixel", got {split!r} and '
            f"{box_format!r}"
        )
    data_dir = Path(data_dir)
    files, hold_all_splits = _annotation_files(data_dir, split)
    folders = _video_folders(data_dir, split)
    problems = ProblemCollector(files[0] if len(files) == 1 else data_dir)
    find_video = partial(_locate, folders=folders)
    context = Context(
        problems,
        _read_classes(data_dir),
        SPLITS[split] if hold_all_splits else None,
        find_video,
        partial(_list_videos, folders),
    )
    fmt, content = read_annotations(_sources(files, data_dir), context)
    names = {video: _resolve(video, claim, find_video) for video, claim in content.videos.items()}
    claims = {names[video]: claim for video, claim in content.videos.items()}
    paths = {name: find_video(name) for name in claims}
    videos = _look_into(paths, claims, frames_fps, problems)
    labels = {name: label for label, name in enumerate(_class_names(data_dir))}
    box_format = content.box_format or box_format
    actors = []
    for entry in content.entries:
        entry = entry._replace(video=names[entry.video])
        with problems.at(entry.place):
            size = claims[entry.video].size
            actors.append(_check(entry, labels, videos.get(entry.video), box_format, size, timestamp_offset))
    # Those without boxes are meant in pixels of videos that are missing.
    rows = _rows([actor for actor in actors if actor.boxes], videos, timestamp_offset, problems)
    problems.raise_if_any()
    missing = [name for name, path in paths.items() if path is None]
    if missing and require_videos:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} videos are not in {', '.join(map(str, folders))} "
            f"(as {', '.join(VIDEO_SUFFIXES)}, or as folders of frames): {shorten(missing)}"
        )
    for warning in content.warnings:
        warnings.warn(warning, AnnotationWarning, stacklevel=2)
    return to_dataset(rows, _describe(files, fmt, content))


def _describe(files: Sequence[Path], fmt: Format, content: Content) -> str:
    """Say how the files were understood; the first line names the format."""
    where = files[0] if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    ignored = [f"ignored: {count} x {what}" for what, count in content.ignored.most_common()]
    return "\n".join([f"{where}: {fmt.title}", *content.notes, *ignored])


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
    files = {path for names in SPLITS.values() for path in _find_files(data_dir, names)}
    # What is wrong is said when the annotations themselves are loaded.
    _, content = read_annotations(
        _sources(sorted(files) or _annotation_files(data_dir, "train")[0], data_dir),
        Context(
            ProblemCollector(data_dir),
            find_video=partial(_locate, folders=_video_folders(data_dir)),
            list_videos=partial(_list_videos, _video_folders(data_dir)),
        ),
    )
    return sorted({label for entry in content.entries for label in entry.labels})


def _read_classes(data_dir: Path) -> list[str] | None:
    path = data_dir / CLASSES_FILE
    if not path.is_file():
        return None
    with parsing(path, "save it as text in UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]


# Files


def _annotation_files(data_dir: Path, split: str) -> tuple[list[Path], bool]:
    """Return the files of a split, and whether they hold all splits, told apart by a column."""
    files = _find_files(data_dir, SPLITS[split])
    if files:
        return files, False
    files = [path for path in _find_files(data_dir, _ALL_SPLITS) if path.parent == data_dir and path.suffix != ".xml"]
    if not files:
        name = SPLITS[split][0]
        raise FileNotFoundError(
            f"No annotations of the split {split!r} in {data_dir}: give {name}.csv, {name}.jsonl or {name}.xml, a "
            f"folder {name}/ with such files, or annotations.csv with a column `split`."
        )
    return files, True


def _find_files(data_dir: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of these names, and all those in folders of these names, that may be annotations."""
    paths = [path for name in names for path in (*data_dir.glob(f"{name}.*"), *data_dir.glob(f"{name}/**/*"))]
    return sorted(
        path
        for path in paths
        if path.suffix.lower() not in _OTHER_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _sources(files: Sequence[Path], data_dir: Path) -> list[Source]:
    """Name the files by what is left of their paths without what they share."""
    folder = Path(os.path.commonpath([path.parent for path in files]))
    return [Source(path, path.relative_to(folder).as_posix() if len(files) > 1 else "") for path in files]


# Videos


def _video_folders(data_dir: Path, split: str = "train") -> list[Path]:
    return [data_dir / "videos", *(data_dir / name for name in SPLITS[split]), data_dir]


def _resolve(video: str, claim: VideoClaim, find_video: Callable[[str], Path | None]) -> str:
    """Return the first of the names of a video that is there; files of tools name the path on a server."""
    names = [*claim.names, video]
    names += [name for name in map(_last_part, names) if name not in names]
    return next((name for name in names if name and find_video(name)), names[0])


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _locate(name: str, folders: Sequence[Path]) -> Path | None:
    """Find a video, with or without its suffix or, as `prepare` leaves it, with another, or a folder of frames."""
    names = dict.fromkeys((name, _video_id(name)))
    candidates = (
        folder / f"{name}{suffix}" for name in names for folder in folders for suffix in ("", *VIDEO_SUFFIXES)
    )
    return next((path for path in candidates if path.is_file() or (path.is_dir() and path not in folders)), None)


def _list_videos(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def _look_into(
    paths: Mapping[str, Path | None],
    claims: Mapping[str, VideoClaim],
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
            video = path and _look_at(path, frames_fps, reader)
            annotated = claims[name].annotated_frames
            if video and annotated is not None and len(annotated):
                video = video._replace(num_frames=min(video.num_frames, int(annotated[-1]) + 1))
            videos[name] = video
    return videos


def _look_at(path: Path, frames_fps: float, reader: ClipReader) -> _Video:
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
    entry: Entry,
    labels: Mapping[str, int],
    video: _Video | None,
    box_format: str,
    size: tuple[int, int] | None,
    timestamp_offset: float,
) -> _Actor:
    """Check everything that an entry by itself can be wrong about; what takes the video, if that can be read."""
    unknown = next((label for label in entry.labels if label not in labels), None)
    if unknown is not None:
        raise AnnotationError(f"unknown class {quote(unknown)}{closest(unknown, labels)}")
    frames = None if entry.frames is None else np.asarray(entry.frames).tolist()
    entry = entry._replace(frames=frames, boxes=np.asarray(entry.boxes, dtype=object).tolist())
    num_boxes = 1 if frames is None else len(frames)
    if len(entry.boxes) != num_boxes or not num_boxes:
        raise AnnotationError(f"needs one box for each frame, got {len(entry.boxes)} for {num_boxes}")
    if video is not None:
        _check_time(entry, video, timestamp_offset)
    in_pixels = box_format == "pixel"
    size = size or (video and (video.width, video.height))
    # Without its video, nobody knows what pixels mean.
    boxes = [] if in_pixels and not size else [_unit_box(box, size if in_pixels else None) for box in entry.boxes]
    label_ids = sorted({labels[label] for label in entry.labels})
    return _Actor(entry.place, entry.video, entry.timestamp, frames, boxes, label_ids, entry.track_id)


def _unit_box(corners: Sequence[Any], size: tuple[int, int] | None) -> tuple[float, float, float, float]:
    """Check a box and turn it into fractions of the frame; `size` is that of the frame if corners are pixels."""
    if size is None:
        return parse_box(corners, pixel_hint='say so with box_format="pixel"')
    pixels = [number(corner, "a corner of a box") for corner in corners]
    width, height = size
    if len(pixels) != 4 or min(pixels) < -1 or max(pixels[::2]) > width + 1 or max(pixels[1::2]) > height + 1:
        raise AnnotationError(
            f"a box x1, y1, x2, y2 must lie in the {width} x {height} pixels of the frame, got {tuple(pixels)}"
        )
    return parse_box([min(max(pixel / side, 0.0), 1.0) for pixel, side in zip(pixels, size * 2, strict=True)])


def _check_time(entry: Entry, video: _Video, timestamp_offset: float) -> None:
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
