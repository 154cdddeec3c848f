"""Thresholds of scores that suit each class: where precision and recall balance on the validation split."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from classquery.data.metrics.frame import match_labels, validated_columns, validated_tables, with_unknown
from classquery.data.metrics.records import Record, frame_tables, unknown_table


IOU = 0.5
# A class with fewer boxes than that does not tell its own threshold.
ENOUGH_BOXES = 20
RULE = (
    "Thresholds of scores are those of best F1 on the validation split, class by class. A class with fewer than "
    f"{ENOUGH_BOXES} boxes there takes at least the one of all classes together."
)


@dataclass(frozen=True)
class ClassThreshold:
    """Lowest score of a class to report, and what it gave on the validation split; NaN where nothing is counted."""

    threshold: float
    precision: float
    recall: float


class _Ranking(NamedTuple):
    """Scores of a class in descending order, which of them are right, and how many boxes there are to be found."""

    scores: np.ndarray
    is_right: np.ndarray
    num_true: int

    def best_threshold(self) -> float:
        """Of best F1: halfway to the next lower score, so that it does not hang on the last digit."""
        ranks = np.arange(1, len(self.scores) + 1)
        f1 = 2 * self.is_right.cumsum() / (ranks + self.num_true)
        below = np.append(self.scores[1:], 0.0)
        # Equal scores cannot be told apart by a threshold.
        f1 = np.where(below < self.scores, f1, -1.0)
        if not f1.size or f1.max() <= 0:
            return 1.0
        best = f1.argmax()
        return float((self.scores[best] + below[best]) / 2)

    def at(self, threshold: float) -> ClassThreshold:
        """What a threshold gives; nobody knows the precision where nothing is reported."""
        reported = self.scores >= threshold
        right = self.is_right[reported].sum()
        precision = right / reported.sum() if reported.any() else float("nan")
        return ClassThreshold(threshold, float(precision), right / self.num_true if self.num_true else float("nan"))


def fit_thresholds(
    records: Sequence[Record],
    id2label: dict[int, str],
    *,
    actor_threshold: float,
    label_ids: Iterable[int] | None = None,
) -> dict[str, ClassThreshold]:
    """Find for each class the threshold of best F1; see `RULE`.

    What is reported counts as in frame mAP: it is right if it has the largest IoU with a box of its class, of at least
    0.5, and the highest score of those that have.

    Args:
        records: Of an evaluation, see `classquery.data.metrics.records`.
        id2label: Names of the classes.
        actor_threshold: Lowest confidence of an actor to report, which is applied first.
        label_ids: 1-based ids of the classes that count; all by default. The others take the threshold of all.

    Returns:
        By name of the class, in the order of their ids.
    """
    detections, ground_truth = frame_tables(records)
    rows = np.concatenate([record["actor_scores"].ravel() for record in records]) >= actor_threshold
    detections = {name: column[rows] for name, column in detections.items()}
    columns = validated_columns(label_ids, len(id2label))
    rankings = dict(_rankings(detections, ground_truth, columns, unknown_table(records)))
    together = _joined(rankings.values()).best_threshold()
    fitted = {}
    for column, label in sorted(id2label.items()):
        ranking = rankings.get(column, _joined([]))
        own = ranking.best_threshold() if ranking.num_true else together
        fitted[label] = ranking.at(own if ranking.num_true >= ENOUGH_BOXES else max(own, together))
    return fitted


def _rankings(detections, ground_truth, columns, unknown) -> Iterator[tuple[int, _Ranking]]:
    """Of the classes with boxes, by column."""
    found, truth = validated_tables(detections, ground_truth)
    found = with_unknown(found, truth, unknown, IOU)
    for matches in match_labels(found, truth, columns, IOU):
        is_right = np.zeros(len(matches.rows), dtype=bool)
        is_right[matches.true_positives(IOU)] = True
        yield matches.column, _Ranking(found.values[matches.rows, matches.column], is_right, len(matches.true_rows))


def _joined(rankings: Iterable[_Ranking]) -> _Ranking:
    """All classes as one."""
    rankings = list(rankings)
    if not rankings:
        return _Ranking(np.zeros(0), np.zeros(0, dtype=bool), 0)
    scores, is_right = (np.concatenate([getattr(r, name) for r in rankings]) for name in ("scores", "is_right"))
    order = np.argsort(-scores, kind="stable")
    return _Ranking(scores[order], is_right[order], sum(ranking.num_true for ranking in rankings))
