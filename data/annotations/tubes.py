"""Readers of UCF101-24, JHMDB-21 and MultiSports: whole videos with their action tubes, from one pickle of one layout.

    data_dir/UCF101v2-GT.pkl     data_dir/rgb-images/<class>/<video>/00001.jpg      or <class>/<video>.avi
    data_dir/JHMDB-GT.pkl        data_dir/Frames/<class>/<video>/00001.png          or <class>/<video>.avi
    data_dir/multisports_GT.pkl  data_dir/trainval/<sport>/<video>.mp4

Videos in any format that is read may also lie in `data_dir/videos/` or directly in `data_dir`.

The pickle holds a dict of six: `labels`, the names of the classes; `gttubes`, for each video and class a list of
arrays (n, 5) of frame number from 1 and x1, y1, x2, y2 in pixels; `nframes` and `resolution` (height, width) of each
video; `train_videos` and `test_videos`, for each fold a list of videos. Loading a pickle can run code: here
everything but plain values and arrays of numbers is refused. UCF101-24 is also read from its corrected annotations as
they were published, see `classquery.data.annotations.ucf101_24`.

Differs from the readers of the paper's code: boxes belong to their frame number instead of their place in the tube,
they are not truncated to whole pixels, and wrong annotations are an error.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from classquery.data.annotations.pickles import as_array, read_pickle
from classquery.data.annotations.schema import VIDEO_SUFFIXES, AnnotationError, ProblemCollector, shorten, to_dataset
from classquery.data.annotations.ucf101_24 import read_corrected_annotations


logger = logging.getLogger(__name__)

_SPLITS = {"train": "train_videos", "validation": "test_videos", "val": "test_videos", "test": "test_videos"}
_PICKLE_TYPES = {
    "labels": list,
    "gttubes": dict,
    "nframes": dict,
    "train_videos": list,
    "test_videos": list,
    "resolution": dict,
}


class _Layout(NamedTuple):
    """What differs between the data sets."""

    # The pickle of six, and other files that are turned into the same; the first that is there counts.
    readers: dict[str, Callable[[Path], Any]]
    # Inside of data_dir; the first that has a video counts. Not all folders: those of optical flow look the same.
    video_folders: tuple[str, ...]
    download_hint: str


_ACT_DETECTOR = "It comes with the files of the ACT detector, https://github.com/vkalogeiton/caffe"
_UCF101_24 = _Layout(
    {
        "UCF101v2-GT.pkl": read_pickle,
        "pyannot.pkl": read_corrected_annotations,
        "finalAnnots.mat": read_corrected_annotations,
    },
    ("rgb-images", "videos", "UCF-101", "."),
    f"{_ACT_DETECTOR}; pyannot.pkl and finalAnnots.mat with https://github.com/gurkirt/corrected-UCF101-Annots",
)
_JHMDB_21 = _Layout({"JHMDB-GT.pkl": read_pickle}, ("Frames", "videos", "ReCompress_Videos", "."), _ACT_DETECTOR)
_MULTISPORTS = _Layout(
    {"multisports_GT.pkl": read_pickle},
    ("trainval", "videos", "."),
    "It comes with the videos, https://huggingface.co/datasets/MCG-NJU/MultiSports",
)


def load_ucf101_24(
    data_dir: str | Path, split: str, *, require_videos: bool = True, drop_empty_boxes: bool = False
) -> Dataset:
    """Read the annotations of one split of UCF101-24, without opening the videos.

    Args:
        data_dir: Folder with the pickle and the videos, or the pickle itself.
        split: "train" or "validation" ("val" and "test" mean the same).
        require_videos: Whether missing videos are an error; otherwise `video` and `source` are null for them.
        drop_empty_boxes: Whether boxes of which nothing lies inside of the frame are left out with a warning;
            otherwise they are an error.

    Returns:
        One row per video, in the order of the pickle, with `ACTION_FEATURES`: `clip_id` is the name of the video there
        ("Basketball/v_Basketball_g01_c01"), `num_frames`, `height` and `width` are as annotated, and each tube has one
        label and a number of its own in the video as `track_id`. Boxes are cut off at the edges of the frame.

    Raises:
        AnnotationError: If the pickle holds anything else than such annotations; with all problems of a split at once:
            videos listed twice or without length, resolution or tubes, labels that do not exist, tubes that are no
            arrays of shape (n, 5), frames outside of the video or twice in a tube, empty boxes.
        FileNotFoundError: If the pickle or videos are missing.
        ValueError: If there is no such split or fold.
    """
    return _load(_UCF101_24, data_dir, split, 0, require_videos, drop_empty_boxes)


def load_jhmdb_21(
    data_dir: str | Path,
    split: str,
    *,
    fold: int = 0,
    require_videos: bool = True,
    drop_empty_boxes: bool = False,
) -> Dataset:
    """Read the annotations of one split of JHMDB-21; `fold` is 0, 1 or 2. The rest is as for `load_ucf101_24`."""
    return _load(_JHMDB_21, data_dir, split, fold, require_videos, drop_empty_boxes)


def load_multisports(
    data_dir: str | Path, split: str, *, require_videos: bool = True, drop_empty_boxes: bool = False
) -> Dataset:
    """Read the annotations of one split of MultiSports, as `load_ucf101_24` does."""
    return _load(_MULTISPORTS, data_dir, split, 0, require_videos, drop_empty_boxes)


def load_ucf101_24_labels(data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes of UCF101-24, 0-based; arguments and errors as for `load_ucf101_24`."""
    return _load_labels(_UCF101_24, data_dir)


