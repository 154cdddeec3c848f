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
   Where it is unknown whether a label is true, a detection of it that reaches no ground truth counts nowhere.
4. A label without ground truth has no AP (NaN) and is left out of the mean; one that was never found has AP 0 and
   counts.

The published frame mAP of UCF101-24 and JHMDB-21 is counted in the same way, over all labels, from scores that are
multiplied by the actor score.

Two differences to the official script: no limit of 50 (box, label) pairs per frame, and detections with equal scores
keep the order of their rows (stable sort), where the order of the official script depends on the numpy build.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from classquery.data.metrics.arrays import first_of_each, names_and_indices
from classquery.data.metrics.checks import (
    validate_comparable,
    validate_corner_order,
    validated_boxes,
    validated_names,
    validated_scores,
    validated_thresholds,
)
from classquery.data.metrics.linking import box_iou


logger = logging.getLogger(__name__)

# Part of a box that has to lie in a region for the box to count as inside.
MOSTLY = 0.5

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
    unknown: Mapping[str, ArrayLike] | None = None,
) -> dict[str, float | np.ndarray]:
    """Compute the mean over labels of the average precision of detections on single frames.

    All values may be numpy arrays, lists or CPU tensors, rows in any order; an empty list stands for no rows. Give
    each frame once: one repeated by a distributed sampler adds its rows again, as false positives and misses. Frames
    that are not to be scored (AVA publishes a list of excluded keyframes) must be removed from both arguments.

    Args:
        detections: `"frame"` of shape (D,), integers or strings; `"boxes"` of shape (D, 4) as (x1, y1, x2, y2), in the
            unit of the ground truth (pixels or fractions of the frame); `"scores"` of shape (D, K) in [0, 1]. Or, as
            in files that list pairs of a box and a label, `"scores"` of shape (D,) and `"label"` (D,), the 0-based
            columns that they belong to; a pair that is not listed does not exist, which is less than a score of 0.
        ground_truth: `"frame"` of shape (G,), `"boxes"` of shape (G, 4), `"labels"` of shape (G, K), multi-hot: a box
            with two labels counts as one ground truth for each.
        iou_threshold: Smallest IoU of a true positive, in (0, 1]; a sequence evaluates several in one pass.
        label_ids: The labels to score, as 1-based ids: column i of `"scores"` and `"labels"` is id i + 1. Pass
            `ava_label_ids()` for the published number of AVA. Defaults to all K labels.
        unknown: Of partial annotations: `"frame"` of shape (U,), `"boxes"` (U, 4), `"labels"` (U, K), multi-hot, what
            may be true there, and `"is_region"` (U,). A detection of such a label that has no ground truth to reach is
            left out if its IoU with the box reaches the (smallest) threshold, or, of a region, if more than half of
            the detection is inside.

    Returns:
        `"frame_map_50"`, the mean AP in [0, 1] over the scored labels with ground truth (NaN if there are none), named
        after the threshold in percent, one entry for each threshold; and `"ap_per_label"` of shape (K,), or
        (num_thresholds, K) if `iou_threshold` is a sequence, NaN for labels without ground truth and labels that are
        not scored.

    Raises:
        ValueError: If shapes, lengths or value ranges are not as above, boxes or scores are not finite, a ground-truth
            box has x2 < x1 or y2 < y1, the frames are integers on one side and strings on the other, or thresholds or
            label ids are out of range or repeated.

    Examples:
        >>> ground_truth = {"frame": ["v_0902"], "boxes": [[10, 10, 50, 90]], "labels": [[1, 0, 1]]}
        >>> detections = {"frame": ["v_0902"], "boxes": [[12, 10, 50, 90]], "scores": [[0.9, 0.2, 0.1]]}
        >>> frame_map(detections, ground_truth)
        {'frame_map_50': 1.0, 'ap_per_label': array([ 1., nan,  1.])}
    """
    found, truth = validated_tables(detections, ground_truth)
    num_labels = truth.values.shape[1]
    thresholds = validated_thresholds("frame_map", iou_threshold)
    columns = validated_columns(label_ids, num_labels)
    found = with_unknown(found, truth, unknown, min(thresholds.values()))

    ap = np.full((len(thresholds), num_labels), np.nan)
    for matches in match_labels(found, truth, columns, min(thresholds.values())):
        ap[:, matches.column] = [matches.average_precision(threshold) for threshold in thresholds.values()]

    means = {key: mean_over_labels(row) for key, row in zip(thresholds, ap, strict=True)}
    if not max(means.values()) > 0 and len(found.frame) + len(truth.frame):
        logger.warning("Frame mAP is %g: %s.", max(means.values()), _likely_cause_of_zero(found, truth, columns))
    return means | {"ap_per_label": ap[0] if np.ndim(iou_threshold) == 0 else ap}


