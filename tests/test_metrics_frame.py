"""Frame mAP against the reference evaluator, a plain evaluator written from the protocol, and cases done by hand."""

import doctest
import json
import math
import re
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from classquery.data.metrics import ava_label_ids, frame_map
from classquery.data.metrics import frame as frame_module


GOLDEN = Path(__file__).parent / "golden" / "evaluation"
BOX, FAR_BOX = [0, 0, 10, 10], [50, 50, 60, 60]


# The plain evaluator: one detection at a time, as the protocol is written down. benchmarks/metrics.py times it.


def brute_force_frame_map(detections, ground_truth, iou_threshold=0.5, tie_break=lambda row, is_hit: row):
    """Return the AP of each label; among equal scores, detections are ranked by `tie_break`."""
    found = {key: np.asarray(value).tolist() for key, value in detections.items()}
    truth = {key: np.asarray(value).tolist() for key, value in ground_truth.items()}
    found_rows, truth_rows = rows_by_frame(found["frame"]), rows_by_frame(truth["frame"])
    ap_per_label = []
    for label in range(len(truth["labels"][0])):
        scores = [row[label] for row in found["scores"]]
        judged = []
        for frame, rows in found_rows.items():
            candidates = [truth["boxes"][row] for row in truth_rows[frame] if truth["labels"][row][label]]
            judged += judge_frame(rows, found["boxes"], scores, candidates, iou_threshold)
        ranked = sorted(judged, key=lambda item: (-scores[item[0]], tie_break(*item)))
        num_truth = sum(row[label] for row in truth["labels"])
        ap_per_label.append(area_under_envelope([is_hit for _, is_hit in ranked], num_truth))
    return {"ap_per_label": ap_per_label}


def rows_by_frame(frames):
    rows = defaultdict(list)
    for row, frame in enumerate(frames):
        rows[frame].append(row)
    return rows


def judge_frame(rows, boxes, scores, candidates, iou_threshold):
    """Greedy matching on one frame: pairs of a detection row and whether it is a true positive."""
    used, judged = set(), []
    for row in sorted(rows, key=lambda row: -scores[row]):
        if not (boxes[row][0] < boxes[row][2] and boxes[row][1] < boxes[row][3]):
            continue
        ious = [iou(boxes[row], candidate) for candidate in candidates]
        best = max(range(len(ious)), key=ious.__getitem__, default=None)
        is_hit = best is not None and ious[best] >= iou_threshold and best not in used
        if is_hit:
            used.add(best)
        judged.append((row, is_hit))
    return judged


