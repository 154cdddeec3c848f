"""As few boxes of a track as tell where it is: an annotator who moves one of them moves all up to the next."""

import itertools
from collections.abc import Sequence

import numpy as np


# Boxes to look ahead at, twice as many while a straight line may pass all of them.
_FIRST_WINDOW = 64


def choose_key_frames(
    frames: Sequence[int] | np.ndarray, boxes: np.ndarray, states: Sequence[object], tolerance: np.ndarray
) -> list[int]:
    """Choose the fewest boxes from which all others follow, in straight lines, to a tolerance.

    Args:
        frames: (n,), ascending: the frames of a track, at least one.
        boxes: (n, 4): its box in each of them.
        states: (n,): what somebody does in each of them; the first box of another state is always chosen.
        tolerance: (4,), not negative: how far each edge may be off.

    Returns:
        Indices of the chosen boxes, ascending, the first and the last one among them.
    """
    frames, boxes = np.asarray(frames, dtype=np.float64), np.asarray(boxes, dtype=np.float64)
    changes = [index for index in range(1, len(frames)) if states[index] != states[index - 1]]
    fixed = sorted({0, *changes, len(frames) - 1})
    chosen = {0}
    for start, end in itertools.pairwise(fixed):
        span = slice(start, end + 1)
        chosen.update(start + index for index in _fewest(frames[span], boxes[span], tolerance))
    return sorted(chosen)


def _fewest(frames: np.ndarray, boxes: np.ndarray, tolerance: np.ndarray) -> list[int]:
    """The shortest way from the first to the last box, of straight lines that pass all others within the tolerance."""
    end = len(frames) - 1
    came_from = np.full(len(frames), -1)
    came_from[0], reached = 0, [0]
    while came_from[end] < 0:
        ways = [(start, _reachable(start, frames, boxes, tolerance)) for start in reached]
        reached = []
        for start, targets in ways:
            new = targets[came_from[targets] < 0]
            came_from[new] = start
            reached += new.tolist()
    way = [end]
    while way[-1]:
        way.append(int(came_from[way[-1]]))
    return way


def _reachable(start: int, frames: np.ndarray, boxes: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """Later boxes to which a straight line leads that passes those in between: its slope has to suit all of them."""
    window = _FIRST_WINDOW
    while True:
        later = slice(start + 1, start + 1 + window)
        distances = (frames[later] - frames[start])[:, None]
        moves = boxes[later] - boxes[start]
        slopes = moves / distances
        lowest = np.maximum.accumulate((moves - tolerance) / distances)
        highest = np.minimum.accumulate((moves + tolerance) / distances)
        if start + 1 + window >= len(frames) or (lowest[-1] > highest[-1]).any():
            return start + 1 + np.flatnonzero(((slopes >= lowest) & (slopes <= highest)).all(axis=1))
        window *= 2