class Table(NamedTuple):
    """Rows of one side: frame (N,), boxes (N, 4) in float64, values, and of pairs the label (N,).

    Values are scores or boolean labels, (N, K), or the scores of pairs, (N,).
    """

    frame: np.ndarray
    boxes: np.ndarray
    values: np.ndarray
    label: np.ndarray | None = None
    # Of detections, whether nobody knows if they are right, (N, K); None if all is known.
    is_unknown: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Table":
        return Table(*(None if column is None else column[rows] for column in self))


class LabelMatches(NamedTuple):
    """The detections of one label, n of them, and what they may claim, in descending order of their scores."""

    column: int
    rows: np.ndarray  # (n,) rows of the detections.
    truth: np.ndarray  # (n,) row of the ground truth of the label with the largest IoU, -1 where there is none.
    iou: np.ndarray  # (n,) that IoU; 0 where there is none.
    true_rows: np.ndarray  # Rows of all ground truth of the label, at least one.

    def take(self, places: np.ndarray) -> "LabelMatches":
        """Some of the detections."""
        return self._replace(rows=self.rows[places], truth=self.truth[places], iou=self.iou[places])

    def true_positives(self, threshold: float) -> np.ndarray:
        """Places of the true positives among the n, ascending: the first that reaches the IoU on each ground truth."""
        valid = np.flatnonzero(self.iou >= threshold)
        return np.sort(valid[first_of_each(self.truth[valid])])

    def average_precision(self, threshold: float) -> float:
        """Average precision at an IoU."""
        return area_under_envelope(self.true_positives(threshold) + 1, len(self.true_rows))


class Pairs(NamedTuple):
    """Row of a detection, row of a ground truth of the same frame, and their IoU: three arrays of shape (P,)."""

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray

    def take(self, rows: np.ndarray) -> "Pairs":
        return Pairs(*(column[rows] for column in self))


def _likely_cause_of_zero(found: Table, truth: Table, columns: Sequence[int]) -> str:
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
    best = overlapping_pairs(found, truth, 0.0).iou.max(initial=0.0)
    boxes = "the same boxes in all frames, as of a model that is not trained" if _are_alike(found) else "other boxes"
    return f"no detection has an IoU of more than {best:.2f} with ground truth of a scored label: they are {boxes}"


def _are_alike(found: Table) -> bool:
    """Whether the boxes of several frames are, to a percent of their range, no more than those of one frame."""
    _, frames = np.unique(found.frame, return_inverse=True)
    different = np.unique((found.boxes / found.boxes.max()).round(2), axis=0)
    return frames.max() > 0 and len(different) <= np.bincount(frames).max()


def match_labels(found: Table, truth: Table, columns: Iterable[int], min_iou: float) -> Iterator[LabelMatches]:
    """Find what the detections of each label may claim, label by label.

    A smaller IoU never decides: where it is the largest of a detection, there is no claim.

    Args:
        found: Detections, from `validated_tables`; those with x2 <= x1 or y2 <= y1 are left out.
        truth: Ground truth, likewise.
        columns: The labels; those without ground truth are passed over.
        min_iou: Smallest IoU of a claim.
    """
    has_area = (found.boxes[:, :2] < found.boxes[:, 2:]).all(axis=1)
    kept = np.flatnonzero(has_area)
    found, truth = with_numbered_frames(found if has_area.all() else found.take(kept), truth)
    columns = [column for column in columns if truth.values[:, column].any()]
    match = _match_rows if found.label is None else _match_pairs
    for matches in match(found, truth, columns, min_iou):
        if found.is_unknown is not None:
            matches = matches.take(~found.is_unknown[matches.rows, matches.column])
        yield matches._replace(rows=kept[matches.rows])


def _match_rows(found: Table, truth: Table, columns: Iterable[int], min_iou: float) -> Iterator[LabelMatches]:
    """Match detections with a score for every label: how they overlap is the same for all."""
    overlaps = overlapping_pairs(found, truth, min_iou)
    for column in columns:
        has_label = truth.values[:, column]
        claims = overlaps.take(has_label[overlaps.truth])
        yield _matches(column, found.values[:, column], claims, np.flatnonzero(has_label))


