"""Checks of the arguments of the metrics, at their borders."""

from collections.abc import Sequence

import numpy as np


def validated_names(name: str, names: np.ndarray) -> np.ndarray:
    """Check the type of frames or videos; unsigned integers become signed ones, which mix with others without loss."""
    if names.dtype == object:  # strings in a pandas column
        names = np.array(names.tolist())
    if names.size and names.dtype.kind not in "iuU":
        raise ValueError(
            f"{name} must hold integers or strings, got {names.dtype}; "
            "write a frame as an index or as a string such as 'VIDEO_0902'"
        )
    return names.astype(np.int64) if names.dtype.kind in "iu" else names


def validate_comparable(kind: str, names: np.ndarray, true_names: np.ndarray) -> None:
    """Check that the frames or videos of both sides can be found again in each other."""
    if names.size and true_names.size and (names.dtype.kind == "U") != (true_names.dtype.kind == "U"):
        raise ValueError(
            f"{kind} must be all integers or all strings to be found again, got "
            f"{names.dtype} in detections and {true_names.dtype} in ground_truth; write them the same way in both"
        )


def validated_boxes(name: str, boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        row = np.argmin(finite)
        raise ValueError(f"{name} must be finite, got {boxes[row].tolist()} in row {row}; remove such boxes")
    return boxes


def validate_corner_order(name: str, boxes: np.ndarray) -> None:
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)
    if not ordered.all():
        row = np.argmin(ordered)
        raise ValueError(
            f"{name} must have x1 <= x2 and y1 <= y2, got {boxes[row].tolist()} in row "
            f"{row}; convert boxes given as (x, y, width, height) or (cx, cy, width, height)"
        )


def validated_scores(name: str, scores: np.ndarray) -> np.ndarray:
    """Check the range. Scores are by far the largest array: those of a usual type are not copied."""
    scores = scores if scores.dtype in (np.float16, np.float32, np.float64) else scores.astype(np.float64)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # NaN fails both comparisons
        raise ValueError(
            f"{name} must be in [0, 1] without NaN, got values from {scores.min()} to "
            f"{scores.max()}; turn logits into probabilities first"
        )
    return scores


def validated_thresholds(metric: str, iou_threshold: float | Sequence[float]) -> dict[str, float]:
    """Name the thresholds after their percentage: "frame_map", 0.5 -> {"frame_map_50": 0.5}."""
    thresholds = np.atleast_1d(np.asarray(iou_threshold, dtype=np.float64))
    if thresholds.ndim > 1 or not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"IoU thresholds must be a number in (0, 1] or a sequence of them, got {iou_threshold}")
    named = {f"{metric}_{100 * threshold:g}": threshold for threshold in thresholds.tolist()}
    if len(named) < len(thresholds):
        raise ValueError(f"IoU thresholds must not repeat a value, got {iou_threshold}")
    return named
