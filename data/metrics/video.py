"""Video mAP: are the actions of a video found as tubes, from their first frame to their last?

The boxes of single frames are linked into tubes (`linking`), these are compared with the tubes of the ground truth,
and the AP of a label is the area under the monotone envelope of precision over recall, as for frame mAP. Papers differ
in all of it. A protocol is one way of counting, written as options whose defaults give its numbers, see
`protocols`:

* `"standard"`, `StandardProtocol`: tubes start and end anywhere, as ACT-detector and MultiSports count them.
* `"classquery_ucf"` and `"classquery_jhmdb"`, `ClassQueryUcfProtocol` and `ClassQueryJhmdbProtocol`: the published
  numbers of ClassQuery on UCF101-24 and JHMDB-21. What is surprising about them has an option each that undoes it.

Ties are broken alike everywhere: equal scores keep their order, and the first of equal overlaps wins. Tubes are in the
order of their label, then of the name of the video, then as they were linked; boxes of a frame in the order of rows.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from classquery.data.metrics.arrays import names_and_indices
from classquery.data.metrics.checks import (
    validate_comparable,
    validate_corner_order,
    validated_boxes,
    validated_names,
    validated_scores,
    validated_thresholds,
)
from classquery.data.metrics.frame import (
    MOSTLY,
    area_under_envelope,
    mean_over_labels,
    share_inside,
    validated_columns,
    validated_table,
)
from classquery.data.metrics.linking import Tube
from classquery.data.metrics.protocols import (
    ClassQueryJhmdbProtocol,
    ClassQueryUcfProtocol,
    StandardProtocol,
    TubeProtocol,
    VideoDetections,
)
from classquery.data.names import ProtocolName


logger = logging.getLogger(__name__)

PROTOCOLS = {
    "standard": StandardProtocol(),
    "classquery_ucf": ClassQueryUcfProtocol(),
    "classquery_jhmdb": ClassQueryJhmdbProtocol(),
}


def video_map(
    detections: Mapping[str, ArrayLike],
    tubes: Sequence[Mapping[str, Any]],
    *,
    protocol: ProtocolName,
    iou_thresholds: float | Sequence[float] = (0.2, 0.5),
    label_ids: Iterable[int] | None = None,
    unknown: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> dict[str, Any]:
    """Link detections into tubes and compute the mean over labels of their average precision.

    All arrays may be numpy arrays, lists or CPU tensors, rows in any order; an empty list stands for no rows.

    Args:
        detections: `"video"` of shape (D,), integers or strings; `"frame"` (D,), integers; `"boxes"` (D, 4) as
            (x1, y1, x2, y2), in the unit of the tubes, for the published protocols in pixels of the frames that the
            network sees; `"scores"` (D, K) in [0, 1], for the published protocols multiplied with the actor score; and
            for protocols with an `actor_threshold` `"actor"` (D,), the actor score in [0, 1].
        tubes: The ground truth, one dict for each tube: `"video"`; `"label"`, the 0-based column of `"scores"`;
            `"frames"` (n,), ascending integers; `"boxes"` (n, 4). Tubes without frames are ignored.
        protocol: Way of counting, see above.
        iou_thresholds: Smallest overlap of a true positive, in (0, 1]; several are evaluated in one pass.
        label_ids: The labels to score, as 1-based ids, as for `frame_map`; by default all.
        unknown: Of partial annotations, dicts as of tubes, but with `"labels"`, what may be true there, and
            `"is_region"`. A tube of such a label that has no ground truth to reach is left out if its overlap reaches
            the threshold, or, of a region, if its boxes are inside by more than half on average.
        options: Fields of the protocol to be changed, such as `spatial_only=False`.

    Returns:
        `"video_map_20"`, the mean AP in [0, 1] over the labels, named after the threshold in percent, one entry for
        each threshold; `"video_map_50_95"`, their mean over 0.5, 0.55, ..., 0.95, if all ten are asked for;
        `"ap_per_label"` of shape (num_thresholds, K), or (K,) if `iou_thresholds` is a number; and `"tubes"`, the
        linked tubes: dicts as of `linking` that have `"video"` and `"label"`, too.

        A label without ground truth has AP NaN and is left out of the mean, or AP 0 that counts, as the protocol has
        it. Labels that are not scored have AP NaN, too; their tubes are linked as the others'. Tubes in videos without
        ground truth are false positives.

    Raises:
        ValueError: If shapes, lengths or value ranges are not as above, boxes or scores are not finite, a ground-truth
            box has x2 < x1 or y2 < y1, a label is unknown, the frames of a tube are not ascending, the videos are
            integers on one side and strings on the other, thresholds or label ids are out of range or repeated, the
            protocol or an option does not exist, or a published protocol is given fractions of the frame or frames
            before its first.

    Examples:
        >>> boxes = [[10, 10, 50, 90], [12, 10, 52, 90]]
        >>> tubes = [{"video": "v", "label": 0, "frames": [7, 8], "boxes": boxes}]
        >>> detections = {"video": ["v", "v"], "frame": [7, 8], "boxes": boxes, "scores": [[0.9], [0.8]]}
        >>> result = video_map(detections, tubes, protocol="standard", iou_thresholds=0.5, min_frames=1)
        >>> result["video_map_50"], result["tubes"][0]["frames"].tolist()
        (1.0, [7, 8])
    """
    rules = _protocol(protocol, options)
    found = _validated_detections(detections, with_actor=getattr(rules, "actor_threshold", None) is not None)
    # An empty list of scores does not tell the number of labels: the tubes have to.
    num_labels = None if found.scores.shape == (0, 0) else found.scores.shape[1]
    truth = _validated_ground_truth(tubes, num_labels)
    if num_labels is None:
        num_labels = 1 + max((tube["label"] for tube in truth), default=-1)
    validate_comparable("videos", np.array(found.names), np.array([tube["video"] for tube in truth]))
    rules = rules.adapted(found, truth)

    linked = rules.link(found) if len(found.frame) else []
    true_names = rules.true_names(found, truth)
    judged = [{**tube, "video": true_names.get(tube["video"])} for tube in linked]
    columns = validated_columns(label_ids, num_labels)
    open_tubes = _validated_unknown(unknown, num_labels)
    result = _mean_ap(judged, truth, num_labels, rules, iou_thresholds, columns, open_tubes) | {"tubes": linked}
    _warn_if_zero(result, found, truth)
    return result


def tube_map(
    linked: Sequence[Mapping[str, Any]],
    tubes: Sequence[Mapping[str, Any]],
    *,
    num_labels: int,
    protocol: ProtocolName = "standard",
    iou_thresholds: float | Sequence[float] = (0.2, 0.5),
    label_ids: Iterable[int] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compute the mean over labels of the average precision of tubes that are linked already.

    Args:
        linked: Tubes as in `tubes`, with `"score"`; NaN is lower than any other. They may be without frames.
        tubes: The ground truth, as for `video_map`; videos are paired by name.
        num_labels: K, the number of labels.
        protocol, iou_thresholds, label_ids, options: As for `video_map`; what concerns linking has no effect.

    Returns:
        What `video_map` returns, without the linked tubes.

    Raises:
        ValueError: As `video_map`.
    """
    rules = _protocol(protocol, options)
    linked = _validated_tubes("linked", linked, num_labels, ["score"])
    truth = _validated_ground_truth(tubes, num_labels)
    return _mean_ap(linked, truth, num_labels, rules, iou_thresholds, validated_columns(label_ids, num_labels))


