"""Link the boxes of single frames into tubes, and measure how much two tubes overlap.

A tube is a dict with `"frames"` of shape (n,), ascending, and `"boxes"` of shape (n, 4); linked ones also have
`"scores"` (n,), their mean `"score"`, and `"rows"` (n,): where each box stands in the arguments, to look up anything
else that is known about it. Boxes are (x1, y1, x2, y2).

Two ways of linking, both from the literature on action tubes:

* `link_best_paths` looks at the whole video: tubes go through all frames and maximise overlap plus scores (Gkioxari
  and Malik, "Finding Action Tubes", 2015, with the score terms of the published ClassQuery evaluation).
* `link_greedily` goes through the frames once, so tubes start and end anywhere (Kalogeiton et al., "Action Tubelet
  Detector", 2017, for single frames).

Both work on many videos and labels at once: `best_paths` and `greedy_tubes` are the same on padded arrays, used by the
metrics. P problems (a label in a video) with T frames of Q boxes at most are `boxes` (P, T, Q, 4), `scores` (P, T, Q)
and `valid` (P, T, Q), which is False for padding.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike


Tube = dict[str, Any]


def link_best_paths(
    frames: ArrayLike, boxes: ArrayLike, scores: ArrayLike, *, max_tubes: int | None = None
) -> list[Tube]:
    """Link boxes of one video into tubes that go through all of its frames.

    The best path maximises the sum of `IoU + s_i + s_j + s_i * s_j / 2` over consecutive frames, in float32. Its boxes
    are taken away, and so on until a frame has no box left. Of equally good paths, the one with the earlier row wins.

    Args:
        frames: Frame number of each box, (N,), in any order. Frames that do not occur are passed over.
        boxes: (N, 4) as (x1, y1, x2, y2), in any unit.
        scores: (N,) in [0, 1].
        max_tubes: Stop after so many tubes; by default, go on until a frame runs out of boxes.

    Returns:
        Tubes as described above, in the order they were found.

    Raises:
        ValueError: If shapes do not go together or values are not finite.

    Example:
        >>> tubes = link_best_paths([7, 7, 8], [[0, 0, 4, 4], [5, 5, 9, 9], [5, 5, 9, 8]], [0.9, 0.6, 0.7])
        >>> [(tube["frames"].tolist(), tube["rows"].tolist()) for tube in tubes]
        [([7, 8], [1, 2])]
    """
    frames, boxes, scores = _validated_boxes_in_frames(frames, boxes, scores)
    if not len(frames):
        return []
    rows = pack_rows(frames)[None]
    most_tubes = int((rows >= 0).sum(axis=-1).min())
    paths = best_paths(
        boxes[rows], scores[rows], rows >= 0, most_tubes if max_tubes is None else min(max_tubes, most_tubes)
    )
    return [
        _linked_tube(frames, boxes, scores, np.take_along_axis(rows[0], path[:, None], axis=1)[:, 0])
        for path in paths[0]
    ]


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
    frames, boxes, scores = _validated_boxes_in_frames(frames, boxes, scores)
    if not len(frames):
        return []
    rows = pack_rows(frames)[None]
    tubes = greedy_tubes(boxes[rows], scores[rows], rows >= 0, np.unique(frames)[None], iou_threshold, max_gap, prefer)
    return [
        _linked_tube(frames, boxes, scores, rows[0][tubes[0] == tube])  # In the order of frames: one box in each.
        for tube in range(tubes.max() + 1)
    ]


def tube_iou(
    tube: Mapping[str, ArrayLike],
    other: Mapping[str, ArrayLike],
    *,
    spatial_only: bool = False,
    extra_pixel: float = 0.0,
    count_last_frame: bool = True,
    min_common_frames: int = 1,
) -> float:
    """Compute the spatio-temporal IoU of two tubes.

    It is the mean IoU of their boxes over common frames, times the number of common frames over that of frames in
    either tube. The options are conventions of published evaluators; the defaults count volumes as they are.

    Args:
        tube: `"frames"` (n,), distinct integers in ascending order, and `"boxes"` (n, 4) as (x1, y1, x2, y2).
        other: The same; n may be different.
        spatial_only: Leave out the ratio of frames. Tubes of the same length are then compared box by box.
        extra_pixel: Added to widths and heights: 1 where a box ends with the pixel at x2, 0 where corners are points.
        count_last_frame: Whether m frames last m frames, or m - 1, from the first to the last.
        min_common_frames: Tubes with fewer frames in common do not overlap; without effect on `spatial_only`.

    Returns:
        A number in [0, 1]; 0 for tubes without common frames.

    Raises:
        ValueError: If there is not one box for each frame.
    """
    frames, other_frames = (np.asarray(side["frames"]) for side in (tube, other))
    boxes, other_boxes = (np.asarray(side["boxes"], dtype=np.float64) for side in (tube, other))
    if boxes.size != 4 * len(frames) or other_boxes.size != 4 * len(other_frames):
        raise ValueError(
            "tubes need one box for each frame, "
            f"got shapes {boxes.shape} for {len(frames)} frames and {other_boxes.shape} for {len(other_frames)}"
        )
    if spatial_only and len(frames) == len(other_frames):
        rows = other_rows = np.arange(len(frames))
    else:
        _, rows, other_rows = np.intersect1d(frames, other_frames, assume_unique=True, return_indices=True)
    if len(rows) < (1 if spatial_only else max(1, min_common_frames)):
        return 0.0
    mean_iou = float(box_iou(boxes[rows], other_boxes[other_rows], extra_pixel).mean())
    if spatial_only:
        return mean_iou
    uncounted = 0 if count_last_frame else 1
    num_common = len(rows) - uncounted
    num_frames = len(frames) + len(other_frames) - len(rows) - uncounted
    return mean_iou * num_common / num_frames if num_common else 0.0


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


def best_paths(boxes: np.ndarray, scores: np.ndarray, valid: np.ndarray, max_tubes: int) -> np.ndarray:
    """Find the best paths through all frames, see `link_best_paths`.

    Args:
        boxes, scores, valid: As described above; the frames of a problem come first, then padding without boxes.
        max_tubes: R, so many paths at most.

    Returns:
        The box of each path in each frame, (P, R, T); -1 for paths that do not exist, any number for padding.
    """
    num_problems, num_frames, _ = scores.shape
    paths = np.full((num_problems, max_tubes, num_frames), -1)
    in_video = valid.any(axis=-1)
    weights = _link_weights(boxes.astype(np.float32), scores.astype(np.float32))
    valid = valid.copy()
    problems = np.arange(num_problems)
    for tube in range(max_tubes):
        has_path = (valid.any(axis=-1) | ~in_video).all(axis=-1)
        if not has_path.all():
            problems, weights, valid, in_video = (x[has_path] for x in (problems, weights, valid, in_video))
        if not len(problems):
            break
        path = _best_path(weights, valid, in_video)
        np.put_along_axis(valid, path[..., None], False, axis=-1)
        paths[problems, tube] = path
    return paths


def _link_weights(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Weight of each link between boxes of consecutive frames: (P, T, Q, 4), (P, T, Q) -> (P, T - 1, Q, Q)."""
    score, next_score = scores[:, :-1, :, None], scores[:, 1:, None, :]
    overlap = box_iou(boxes[:, :-1, :, None], boxes[:, 1:, None, :])
    return overlap + (score + next_score) + np.float32(0.5) * score * next_score


