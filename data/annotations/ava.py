"""Reader of AVA v2.2; rows of other data in the same layout are read alike.

    data_dir/annotations/ava_train_v2.2.csv, ava_val_v2.2.csv       one row per box and action
    data_dir/annotations/ava_val_excluded_timestamps_v2.2.csv       keyframes that nobody trains or evaluates on
    data_dir/annotations/ava_action_list_v2.2.pbtxt                 names of the actions
    data_dir/videos/<video_id>.mp4                                  or another suffix, in `videos/<split>/`, too

In place of the csv, which counts if both are there: `ava_{train,val}_v22_updated.json`, as published with the paper's
code. It does not say who is who. In place of a video: the folder of its frames,
`frames/<video_id>/<video_id>_000001.jpg` or `rawframes/<video_id>/img_00001.jpg`.

Differs from the reader of the paper's code, which was written for detections with a score where AVA has the person id:
no row is dropped because of its person id (that would lose everybody with id 0), two people with the same box stay
two, and missing videos are an error instead of being replaced by random other ones.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset

from classquery.data.annotations.csv_columns import parse_csv, read_bytes
from classquery.data.annotations.schema import (
    BOX_TOLERANCE,
    VIDEO_SUFFIXES,
    AnnotationError,
    ProblemCollector,
    abbreviate,
    columns_to_dataset,
    nest_tubes,
    parse_box,
    parsing,
    quote,
    shorten,
    unit_boxes,
)
from classquery.data.annotations.values import MAX_WHOLE_NUMBER


logger = logging.getLogger(__name__)

FRAME_FOLDERS = ("frames", "rawframes")
DOWNLOAD_HINT = "Download the annotations from https://research.google.com/ava/download.html"
_SPLITS = {"train": "train", "validation": "val", "val": "val"}

AVA_LABELS = (
    "bend/bow (at the waist)",
    "crawl",
    "crouch/kneel",
    "dance",
    "fall down",
    "get up",
    "jump/leap",
    "lie/sleep",
    "martial art",
    "run/jog",
    "sit",
    "stand",
    "swim",
    "walk",
    "answer phone",
    "brush teeth",
    "carry/hold (an object)",
    "catch (an object)",
    "chop",
    "climb (e.g., a mountain)",
    "clink glass",
    "close (e.g., a door, a box)",
    "cook",
    "cut",
    "dig",
    "dress/put on clothing",
    "drink",
    "drive (e.g., a car, a truck)",
    "eat",
    "enter",
    "exit",
    "extract",
    "fishing",
    "hit (an object)",
    "kick (an object)",
    "lift/pick up",
    "listen (e.g., to music)",
    "open (e.g., a window, a car door)",
    "paint",
    "play board game",
    "play musical instrument",
    "play with pets",
    "point to (an object)",
    "press",
    "pull (an object)",
    "push (an object)",
    "put down",
    "read",
    "ride (e.g., a bike, a car, a horse)",
    "row boat",
    "sail boat",
    "shoot",
    "shovel",
    "smoke",
    "stir",
    "take a photo",
    "text on/look at a cellphone",
    "throw",
    "touch (an object)",
    "turn (e.g., a screwdriver)",
    "watch (e.g., TV)",
    "work on a computer",
    "write",
    "fight/hit (a person)",
    "give/serve (an object) to (a person)",
    "grab (a person)",
    "hand clap",
    "hand shake",
    "hand wave",
    "hug (a person)",
    "kick (a person)",
    "kiss (a person)",
    "lift (a person)",
    "listen to (a person)",
    "play with kids",
    "push (another person)",
    "sing to (e.g., self, a person, a group)",
    "take (an object) from (a person)",
    "talk to (e.g., self, a person, a group)",
    "watch (a person)",
)


# One row per action of a person; several rows of one box and one person are one actor.
_CORNERS = ["x1", "y1", "x2", "y2"]
_COLUMNS = ["video_id", "timestamp", *_CORNERS, "label", "person_id"]


class _Keyframe(NamedTuple):
    video_id: str
    timestamp: int  # Whole seconds.


def load_ava(
    data_dir: str | Path,
    split: str,
    *,
    movie_start_seconds: float = 900.0,
    frames_fps: float = 30.0,
    require_videos: bool = True,
) -> Dataset:
    """Read the annotations of one split, without opening the videos.

    Args:
        data_dir: Folder with `videos/`, `frames/` or `rawframes/` and the annotation files, these in `annotations/` or
            directly inside.
        split: "train" or "validation" ("val" means the same).
        movie_start_seconds: What the annotations call the start of the video files, or of the folders of frames: 900
            for movies cut at 15 minutes, as AVA is usually prepared, 0 for whole movies.
        frames_fps: Frames per second in folders of frames; 30 as AVA is usually prepared.
        require_videos: Whether missing videos are an error; otherwise `video` and `source` are null for them.

    Returns:
        One row per keyframe that has actors and is not excluded, in the order of the file, with `ACTION_FEATURES`. A
        tube holds the one box of an actor at `timestamp`; `track_id` is the person id, null if the JSON was read.
        Everything that needs the video (`num_frames`, `height`, `width`, `center_frame`, `frames` of the tubes, and
        `fps` but for folders of frames) is null: the frame is the one shown at `video_seconds`, whatever the frame
        rate. Videos count before folders of frames.

    Raises:
        AnnotationError: With all problems of a file, by row: wrong number of columns, timestamp or person id that is
            not a whole number, keyframe before `movie_start_seconds`, box that is empty or outside the frame, class
            that is not in the label map.
        FileNotFoundError: If the annotations or videos are missing.
        ValueError: If there is no such split.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {list(_SPLITS)}, got {split!r}.")
    data_dir = Path(data_dir)
    path = _annotation_file(data_dir, split)
    read = _read_json if path.suffix == ".json" else _read_csv
    actions = read(path, len(load_ava_labels(data_dir)), movie_start_seconds)
    actions = _without(actions, _read_excluded(data_dir, split))
    keyframes, tubes = _group(actions)
    videos = _find_videos(data_dir, set(keyframes["video_id"]))
    if require_videos:
        _raise_if_missing(data_dir, set(keyframes["video_id"]), videos)
    sources = [videos.get(video_id, (None, None)) for video_id in keyframes["video_id"]]
    columns = {
        "clip_id": [f"{video_id}_{timestamp:04d}" for video_id, timestamp in keyframes.itertuples(index=False)],
        "video": [video for video, _ in sources],
        "source": [source for _, source in sources],
        "fps": [frames_fps if source == "frames" else None for _, source in sources],
        "timestamp": keyframes["timestamp"].to_numpy(np.float32),
        "video_seconds": (keyframes["timestamp"] - movie_start_seconds).to_numpy(np.float32),
        "tubes": tubes,
    }
    return columns_to_dataset(columns, len(keyframes))