def _protocol(name: str, options: Mapping[str, Any]) -> TubeProtocol:
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {list(PROTOCOLS)}, got {name!r}")
    known = [field.name for field in fields(PROTOCOLS[name])]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f'protocol "{name}" has no option {unknown}, expected some of {known}')
    return replace(PROTOCOLS[name], **options)


def _mean_ap(
    linked: Sequence[Tube],
    truth: Sequence[Tube],
    num_labels: int,
    rules: TubeProtocol,
    iou_thresholds: float | Sequence[float],
    columns: Sequence[int],
    unknown: Sequence[Tube] = (),
) -> dict[str, Any]:
    """Score linked tubes whose `"video"` is the one of the ground truth they are compared with, None for none."""
    thresholds = validated_thresholds("video_map", iou_thresholds)
    true_tubes = defaultdict(list)
    for tube in truth:
        true_tubes[tube["label"], tube["video"]].append(tube)
    ap = np.full((len(thresholds), num_labels), np.nan)
    for label in columns:
        of_label = [tube for tube in linked if tube["label"] == label]
        num_truth = sum(tube["label"] == label for tube in truth)
        open_tubes = [tube for tube in unknown if tube["label"] == label]
        ap[:, label] = _average_precision(of_label, true_tubes, num_truth, thresholds.values(), rules, open_tubes)

    means = {name: mean_over_labels(row) for name, row in zip(thresholds, ap, strict=True)}
    coco_names = [f"video_map_{percent}" for percent in range(50, 100, 5)]
    if means.keys() >= set(coco_names):
        means["video_map_50_95"] = float(np.mean([means[name] for name in coco_names]))
    return means | {"ap_per_label": ap[0] if np.ndim(iou_thresholds) == 0 else ap}