def _best_path(weights: np.ndarray, valid: np.ndarray, in_video: np.ndarray) -> np.ndarray:
    """Find the path with the largest sum of weights by dynamic programming from the last frame: (P, T)."""
    num_problems, num_frames, num_boxes = valid.shape
    value = np.zeros((num_problems, num_boxes), dtype=np.float32)
    successor = np.empty((num_problems, num_frames - 1, num_boxes), dtype=np.intp)
    for frame in reversed(range(num_frames - 1)):
        following = weights[:, frame] + np.where(valid[:, frame + 1], value, -np.inf)[:, None]
        successor[:, frame] = following.argmax(axis=-1)
        value = np.where(in_video[:, frame + 1, None], following.max(axis=-1), 0)

    path = np.empty((num_problems, num_frames), dtype=np.intp)
    path[:, 0] = np.where(valid[:, 0], value, -np.inf).argmax(axis=-1)
    for frame in range(num_frames - 1):
        path[:, frame + 1] = successor[np.arange(num_problems), frame, path[:, frame]]
    return path


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


def _validated_boxes_in_frames(
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


def _linked_tube(frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> Tube:
    return {
        "frames": frames[rows],
        "boxes": boxes[rows],
        "scores": scores[rows],
        "score": float(scores[rows].mean()),
        "rows": rows,
    }