def load_ava_labels(data_dir: str | Path) -> dict[int, str]:
    """Read the names of the actions from the label map, a `*.pbtxt` file beside the annotations.

    Args:
        data_dir: As for `load_ava`. If it has several label maps, the one with the shortest name counts: the names of
            the official maps for challenges, which leave labels out, are longer.

    Returns:
        0-based class to name, as written. Ids that the map leaves out take their official name, and all 80 official
        names are returned if there is no label map.

    Raises:
        AnnotationError: If the file holds no labels, an entry lacks its id or name, an id occurs twice, or the ids
            have gaps that the official names do not fill.
    """
    paths = [path for folder in _annotation_folders(Path(data_dir)) for path in folder.glob("*.pbtxt")]
    if not paths:
        return dict(enumerate(AVA_LABELS))
    path = min(paths, key=lambda path: (len(path.name), path.name))
    names = parse_label_map(path)
    id2label = {}
    for label_id in range(1, max(names) + 1):
        if label_id not in names and label_id > len(AVA_LABELS):
            raise AnnotationError(f"{path}: ids must count from 1 without gaps, but {label_id} is missing.")
        id2label[label_id - 1] = names[label_id] if label_id in names else AVA_LABELS[label_id - 1]
    return id2label


def parse_label_map(path: Path) -> dict[int, str]:
    """Return 1-based id to name, from `item { name: "x" id: 1 }` or `label { name: "x" label_id: 1 ... }`."""
    names: dict[int, str] = {}
    with parsing(path, "it cannot be read as text"):
        text = path.read_text(encoding="utf-8")
    for entry in re.findall(r"\b(?:item|label)\s*\{(.*?)\}", text, flags=re.DOTALL):
        name = re.search(r"\bname:\s*([\"'])(.*)\1", entry)
        label_id = re.search(r"\b(?:label_)?id:\s*(\d+)", entry)
        if not (name and label_id) or int(label_id[1]) < 1 or int(label_id[1]) in names:
            raise AnnotationError(
                f"{path}: every entry needs a name and an id of its own from 1, got {quote(entry.strip())}"
            )
        names[int(label_id[1])] = name[2]
    if not names:
        raise AnnotationError(f"{path}: found no `item {{ ... }}` and no `label {{ ... }}`.")
    return names


