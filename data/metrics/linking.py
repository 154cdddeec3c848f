"""Link the boxes of single frames into tubes, and measure how much two tubes overlap.

Two ways of linking, both from the literature on action tubes:

* `link_best_paths` looks at the whole video: tubes go through all frames and maximise overlap plus scores (Gkioxari
  and Malik, "Finding Action Tubes", 2015, with the score terms of the published ClassQuery evaluation).
* `link_greedily` goes through the frames once, so tubes start and end anywhere. It is that of the pipeline.

Both return tubes as `classquery.linking_classquery` describes them, and work on many videos and labels at once:
`best_paths` and `greedy_tubes` are the same on padded arrays, used by the metrics.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from classquery.linking_classquery import (
    Tube,
    box_iou,
    greedy_tubes,
    link_greedily,
    linked_tube,
    pack_rows,
    validated_boxes,
)


__all__ = [
    "Tube",
    "best_paths",
    "box_iou",
    "greedy_tubes",
    "link_best_paths",
    "link_greedily",
    "pack_rows",
    "tube_iou",
]


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
        Tubes as described there, in the order they were found.

    Raises:
        ValueError: If shapes do not go together or values are not finite.

    Example:
        >>> tubes = link_best_paths([7, 7, 8], [[0, 0, 4, 4], [5, 5, 9, 9], [5, 5, 9, 8]], [0.9, 0.6, 0.7])
        >>> [(tube["frames"].tolist(), tube["rows"].tolist()) for tube in tubes]
        [([7, 8], [1, 2])]
    """
    frames, boxes, scores = validated_boxes(frames, boxes, scores)
    if not len(frames):
        return []
    rows = pack_rows(frames)[None]
    most_tubes = int((rows >= 0).sum(axis=-1).min())
    paths = best_paths(
        boxes[rows], scores[rows], rows >= 0, most_tubes if max_tubes is None else min(max_tubes, most_tubes)
    )
    return [
        linked_tube(frames, boxes, scores, np.take_along_axis(rows[0], path[:, None], axis=1)[:, 0])
        for path in paths[0]
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
