"""Reader of AVA v2.2 in its official files; rows of other data in the same layout are read alike.

    data_dir/annotations/ava_train_v2.2.csv, ava_val_v2.2.csv       one row per box and action
    data_dir/annotations/ava_val_excluded_timestamps_v2.2.csv       keyframes that nobody trains or evaluates on
    data_dir/annotations/ava_action_list_v2.2.pbtxt                 names of the actions
    data_dir/videos/<video_id>.mp4                                  or .mkv, .webm, .avi, in `videos/<split>/`, too

Differs from the reader of the paper's code, which was written for detections with a score where AVA has the person id:
no row is dropped because of its person id (that would lose everybody with id 0), two people with the same box stay
two, and missing videos are an error instead of being replaced by random other ones.
"""

import csv
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from classquery.data.schema import AnnotationError, ProblemCollector, parse_box, shorten, to_dataset


logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
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


class _Keyframe(NamedTuple):
    video_id: str
    timestamp: int  # Whole seconds.

    @property
    def clip_id(self) -> str:
        return f"{self.video_id}_{self.timestamp:04d}"


class _Person(NamedTuple):
    """Who is annotated. Both parts are needed: two people may have the same box, and all ids may be 0."""

    box: tuple[float, float, float, float]
    person_id: int


class _Row(NamedTuple):
    """One row of the annotation file: one action of one person."""

    keyframe: _Keyframe
    person: _Person
    label: int  # 0-based.


_People = dict[_Person, set[int]]  # Everybody at one keyframe with the labels of each, in the order of the file.