def _match_pairs(found: Table, truth: Table, columns: Iterable[int], min_iou: float) -> Iterator[LabelMatches]:
    """Match detections with one label each."""
    by_label = np.argsort(found.label, kind="stable")
    start = np.searchsorted(found.label[by_label], np.arange(truth.values.shape[1] + 1))
    for column in columns:
        rows, true_rows = by_label[start[column] : start[column + 1]], np.flatnonzero(truth.values[:, column])
        claims = overlapping_pairs(found.take(rows), truth.take(true_rows), min_iou)
        matches = _matches(column, found.values[rows], claims._replace(truth=true_rows[claims.truth]), true_rows)
        yield matches._replace(rows=rows[matches.rows])


def _matches(column: int, scores: np.ndarray, overlaps: Pairs, true_rows: np.ndarray) -> LabelMatches:
    """Rank n detections of a label, given how they overlap its ground truth."""
    # Pairs are in descending order of IoU: the first one of a detection is the only one it may claim.
    claims = overlaps.take(first_of_each(overlaps.detection))
    truth, iou = np.full(len(scores), -1), np.zeros(len(scores))
    truth[claims.detection], iou[claims.detection] = claims.truth, claims.iou
    order = _descending_order(scores)
    return LabelMatches(column, order, truth[order], iou[order], true_rows)


def overlapping_pairs(found: Table, truth: Table, min_iou: float) -> Pairs:
    """Pair detections and ground truth of the same frame with IoU >= `min_iou`.

    Returns:
        Pairs sorted by detection row, then by descending IoU, then by ground-truth row.
    """
    detection, row = _same_frame_rows(found.frame, truth.frame)
    iou = box_iou(found.boxes[detection], truth.boxes[row])
    pairs = Pairs(detection, row, iou).take(iou >= min_iou)
    return pairs.take(np.lexsort((pairs.truth, -pairs.iou, pairs.detection)))


def with_unknown(found: Table, truth: Table, unknown: Mapping[str, ArrayLike] | None, min_iou: float) -> Table:
    """Note which detections are of something that nobody knows; see `frame_map`."""
    if unknown is None or not len(unknown["frame"]):
        return found
    num_labels = truth.values.shape[1]
    place = validated_table("unknown", unknown, "labels")
    validate_comparable("frames", found.frame, place.frame)
    if place.values.shape[1] != num_labels:
        raise ValueError(f"unknown['labels'] must have {num_labels} columns, got {place.values.shape[1]}")
    labels, is_region = _validated_labels(place.values), np.asarray(unknown["is_region"], dtype=bool)
    frames, places = with_numbered_frames(found, place)
    pairs = Pairs(*_same_frame_rows(frames.frame, places.frame), np.zeros(0))
    boxes, other = found.boxes[pairs.detection], place.boxes[pairs.truth]
    is_there = np.where(is_region[pairs.truth], share_inside(boxes, other) > MOSTLY, box_iou(boxes, other) >= min_iou)
    is_unknown, is_claimed = np.zeros((2, len(found.frame), num_labels), dtype=bool)
    np.logical_or.at(is_unknown, pairs.detection[is_there], labels[pairs.truth[is_there]])
    claims = overlapping_pairs(*with_numbered_frames(found, truth), min_iou)
    np.logical_or.at(is_claimed, claims.detection, truth.values[claims.truth])
    is_unknown &= ~is_claimed
    if found.label is not None:
        return found.take(~is_unknown[np.arange(len(found.label)), found.label])
    return found._replace(is_unknown=is_unknown)


def share_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Part of each box (N, 4) that is in its region (N, 4); 0 of a box without area."""
    sizes = np.minimum(boxes[:, 2:], regions[:, 2:]) - np.maximum(boxes[:, :2], regions[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    return sizes.clip(min=0).prod(axis=1) / np.where(area > 0, area, np.inf)


def with_numbered_frames(found: Table, truth: Table) -> tuple[Table, Table]:
    """Number the frames of both sides in one way, if they are texts, which are slow to compare."""
    if "U" not in (found.frame.dtype.kind, truth.frame.dtype.kind):
        return found, truth
    names = np.concatenate([found.frame.astype(str), truth.frame.astype(str)])
    frame, true_frame = np.split(names_and_indices(names)[1], [len(found.frame)])
    return found._replace(frame=frame), truth._replace(frame=true_frame)


def _same_frame_rows(frame: np.ndarray, other_frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join two columns of frames: the rows, (P,) and (P,), of all pairs that are in the same frame."""
    by_frame = np.argsort(other_frame, kind="stable")
    ordered = other_frame[by_frame]
    start, stop = (np.searchsorted(ordered, frame, side=side) for side in ("left", "right"))

    # Row i meets the rows by_frame[start[i]:stop[i]]: lay these ranges one after the other.
    count = stop - start
    range_begin = np.cumsum(count) - count
    position = np.arange(count.sum()) + np.repeat(start - range_begin, count)
    return np.repeat(np.arange(len(frame)), count), by_frame[position]