def _average_precision(
    linked: list[Tube],
    true_tubes: Mapping[tuple, list[Tube]],
    num_truth: int,
    thresholds: Iterable[float],
    rules: TubeProtocol,
    unknown: Sequence[Tube],
) -> list[float]:
    """Compute the average precision of one label, for each threshold.

    Args:
        linked: Tubes of the label.
        true_tubes: By label and video.
        num_truth: Number of ground-truth tubes of the label.
        thresholds: Smallest overlap of a true positive.
        rules: The protocol.
        unknown: Tubes of which nobody knows whether they have the label, and regions.
    """
    if not num_truth:
        return [0.0 if rules.count_missing_labels else float("nan")] * len(thresholds)
    ranked = sorted(linked, key=lambda tube: (np.isnan(tube["score"]), -tube["score"]))
    keys = [(tube["label"], tube["video"]) for tube in ranked]
    overlaps = [
        [rules.overlap(tube, true_tube) for true_tube in true_tubes.get(key, [])]
        for key, tube in zip(keys, ranked, strict=True)
    ]
    excuses = [_excuse(tube, unknown, rules) for tube in ranked] if unknown else np.full(len(ranked), -np.inf)
    ap = []
    for threshold in thresholds:
        counted = [
            i for i, excuse in enumerate(excuses) if excuse < threshold or max(overlaps[i], default=0) >= threshold
        ]
        of_counted = [keys[i] for i in counted], [overlaps[i] for i in counted]
        ranks = _true_positive_ranks(*of_counted, threshold, rules.match_remaining)
        ap.append(area_under_envelope(np.array(ranks), num_truth + rules.recall_epsilon))
    return ap


def _excuse(tube: Tube, unknown: Sequence[Tube], rules: TubeProtocol) -> float:
    """Largest overlap of a tube with those of which nobody knows; infinite inside of a region."""
    there = [other for other in unknown if other["video"] == tube["video"]]
    if any(other["is_region"] and _mean_share_inside(tube, other) > MOSTLY for other in there):
        return np.inf
    return max((rules.overlap(tube, other) for other in there if not other["is_region"]), default=-np.inf)


def _mean_share_inside(tube: Tube, region: Tube) -> float:
    """Part of the boxes of a tube that is in a region, on average over its frames."""
    _, own, others = np.intersect1d(tube["frames"], region["frames"], return_indices=True)
    return share_inside(tube["boxes"][own], region["boxes"][others]).sum() / max(len(tube["frames"]), 1)


def _true_positive_ranks(
    keys: Sequence[tuple], overlaps: Sequence[list[float]], threshold: float, match_remaining: bool
) -> list[int]:
    """1-based ranks of the true positives among tubes in descending order of score.

    Args:
        keys: Label and video of each tube.
        overlaps: Of each tube with the ground-truth tubes of its label and video.
        threshold: Smallest overlap of a true positive.
        match_remaining: See `TubeProtocol`.
    """
    ranks, taken = [], set()
    for rank, (key, overlap) in enumerate(zip(keys, overlaps, strict=True), start=1):
        candidates = [i for i in range(len(overlap)) if not (match_remaining and (key, i) in taken)]
        best = max(candidates, key=overlap.__getitem__, default=None)
        if best is not None and overlap[best] >= threshold and (key, best) not in taken:
            ranks.append(rank)
            taken.add((key, best))
    return ranks


def _warn_if_zero(result: Mapping[str, Any], found: VideoDetections, truth: Sequence[Tube]) -> None:
    """Say what is likely wrong if no tube was found at any threshold."""
    if not (result["ap_per_label"] > 0).any():
        logger.warning("Video mAP is 0: %s.", _likely_cause_of_zero(result["tubes"], found, truth))


def _likely_cause_of_zero(linked: Sequence[Tube], found: VideoDetections, truth: Sequence[Tube]) -> str:
    if not truth:
        return "there is no ground truth"
    if not linked:
        return (
            f"none of {len(found.frame)} detections was linked into a tube; if there are any, compare their scores "
            "and the lengths of the videos with the options of the protocol"
        )
    true_names = {tube["video"] for tube in truth}
    if not true_names & set(found.names):
        return (
            f"no video of the detections has ground truth, compare {found.names[0]!r} with {next(iter(true_names))!r}"
        )
    true_frames, true_boxes = (np.concatenate([tube[key] for tube in truth]) for key in ("frames", "boxes"))
    return (
        "no tube overlaps a ground-truth tube of its label and video enough; compare frames, "
        f"{found.frame.min()} to {found.frame.max()} and {true_frames.min()} to {true_frames.max()} in the ground "
        f"truth, and the largest corners, {found.boxes.max():g} and {true_boxes.max():g}"
    )