def iou(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return width * height / (sum(areas) - width * height)


def area_under_envelope(hits, num_truth):
    if not num_truth:
        return math.nan
    recall, precision, num_hits = [0.0], [0.0], 0
    for rank, is_hit in enumerate(hits, start=1):
        num_hits += is_hit
        recall.append(num_hits / num_truth)
        precision.append(num_hits / rank)
    recall.append(1.0)
    precision.append(0.0)
    for point in range(len(precision) - 2, -1, -1):
        precision[point] = max(precision[point], precision[point + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


# Inputs


def detections_of(*rows):
    """Detections of a single label from rows (frame, box, score)."""
    frames, boxes, scores = zip(*rows, strict=True)
    return {"frame": list(frames), "boxes": list(boxes), "scores": [[score] for score in scores]}


def ground_truth_of(*rows):
    """Ground truth of a single label from rows (frame, box)."""
    frames, boxes = zip(*rows, strict=True)
    return {"frame": list(frames), "boxes": list(boxes), "labels": [[1]] * len(rows)}


def single_label_ap(detections, ground_truth):
    return frame_map(detections, ground_truth)["ap_per_label"].item()


def random_case(seed, num_frames=12, num_labels=4, distinct_scores=True):
    """Crowded frames with frames of only one kind of row, degenerate detections and a label without ground truth."""
    rng = np.random.default_rng(seed)
    num_detections, num_truth = 9 * num_frames, 3 * num_frames
    frames = np.array([f"video_{index // 5},{index:04d}" for index in range(num_frames)])
    corners = rng.integers(0, 8, (num_detections + num_truth, 2))
    boxes = np.concatenate([corners, corners + rng.integers(4, 12, corners.shape)], axis=1)
    boxes[:5, 2] = boxes[:5, 0]
    scores = rng.permutation(num_detections * num_labels).reshape(num_detections, num_labels)
    scores = scores / scores.size if distinct_scores else rng.integers(0, 4, scores.shape) / 4
    labels = rng.random((num_truth, num_labels)) < 0.5
    labels[:, -1] = False
    detections = {
        "frame": rng.choice(frames[1:], num_detections),
        "boxes": boxes[:num_detections],
        "scores": scores,
    }
    ground_truth = {"frame": rng.choice(frames[:-1], num_truth), "boxes": boxes[num_detections:], "labels": labels}
    return detections, ground_truth


def golden_case(name):
    """Detections, ground truth and the results of the reference evaluator; excluded keyframes are left out."""
    case = np.load(GOLDEN / f"{name}.npz")
    detection_frame, truth_frame = case["frame_keys"][case["det_frame"]], case["frame_keys"][case["gt_frame"]]
    # The copies hold small integers in the order of the scores, see golden/evaluation/convert_ava.py.
    detections = {"frame": detection_frame, "boxes": case["det_boxes"], "scores": case["det_levels"].T / 2**16}
    ground_truth = {"frame": truth_frame, "boxes": case["gt_boxes"], "labels": case["gt_labels"]}
    detections, ground_truth = (
        {key: value[~np.isin(table["frame"], case["excluded"])] for key, value in table.items()}
        for table in (detections, ground_truth)
    )
    expected = json.loads((GOLDEN / f"{name}_expected.json").read_text())
    return detections, ground_truth, expected["reference"]


# The reference and the plain evaluator


@pytest.mark.parametrize("name", ["ava_pub_a", "ava_pub_b_nogtclass"])
def test_frame_map_matches_reference_evaluator_on_ava(name):
    detections, ground_truth, expected = golden_case(name)

    result = frame_map(detections, ground_truth, iou_threshold=[0.5, 0.75], label_ids=ava_label_ids())

    expected_ap = np.full(80, np.nan)
    for label_id, ap in expected["per_class_AP@0.5"].items():
        expected_ap[int(label_id) - 1] = np.nan if ap is None else ap
    np.testing.assert_allclose(result["ap_per_label"][0], expected_ap, rtol=0, atol=1e-9)
    assert result["frame_map_50"] == pytest.approx(expected["mAP@0.5"], rel=0, abs=1e-9)
    assert result["frame_map_75"] == pytest.approx(expected["mAP@0.75"], rel=0, abs=1e-9)


@pytest.mark.parametrize("distinct_scores", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_frame_map_matches_plain_evaluator_at_each_threshold(seed, distinct_scores):
    detections, ground_truth = random_case(seed, distinct_scores=distinct_scores)
    thresholds = [0.3, 0.5, 0.75]

    result = frame_map(detections, ground_truth, iou_threshold=thresholds)

    for threshold, ap in zip(thresholds, result["ap_per_label"], strict=True):
        expected = brute_force_frame_map(detections, ground_truth, threshold)["ap_per_label"]
        np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-12)
        assert result[f"frame_map_{threshold * 100:.0f}"] == pytest.approx(np.nanmean(expected), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ap_with_tied_scores_lies_between_false_positives_first_and_true_positives_first(seed):
    detections, ground_truth = random_case(seed, distinct_scores=False)
    lowest = brute_force_frame_map(detections, ground_truth, tie_break=lambda row, is_hit: is_hit)["ap_per_label"]
    highest = brute_force_frame_map(detections, ground_truth, tie_break=lambda row, is_hit: not is_hit)["ap_per_label"]

    ap = frame_map(detections, ground_truth)["ap_per_label"]

    assert np.all(np.subtract(highest, lowest)[:-1] > 0.01), "the case has no ties that matter"
    assert np.all((ap >= np.subtract(lowest, 1e-12))[:-1] & (ap <= np.add(highest, 1e-12))[:-1])


def test_order_of_rows_does_not_matter_when_scores_are_distinct():
    detections, ground_truth = random_case(0)
    rng = np.random.default_rng(1)
    detection_order, truth_order = (rng.permutation(len(table["frame"])) for table in (detections, ground_truth))

    shuffled = frame_map(
        {key: value[detection_order] for key, value in detections.items()},
        {key: value[truth_order] for key, value in ground_truth.items()},
    )

    expected = frame_map(detections, ground_truth)
    np.testing.assert_array_equal(shuffled["ap_per_label"], expected["ap_per_label"])


# The protocol, by hand


def test_perfect_detections_have_ap_one():
    detections = detections_of(("a", BOX, 0.3), ("a", FAR_BOX, 0.2), ("b", BOX, 0.1))

    assert frame_map(detections, ground_truth_of(("a", BOX), ("a", FAR_BOX), ("b", BOX)))["frame_map_50"] == 1.0


def test_duplicate_detection_is_a_false_positive():
    detections = detections_of(("a", BOX, 0.9), ("a", BOX, 0.8), ("a", FAR_BOX, 0.7))

    # Precision is 1 at the first and 2/3 at the second true positive.
    assert single_label_ap(detections, ground_truth_of(("a", BOX), ("a", FAR_BOX))) == pytest.approx((1 + 2 / 3) / 2)


def test_highest_score_takes_the_ground_truth_from_a_better_box():
    detections = detections_of(("a", BOX, 0.8), ("b", FAR_BOX, 0.7), ("a", [0, 0, 10, 8], 0.9))

    # The better box is the false positive on rank 2, so the hit of frame b has precision 2/3.
    assert single_label_ap(detections, ground_truth_of(("a", BOX), ("b", FAR_BOX))) == pytest.approx((1 + 2 / 3) / 2)


def test_detection_does_not_fall_back_to_the_second_best_ground_truth():
    detections = detections_of(("a", BOX, 0.9), ("a", BOX, 0.8))

    assert single_label_ap(detections, ground_truth_of(("a", BOX), ("a", [0, 0, 10, 8]))) == 0.5


def test_detection_below_the_threshold_leaves_the_ground_truth_to_the_next():
    detections = detections_of(("a", [0, 0, 10, 4], 0.9), ("a", BOX, 0.8))

    assert single_label_ap(detections, ground_truth_of(("a", BOX))) == 0.5


def test_first_ground_truth_wins_equal_overlaps():
    detections = detections_of(("a", BOX, 0.9), ("a", BOX, 0.8))

    assert single_label_ap(detections, ground_truth_of(("a", BOX), ("a", BOX))) == 0.5


@pytest.mark.parametrize(("y2", "expected"), [(5.0, 1.0), (np.nextafter(5.0, 0), 0.0)])
def test_iou_at_the_threshold_is_enough_and_just_below_is_not(y2, expected):
    assert single_label_ap(detections_of(("a", [0, 0, 10, y2], 0.9)), ground_truth_of(("a", BOX))) == expected


def test_boxes_are_continuous_without_an_extra_pixel():
    # 0.49; with sides one pixel longer it would be 0.54.
    assert single_label_ap(detections_of(("a", [0, 0, 10, 4.9], 0.9)), ground_truth_of(("a", BOX))) == 0.0


def test_boxes_apart_on_both_axes_do_not_overlap():
    # The product of the two gaps must not pass for an intersection.
    assert single_label_ap(detections_of(("a", [19, 19, 29, 29], 0.9)), ground_truth_of(("a", BOX))) == 0.0


def test_precision_envelope_lifts_earlier_points():
    detections = detections_of(("a", [20, 0, 30, 10], 0.9), ("a", BOX, 0.8), ("a", FAR_BOX, 0.7))

    # Precision is 1/2 at the first hit and 2/3 at the second.
    assert single_label_ap(detections, ground_truth_of(("a", BOX), ("a", FAR_BOX))) == pytest.approx(2 / 3)


@pytest.mark.parametrize("degenerate", [[0, 0, 0, 10], [0, 0, 10, 0], [10, 0, 0, 10], [0, 10, 10, 0]])
def test_degenerate_detections_are_dropped(degenerate):
    assert single_label_ap(detections_of(("a", degenerate, 0.9), ("a", BOX, 0.8)), ground_truth_of(("a", BOX))) == 1.0


def test_degenerate_ground_truth_counts_as_missed():
    ground_truth = ground_truth_of(("a", BOX), ("a", [5, 5, 5, 5]))

    assert single_label_ap(detections_of(("a", BOX, 0.9)), ground_truth) == 0.5


def test_detection_on_a_frame_without_ground_truth_is_a_false_positive():
    assert single_label_ap(detections_of(("b", BOX, 0.9), ("a", BOX, 0.8)), ground_truth_of(("a", BOX))) == 0.5


@pytest.mark.parametrize(("first_frame", "second_frame", "expected"), [("a", "b", 1.0), ("b", "a", 0.5)])
def test_equal_scores_keep_the_order_of_rows(first_frame, second_frame, expected):
    detections = detections_of((first_frame, BOX, 0.5), (second_frame, BOX, 0.5))

    assert single_label_ap(detections, ground_truth_of(("a", BOX))) == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_negative_zero_is_the_lowest_score(dtype):
    detections = detections_of(("b", BOX, -0.0), ("a", BOX, 0.5))
    detections["scores"] = np.array(detections["scores"], dtype=dtype)

    assert single_label_ap(detections, ground_truth_of(("a", BOX))) == 1.0


def test_missed_label_counts_and_label_without_ground_truth_does_not():
    detections = {"frame": [1], "boxes": [BOX], "scores": [[0.9, 0.9, 0.9]]}
    ground_truth = {"frame": [1, 2], "boxes": [BOX, BOX], "labels": [[1, 0, 0], [0, 1, 0]]}

    result = frame_map(detections, ground_truth)

    np.testing.assert_array_equal(result["ap_per_label"], [1.0, 0.0, np.nan])
    assert result["frame_map_50"] == 0.5


def test_box_with_two_labels_is_one_ground_truth_for_each():
    detections = {"frame": [1], "boxes": [BOX], "scores": [[0.9, 0.1]]}
    ground_truth = {"frame": [1], "boxes": [BOX], "labels": [[1, 1]]}

    np.testing.assert_array_equal(frame_map(detections, ground_truth)["ap_per_label"], [1.0, 1.0])


# Arguments and results


def test_example_of_the_docstring_is_right():
    assert doctest.testmod(frame_module) == (0, 3)


def test_one_threshold_gives_one_row_and_a_sequence_one_row_for_each():
    detections, ground_truth = random_case(0)

    single = frame_map(detections, ground_truth, iou_threshold=0.55)
    several = frame_map(detections, ground_truth, iou_threshold=(0.2, 0.55))

    assert list(single) == ["frame_map_55", "ap_per_label"]
    assert list(several) == ["frame_map_20", "frame_map_55", "ap_per_label"]
    assert (single["ap_per_label"].shape, several["ap_per_label"].shape) == ((4,), (2, 4))
    assert frame_map(detections, ground_truth, iou_threshold=[0.5])["ap_per_label"].shape == (1, 4)


def test_label_ids_are_one_based_and_other_labels_are_ignored():
    detections, ground_truth = random_case(0)
    all_labels = frame_map(detections, ground_truth)["ap_per_label"]

    result = frame_map(detections, ground_truth, label_ids=[1, 3])

    np.testing.assert_array_equal(result["ap_per_label"], [all_labels[0], np.nan, all_labels[2], np.nan])
    assert result["frame_map_50"] == pytest.approx((all_labels[0] + all_labels[2]) / 2)


def test_ava_scores_60_of_its_80_labels():
    label_ids = ava_label_ids()

    assert len(set(label_ids)) == 60
    assert (min(label_ids), max(label_ids)) == (1, 80)
    assert {12, 14, 79, 80} <= set(label_ids)  # stand, walk, talk to, watch
    assert not {2, 16, 75} & set(label_ids)


def test_labels_never_found_have_ap_zero_when_there_are_no_detections():
    ground_truth = {"frame": ["a"], "boxes": [BOX], "labels": [[1, 0]]}

    for scores in ([], np.zeros((0, 2))):
        result = frame_map({"frame": [], "boxes": [], "scores": scores}, ground_truth)

        np.testing.assert_array_equal(result["ap_per_label"], [0.0, np.nan])
        assert result["frame_map_50"] == 0.0


def test_everything_is_nan_without_a_warning_when_there_is_no_ground_truth():
    ground_truth = {"frame": [], "boxes": [], "labels": []}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = frame_map({"frame": [7], "boxes": [BOX], "scores": [[0.9, 0.1]]}, ground_truth)

    np.testing.assert_array_equal(result["ap_per_label"], [np.nan, np.nan])
    assert math.isnan(result["frame_map_50"])


def test_result_is_nan_when_both_sides_are_empty():
    empty = np.zeros((0, 80))

    result = frame_map(
        {"frame": [], "boxes": [], "scores": empty},
        {"frame": [], "boxes": [], "labels": empty},
        label_ids=ava_label_ids(),
    )

    assert math.isnan(result["frame_map_50"])
    assert np.isnan(result["ap_per_label"]).all()


@pytest.mark.parametrize(
    ("detections", "cause"),
    [
        ({"frame": [], "boxes": [], "scores": []}, "there are no detections"),
        ({"frame": ["b"], "boxes": [BOX], "scores": [[0.9]]}, "no frame .* has ground truth, compare 'b' with 'a'"),
        ({"frame": ["a"], "boxes": [[0, 0, 0.1, 0.1]], "scores": [[0.9]]}, "reach 0.1 and the ground truth 10: give"),
        ({"frame": ["a"], "boxes": [[0, 0, 10, 4]], "scores": [[0.9]]}, "more than 0.40 .* they are other boxes"),
        (
            {"frame": ["a", "b"], "boxes": [[5, 5, 9, 9]] * 2, "scores": [[0.9]] * 2},
            "more than 0.16 .* the same boxes in all frames, as of a model that is not trained",
        ),
    ],
)
def test_zero_comes_with_its_likely_cause(detections, cause, caplog):
    assert frame_map(detections, ground_truth_of(("a", BOX)))["frame_map_50"] == 0

    assert re.search(f"Frame mAP is 0: .*{cause}", caplog.text)


def test_labels_that_are_not_annotated_or_not_scored_are_named(caplog):
    detections = {"frame": ["a"], "boxes": [BOX], "scores": [[0.9, 0.1]]}

    def warning(labels, **options):
        caplog.clear()
        result = frame_map(detections, {"frame": ["a"], "boxes": [BOX], "labels": [labels]}, **options)
        assert math.isnan(result["frame_map_50"])
        return caplog.text

    assert "no label is annotated" in warning([0, 0])
    assert "none of the annotated labels [1] is among the scored ones, [2]" in warning([1, 0], label_ids=[2])


def test_other_results_come_without_a_warning(caplog):
    frame_map(detections_of(("a", BOX, 0.9)), ground_truth_of(("a", BOX)))
    frame_map({"frame": [], "boxes": [], "scores": []}, {"frame": [], "boxes": [], "labels": []})

    assert not caplog.records


def as_lists(value):
    return value.tolist()


def as_tensors(value):
    return value if value.dtype.kind == "U" else torch.from_numpy(value)


def as_pandas_columns(value):
    return value.astype(object) if value.dtype.kind == "U" else value


@pytest.mark.parametrize("convert", [as_lists, as_tensors, as_pandas_columns])
def test_input_type_does_not_matter(convert):
    tables = random_case(0)
    expected = frame_map(*tables)["ap_per_label"]

    result = frame_map(*({key: convert(value) for key, value in table.items()} for table in tables))

    np.testing.assert_array_equal(result["ap_per_label"], expected)


@pytest.mark.parametrize("dtype", [np.uint64, np.int32])
def test_frames_may_be_integers(dtype):
    tables = random_case(0)
    expected = frame_map(*tables)["ap_per_label"]
    numbers = {name: index for index, name in enumerate(np.unique([*tables[0]["frame"], *tables[1]["frame"]]))}

    detections, ground_truth = (
        {**table, "frame": [numbers[frame] for frame in table["frame"].tolist()]} for table in tables
    )
    ground_truth["frame"] = np.array(ground_truth["frame"], dtype=dtype)

    np.testing.assert_array_equal(frame_map(detections, ground_truth)["ap_per_label"], expected)


def test_large_integer_frames_of_different_types_stay_apart():
    detections = detections_of((2**60 + 1, BOX, 0.9), (2**60, BOX, 0.8))
    ground_truth = ground_truth_of((2**60, BOX))
    ground_truth["frame"] = np.array(ground_truth["frame"], dtype=np.uint64)

    assert single_label_ap(detections, ground_truth) == 0.5


def test_inputs_are_left_unchanged():
    tables = random_case(0)
    copies = [{key: value.copy() for key, value in table.items()} for table in tables]

    frame_map(*tables)

    for table, copy in zip(tables, copies, strict=True):
        for key, value in table.items():
            np.testing.assert_array_equal(value, copy[key])


# Wrong input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": ["a"]}, r"detections\['boxes'\] must be of shape \(1, 4\) .* got \(2, 4\)"),
        ({"frame": [["a"], ["b"]]}, r"detections\['frame'\] must be of shape \(N,\), got \(2, 1\)"),
        ({"frame": [0.5, 1.5]}, "must hold integers or strings, got float64"),
        ({"frame": [0, 1]}, "all integers or all strings .* int64 in detections and <U1 in ground_truth"),
        ({"boxes": [[0, 0, 1]] * 2}, r"detections\['boxes'\] must be of shape \(2, 4\) .* got \(2, 3\)"),
        ({"boxes": [BOX, [0, 0, math.nan, 1]]}, r"must be finite, got \[0.0, 0.0, nan, 1.0\] in row 1"),
        ({"boxes": [BOX, [0, 0, math.inf, 1]]}, "must be finite"),
        ({"scores": [[0.5, 0.5]]}, r"detections\['scores'\] must be of shape \(2, K\) .* got \(1, 2\)"),
        ({"scores": [0.5, 0.5]}, r"detections\['scores'\] must be of shape \(2, K\) .* got \(2,\)"),
        ({"scores": [[0.5, math.nan]] * 2}, r"must be in \[0, 1\] without NaN"),
        ({"scores": [[0.5, 1.5]] * 2}, r"must be in \[0, 1\] .* got values from 0.5 to 1.5; turn logits"),
        ({"scores": [[-0.5, 0.5]] * 2}, r"must be in \[0, 1\] .* got values from -0.5 to 0.5"),
        ({"scores": [[0.5, 0.5, 0.5]] * 2}, r"same K columns.* got shapes \(2, 3\) and \(2, 2\)"),
    ],
)
def test_frame_map_raises_on_wrong_detections(changes, message):
    detections = {"frame": ["a", "b"], "boxes": [BOX, BOX], "scores": [[0.5, 0.5]] * 2}
    ground_truth = {"frame": ["a", "b"], "boxes": [BOX, BOX], "labels": [[0, 1], [1, 0]]}

    with pytest.raises(ValueError, match=message):
        frame_map({**detections, **changes}, ground_truth)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": ["a"]}, r"ground_truth\['boxes'\] must be of shape \(1, 4\)"),
        ({"boxes": [BOX, [0, 0, math.nan, 1]]}, r"ground_truth\['boxes'\] must be finite"),
        ({"boxes": [BOX, [5, 0, 4, 9]]}, r"must have x1 <= x2 and y1 <= y2, got \[5.0, 0.0, 4.0, 9.0\] in row 1"),
        ({"boxes": [BOX, [0, 9, 4, 5]]}, "must have x1 <= x2 and y1 <= y2"),
        ({"labels": [0, 1]}, r"ground_truth\['labels'\] must be of shape \(2, K\) .* got \(2,\)"),
        ({"labels": [[0, 7], [1, 0]]}, "must be multi-hot, got the value 7"),
        ({"labels": [[0, 0.9], [1, 0]]}, "must be multi-hot, got the value 0.9"),
    ],
)
def test_frame_map_raises_on_wrong_ground_truth(changes, message):
    detections = {"frame": ["a", "b"], "boxes": [BOX, BOX], "scores": [[0.5, 0.5]] * 2}
    ground_truth = {"frame": ["a", "b"], "boxes": [BOX, BOX], "labels": [[0, 1], [1, 0]]}

    with pytest.raises(ValueError, match=message):
        frame_map(detections, {**ground_truth, **changes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_ids": [0, 1]}, r"among 1 to 4 .* got \[0\]; ids are 1-based"),
        ({"label_ids": [4, 5, 80]}, r"among 1 to 4 .* got \[5, 80\]"),
        ({"label_ids": [1.5]}, r"got \[1.5\]"),
        ({"label_ids": [1, 2, 1]}, "must not repeat an id"),
        ({"iou_threshold": 50}, r"must be a number in \(0, 1\] .* got 50"),
        ({"iou_threshold": 0}, r"must be a number in \(0, 1\]"),
        ({"iou_threshold": []}, r"must be a number in \(0, 1\]"),
        ({"iou_threshold": [0.5, 0.5]}, "must not repeat a value"),
    ],
)
def test_frame_map_raises_on_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        frame_map(*random_case(0), **options)


def test_frame_map_names_the_missing_key():
    detections, ground_truth = random_case(0)
    ground_truth["scores"] = ground_truth.pop("labels")

    with pytest.raises(ValueError, match=r"ground_truth must have the keys \['frame', 'boxes', 'labels'\], got"):
        frame_map(detections, ground_truth)
