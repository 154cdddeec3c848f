"""Why is the frame mAP what it is? Oracles, kinds of error, labels and sizes of actors.

Every detection, a pair of a box and a label, is exactly one of these. Tried in this order, at IoU t = 0.5 and b = 0.1:

* `true_positive` or `duplicate`: the box has IoU >= t with the ground truth of the label that it overlaps most. It is
  a duplicate if another detection of a higher score has claimed that ground truth.
* `class_confusion`: the box has IoU >= t with an actor, who does not have the label.
* `localisation`: the box has IoU >= b with ground truth of the label.
* `localisation_and_class`: the box has IoU >= b with an actor.
* `background`: the rest.

Ground truth, a pair of an actor and a label, that no true positive claims is `missed`.

How much a kind matters is told by `gain`, what the mAP would gain if it was mended and all else stayed: false
positives are taken out; those of `localisation` claim their ground truth, best score first, as far as nobody else has;
the `missed` are found before everything else. Gains do not add up. As a detector with a score for each box and label
has very many false positives of low scores, they are also counted among the best n detections of each label, n the
number of its ground truth: a perfect detector has only true positives there.

The kinds follow TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020), where
localisation is tried before confusion: actors who do different things often overlap a little.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from classquery.data.metrics.arrays import first_of_each, groups_of_equal_rows
from classquery.data.metrics.checks import validated_thresholds
from classquery.data.metrics.frame import (
    LabelMatches,
    Pairs,
    Table,
    area_under_envelope,
    match_labels,
    mean_over_labels,
    overlapping_pairs,
    validated_columns,
    validated_tables,
    with_numbered_frames,
    with_unknown,
)


FALSE_POSITIVES = ("background", "localisation_and_class", "localisation", "class_confusion", "duplicate")
KINDS = (*FALSE_POSITIVES, "true_positive")
ERRORS = (*FALSE_POSITIVES, "missed")
SIZES = ("small", "medium", "large")

_BACKGROUND, _BOTH, _LOCALISATION, _CONFUSION, _DUPLICATE, _TRUE = range(len(KINDS))


def analyze(
    detections: Mapping[str, ArrayLike],
    ground_truth: Mapping[str, ArrayLike],
    *,
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    oracle_iou: float | None = None,
    label_ids: Iterable[int] | None = None,
    id2label: Mapping[int, str] | None = None,
    size_edges: tuple[float, float] | None = None,
    unknown: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Find out what costs frame mAP.

    Args:
        detections: As for `frame_map`.
        ground_truth: As for `frame_map`: one row for each actor, multi-hot.
        iou_threshold: IoU of a true positive, t above.
        background_iou: IoU from which a box is near an actor, b above.
        oracle_iou: Smallest IoU of a box and the actor it is assigned to by the oracles; by default `iou_threshold`.
        label_ids: The labels to look at, 1-based, as for `frame_map`.
        id2label: Names of the labels, by 0-based column; by default their numbers.
        size_edges: Areas from which an actor is of medium size, and large, in the square of the unit of the boxes. By
            default a third of the actors is of each size.
        unknown: As for `frame_map`: what is detected there is no error.

    Returns:
        What JSON can hold, None for NaN. `frame_map`; `num_frames`, `num_boxes`, `num_actors` and `num_ground_truth`;
        `oracles`, the study of the paper, the frame mAP with right boxes and with right classes (boxes and actors are
        assigned one to one, so that the sum of their IoU is the largest): `ground_truth_boxes`, where assigned boxes
        become those of their actors and keep their scores, and others stay; `ground_truth_classes`, where assigned
        boxes stay and have the labels of their actors with score 1, and others are left out; `assigned_actors`, their
        share. `kinds` and `missed`, the number, the number among the best and the gain of each kind; `labels`, a list
        by label with AP, numbers, recall and kinds among the best; `sizes`, mAP, numbers and recall by size of the
        actor; and `confusions`, how often a label was detected on an actor who has another.

    Raises:
        ValueError: As `frame_map`, and if the thresholds or sizes are not ascending.

    Examples:
        >>> ground_truth = {"frame": [1, 1], "boxes": [[0, 0, 4, 8], [6, 0, 9, 8]], "labels": [[1, 0], [0, 1]]}
        >>> detections = {"frame": [1], "boxes": [[0, 0, 4, 8]], "scores": [[0.9, 0.8]]}
        >>> result = analyze(detections, ground_truth, id2label={0: "stand", 1: "walk"})
        >>> result["frame_map"], result["kinds"]["class_confusion"]["count"], result["missed"]["count"]
        (0.5, 1, 1)
    """
    found, truth = validated_tables(detections, ground_truth)
    for threshold in (background_iou, iou_threshold, iou_threshold if oracle_iou is None else oracle_iou):
        validated_thresholds("frame_map", threshold)
    if not background_iou < iou_threshold or (size_edges is not None and not size_edges[0] < size_edges[1]):
        raise ValueError(
            f"expected background_iou < iou_threshold and ascending size_edges, got {background_iou}, "
            f"{iou_threshold} and {size_edges}"
        )
    columns = validated_columns(label_ids, truth.values.shape[1])
    found = with_unknown(found, truth, unknown, iou_threshold)
    found, truth = with_numbered_frames(found, truth)
    truth = truth.take(truth.values[:, columns].any(axis=1))
    names = {column: (id2label or {}).get(column, str(column + 1)) for column in columns}
    oracle_iou = iou_threshold if oracle_iou is None else oracle_iou
    return _Analysis(found, truth, names, iou_threshold, background_iou, oracle_iou, size_edges).result()