def _validated_detections(detections: Mapping[str, ArrayLike], *, with_actor: bool) -> VideoDetections:
    keys = ["video", "actor"] if with_actor else ["video"]
    if not set(keys) <= set(detections):
        raise ValueError(f"detections must have the keys {keys} beside boxes and scores, got {list(detections)}")
    frame, boxes, scores = validated_table("detections", detections, "scores")[:3]
    if len(frame) and frame.dtype.kind != "i":
        raise ValueError(
            f"detections['frame'] must hold integers, got {frame.dtype}; give the number of the frame in its video"
        )
    columns = [np.asarray(detections[key]) for key in keys]
    for key, column in zip(keys, columns, strict=True):
        if column.shape != frame.shape:
            raise ValueError(
                f"detections['{key}'] must be of shape {frame.shape} as {len(frame)} frames are given, "
                f"got {column.shape}"
            )
    names, video = names_and_indices(validated_names("detections['video']", columns[0]))
    return VideoDetections(
        names=names,
        video=video,
        frame=frame.astype(np.int64),
        boxes=boxes,
        scores=validated_scores("detections['scores']", scores),
        actor=validated_scores("detections['actor']", columns[1]) if with_actor else None,
    )


def _validated_unknown(unknown: Sequence[Mapping[str, Any]], num_labels: int) -> list[Tube]:
    """Check what is unknown: one tube for each label that may be true."""
    of_labels = [({**tube, "label": label}) for tube in unknown for label in tube["labels"]]
    return _validated_tubes("unknown", of_labels, num_labels, ["is_region"])


def _validated_ground_truth(tubes: Sequence[Mapping[str, Any]], num_labels: int | None) -> list[Tube]:
    validated = _validated_tubes("tubes", tubes, num_labels)
    for index, tube in enumerate(validated):
        validate_corner_order(f"tubes[{index}]['boxes']", tube["boxes"])
    return [tube for tube in validated if len(tube["frames"])]


def _validated_tubes(
    name: str, tubes: Sequence[Mapping[str, Any]], num_labels: int | None, other_keys: Sequence[str] = ()
) -> list[Tube]:
    """Check tubes and convert them to arrays; `num_labels` is None if any label is fine."""
    validated = [_validated_tube(f"{name}[{index}]", tube, num_labels, other_keys) for index, tube in enumerate(tubes)]
    if len({type(tube["video"]) for tube in validated}) > 1:
        raise ValueError(f"the videos of {name} must be all integers or all strings")
    return validated


def _validated_tube(name: str, tube: Mapping[str, Any], num_labels: int | None, other_keys: Sequence[str]) -> Tube:
    keys = ["video", "label", "frames", "boxes", *other_keys]
    if not set(keys) <= set(tube):
        raise ValueError(f"{name} must have the keys {keys}, got {list(tube)}")
    video, label = np.asarray(tube["video"]).item(), np.asarray(tube["label"]).item()
    if not isinstance(video, int | str):
        raise ValueError(f"{name}['video'] must be an integer or a string, got {video!r}")
    if not isinstance(label, int) or label < 0 or (num_labels is not None and label >= num_labels):
        raise ValueError(
            f"{name}['label'] must be an integer from 0, below the number of columns of scores ({num_labels}), "
            f"got {label!r}; labels are 0-based"
        )
    frames = _validated_tube_frames(f"{name}['frames']", np.asarray(tube["frames"]))
    boxes = np.asarray(tube["boxes"])
    if boxes.size != 4 * len(frames) or (len(frames) and boxes.shape != (len(frames), 4)):
        raise ValueError(
            f"{name}['boxes'] must be of shape ({len(frames)}, 4) as {len(frames)} frames are given, got {boxes.shape}"
        )
    boxes = validated_boxes(f"{name}['boxes']", boxes.reshape(-1, 4))
    return {"video": video, "label": label, "frames": frames, "boxes": boxes} | {k: tube[k] for k in other_keys}


def _validated_tube_frames(name: str, frames: np.ndarray) -> np.ndarray:
    """Check the frames of a tube; the published files hold them as floating-point numbers."""
    if frames.ndim != 1 or (frames % 1 != 0).any() or (np.diff(frames) <= 0).any():
        raise ValueError(f"{name} must be whole numbers in ascending order, of shape (n,), got {frames.tolist()}")
    return frames.astype(np.int64)
