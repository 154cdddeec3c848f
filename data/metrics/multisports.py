"""Predictions in the pickles that the official script of MultiSports scores, `evaluate_multisports.py`.

    frame_detections.pkl    array (N, 8): video (its place in the list of test videos), frame from 1, label from 0,
                            score and the corners x1, y1, x2, y2 in pixels of the video
    video_detections.pkl    {label: [(name of the video, score, array (n, 5 or more) of frame and corners)]}

They are read without running code, see `classquery.data.annotations.pickles`. Source: MCG-NJU/MultiSports@5ffdc6a.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classquery.data.annotations.pickles import as_array, read_pickle
from classquery.data.annotations.schema import AnnotationError, ProblemCollector, quote
from classquery.data.metrics.files import BoxRows, FrameNames


FRAMES_FILE, TUBES_FILE = "frame_detections.pkl", "video_detections.pkl"
_NUM_COLUMNS = 8


def read_frame_detections(
    path: Path, names: FrameNames, videos: Sequence[str], frame_sizes: Mapping[str, np.ndarray]
) -> BoxRows:
    """Read `frame_detections.pkl`.

    Args:
        path: The pickle.
        names: Numbers the frames.
        videos: The test videos, in the order of the annotations.
        frame_sizes: (width, height, width, height) in pixels of each.

    Returns:
        Rows as of `read_detections`, with boxes as fractions of the frame.

    Raises:
        AnnotationError: If it is no such pickle, or a value is out of range.
    """
    array = as_array(read_pickle(path))
    if array is None or array.ndim != 2 or array.shape[1] != _NUM_COLUMNS or array.dtype.kind not in "iuf":
        raise AnnotationError(f"{path} must hold an array of numbers (N, {_NUM_COLUMNS}), see docs/metrics.md")
    rows = array.astype(np.float64)
    place, frame, label, score = rows[:, :4].T
    ranges = (
        (
            "video",
            (place >= 0) & (place < len(videos)) & (place % 1 == 0),
            f"a place in the {len(videos)} test videos",
        ),
        ("frame", (frame >= 1) & (frame % 1 == 0) & (frame < 2**31), "a whole number from 1"),
        ("label", (label >= 0) & (label % 1 == 0) & (label < 2**15), "a whole number from 0"),
        ("score", (score >= 0) & (score <= 1), "in [0, 1]; turn logits into it first"),
        ("box", np.isfinite(rows[:, 4:]).all(axis=1), "four finite corners"),
    )
    for what, is_right, expected in ranges:
        wrong = np.flatnonzero(~is_right)
        if len(wrong):
            raise AnnotationError(
                f"{path}, row {wrong[0]}: {what} must be {expected}, got {quote(rows[wrong[0]].tolist())}"
            )
    codes = names.video_codes(videos)
    sizes = np.array([frame_sizes[video] for video in videos]).reshape(-1, 4)
    video = codes[place.astype(np.int64)]
    boxes = rows[:, 4:] / sizes[place.astype(np.int64)]
    label_id = label.astype(np.int64) + 1
    return BoxRows(names.codes(video, frame), video, frame, boxes, label_id, score[:, None], np.zeros(0, np.int64))


def read_tube_detections(path: Path, scales: Mapping[str, np.ndarray], num_labels: int) -> list[dict[str, Any]]:
    """Read `video_detections.pkl`.

    Args:
        path: The pickle.
        scales: What pixels of each video are multiplied with.
        num_labels: Number of labels.

    Returns:
        Tubes as `tube_map` takes them.

    Raises:
        AnnotationError: With all problems: unknown labels and videos, tubes that are no arrays or not in order.
    """
    content, problems, tubes = read_pickle(path), ProblemCollector(path), []
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or not all(isinstance(items, list) for items in content.values()):
        raise AnnotationError(f"{path} must hold a list of tubes for each label, see docs/metrics.md")
    for label, items in content.items():
        for number, item in enumerate(items):
            with problems.at(f"label {quote(label)}, tube {number}"):
                if label not in range(num_labels):
                    raise AnnotationError(f"there are the labels 0 to {num_labels - 1}")
                tubes.append(_tube(item, label, scales))
    problems.raise_if_any()
    return tubes


def _tube(item: Any, label: int, scales: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if not isinstance(item, tuple | list) or len(item) != 3:
        raise AnnotationError(f"a tube is (video, score, array), got {quote(item)}")
    video, score, stored = item
    array = as_array(stored)
    if video not in scales:
        raise AnnotationError(f"{quote(video)} is no test video")
    if array is None or array.ndim != 2 or array.shape[1] < 5 or not np.isfinite(array.astype(np.float64)).all():
        raise AnnotationError("its array must have rows of frame, x1, y1, x2, y2, all of them finite")
    if not isinstance(score, int | float) or score != score:
        raise AnnotationError(f"its score must be a number, got {quote(score)}")
    frames = array[:, 0].astype(np.int64)
    if (np.diff(frames) <= 0).any():
        raise AnnotationError("its frames must be ascending")
    boxes = array[:, 1:5].astype(np.float64) * scales[video]
    return {"video": video, "label": int(label), "score": float(score), "frames": frames, "boxes": boxes}
