"""Link the boxes of single frames into tubes, going through the frames once.

Tubes start and end anywhere (Kalogeiton et al., "Action Tubelet Detector", 2017, for single frames). This is the
linking of the pipeline, which travels to the Hub, and of the metrics (`classquery.data.metrics.linking`); it knows
nothing of a model.

A tube is a dict with `"frames"` of shape (n,), ascending, `"boxes"` of shape (n, 4) as (x1, y1, x2, y2), `"scores"`
(n,), their mean `"score"`, and `"rows"` (n,): where each box stands in the arguments, to look up anything else that is
known about it.

`greedy_tubes` works on many videos and labels at once: P problems (a label in a video) with T frames of Q boxes at
most are `boxes` (P, T, Q, 4), `scores` (P, T, Q) and `valid` (P, T, Q), which is False for padding.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike


Tube = dict[str, Any]


def link_greedily(
    frames: ArrayLike,
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    iou_threshold: float = 0.5,
    max_gap: int = 0,
    prefer: Literal["score", "overlap"] = "score",
) -> list[Tube]:
    """Link boxes of one video into tubes that start and end anywhere, going through the frames once.

    In each frame the tubes choose in descending order of their mean score so far, each the box with the highest score
    among those that are left and overlap its last box. Boxes that nobody chose start new tubes. Of equal scores, the
    older tube and the earlier row win.

    Args:
        frames: Frame number of each box, (N,), in any order.
        boxes: (N, 4) as (x1, y1, x2, y2), in any unit.
        scores: (N,) in [0, 1].
        iou_threshold: Smallest IoU of consecutive boxes of a tube, in (0, 1].
        max_gap: For how many frames in a row a tube may miss; missed frames are left out of the tube.
        prefer: Whether a tube takes the box with the highest score, as in evaluation, or the one that overlaps its
            last box most, which tells people in a crowd apart.

    Returns:
        Tubes as described above, ordered by their first frame; each box is in exactly one tube.

    Raises:
        ValueError: If shapes do not go together or values are not finite.

    Example:
        >>> tubes = link_greedily([7, 7, 8], [[0, 0, 4, 4], [5, 5, 9, 9], [5, 5, 9, 8]], [0.9, 0.6, 0.7])
        >>> [(tube["frames"].tolist(), tube["rows"].tolist()) for tube in tubes]
        [([7], [0]), ([7, 8], [1, 2])]
    """
    frames, boxes, scores = validated_boxes(frames, boxes, scores)
    if not len(frames):
        return []
    rows = pack_rows(frames)[None]
    tubes = greedy_tubes(boxes[rows], scores[rows], rows >= 0, np.unique(frames)[None], iou_threshold, max_gap, prefer)
    return [
        linked_tube(frames, boxes, scores, rows[0][tubes[0] == tube])  # In the order of frames: one box in each.
        for tube in range(tubes.max() + 1)
    ]


def box_iou(boxes: np.ndarray, other_boxes: np.ndarray, extra_pixel: float = 0.0) -> np.ndarray:
    """Intersection over union: (..., 4), (..., 4) -> (...), shapes broadcast; 0 if both boxes are empty."""
    left, top, right, bottom = (boxes[..., i] for i in range(4))
    other_left, other_top, other_right, other_bottom = (other_boxes[..., i] for i in range(4))
    width = np.minimum(right, other_right) - np.maximum(left, other_left) + extra_pixel
    height = np.minimum(bottom, other_bottom) - np.maximum(top, other_top) + extra_pixel
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area = (right - left + extra_pixel) * (bottom - top + extra_pixel)
    other_area = (other_right - other_left + extra_pixel) * (other_bottom - other_top + extra_pixel)
    union = area + other_area - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def pack_rows(groups: np.ndarray) -> np.ndarray:
    """Lay out the rows of each group side by side.

    Args:
        groups: (N,); groups are taken in ascending order, rows of a group in their order.

    Returns:
        Rows of shape (num_groups, size of the largest group), at least one wide, filled up with -1.
    """
    order = np.argsort(groups, kind="stable")
    _, start, size = np.unique(groups[order], return_index=True, return_counts=True)
    packed = np.full((len(start), size.max(initial=1)), -1)
    group = np.repeat(np.arange(len(start)), size)
    packed[group, np.arange(len(groups)) - start[group]] = order
    return packed


# A tube that may still go on: its number, -1 for an empty place, and its last box.
_LIVE_TUBE = np.dtype(
    [("tube", np.int64), ("frame", np.int64), ("box", np.float64, 4), ("score_sum", np.float64), ("length", np.int64)]
)


def greedy_tubes(
    boxes: np.ndarray,
    scores: np.ndarray,
    valid: np.ndarray,
    frames: np.ndarray,
    iou_threshold: float = 0.5,
    max_gap: int = 0,
    prefer: Literal["score", "overlap"] = "score",
) -> np.ndarray:
    """Link boxes frame by frame, see `link_greedily`.

    Args:
        boxes, scores, valid: As described above.
        frames: Frame numbers, (P, T), ascending; any number for padding.
        iou_threshold, max_gap, prefer: As for `link_greedily`.

    Returns:
        The tube of each box, (P, T, Q), counted from 0 in each problem in the order they start; -1 for padding.
    """
    num_problems, num_frames, _ = scores.shape
    tubes = np.full(scores.shape, -1)
    num_tubes = np.zeros((num_problems, 1), dtype=np.int64)
    live = np.empty((num_problems, 0), dtype=_LIVE_TUBE)
    for at in range(num_frames):
        frame = frames[:, at, None]
        live = _still_alive(live, frame, max_gap)
        place = _places_in_tubes(live, boxes[:, at], scores[:, at], valid[:, at], iou_threshold, prefer)

        problem, box = np.nonzero(place >= 0)
        extended = problem, place[problem, box]
        tubes[problem, at, box] = live["tube"][extended]
        live["frame"][extended] = frame[problem, 0]
        live["box"][extended] = boxes[problem, at, box]
        live["score_sum"][extended] += scores[problem, at, box]
        live["length"][extended] += 1

        starts = valid[:, at] & (place < 0)
        tubes[:, at] = np.where(starts, num_tubes + starts.cumsum(axis=1) - 1, tubes[:, at])
        num_tubes += starts.sum(axis=1, keepdims=True)
        started = np.empty(starts.shape, dtype=_LIVE_TUBE)
        started["tube"] = np.where(starts, tubes[:, at], -1)
        started["frame"], started["box"] = frame, boxes[:, at]
        started["score_sum"], started["length"] = scores[:, at], 1
        live = np.concatenate([live, started], axis=1)
    return tubes


def _still_alive(live: np.ndarray, frame: np.ndarray, max_gap: int) -> np.ndarray:
    """Leave out tubes that have missed more than `max_gap` frames before this one: (P, S), (P, 1) -> (P, fewer)."""
    alive = (live["tube"] >= 0) & (frame - live["frame"] <= max_gap + 1)
    kept = np.argsort(~alive, axis=1, kind="stable")[:, : alive.sum(axis=1).max(initial=0)]
    live, alive = np.take_along_axis(live, kept, axis=1), np.take_along_axis(alive, kept, axis=1)
    live["tube"] = np.where(alive, live["tube"], -1)
    return live


def _places_in_tubes(
    live: np.ndarray, boxes: np.ndarray, scores: np.ndarray, valid: np.ndarray, iou_threshold: float, prefer: str
) -> np.ndarray:
    """Let the tubes choose their boxes in one frame, see `link_greedily`: (P, S), (P, Q, ...) -> (P, Q).

    Returns:
        Which place of `live` has chosen a box; -1 if none has.
    """
    place = np.full(scores.shape, -1)
    is_tube = live["tube"] >= 0
    overlap = box_iou(live["box"][:, :, None], boxes[:, None])
    reachable = is_tube[..., None] & (overlap >= iou_threshold)
    mean_score = np.where(is_tube, live["score_sum"] / np.maximum(live["length"], 1), -np.inf)
    problems = np.arange(len(live))
    for tube in np.argsort(-mean_score, axis=1, kind="stable").T:
        free = valid & (place < 0) & reachable[problems, tube]
        value = overlap[problems, tube] if prefer == "overlap" else scores
        box = np.where(free, value, -np.inf).argmax(axis=1)
        chooses = free[problems, box]
        place[problems[chooses], box[chooses]] = tube[chooses]
    return place


def validated_boxes(
    frames: ArrayLike, boxes: ArrayLike, scores: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frames, boxes, scores = np.asarray(frames), np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    if frames.ndim != 1 or scores.shape != frames.shape or boxes.shape != (*frames.shape, 4):
        raise ValueError(
            "expected frames (N,), boxes (N, 4) and scores (N,), got shapes "
            f"{frames.shape}, {boxes.shape} and {scores.shape}: give one frame and one score for each box"
        )
    if len(frames) and frames.dtype.kind not in "iu":
        raise ValueError(f"frames must be integers, got {frames.dtype}; give the index of the frame in its video")
    for name, values in (("boxes", boxes), ("scores", scores)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity; remove such boxes before linking")
    return frames, boxes, scores


def linked_tube(frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> Tube:
    return {
        "frames": frames[rows],
        "boxes": boxes[rows],
        "scores": scores[rows],
        "score": float(scores[rows].mean()),
        "rows": rows,
    }


__all__ = ["Tube", "box_iou", "greedy_tubes", "link_greedily", "linked_tube", "pack_rows", "validated_boxes"]