def load_jhmdb_21_labels(data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes of JHMDB-21, 0-based; arguments and errors as for `load_jhmdb_21`."""
    return _load_labels(_JHMDB_21, data_dir)


def load_multisports_labels(data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes of MultiSports, 0-based; arguments and errors as for `load_multisports`."""
    return _load_labels(_MULTISPORTS, data_dir)


def _load(
    layout: _Layout, data_dir: str | Path, split: str, fold: int, require_videos: bool, drop_empty_boxes: bool
) -> Dataset:
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {list(_SPLITS)}, got {split!r}.")
    path = _annotation_path(layout, data_dir)
    annotations = _read_annotations(layout, path)
    folds = annotations[_SPLITS[split]]
    if not 0 <= fold < len(folds):
        raise ValueError(f"{path} has the folds 0 to {len(folds) - 1}, got {fold}.")
    rows = _parse_videos(path, annotations, folds[fold], drop_empty_boxes)
    videos = _find_videos(layout, path.parent)
    if require_videos:
        _raise_if_missing(layout, path.parent, [row["clip_id"] for row in rows], videos)
    return to_dataset([row | videos.get(row["clip_id"], {}) for row in rows])


def _load_labels(layout: _Layout, data_dir: str | Path) -> dict[int, str]:
    return dict(enumerate(_read_annotations(layout, _annotation_path(layout, data_dir))["labels"]))


def _annotation_path(layout: _Layout, data_dir: str | Path) -> Path:
    data_dir = Path(data_dir)
    if data_dir.is_file():
        return data_dir
    path = next((data_dir / name for name in layout.readers if (data_dir / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"No {' or '.join(layout.readers)} in {data_dir}. {layout.download_hint}.")
    return path


# The pickle


def _read_annotations(layout: _Layout, path: Path) -> dict[str, Any]:
    """Read the file and check the types of its six parts, but not yet what is said of each video."""
    annotations = layout.readers.get(path.name, read_pickle)(path)
    if not isinstance(annotations, dict):
        raise AnnotationError(f"{path} must hold a dict, got {type(annotations).__name__}.")
    for key, expected in _PICKLE_TYPES.items():
        if not isinstance(annotations.get(key), expected):
            found = type(annotations[key]).__name__ if key in annotations else "nothing"
            raise AnnotationError(f"{path} must hold a {expected.__name__} as {key!r}, got {found}.")
    all_names = [annotations["labels"], *annotations["train_videos"], *annotations["test_videos"]]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in all_names):
        raise AnnotationError(f"{path} must hold names as 'labels', and lists of names in both lists of videos.")
    return annotations


def _parse_videos(
    path: Path, annotations: dict[str, Any], videos: list[str], drop_empty_boxes: bool
) -> list[dict[str, Any]]:
    """Turn the annotations of some videos into rows, still without `video` and `source`."""
    rows: dict[str, dict[str, Any]] = {}
    problems, dropped = ProblemCollector(path), ProblemCollector(path)
    for video in videos:
        with problems.at(video):
            if video in rows:
                raise AnnotationError("the split lists it twice")
            num_frames, height, width = _parse_size(annotations, video)
            row = {"clip_id": video, "num_frames": num_frames, "height": height, "width": width, "tubes": []}
            for place, label, stored in _arrays_of(annotations, video):
                with problems.at(place):
                    tube = _by_frame(stored, num_frames)
                    boxes = np.clip(tube[:, 1:] / [width, height, width, height], 0, 1)
                    is_empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
                    with (dropped if drop_empty_boxes else problems).at(place):
                        _refuse_empty_boxes(tube[is_empty])
                    frames = tube[:, 0].astype(int) - 1
                    row["tubes"] += _tube(len(row["tubes"]), label, frames[~is_empty], boxes[~is_empty])
            rows[video] = row
    problems.raise_if_any()
    if dropped.num_problems:
        logger.warning("Left these boxes out, %s", dropped.report())
    return list(rows.values())


def _parse_size(annotations: dict[str, Any], video: str) -> tuple[int, int, int]:
    """Return the number of frames, height and width of a video."""
    num_frames, resolution = annotations["nframes"].get(video), annotations["resolution"].get(video)
    array = as_array(resolution)
    resolution = resolution if array is None else tuple(array.tolist())
    if not isinstance(num_frames, int) or num_frames < 1:
        raise AnnotationError(f"nframes must be a positive whole number, got {num_frames}")
    is_pair = isinstance(resolution, (tuple, list)) and len(resolution) == 2
    if not is_pair or not all(isinstance(side, int) and side > 0 for side in resolution):
        raise AnnotationError(f"resolution must be (height, width) in whole pixels, got {resolution}")
    return num_frames, *resolution


def _arrays_of(annotations: dict[str, Any], video: str) -> Iterator[tuple[str, int, Any]]:
    """Yield how to name each tube of a video, its label, and what should be its array."""
    tubes, labels = annotations["gttubes"].get(video), annotations["labels"]
    if not isinstance(tubes, dict) or not all(isinstance(arrays, list) for arrays in tubes.values()):
        raise AnnotationError("gttubes must have a dict for every video, from label to list of tubes")
    for label, arrays in tubes.items():
        if label not in range(len(labels)):
            raise AnnotationError(f"unknown label {label!r}, there are 0 to {len(labels) - 1}")
        for number, array in enumerate(arrays):
            yield f"{video}, tube {number} of {labels[label]}", label, array


def _by_frame(stored: Any, num_frames: int) -> np.ndarray:
    """Check the array of a tube, but for its corners, and sort its rows by frame."""
    array = as_array(stored)
    if array is None or array.ndim != 2 or array.shape[1] != 5 or array.dtype.kind not in "fiu":
        found = type(stored).__name__ if array is None else f"{array.dtype} {array.shape}"
        raise AnnotationError(f"must be an array of numbers (n, 5): frame, x1, y1, x2, y2; got {found}")
    if not len(array) or not np.isfinite(array).all():
        raise AnnotationError("must have at least one box, and nothing but finite numbers")
    frames = array[:, 0]
    outside = frames[(frames < 1) | (frames > num_frames) | (frames % 1 != 0)]
    if len(outside):
        raise AnnotationError(f"frames must be whole numbers from 1 to {num_frames} (nframes), got {outside[0]:g}")
    if len(np.unique(frames)) < len(frames):
        raise AnnotationError(f"got {len(frames)} boxes for {len(np.unique(frames))} frames, each may have one")
    return array[np.argsort(frames)]


def _refuse_empty_boxes(boxes: np.ndarray) -> None:
    if len(boxes):
        frame, *corners = boxes[0].tolist()
        noun = "box has" if len(boxes) == 1 else "boxes have"
        raise AnnotationError(
            f"{len(boxes)} {noun} no area in the frame (see drop_empty_boxes), first {tuple(corners)} in frame "
            f"{frame:g}"
        )


def _tube(track_id: int, label: int, frames: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    """Return the one tube, or none if there is no box."""
    tube = {"track_id": track_id, "labels": [label], "frames": frames.tolist(), "boxes": boxes.tolist()}
    return [tube] if len(frames) else []


# The videos


def _find_videos(layout: _Layout, data_dir: Path) -> dict[str, dict[str, str]]:
    """Return `video` and `source` of every "<class>/<video>" that is there."""
    videos: dict[str, dict[str, str]] = {}
    for folder in layout.video_folders:
        for path in sorted((data_dir / folder).glob("*/*")):
            is_video = path.suffix.lower() in VIDEO_SUFFIXES
            if is_video or path.is_dir():
                name = path.stem if is_video else path.name
                found = {"video": str(path), "source": "video" if is_video else "frames"}
                videos.setdefault(f"{path.parent.name}/{name}", found)
    return videos


def _raise_if_missing(layout: _Layout, data_dir: Path, names: list[str], videos: dict[str, dict[str, str]]) -> None:
    missing = [name for name in names if name not in videos]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} videos are not in {data_dir} or its folders "
            f"{', '.join(layout.video_folders[:-1])}, neither as folders of frames nor as "
            f"{', '.join(VIDEO_SUFFIXES)}: {shorten(missing)}"
        )