class _Analysis:
    """The state of `analyze`: what is the same for all labels, and what is summed up over them."""

    def __init__(
        self,
        found: Table,
        truth: Table,
        names: Mapping[int, str],
        iou_threshold: float,
        background_iou: float,
        oracle_iou: float,
        size_edges: tuple[float, float] | None,
    ):
        self.found, self.truth, self.names, self.columns = found, truth, names, list(names)
        self.iou_threshold, self.background_iou = iou_threshold, background_iou
        # The actor with the largest IoU for each detection, whatever its labels.
        overlaps = overlapping_pairs(found, truth, min(background_iou, oracle_iou))
        best = overlaps.take(first_of_each(overlaps.detection))
        self.actor, self.actor_iou = np.full(len(found.frame), -1), np.zeros(len(found.frame))
        self.actor[best.detection], self.actor_iou[best.detection] = best.truth, best.iou
        self.overlaps = overlaps.take(overlaps.iou >= oracle_iou)
        areas, true_areas = (np.prod(table.boxes[:, 2:] - table.boxes[:, :2], axis=1) for table in (found, truth))
        self.edges = np.quantile(true_areas, [1 / 3, 2 / 3]) if size_edges is None and len(true_areas) else size_edges
        self.edges = [0.0, 0.0] if self.edges is None else [float(edge) for edge in self.edges]
        self.size, self.true_size = (np.searchsorted(self.edges, a, side="right") for a in (areas, true_areas))

    def result(self) -> dict[str, Any]:
        found, truth, columns = self.found, self.truth, self.columns
        labels = [self._label(matches) for matches in match_labels(found, truth, columns, self.background_iou)]
        ap = [label["ap"] for label in labels]
        mean = mean_over_labels(np.array(ap, dtype=float))
        return {
            "frame_map": _number(mean),
            "iou_threshold": self.iou_threshold,
            "background_iou": self.background_iou,
            "num_frames": len(np.union1d(found.frame, truth.frame)),
            "num_boxes": len(found.frame) if found.label is None else int(_boxes_of_pairs(found).max(initial=-1)) + 1,
            "num_actors": len(truth.frame),
            "num_ground_truth": int(truth.values[:, columns].sum()),
            "oracles": self._oracles(mean),
            "kinds": {kind: self._sum_of_kind(kind, labels) for kind in KINDS},
            "missed": self._sum_of_kind("missed", labels),
            "labels": [{key: label[key] for key in _LABEL_KEYS} for label in labels],
            "sizes": [self._sum_of_size(size, labels) for size in range(len(SIZES))],
            "confusions": self._confusions(labels),
        }

    def _label(self, matches: LabelMatches) -> dict[str, Any]:
        """All about one label."""
        hits = matches.true_positives(self.iou_threshold)
        kinds = self._kinds(matches, hits)
        num_truth, ap = len(matches.true_rows), float(matches.average_precision(self.iou_threshold))
        best = kinds[:num_truth]
        return {
            "id": matches.column + 1,
            "name": self.names[matches.column],
            "ap": ap,
            "ground_truth": num_truth,
            "detections": len(kinds),
            "true_positives": len(hits),
            "recall": len(hits) / num_truth,
            "best": dict(zip(KINDS, np.bincount(best, minlength=len(KINDS)).tolist(), strict=True)),
            "counts": dict(zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True)),
            "missed": num_truth - len(hits),
            "mended": self._mended(matches, hits, kinds),
            "sizes": [self._of_size(size, matches, kinds) for size in range(len(SIZES))],
            "confused": self.truth.values[self.actor[matches.rows[:num_truth][best == _CONFUSION]]].sum(axis=0),
        }

    def _kinds(self, matches: LabelMatches, hits: np.ndarray) -> np.ndarray:
        """The kind of each detection of a label, (n,) indices of KINDS: later lines are tried first."""
        actor_iou = self.actor_iou[matches.rows]
        kinds = np.full(len(matches.rows), _BACKGROUND)
        kinds[actor_iou >= self.background_iou] = _BOTH
        kinds[matches.iou >= self.background_iou] = _LOCALISATION
        kinds[actor_iou >= self.iou_threshold] = _CONFUSION
        kinds[matches.iou >= self.iou_threshold] = _DUPLICATE
        kinds[hits] = _TRUE
        return kinds

    def _mended(self, matches: LabelMatches, hits: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
        """AP of the label with each kind of error mended."""
        num_truth = len(matches.true_rows)
        ap = {
            name: area_under_envelope(hits + 1 - np.cumsum(kinds == kind)[hits], num_truth)
            for kind, name in enumerate(FALSE_POSITIVES)
        }
        # Those at a wrong place claim what is left, and the others of them are taken out.
        wrong = np.flatnonzero((kinds == _LOCALISATION) & ~np.isin(matches.truth, matches.truth[hits]))
        mended = wrong[first_of_each(matches.truth[wrong])]
        is_out = kinds == _LOCALISATION
        is_out[mended] = False
        all_hits = np.sort(np.concatenate([hits, mended]))
        ap["localisation"] = area_under_envelope(all_hits + 1 - np.cumsum(is_out)[all_hits], num_truth)
        num_missed = num_truth - len(hits)
        found_first = np.concatenate([np.arange(num_missed), hits + num_missed])
        return ap | {"missed": area_under_envelope(found_first + 1, num_truth)}

    def _of_size(self, size: int, matches: LabelMatches, kinds: np.ndarray) -> dict[str, float]:
        """AP and recall of a label on actors of one size.

        Detections that reach ground truth of another size are left out, and so are other false positives whose own
        box is of another size.
        """
        reaches = matches.iou >= self.iou_threshold
        counted = np.where(reaches, self.true_size[matches.truth] == size, self.size[matches.rows] == size)
        hits = np.flatnonzero(kinds[counted] == _TRUE)
        num_truth = int((self.true_size[matches.true_rows] == size).sum())
        ap = area_under_envelope(hits + 1, num_truth) if num_truth else float("nan")
        return {"ap": ap, "ground_truth": num_truth, "true_positives": len(hits)}

    def _sum_of_kind(self, kind: str, labels: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if kind == "missed":
            summary = {"count": sum(label["missed"] for label in labels)}
        else:
            summary = {name: sum(label[key][kind] for label in labels) for name, key in _COUNTS.items()}
        if kind in ERRORS:
            gains = [label["mended"][kind] - label["ap"] for label in labels]
            summary["gain"] = _number(mean_over_labels(np.array(gains)))
        return summary

    def _sum_of_size(self, size: int, labels: Sequence[dict[str, Any]]) -> dict[str, Any]:
        of_size = [label["sizes"][size] for label in labels]
        num_truth, num_hits = (sum(label[key] for label in of_size) for key in ("ground_truth", "true_positives"))
        return {
            "name": SIZES[size],
            "min_area": 0.0 if size == 0 else self.edges[size - 1],
            "max_area": None if size == len(SIZES) - 1 else self.edges[size],
            "actors": int((self.true_size == size).sum()),
            "ground_truth": num_truth,
            "recall": num_hits / num_truth if num_truth else None,
            "frame_map": _number(mean_over_labels(np.array([label["ap"] for label in of_size], dtype=float))),
        }

    def _confusions(self, labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Labels of actors under the best detections of another label, most frequent first."""
        counts = [
            {"label": label["name"], "actor_label": self.names[column], "count": int(label["confused"][column])}
            for label in labels
            for column in self.columns
            if label["confused"][column]
        ]
        return sorted(counts, key=lambda entry: -entry["count"])

    def _oracles(self, mean: float) -> dict[str, Any]:
        found, overlaps = self.found, self.overlaps
        box = np.arange(len(found.frame)) if found.label is None else _boxes_of_pairs(found)
        first = first_of_each(box)
        is_first = np.isin(overlaps.detection, first)
        of_box, actor = _assigned(overlaps.take(is_first)._replace(detection=box[overlaps.detection[is_first]]))
        actor_of_box = np.full(len(first), -1)
        actor_of_box[of_box] = actor
        actors = actor_of_box[box]
        boxes = np.where((actors >= 0)[:, None], self.truth.boxes[actors], found.boxes) if len(actor) else found.boxes
        assigned, label = np.nonzero(self.truth.values[actor])
        rows = first[of_box[assigned]]
        right_class = Table(found.frame[rows], found.boxes[rows], np.ones(len(rows)), label)
        return {
            "assigned_actors": len(actor) / len(self.truth.frame) if len(self.truth.frame) else None,
            "ground_truth_boxes": self._mean_ap(found._replace(boxes=boxes), mean),
            "ground_truth_classes": self._mean_ap(right_class, mean),
        }

    def _mean_ap(self, found: Table, mean: float) -> dict[str, Any]:
        matches = match_labels(found, self.truth, self.columns, self.iou_threshold)
        ap = mean_over_labels(np.array([of_label.average_precision(self.iou_threshold) for of_label in matches]))
        return {"frame_map": _number(ap), "gain": _number(ap - mean)}


_COUNTS = {"count": "counts", "count_among_best": "best"}
_LABEL_KEYS = ("id", "name", "ap", "ground_truth", "detections", "true_positives", "recall", "missed", "best")


def _boxes_of_pairs(found: Table) -> np.ndarray:
    """Which box each pair of a box and a label belongs to, (D,), counted from 0."""
    return groups_of_equal_rows(*found.boxes.T, found.frame)


def _assigned(overlaps: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Assign boxes and actors one to one, with the largest sum of IoU: rows of both, (A,) and (A,)."""
    _, of_box, box_count = np.unique(overlaps.detection, return_inverse=True, return_counts=True)
    _, of_actor, actor_count = np.unique(overlaps.truth, return_inverse=True, return_counts=True)
    chosen = (box_count[of_box] == 1) & (actor_count[of_actor] == 1)
    boxes, actors = [overlaps.detection[chosen]], [overlaps.truth[chosen]]
    # What is left is connected in small groups, of one frame each.
    for group in _connected(overlaps.take(~chosen)):
        box_rows, at_box = np.unique(group.detection, return_inverse=True)
        actor_rows, at_actor = np.unique(group.truth, return_inverse=True)
        iou = np.zeros((len(box_rows), len(actor_rows)))
        iou[at_box, at_actor] = group.iou
        at_box, at_actor = linear_sum_assignment(iou, maximize=True)
        real = iou[at_box, at_actor] > 0
        boxes.append(box_rows[at_box[real]])
        actors.append(actor_rows[at_actor[real]])
    return np.concatenate(boxes), np.concatenate(actors)


def _connected(overlaps: Pairs) -> Iterator[Pairs]:
    """Split pairs into groups that share neither boxes nor actors."""
    if not len(overlaps.iou):
        return
    boxes, of_box = np.unique(overlaps.detection, return_inverse=True)
    actors, of_actor = np.unique(overlaps.truth, return_inverse=True)
    size = len(boxes) + len(actors)
    graph = coo_matrix((np.ones(len(of_box)), (of_box, len(boxes) + of_actor)), shape=(size, size))
    group = connected_components(graph, directed=False)[1][of_box]
    by_group = np.argsort(group, kind="stable")
    for rows in np.split(by_group, np.flatnonzero(np.diff(group[by_group])) + 1):
        yield overlaps.take(rows)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
