"""Frame mAP, the published number of AVA: are the actors of each frame found and their actions ranked right?

Same core as the official AVA evaluator (`get_ava_performance.py` of ActivityNet, which follows Pascal VOC), written
anew on whole arrays instead of one detection at a time:

1. One detection row is one box with a score for every label, and each (box, label) pair is judged on its own.
   Detections with x2 <= x1 or y2 <= y1 are dropped; the ground truth is never filtered.
2. A detection looks only at the ground truth of its frame and label with the largest IoU (continuous coordinates, no
   +1 pixel; the first row wins a tie). If that IoU reaches the threshold, the detection claims that ground truth. The
   claim with the highest score is a true positive, every other detection a false positive: nothing falls back to the
   second-best ground truth. Detections on frames without ground truth are false positives, too.
3. The detections of a label are pooled over all frames in descending order of score. Average precision is the area
   under the monotone envelope of precision over recall, at all points.
4. A label without ground truth has no AP (NaN) and is left out of the mean; one that was never found has AP 0 and
   counts.

The published frame mAP of UCF101-24 and JHMDB-21 is counted in the same way, over all labels, from scores that are
multiplied by the actor score.

Two differences to the official script: no limit of 50 (box, label) pairs per frame, and detections with equal scores
keep the order of their rows (stable sort), where the order of the official script depends on the numpy build.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from classquery.data.metrics.linking import box_iou


logger = logging.getLogger(__name__)

# The label map of the ActivityNet 2018 challenge scores 60 of the 80 AVA actions; these 20 are too rare.
_AVA_UNSCORED_IDS = {2, 16, 18, 19, 21, 23, 25, 31, 32, 33, 35, 39, 40, 42, 44, 50, 53, 55, 71, 75}


def ava_label_ids() -> list[int]:
    """Return the 60 label ids of AVA that the official evaluation scores, 1-based as in its label map."""
    return [label_id for label_id in range(1, 81) if label_id not in _AVA_UNSCORED_IDS]


def frame_map(
    detections: Mapping[str, ArrayLike],
    ground_truth: Mapping[str, ArrayLike],
    *,
    iou_threshold: float | Sequence[float] = 0.5,
    label_ids: Iterable[int] | None = None,
) -> dict[str, float | np.ndarray]:
    """Compute the mean over labels of the average precision of detections on single frames.

    All values may be numpy arrays, lists or CPU tensors, rows in any order; an empty list stands for no rows. Give
    each frame once: one repeated by a distributed sampler adds its rows again, as false positives and misses. Frames
    that are not to be scored (AVA publishes a list of excluded keyframes) must be removed from both arguments.

    Args:
        detections: `"frame"` of shape (D,), integers or strings; `"boxes"` of shape (D, 4) as (x1, y1, x2, y2), in the
            unit of the ground truth (pixels or fractions of the frame); `"scores"` of shape (D, K) in [0, 1].
        ground_truth: `"frame"` of shape (G,), `"boxes"` of shape (G, 4), `"labels"` of shape (G, K), multi-hot: a box
            with two labels counts as one ground truth for each.
        iou_threshold: Smallest IoU of a true positive, in (0, 1]; a sequence evaluates several in one pass.
        label_ids: The labels to score, as 1-based ids: column i of `"scores"` and `"labels"` is id i + 1. Pass
            `ava_label_ids()` for the published number of AVA. Defaults to all K labels.

    Returns:
        `"frame_map_50"`, the mean AP in [0, 1] over the scored labels with ground truth (NaN if there are none), named
        after the threshold in percent, one entry for each threshold; and `"ap_per_label"` of shape (K,), or
        (num_thresholds, K) if `iou_threshold` is a sequence, NaN for labels without ground truth and labels that are
        not scored.

    Raises:
        ValueError: If shapes, lengths or value ranges are not as above, boxes or scores are not finite, a ground-truth
            box has x2 < x1 or y2 < y1, the frames are integers on one side and strings on the other, or thresholds or
            label ids are out of range or repeated.

    Example:
        >>> ground_truth = {"frame": ["v_0902"], "boxes": [[10, 10, 50, 90]], "labels": [[1, 0, 1]]}
        >>> detections = {"frame": ["v_0902"], "boxes": [[12, 10, 50, 90]], "scores": [[0.9, 0.2, 0.1]]}
        >>> frame_map(detections, ground_truth)
        {'frame_map_50': 1.0, 'ap_per_label': array([ 1., nan,  1.])}
    """
    found, truth = _validated_tables(detections, ground_truth)
    num_labels = truth.values.shape[1]
    thresholds = validated_thresholds("frame_map", iou_threshold)
    columns = _validated_columns(label_ids, num_labels)

    found = _without_degenerate_boxes(found)
    pairs = _overlapping_pairs(found, truth, min(thresholds.values()))
    ap = np.full((len(thresholds), num_labels), np.nan)
    for column in columns:
        has_label = truth.values[:, column]
        if has_label.any():
            ap[:, column] = _average_precision(found.values[:, column], has_label, pairs, thresholds.values())

    means = {key: mean_over_labels(row) for key, row in zip(thresholds, ap, strict=True)}
    if not max(means.values()) > 0 and len(found.frame) + len(truth.frame):
        logger.warning("Frame mAP is %g: %s.", max(means.values()), _likely_cause_of_zero(found, truth, columns))
    return means | {"ap_per_label": ap[0] if np.ndim(iou_threshold) == 0 else ap}


class _Table(NamedTuple):
    """Rows of one side: frame (N,), boxes (N, 4) in float64, values (N, K), which are scores or boolean labels."""

    frame: np.ndarray
    boxes: np.ndarray
    values: np.ndarray

    def take(self, rows: np.ndarray) -> "_Table":
        return _Table(*(column[rows] for column in self))


class _Pairs(NamedTuple):
    """Row of a detection, row of a ground truth of the same frame, and their IoU: three arrays of shape (P,)."""

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray

    def take(self, rows: np.ndarray) -> "_Pairs":
        return _Pairs(*(column[rows] for column in self))


def _likely_cause_of_zero(found: _Table, truth: _Table, columns: Sequence[int]) -> str:
    annotated = truth.values.any(0).nonzero()[0]
    scored = np.intersect1d(annotated, columns)
    if not len(annotated):
        return "no label is annotated"
    if not len(scored):
        ids, scored_ids = (annotated + 1).tolist(), sorted(column + 1 for column in columns)
        return f"none of the annotated labels {ids} is among the scored ones, {scored_ids}"
    if not len(found.frame):
        return "there are no detections"
    truth = truth.take(truth.values[:, scored].any(1))
    largest, true_largest = found.boxes.max(), truth.boxes.max()
    if not np.isin(found.frame, truth.frame).any():
        example, true_example = found.frame[0].item(), truth.frame[0].item()
        return f"no frame of the detections has ground truth, compare {example!r} with {true_example!r}"
    if not 1 / 8 < largest / true_largest < 8:
        return f"the detections reach {largest:g} and the ground truth {true_largest:g}: give both in one unit"
    best = _overlapping_pairs(found, truth, 0.0).iou.max(initial=0.0)
    boxes = "the same boxes in all frames, as of a model that is not trained" if _are_alike(found) else "other boxes"
    return f"no detection has an IoU of more than {best:.2f} with ground truth of a scored label: they are {boxes}"


def _are_alike(found: _Table) -> bool:
    """Whether the boxes of several frames are, to a percent of their range, no more than those of one frame."""
    _, frames = np.unique(found.frame, return_inverse=True)
    different = np.unique((found.boxes / found.boxes.max()).round(2), axis=0)
    return frames.max() > 0 and len(different) <= np.bincount(frames).max()


def _without_degenerate_boxes(found: _Table) -> _Table:
    kept = (found.boxes[:, :2] < found.boxes[:, 2:]).all(axis=1)
    return found if kept.all() else found.take(kept)


def _overlapping_pairs(found: _Table, truth: _Table, min_iou: float) -> _Pairs:
    """Pair detections and ground truth of the same frame with IoU >= `min_iou`.

    A smaller IoU never decides: where it is the largest of a detection, there is no claim.

    Returns:
        Pairs sorted by detection row, then by descending IoU, then by ground-truth row.
    """
    detection, row = _same_frame_rows(found.frame, truth.frame)
    iou = box_iou(found.boxes[detection], truth.boxes[row])
    pairs = _Pairs(detection, row, iou).take(iou >= min_iou)
    return pairs.take(np.lexsort((pairs.truth, -pairs.iou, pairs.detection)))


def _same_frame_rows(frame: np.ndarray, other_frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join two columns of frames: the rows, (P,) and (P,), of all pairs that are in the same frame."""
    _, code = np.unique(np.concatenate([frame, other_frame]), return_inverse=True)
    code, other_code = np.split(code, [len(frame)])
    by_frame = np.argsort(other_code, kind="stable")
    start, stop = (np.searchsorted(other_code[by_frame], code, side=side) for side in ("left", "right"))

    # Row i meets the rows by_frame[start[i]:stop[i]]: lay these ranges one after the other.
    count = stop - start
    range_begin = np.cumsum(count) - count
    position = np.arange(count.sum()) + np.repeat(start - range_begin, count)
    return np.repeat(np.arange(len(frame)), count), by_frame[position]