def _annotation_folders(data_dir: Path) -> tuple[Path, Path]:
    return data_dir / "annotations", data_dir


def _find_annotation_file(data_dir: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the files that exists."""
    candidates = (folder / name for name in names for folder in _annotation_folders(data_dir))
    return next((path for path in candidates if path.is_file()), None)


def _annotation_file(data_dir: Path, split: str) -> Path:
    names = f"ava_{_SPLITS[split]}_v2.2.csv", f"ava_{_SPLITS[split]}_v22_updated.json"
    path = _find_annotation_file(data_dir, names)
    if path is None:
        folder, alternative = _annotation_folders(data_dir)
        raise FileNotFoundError(
            f"No {names[0]} (or {names[1]}) in {folder} or {alternative}. {DOWNLOAD_HINT} and put them into {folder}."
        )
    return path


# The csv


def _read_csv(path: Path, num_labels: int, movie_start_seconds: float) -> pd.DataFrame:
    csv = parse_csv(path, read_bytes(path), _COLUMNS, texts=("video_id",), numbers=_COLUMNS[1:])
    boxes = np.stack([csv.numbers[name] for name in _CORNERS], 1)
    boxes, are_boxes = unit_boxes(boxes, np.ones((1, 2)), BOX_TOLERANCE)
    timestamp, label_id, person_id = (csv.numbers[name] for name in ("timestamp", "label", "person_id"))
    right = (
        are_boxes
        & (csv.texts["video_id"].codes >= 0)
        & (timestamp >= movie_start_seconds)
        & (label_id >= 1)
        & (label_id <= num_labels)
        & (np.stack([timestamp, label_id, person_id]) % 1 == 0).all(0)
        & (abs(person_id) <= MAX_WHOLE_NUMBER)
    )
    problems = ProblemCollector(path)

    def why(cells: list[str]) -> str:
        return _why_wrong(cells, num_labels, movie_start_seconds)

    csv.note_wrong(right, problems, lambda row: why(csv.list_cells(row)), why)
    problems.raise_if_any()
    video_id = pd.Categorical.from_codes(csv.texts["video_id"].codes, csv.texts["video_id"].values)
    columns = {"video_id": video_id, "timestamp": timestamp.astype(np.int64)}
    columns |= dict(zip(_CORNERS, boxes.T, strict=True))
    columns |= {"label": label_id.astype(np.int64) - 1, "person_id": person_id.astype(np.int64)}
    return pd.DataFrame(columns)


def _why_wrong(cells: list[str], num_labels: int, movie_start_seconds: float) -> str:
    try:
        _parse_row(cells, num_labels, movie_start_seconds)
    except AnnotationError as problem:
        return str(problem)
    return f"has a value out of range: {quote(cells)}"


def _parse_row(cells: list[str], num_labels: int, movie_start_seconds: float) -> tuple:
    """Check one row, and return the values of `_COLUMNS`."""
    if len(cells) != 8:
        raise AnnotationError(
            "a row needs 8 columns (video_id, timestamp, x1, y1, x2, y2, action_id, person_id), "
            f"got {len(cells)}: {abbreviate(','.join(cells))}"
        )
    video_id, timestamp, *corners, label_id, person_id = cells
    _refuse_detection(label_id, person_id)
    seconds = _parse_timestamp(timestamp, movie_start_seconds)
    box, person = parse_box(corners), _whole_number(person_id, "person_id")
    return video_id, seconds, *box, _parse_label(label_id, num_labels), person


def _refuse_detection(label_id: str, person_id: str) -> None:
    """Refuse a row of the files of predicted people, which have a score where AVA has the person id."""
    if re.fullmatch(r"[01]?\.\d+", person_id):
        raise AnnotationError(
            f"action_id {label_id!r} and person_id {person_id!r} look like a detected person with a score: this "
            "reader needs the annotations, not a file of predicted boxes"
        )


def _parse_timestamp(timestamp: str, movie_start_seconds: float) -> int:
    seconds = _whole_number(timestamp, "timestamp in seconds")
    if seconds < movie_start_seconds:
        raise AnnotationError(
            f"timestamp {timestamp} is before the start of the movie, movie_start_seconds={movie_start_seconds:g}"
        )
    return seconds


def _parse_label(text: Any, num_labels: int, first: int = 1) -> int:
    label_id = _whole_number(text, "action_id")
    if not first <= label_id < first + num_labels:
        raise AnnotationError(f"unknown action_id {label_id}, the label map has {first} to {first + num_labels - 1}")
    return label_id - first


def _whole_number(value: Any, name: str) -> int:
    try:
        number = int(value)
    except (OverflowError, TypeError, ValueError):
        number = None
    if number is None or (isinstance(value, float) and number != value):
        raise AnnotationError(f"{name} must be a whole number, got {quote(value)}")
    return number


def _read_excluded(data_dir: Path, split: str) -> set[_Keyframe]:
    names = [f"ava_{_SPLITS[split]}_excluded_timestamps_v2.{minor}.csv" for minor in (2, 1)]
    path = _find_annotation_file(data_dir, names)
    if path is None:
        logger.warning("No %s in %s: no keyframe is excluded.", names[0], data_dir)
        return set()
    csv = parse_csv(path, read_bytes(path), ("video_id", "timestamp"), texts=("video_id",), numbers=("timestamp",))
    names, seconds = csv.texts["video_id"], csv.numbers["timestamp"]
    problems = ProblemCollector(path)
    csv.note_wrong(
        (names.codes >= 0) & (seconds % 1 == 0) & (abs(seconds) <= MAX_WHOLE_NUMBER),
        problems,
        lambda row: f"needs a video and a timestamp in whole seconds, got {quote(csv.list_cells(row))}",
        lambda cells: f"a row needs 2 columns (video_id, timestamp), got {len(cells)}",
    )
    problems.raise_if_any()
    videos = [names.values[code] for code in names.codes]
    return {_Keyframe(video, int(at)) for video, at in zip(videos, seconds, strict=True)}


# The JSON


def _read_json(path: Path, num_labels: int, movie_start_seconds: float) -> pd.DataFrame:
    """Read `{"video_frame_bbox": {"<video_id>,<timestamp>": {"bboxes": [...], "acts": [...]}}, "frame_keys_list"}`.

    Its actions count from 0, those of the csv from 1. The number of a box at its keyframe stands in for the person id,
    so that people with the same box stay apart. Boxes without an action are left out, as in the paper's code.
    """
    keyframes, keys = _load_json(path)
    rows = []
    problems = ProblemCollector(path)
    for key in keys:
        with problems.at(key):
            video_id, timestamp = _parse_key(key, keyframes, movie_start_seconds)
            for person, (box, labels) in enumerate(_actors_of(keyframes[key])):
                with problems.at(f"{key}, box {person}"):
                    corners = parse_box(box)
                    labels = [_parse_label(label, num_labels, first=0) for label in labels]
                    rows += [(video_id, timestamp, *corners, label, person) for label in labels]
    problems.raise_if_any()
    return pd.DataFrame(rows, columns=_COLUMNS).assign(track_id=None)


def _load_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the keyframes by key, and the keys of those that count."""
    with parsing(path, "it is no valid JSON, perhaps cut off"):
        content = json.loads(path.read_text(encoding="utf-8"))
    keyframes = content.get("video_frame_bbox") if isinstance(content, dict) else None
    if not isinstance(keyframes, dict):
        raise AnnotationError(
            f"{path} must hold an object with 'video_frame_bbox', from keyframe to boxes and actions"
        )
    keys = content.get("frame_keys_list", list(keyframes))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise AnnotationError(f"{path} must hold a list of names as 'frame_keys_list'")
    return keyframes, keys


def _parse_key(key: str, keyframes: dict[str, Any], movie_start_seconds: float) -> tuple[str, int]:
    video_id, separator, timestamp = key.rpartition(",")
    if not separator or key not in keyframes:
        raise AnnotationError("a keyframe is '<video_id>,<timestamp>', and 'video_frame_bbox' must have it")
    return video_id, _parse_timestamp(timestamp, movie_start_seconds)


def _actors_of(keyframe: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the box and the actions of everybody at a keyframe."""
    boxes, actions = (keyframe.get(name) if isinstance(keyframe, dict) else None for name in ("bboxes", "acts"))
    are_lists = isinstance(boxes, list) and isinstance(actions, list) and len(boxes) == len(actions)
    if not are_lists or not all(isinstance(part, list) for part in (*boxes, *actions)):
        raise AnnotationError("'bboxes' must be a list of boxes, and 'acts' a list of actions for each of them")
    yield from zip(boxes, actions, strict=True)


# Keyframes and actors


def _without(actions: pd.DataFrame, excluded: set[_Keyframe]) -> pd.DataFrame:
    keyframes = pd.MultiIndex.from_frame(actions[["video_id", "timestamp"]])
    return actions[~keyframes.isin(list(excluded))] if excluded else actions


def _group(actions: pd.DataFrame) -> tuple[pd.DataFrame, pa.Array]:
    """Find the keyframes (video_id, timestamp) and the actors of each of them, both in the order of their first row.

    An actor is told by its box and its person id. Both are needed: two people may have the same box, and all ids may
    be 0.
    """
    actions = actions.assign(keyframe=actions.groupby(["video_id", "timestamp"], sort=False, observed=True).ngroup())
    actions = actions.sort_values("keyframe", kind="stable")
    actions["actor"] = actions.groupby(["keyframe", *_CORNERS, "person_id"], sort=False).ngroup()
    keyframes = actions.drop_duplicates("keyframe")[["video_id", "timestamp"]]
    actors = actions.drop_duplicates("actor")
    labels = actions[["actor", "label"]].drop_duplicates().sort_values(["actor", "label"])
    return keyframes, _tubes(actors, labels)


def _tubes(actors: pd.DataFrame, labels: pd.DataFrame) -> pa.Array:
    """Nest the labels (actor, label) in the actors, and these in their keyframes."""
    tracks = pa.array(actors["track_id" if "track_id" in actors else "person_id"], pa.int32(), from_pandas=True)
    return nest_tubes(
        np.bincount(actors["keyframe"]),
        tracks,
        (np.bincount(labels["actor"]), labels["label"].to_numpy(), None),
        (np.ones(len(actors), np.int64), actors[_CORNERS].to_numpy(np.float32)),
    )


# The videos


def _find_videos(data_dir: Path, video_ids: set[str]) -> dict[str, tuple[str, str]]:
    """Return the file of each video, or its folder of frames; and which.

    An id is the name without the suffix. Where several videos have that in common, it is the name with suffix, or with
    the folder before it, as detections of them say: `room_a_1` is `videos/room_a/1.mp4`.
    """
    frames = {
        path.name: (str(path), "frames") for name in reversed(FRAME_FOLDERS) for path in (data_dir / name).glob("*")
    }
    paths = sorted(path for pattern in ("*", "*/*") for path in (data_dir / "videos").glob(pattern))
    found: dict[str, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            names = {path.stem, path.name, f"{path.parent.name}_{path.stem}", f"{path.parent.name}_{path.name}"}
            for name in names & video_ids:
                found.setdefault(name, []).append(path)
    for name, files in found.items():
        if len(files) > 1:
            raise AnnotationError(f"{quote(name)} may be {files[0]} or {files[1]}: keep one of them in the folder")
    return frames | {name: (str(files[0]), "video") for name, files in found.items()}


def _raise_if_missing(data_dir: Path, video_ids: set[str], videos: dict[str, tuple[str, str]]) -> None:
    missing = sorted(video_ids - videos.keys())
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(video_ids)} videos are not in {data_dir / 'videos'} or its subfolders "
            f"(as {', '.join(VIDEO_SUFFIXES)}), nor are their frames in {' or '.join(FRAME_FOLDERS)}: "
            f"{shorten(missing)}"
        )