def _descending_order(scores: np.ndarray) -> np.ndarray:
    """Rows in descending order of score; equal scores keep the order of their rows.

    Floating-point numbers >= 0 are ordered as their bits, and numpy sorts 16-bit integers by radix: sorting by 16 bits
    at a time, the lowest first, gives the order of a stable sort of the numbers several times faster.
    """
    scores = scores + 0.0  # turns -0.0, whose bits are out of order, into 0.0
    little_endian = scores.astype(scores.dtype.newbyteorder("<"), copy=False)
    digits = little_endian.view("<u2").reshape(len(scores), scores.itemsize // 2)
    return np.lexsort(~digits.T)


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


def validated_tables(
    detections: Mapping[str, ArrayLike], ground_truth: Mapping[str, ArrayLike]
) -> tuple[Table, Table]:
    """Check both arguments of `frame_map` and convert them to arrays with the same number of labels."""
    found = validated_table("detections", detections, "scores", may_be_pairs=True)
    truth = validated_table("ground_truth", ground_truth, "labels")
    validate_comparable("frames", found.frame, truth.frame)
    validate_corner_order("ground_truth['boxes']", truth.boxes)
    scores, labels = validated_scores("detections['scores']", found.values), _validated_labels(truth.values)
    if found.label is not None:
        found, labels = _validated_pairs(found, labels)
        return found._replace(values=scores), truth._replace(values=labels)
    num_labels = _validated_num_labels(scores, labels)
    scores, labels = (values.reshape(len(values), num_labels) for values in (scores, labels))
    return found._replace(values=scores), truth._replace(values=labels)


def validated_table(name: str, table: Mapping[str, ArrayLike], value_key: str, *, may_be_pairs: bool = False) -> Table:
    """Check one argument for itself. An empty list of values gets the shape (0, 0): its K is not known here."""
    keys = ["frame", "boxes", value_key]
    if not set(keys) <= set(table):
        raise ValueError(f"{name} must have the keys {keys}, got {list(table)}")
    frame, boxes, values = (np.asarray(table[key]) for key in keys)
    label = np.asarray(table["label"]) if may_be_pairs and "label" in table else None
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    values = values.reshape(0, 0) if values.shape == (0,) and label is None else values

    if frame.ndim != 1:
        raise ValueError(f"{name}['frame'] must be of shape (N,), got {frame.shape}: give one frame for each box")
    if boxes.shape != (len(frame), 4):
        raise ValueError(
            f"{name}['boxes'] must be of shape ({len(frame)}, 4) as {len(frame)} frames are given, got {boxes.shape}"
        )
    if label is None and (values.ndim != 2 or len(values) != len(frame)):
        raise ValueError(
            f"{name}['{value_key}'] must be of shape ({len(frame)}, K) as {len(frame)} frames are given, "
            f"got {values.shape}; column i belongs to label id i + 1"
        )
    if label is not None and not label.shape == values.shape == frame.shape:
        raise ValueError(
            f"{name}['{value_key}'] and {name}['label'] must be of shape ({len(frame)},) as {len(frame)} frames are "
            f"given, got {values.shape} and {label.shape}; leave 'label' out where each box has a score for all labels"
        )
    frame, boxes = validated_names(f"{name}['frame']", frame), validated_boxes(f"{name}['boxes']", boxes)
    return Table(frame, boxes, values, label)


def _validated_pairs(found: Table, labels: np.ndarray) -> tuple[Table, np.ndarray]:
    """Check the label of each detection; ground truth from an empty list gets as many columns as they need."""
    label = found.label if len(found.label) else found.label.astype(np.int64)
    if label.dtype.kind not in "iu":
        raise ValueError(f"detections['label'] must hold integers, got {label.dtype}; give the 0-based column")
    largest, num_labels = int(label.max(initial=-1)), labels.shape[1]
    if labels.shape == (0, 0):
        labels = np.zeros((0, largest + 1), dtype=bool)
    elif label.min(initial=0) < 0 or largest >= num_labels:
        wrong = label[(label < 0) | (label >= num_labels)][0]
        raise ValueError(
            f"detections['label'] must be from 0 to {num_labels - 1} for {num_labels} columns of "
            f"ground_truth['labels'], got {wrong}; labels are 0-based, the one with id i + 1 is column i"
        )
    return found._replace(label=label.astype(np.int64)), labels


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


def validated_columns(label_ids: Iterable[int] | None, num_labels: int) -> list[int]:
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