def _average_precision(
    scores: np.ndarray, has_label: np.ndarray, pairs: _Pairs, thresholds: Iterable[float]
) -> list[float]:
    """Compute the average precision of one label, for each threshold.

    Args:
        scores: Scores of the label, of shape (D,).
        has_label: Whether a ground-truth row has the label, of shape (G,), at least one does.
        pairs: From `_overlapping_pairs`.
        thresholds: Smallest IoU of a true positive.
    """
    # Pairs are in descending order of IoU: the first one of a detection is the only one it may claim.
    pairs = pairs.take(has_label[pairs.truth])
    claims = pairs.take(_first_of_each(pairs.detection))
    rank = _ranks(scores)[claims.detection]
    by_rank = np.argsort(rank)
    claims, rank = claims.take(by_rank), rank[by_rank]

    ap = []
    for threshold in thresholds:
        valid = claims.iou >= threshold
        # Claims are in descending order of score: the first one on a ground truth is its true positive.
        true_positives = _first_of_each(claims.truth[valid])
        ap.append(area_under_envelope(np.sort(rank[valid][true_positives]), has_label.sum()))
    return ap


def _first_of_each(keys: np.ndarray) -> np.ndarray:
    """Positions at which the distinct values of `keys` stand for the first time."""
    return np.unique(keys, return_index=True)[1]