def load_ava(data_dir: str | Path, split: str, *, movie_start_seconds: float = 900.0) -> Dataset:
    """Read the annotations of one split, without opening the videos.

    Args:
        data_dir: Folder with `videos/` and the annotation files, these in `annotations/` or directly inside.
        split: "train" or "validation" ("val" means the same).
        movie_start_seconds: What the annotations call the start of the video files: 900 for movies cut at 15 minutes,
            as AVA is usually prepared, 0 for whole movies.

    Returns:
        One row per keyframe that has actors and is not excluded, in the order of the file, with `ACTION_FEATURES`. A
        tube holds the one box of an actor at `timestamp`. Everything that needs the video (`fps`, `num_frames`,
        `height`, `width`, `center_frame`, `frames` of the tubes) is null: the frame is the one shown at
        `video_seconds`, whatever the frame rate.

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
    labels = load_ava_labels(data_dir)
    keyframes = _read_people(_annotation_file(data_dir, split), len(labels), movie_start_seconds)
    for keyframe in _read_excluded(data_dir, split):
        keyframes.pop(keyframe, None)
    videos = _find_videos(data_dir, {keyframe.video_id for keyframe in keyframes})
    return to_dataset(
        [
            {
                "clip_id": keyframe.clip_id,
                "video": str(videos[keyframe.video_id]),
                "source": "video",
                "timestamp": keyframe.timestamp,
                "video_seconds": keyframe.timestamp - movie_start_seconds,
                "tubes": _tubes(people),
            }
            for keyframe, people in keyframes.items()
        ]
    )


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
    names = _parse_label_map(path)
    id2label = {}
    for label_id in range(1, max(names) + 1):
        if label_id not in names and label_id > len(AVA_LABELS):
            raise AnnotationError(f"{path}: ids must count from 1 without gaps, but {label_id} is missing.")
        id2label[label_id - 1] = names[label_id] if label_id in names else AVA_LABELS[label_id - 1]
    return id2label


def _parse_label_map(path: Path) -> dict[int, str]:
    """Return 1-based id to name, from `item { name: "x" id: 1 }` or `label { name: "x" label_id: 1 ... }`."""
    names: dict[int, str] = {}
    for entry in re.findall(r"\b(?:item|label)\s*\{(.*?)\}", path.read_text(encoding="utf-8"), flags=re.DOTALL):
        name = re.search(r"\bname:\s*([\"'])(.*)\1", entry)
        label_id = re.search(r"\b(?:label_)?id:\s*(\d+)", entry)
        if not (name and label_id) or int(label_id[1]) < 1 or int(label_id[1]) in names:
            raise AnnotationError(
                f"{path}: every entry needs a name and an id of its own from 1, got {entry.strip()!r}"
            )
        names[int(label_id[1])] = name[2]
    if not names:
        raise AnnotationError(f"{path}: found no `item {{ ... }}` and no `label {{ ... }}`.")
    return names


def _annotation_folders(data_dir: Path) -> tuple[Path, Path]:
    return data_dir / "annotations", data_dir


def _find_annotation_file(data_dir: Path, names: list[str]) -> Path | None:
    """Return the first of the files that exists."""
    candidates = (folder / name for folder in _annotation_folders(data_dir) for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _annotation_file(data_dir: Path, split: str) -> Path:
    name = f"ava_{_SPLITS[split]}_v2.2.csv"
    path = _find_annotation_file(data_dir, [name])
    if path is None:
        folder, alternative = _annotation_folders(data_dir)
        raise FileNotFoundError(f"No {name} in {folder} or {alternative}. {DOWNLOAD_HINT} and put them into {folder}.")
    return path


def _read_people(path: Path, num_labels: int, movie_start_seconds: float) -> dict[_Keyframe, _People]:
    keyframes: dict[_Keyframe, _People] = {}
    problems = ProblemCollector(path)
    for number, cells in _csv_rows(path):
        with problems.in_row(number):
            row = _parse_row(cells, num_labels, movie_start_seconds)
            keyframes.setdefault(row.keyframe, {}).setdefault(row.person, set()).add(row.label)
    problems.raise_if_any()
    return keyframes


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each row that is not empty, counted from 1, and its cells."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        yield from ((reader.line_num, cells) for cells in reader if cells)


def _parse_row(cells: list[str], num_labels: int, movie_start_seconds: float) -> _Row:
    if len(cells) != 8:
        raise AnnotationError(
            "a row needs 8 columns (video_id, timestamp, x1, y1, x2, y2, action_id, person_id), "
            f"got {len(cells)}: {','.join(cells)}"
        )
    video_id, timestamp, *corners, label_id, person_id = cells
    keyframe = _Keyframe(video_id, _whole_number(timestamp, "timestamp in seconds"))
    if keyframe.timestamp < movie_start_seconds:
        raise AnnotationError(
            f"timestamp {timestamp} is before the start of the movie, movie_start_seconds={movie_start_seconds:g}"
        )
    person = _Person(parse_box(corners), _whole_number(person_id, "person_id"))
    return _Row(keyframe, person, _parse_label(label_id, num_labels))


def _parse_label(text: str, num_labels: int) -> int:
    label_id = _whole_number(text, "action_id")
    if not 1 <= label_id <= num_labels:
        raise AnnotationError(f"unknown action_id {label_id}, the label map has 1 to {num_labels}")
    return label_id - 1


def _whole_number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise AnnotationError(f"{name} must be a whole number, got {text!r}") from None


def _read_excluded(data_dir: Path, split: str) -> set[_Keyframe]:
    names = [f"ava_{_SPLITS[split]}_excluded_timestamps_v2.{minor}.csv" for minor in (2, 1)]
    path = _find_annotation_file(data_dir, names)
    if path is None:
        logger.warning("No %s in %s: no keyframe is excluded.", names[0], data_dir)
        return set()
    excluded: set[_Keyframe] = set()
    problems = ProblemCollector(path)
    for number, cells in _csv_rows(path):
        with problems.in_row(number):
            if len(cells) != 2:
                raise AnnotationError(f"a row needs 2 columns (video_id, timestamp), got {len(cells)}")
            excluded.add(_Keyframe(cells[0], _whole_number(cells[1], "timestamp in seconds")))
    problems.raise_if_any()
    return excluded


def _find_videos(data_dir: Path, video_ids: set[str]) -> dict[str, Path]:
    """Return the file of each video; its name without the suffix is the id."""
    folder = data_dir / "videos"
    paths = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    videos = {path.stem: path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES}
    missing = sorted(video_ids - videos.keys())
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(video_ids)} videos are not in {folder} or its subfolders "
            f"(as {', '.join(VIDEO_SUFFIXES)}): {shorten(missing)}"
        )
    return videos


def _tubes(people: _People) -> list[dict]:
    return [
        {"track_id": person.person_id, "labels": sorted(labels), "frames": None, "boxes": [person.box]}
        for person, labels in people.items()
    ]