def _ranks(scores: np.ndarray) -> np.ndarray:
    """1-based place of each row in descending order of score; equal scores keep the order of their rows.

    Floating-point numbers >= 0 are ordered as their bits, and numpy sorts 16-bit integers by radix: sorting by 16 bits
    at a time, the lowest first, gives the order of a stable sort of the numbers several times faster.
    """
    scores = scores + 0.0  # turns -0.0, whose bits are out of order, into 0.0
    little_endian = scores.astype(scores.dtype.newbyteorder("<"), copy=False)
    digits = little_endian.view("<u2").reshape(len(scores), scores.itemsize // 2)
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.lexsort(~digits.T)] = np.arange(1, len(scores) + 1)
    return rank


def area_under_envelope(ranks: np.ndarray, num_truth: float) -> float:
    """Average precision from the 1-based ranks of the true positives, ascending.

    Recall grows only at true positives, by 1 / `num_truth` each, so the area is a sum over them.
    """
    precision = np.arange(1, len(ranks) + 1) / ranks
    envelope = np.maximum.accumulate(precision[::-1])
    return envelope.sum() / num_truth


def mean_over_labels(ap: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if nothing is left (`np.nanmean` would warn)."""
    scored = ap[~np.isnan(ap)]
    return float(scored.mean()) if scored.size else float("nan")


def _validated_tables(
    detections: Mapping[str, ArrayLike], ground_truth: Mapping[str, ArrayLike]
) -> tuple[_Table, _Table]:
    """Check both arguments of `frame_map` and convert them to arrays with the same number of labels."""
    found = validated_table("detections", detections, "scores")
    truth = validated_table("ground_truth", ground_truth, "labels")
    validate_comparable("frames", found.frame, truth.frame)
    validate_corner_order("ground_truth['boxes']", truth.boxes)
    scores, labels = validated_scores("detections['scores']", found.values), _validated_labels(truth.values)
    num_labels = _validated_num_labels(scores, labels)
    scores, labels = (values.reshape(len(values), num_labels) for values in (scores, labels))
    return found._replace(values=scores), truth._replace(values=labels)


def validated_table(name: str, table: Mapping[str, ArrayLike], value_key: str) -> _Table:
    """Check one argument for itself. An empty list of values gets the shape (0, 0): its K is not known here."""
    keys = ["frame", "boxes", value_key]
    if not set(keys) <= set(table):
        raise ValueError(f"{name} must have the keys {keys}, got {list(table)}")
    frame, boxes, values = (np.asarray(table[key]) for key in keys)
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    values = values.reshape(0, 0) if values.shape == (0,) else values

    if frame.ndim != 1:
        raise ValueError(f"{name}['frame'] must be of shape (N,), got {frame.shape}: give one frame for each box")
    if boxes.shape != (len(frame), 4):
        raise ValueError(
            f"{name}['boxes'] must be of shape ({len(frame)}, 4) as {len(frame)} frames are given, got {boxes.shape}"
        )
    if values.ndim != 2 or len(values) != len(frame):
        raise ValueError(
            f"{name}['{value_key}'] must be of shape ({len(frame)}, K) as {len(frame)} frames are given, "
            f"got {values.shape}; column i belongs to label id i + 1"
        )
    return _Table(validated_names(f"{name}['frame']", frame), validated_boxes(f"{name}['boxes']", boxes), values)


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


def _validated_labels(labels: np.ndarray) -> np.ndarray:
    """Check that labels are multi-hot and make them boolean."""
    multi_hot = (labels == 0) | (labels == 1)
    if not multi_hot.all():
        raise ValueError(
            f"ground_truth['labels'] must be multi-hot, got the value {labels[~multi_hot][0]}; expected "
            "0 or 1 for each box and label, not label ids or soft labels"
        )
    return labels == 1


def _validated_num_labels(scores: np.ndarray, labels: np.ndarray) -> int:
    """Return K, the number of columns on both sides; shape (0, 0), from an empty list, goes with any K."""
    widths = {values.shape[1] for values in (scores, labels) if values.shape != (0, 0)}
    if len(widths) > 1:
        raise ValueError(
            "detections['scores'] and ground_truth['labels'] must have the same K columns, one for each label, "
            f"got shapes {scores.shape} and {labels.shape}"
        )
    return max(widths, default=0)


def validated_thresholds(metric: str, iou_threshold: float | Sequence[float]) -> dict[str, float]:
    """Name the thresholds after their percentage: "frame_map", 0.5 -> {"frame_map_50": 0.5}."""
    thresholds = np.atleast_1d(np.asarray(iou_threshold, dtype=np.float64))
    if thresholds.ndim > 1 or not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"IoU thresholds must be a number in (0, 1] or a sequence of them, got {iou_threshold}")
    named = {f"{metric}_{100 * threshold:g}": threshold for threshold in thresholds.tolist()}
    if len(named) < len(thresholds):
        raise ValueError(f"IoU thresholds must not repeat a value, got {iou_threshold}")
    return named


def _validated_columns(label_ids: Iterable[int] | None, num_labels: int) -> list[int]:
    """Columns of the labels to score."""
    known = range(1, num_labels + 1)
    label_ids = known if label_ids is None else np.asarray(list(label_ids)).tolist()
    unknown = [label_id for label_id in label_ids if label_id not in known]
    if unknown:
        raise ValueError(
            f"label_ids must be among 1 to {num_labels} for {num_labels} columns of scores, got {unknown}; "
            "ids are 1-based, column i belongs to id i + 1"
        )
    if len(set(label_ids)) < len(label_ids):
        raise ValueError(f"label_ids must not repeat an id, got {label_ids}")
    return [int(label_id) - 1 for label_id in label_ids]
