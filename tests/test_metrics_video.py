"""Video mAP, linking and the overlap of tubes against the reference evaluator, against plain evaluators written from
the protocols that try all paths, and against cases done by hand."""

import doctest
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_metrics_frame import area_under_envelope
from transformers.utils import ModelOutput

from classquery import linking_classquery
from classquery.data.metrics import frame_map, link_best_paths, link_greedily, linking, tube_iou, tube_map, video_map
from classquery.data.metrics import video as video_module
from classquery.video_processing_classquery import ClassQueryVideoProcessor, action_scores


GOLDEN = Path(__file__).parent / "golden" / "evaluation"
PUBLISHED = {"ucf": "classquery_ucf", "jhmdb": "classquery_jhmdb"}
CASES = ["ucf_pub_a", "ucf_pub_b", "jhmdb_pub_a"]
ALL_THRESHOLDS = [0.2, *np.arange(50, 100, 5) / 100]
BOX, NEAR_BOX, FAR_BOX = [0, 0, 40, 40], [4, 0, 44, 40], [50, 50, 90, 90]


# The reference evaluator


def load_case(name):
    case = np.load(GOLDEN / f"{name}.npz")
    return case, json.loads((GOLDEN / f"{name}_expected.json").read_text())


def protocol_of(name):
    return PUBLISHED[name.split("_")[0]]


def detections_of_case(case):
    """Arguments for video mAP; of UCF101-24, the copies hold only what decides it, see golden/evaluation."""
    if "det_scores" in case:
        scores, actor = case["det_scores"], np.zeros(len(case["det_frame"]))
    else:
        scores = np.zeros((len(case["det_label"]), len(case["class_names"])), dtype=np.float32)
        scores[np.arange(len(scores)), case["det_label"]] = case["det_score"]
        actor = case["det_is_candidate"]
    return {
        "video": case["video_names"][case["det_video"]],
        "frame": case["det_frame"],
        "boxes": case["det_boxes"],
        "scores": scores,
        "actor": actor.astype(np.float32),
    }


def tubes_of_case(case):
    rows = np.split(case["gt_tube_rows"], np.cumsum(case["gt_tube_len"])[:-1])
    return [
        {"video": case["video_names"][video], "label": label, "frames": of_tube[:, 0], "boxes": of_tube[:, 1:]}
        for video, label, of_tube in zip(case["gt_tube_video"], case["gt_tube_class"], rows, strict=True)
    ]


def frame_tables_of_case(case, first_frame):
    """Arguments for frame mAP; ground truth is numbered from 1."""
    video, label = (np.repeat(case[key], case["gt_tube_len"]) for key in ("gt_tube_video", "gt_tube_class"))
    scores = case["det_scores"] if "det_scores" in case else case["det_levels"].T / 2**16
    detections = {"frame": 1000 * case["det_video"] + case["det_frame"], "boxes": case["det_boxes"], "scores": scores}
    ground_truth = {
        "frame": 1000 * video + case["gt_tube_rows"][:, 0] - 1 + first_frame,
        "boxes": case["gt_tube_rows"][:, 1:],
        "labels": label[:, None] == np.arange(len(case["class_names"])),
    }
    return detections, ground_truth


@pytest.mark.parametrize("name", CASES)
def test_frame_map_matches_reference_evaluator(name):
    case, expected = load_case(name)
    tables = frame_tables_of_case(case, first_frame=0 if name.startswith("jhmdb") else 1)

    result = frame_map(*tables, iou_threshold=[0.2, 0.5, 0.75])

    reference, intervals = expected["reference"], expected["frame_AP@0.5_tie_interval"]
    has_ties = any(high > low + 1e-12 for low, high in intervals.values())
    assert has_ties == (name == "ucf_pub_b")
    for i, label in enumerate(case["class_names"]):
        low, high = intervals.get(label, (math.nan, math.nan))
        ap_20, ap_50, _ = result["ap_per_label"][:, i]
        expected_ap_20 = math.nan if reference["frame_AP@0.2"][label] is None else reference["frame_AP@0.2"][label]
        assert np.isnan(ap_50) if np.isnan(low) else low - 1e-9 <= ap_50 <= high + 1e-9
        if not high > low + 1e-12:
            assert ap_20 == pytest.approx(expected_ap_20, rel=0, abs=1e-9, nan_ok=True)
    for percent in [20, 50, 75] * (not has_ties):
        assert result[f"frame_map_{percent}"] == pytest.approx(reference[f"frame_mAP@{percent / 100:g}"], abs=1e-9)


# The reference computes in float32, where an AP has an error of up to 1e-7.
@pytest.mark.parametrize("name", CASES)
def test_video_map_matches_reference_evaluator(name):
    case, expected = load_case(name)

    result = video_map(
        detections_of_case(case), tubes_of_case(case), protocol=protocol_of(name), iou_thresholds=ALL_THRESHOLDS
    )

    reference = expected["reference"]
    for percent in (20, *range(50, 100, 5)):
        assert result[f"video_map_{percent}"] == pytest.approx(reference[f"video_mAP@{percent / 100:g}"], abs=1e-7)
    assert result["video_map_50_95"] == pytest.approx(reference["video_mAP@0.5:0.95"], abs=1e-7)
    for threshold, ap in zip([0.2, 0.5], result["ap_per_label"], strict=False):
        per_label = reference[f"video_AP@{threshold}"]
        np.testing.assert_allclose(ap, [per_label[label] for label in case["class_names"]], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_linked_tubes_are_those_of_the_reference_evaluator(name):
    case, _ = load_case(name)

    tubes = video_map(detections_of_case(case), tubes_of_case(case), protocol=protocol_of(name))["tubes"]

    assert [tube["label"] for tube in tubes] == case["linked_class"].tolist()
    assert [tube["video"] for tube in tubes] == case["video_names"][case["linked_video"]].tolist()
    assert [len(tube["frames"]) for tube in tubes] == case["linked_len"].tolist()
    np.testing.assert_array_equal([tube["score"] for tube in tubes], case["linked_score"])
    for tube, first_frame in zip(tubes, case["linked_first_frame"], strict=True):
        np.testing.assert_array_equal(tube["frames"], first_frame + np.arange(len(tube["frames"])))


# Measured with the reference evaluator, changed in the one place, and written down with three digits.
@pytest.mark.parametrize(
    ("name", "option", "expected_20", "expected_50"),
    [
        ("ucf_pub_b", {"trim_offset": 0}, 0.619, 0.365),
        ("ucf_pub_b", {"trim": "span"}, 0.675, 0.578),
        ("jhmdb_pub_a", {"trim": "none"}, 0.976, 0.976),
    ],
)
def test_option_changes_the_number_like_the_reference_evaluator(name, option, expected_20, expected_50):
    case, _ = load_case(name)

    result = video_map(detections_of_case(case), tubes_of_case(case), protocol=protocol_of(name), **option)

    assert (result["video_map_20"], result["video_map_50"]) == pytest.approx((expected_20, expected_50), abs=5e-4)


def test_labels_that_are_not_scored_are_left_out_of_the_mean():
    boxes = [[10, 10, 50, 90], [12, 10, 52, 90]]
    tubes = [{"video": "v", "label": label, "frames": [7, 8], "boxes": boxes} for label in (0, 2)]
    detections = {"video": ["v", "v"], "frame": [7, 8], "boxes": boxes, "scores": [[0.9, 0.1, 0], [0.8, 0.1, 0]]}
    options = {"protocol": "standard", "iou_thresholds": 0.5, "min_frames": 1}
    of_all = video_map(detections, tubes, **options)

    result = video_map(detections, tubes, label_ids=[1, 2], **options)

    assert of_all["video_map_50"] < 1
    assert result["video_map_50"] == 1
    np.testing.assert_array_equal(result["ap_per_label"], [1, np.nan, np.nan])
    again = tube_map(result["tubes"], tubes, num_labels=3, label_ids=[3], iou_thresholds=0.5, min_frames=1)
    assert again["video_map_50"] == of_all["ap_per_label"][2]
    with pytest.raises(ValueError, match="1-based"):
        video_map(detections, tubes, label_ids=[0], **options)


def test_standard_ap_of_linked_tubes_matches_multisports_evaluator():
    case, expected = load_case("ucf_pub_b")
    linked = video_map(detections_of_case(case), tubes_of_case(case), protocol="classquery_ucf")["tubes"]
    linked = [tube for tube in linked if len(tube["frames"]) > 1]

    result = tube_map(linked, tubes_of_case(case), num_labels=24, iou_thresholds=ALL_THRESHOLDS)

    for threshold, ap in zip(ALL_THRESHOLDS, result["ap_per_label"], strict=True):
        per_label = expected["standard"]["video_AP"][f"{threshold:.2f}"]
        np.testing.assert_allclose(ap, [per_label[label] for label in case["class_names"]], rtol=0, atol=1e-12)
    percent = expected["standard"]["video_mAP_percent_0.50:0.95"]
    assert 100 * result["video_map_50_95"] == pytest.approx(percent, abs=1e-10)


@pytest.mark.parametrize("data", ["ava", "ucf", "jhmdb"])
def test_detections_of_the_model_are_scored_as_the_reference_writes_them(data):
    case = np.load(GOLDEN / "postprocess_pub.npz")
    logits, actor_logits, boxes = (
        torch.from_numpy(case[f"{data}_{key}"]) for key in ("logits", "actor_logits", "boxes_cxcywh")
    )
    outputs = ModelOutput(logits=logits, actor_logits=actor_logits, pred_boxes=boxes)
    if data == "ava":  # Without the axis of frames.
        outputs = ModelOutput({key: value[:, None] for key, value in outputs.items()})
    outputs["scores"] = action_scores(outputs, score_with_actor=data != "ava")

    clips = ClassQueryVideoProcessor().post_process_action_detection(outputs, target_sizes=case[f"{data}_size_hw"])

    frames = [frame for clip in clips for frame in clip]
    for key, golden in (("boxes", "boxes_xyxy"), ("scores", "scores"), ("actor_scores", "actor_prob")):
        found, expected = torch.stack([frame[key] for frame in frames]), torch.from_numpy(case[f"{data}_{golden}"])
        torch.testing.assert_close(found, expected.reshape(found.shape), rtol=0, atol=1e-6)  # Rounding of float32.


# Plain evaluators: one box after the other as the protocols are written down, and all paths instead of the best one.


def plain_box_iou(box, other, extra_pixel=0):
    width = min(box[2], other[2]) - max(box[0], other[0]) + extra_pixel
    height = min(box[3], other[3]) - max(box[1], other[1]) + extra_pixel
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1 + extra_pixel) * (y2 - y1 + extra_pixel) for x1, y1, x2, y2 in (box, other)]
    return width * height / (sum(areas) - width * height)


def plain_tube_iou(tube, other, *, spatial_only, extra_pixel, count_last_frame, min_common_frames):
    boxes, other_boxes = (dict(zip(side["frames"], side["boxes"], strict=True)) for side in (tube, other))
    common = sorted(boxes.keys() & other_boxes.keys())
    pairs = [(boxes[frame], other_boxes[frame]) for frame in common]
    if spatial_only and len(boxes) == len(other_boxes):
        pairs = list(zip(tube["boxes"], other["boxes"], strict=True))
    ious = [plain_box_iou(box, other_box, extra_pixel) for box, other_box in pairs]
    if spatial_only:
        return sum(ious) / len(ious) if ious else 0.0
    if len(common) < min_common_frames or not common:
        return 0.0
    intersection, union = len(common), len(boxes.keys() | other_boxes.keys())
    if not count_last_frame:
        intersection, union = intersection - 1, union - 1
    return sum(ious) / len(ious) * intersection / union if intersection else 0.0


def plain_path_weight(candidates, path):
    total = 0.0
    for frame in range(len(path) - 1):
        (box, score), (next_box, next_score) = (candidates[f][path[f]] for f in (frame, frame + 1))
        total += plain_box_iou(box, next_box) + score + next_score + score * next_score / 2
    return total


def plain_best_path(candidates):
    """The first of the paths with the largest weight, after trying all."""
    paths = itertools.product(*[range(len(of_frame)) for of_frame in candidates])
    return max(paths, key=lambda path: plain_path_weight(candidates, path))


def plain_published_tubes(detections, rules):
    tubes = []
    for label in range(len(detections["scores"][0])):
        for video in sorted(set(detections["video"])):
            rows = [row for row, name in enumerate(detections["video"]) if name == video]
            frames = sorted({detections["frame"][row] for row in rows})
            own = [
                [
                    (detections["boxes"][row], detections["scores"][row][label])
                    for row in rows
                    if detections["frame"][row] == frame and plain_is_candidate(detections, row, label, rules)
                ]
                for frame in frames
            ]
            if any(own):
                found = plain_finished_paths(own, frames[0], rules)
                tubes += [{"video": video, "label": label} | tube for tube in found]
    return tubes


def plain_is_candidate(detections, row, label, rules):
    scores = detections["scores"][row]
    has_actor = rules["actor_threshold"] is None or detections["actor"][row] >= rules["actor_threshold"]
    return has_actor and (not rules["top_label_only"] or max(range(len(scores)), key=scores.__getitem__) == label)


def plain_filled(own):
    filled = [frame for frame, candidates in enumerate(own) if candidates]
    return [list(own[min(filled, key=lambda f: (abs(f - frame), f))]) for frame in range(len(own))]


def plain_paths(own, rules):
    """Boxes with scores of each path, in the order they are found."""
    own = [list(candidates) for candidates in own]
    paths, left = [], plain_filled(own)
    while all(left) and (rules["max_tubes"] is None or len(paths) < rules["max_tubes"]):
        path = plain_best_path(left)
        chosen = [left[frame].pop(box) for frame, box in enumerate(path)]
        paths.append(chosen)
        if rules["refill"]:
            own = [[item for item in of_frame if item is not box] for of_frame, box in zip(own, chosen, strict=True)]
            if not any(own):
                break
            left = plain_filled(own)
    return paths


def plain_finished_paths(own, first_frame, rules):
    paths = plain_paths(own, rules)
    kept = []
    for path in sorted(paths, key=lambda path: -sum(score for _, score in path) / len(path)):
        overlaps = [
            sum(
                plain_box_iou(box, other, rules["extra_pixel"])
                for (box, _), (other, _) in zip(path, better, strict=True)
            )
            / len(path)
            for better in kept
        ]
        if len(path) < rules["min_common_frames"] or all(overlap <= 0.3 for overlap in overlaps):
            kept.append(path)
    return [plain_trimmed(path, own, first_frame, rules) for path in kept]


def plain_trimmed(path, own, first_frame, rules):
    boxes, scores = [box for box, _ in path], [score for _, score in path]
    frames = [rules["first_true_frame"] + frame for frame in range(len(path))]
    filled = [frame for frame, candidates in enumerate(own) if candidates]
    first, count = filled[0] + first_frame - rules["first_frame"], len(filled)
    begin, end = {
        "none": (0, len(path)),
        "span": (filled[0], filled[-1] + 1),
        "count": (first + rules["trim_offset"], first + rules["trim_offset"] + count),
        "window": (first + rules["trim_offset"], first + rules["trim_offset"] + count),
    }[rules["trim"]]
    if rules["trim"] == "window" and first == 0:
        for frame in range(1, len(path)):
            if plain_box_iou(boxes[frame], boxes[frame - 1], rules["extra_pixel"]) < 0.3:
                scores[frame] = -scores[frame]
        mean = sum(scores) / len(scores)
        runs = [(b, e) for b in range(len(path)) for e in range(b, len(path))]
        gains = [sum(score - mean for score in scores[b : e + 1]) for b, e in runs]
        begin, end = runs[gains.index(max(gains))] if max(gains) > 0 else (-1, -1)
        difference = count - (end - begin)
        margin = difference // 2 if difference >= 0 else -(-difference // 2)
        begin, end = max(begin - margin, 0), max(end + margin, 0)
    kept = scores[begin:end]
    score = sum(kept) / len(kept) if kept else math.nan
    return {"frames": frames[begin:end], "boxes": boxes[begin:end], "scores": kept, "score": score}


def plain_standard_tubes(detections, rules):
    tubes = []
    for label in range(len(detections["scores"][0])):
        for video in sorted(set(detections["video"])):
            rows = [row for row, name in enumerate(detections["video"]) if name == video]
            started = []
            for frame in sorted({detections["frame"][row] for row in rows}):
                boxes = [
                    (detections["boxes"][row], detections["scores"][row][label])
                    for row in rows
                    if detections["frame"][row] == frame
                ]
                plain_link_frame(started, frame, plain_thinned_out(boxes, rules), rules)
            for tube in started:
                tube["score"] = sum(tube["scores"]) / len(tube["scores"])
            tubes += [
                {"video": video, "label": label} | tube
                for tube in started
                if len(tube["frames"]) >= rules["min_frames"] and tube["score"] >= rules["min_score"]
            ]
    return tubes


def plain_thinned_out(boxes, rules):
    kept = []
    for box, score in sorted(boxes, key=lambda item: -item[1]):
        if box[0] < box[2] and box[1] < box[3]:
            overlaps = [plain_box_iou(box, better) for better, _ in kept]
            kept += [(box, score)] if all(overlap <= rules["frame_nms_iou"] for overlap in overlaps) else []
    return kept[: rules["max_boxes_per_frame"]]


def plain_link_frame(tubes, frame, boxes, rules):
    boxes = list(boxes)
    alive = [tube for tube in tubes if frame - tube["frames"][-1] <= rules["max_gap"] + 1]
    for tube in sorted(alive, key=lambda tube: -sum(tube["scores"]) / len(tube["scores"])):
        reachable = [item for item in boxes if plain_box_iou(item[0], tube["boxes"][-1]) >= rules["link_iou"]]
        if reachable:
            best = max(reachable, key=lambda item: item[1])
            boxes.remove(best)
            for key, value in zip(("frames", "boxes", "scores"), (frame, *best), strict=True):
                tube[key].append(value)
    tubes += [{"frames": [frame], "boxes": [box], "scores": [score]} for box, score in boxes]


def plain_average_precisions(tubes, truth, num_labels, threshold, rules):
    overlap_rules = ("spatial_only", "extra_pixel", "count_last_frame", "min_common_frames")
    ap_per_label = []
    for label in range(num_labels):
        true_tubes = [tube for tube in truth if tube["label"] == label]
        found = [tube for tube in tubes if tube["label"] == label]
        used, hits = [], []
        for tube in sorted(
            found, key=lambda tube: -math.inf if math.isnan(tube["score"]) else tube["score"], reverse=True
        ):
            candidates = [true_tube for true_tube in true_tubes if true_tube["video"] == tube["video"]]
            if rules["match_remaining"]:
                candidates = [candidate for candidate in candidates if not any(candidate is u for u in used)]
            ious = [plain_tube_iou(tube, other, **{key: rules[key] for key in overlap_rules}) for other in candidates]
            best = max(range(len(ious)), key=ious.__getitem__, default=None)
            is_hit = best is not None and ious[best] >= threshold and not any(candidates[best] is u for u in used)
            used += [candidates[best]] if is_hit else []
            hits.append(bool(is_hit))
        ap = area_under_envelope(hits, len(true_tubes) and len(true_tubes) + rules["recall_epsilon"])
        ap_per_label.append(0.0 if math.isnan(ap) and rules["count_missing_labels"] else ap)
    return ap_per_label


def rules_of(protocol, options):
    return vars(video_module.PROTOCOLS[protocol]) | options


def random_case(seed, first_frame=1, first_true_frame=1):
    """Two actors that drift through short videos among other boxes, frames that miss, and a label without tubes."""
    rng = np.random.default_rng(seed)
    rows, tubes = [], []
    for video in ("a", "b", "c", "d")[: 3 + seed % 2]:
        num_frames = rng.integers(1, 7)
        start = rng.uniform(0, 30, (2, 2))
        for frame in range(num_frames):
            for query in range(3):
                corner = start[query] + rng.normal(0, 4, 2) if query < 2 else rng.uniform(0, 30, 2)
                box = [*corner, *(corner + rng.uniform(15, 25, 2))]
                # Sums of such scores have no rounding errors, so equal scores do not exceed their mean.
                rows.append((video, frame, box, rng.integers(0, 4096, 3) / 4096, rng.random()))
        for actor in range(rng.integers(0, 3)):
            begin, end = sorted(rng.integers(0, num_frames + 1, 2))
            boxes = [[*start[actor], *(start[actor] + 20)]] * (end - begin)
            frames = [first_true_frame + int(frame) for frame in range(begin, end)]
            tubes.append({"video": video, "label": int(rng.integers(2)), "frames": frames, "boxes": boxes})
    video, frame, boxes, scores, actor = zip(*rows, strict=True)
    detections = {"video": video, "frame": [first_frame + f for f in frame], "boxes": boxes, "scores": scores}
    return detections | {"actor": actor}, tubes


def assert_same_tubes(tubes, expected):
    assert [(tube["video"], tube["label"]) for tube in tubes] == [(tube["video"], tube["label"]) for tube in expected]
    for tube, other in zip(tubes, expected, strict=True):
        assert tube["frames"].tolist() == other["frames"]
        np.testing.assert_array_equal(tube["boxes"], np.reshape(other["boxes"], (-1, 4)))
        np.testing.assert_allclose(tube["scores"], other["scores"], rtol=1e-6)  # Published scores are float32.
        assert tube["score"] == pytest.approx(other["score"], rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("classquery_ucf", {}),
        ("classquery_ucf", {"actor_threshold": 0.3, "max_tubes": None}),
        ("classquery_ucf", {"actor_threshold": 0.5, "refill": True}),
        ("classquery_ucf", {"actor_threshold": 0.5, "top_label_only": False, "trim": "span", "max_tubes": 2}),
        ("classquery_ucf", {"actor_threshold": 0.5, "trim": "none", "count_missing_labels": False}),
        ("classquery_ucf", {"actor_threshold": 0.5, "trim_offset": 0, "min_common_frames": 1, "extra_pixel": 0}),
        ("classquery_ucf", {"actor_threshold": 0.5, "match_remaining": False, "recall_epsilon": 0, "trim_offset": 0}),
        ("classquery_jhmdb", {}),
        ("classquery_jhmdb", {"spatial_only": False}),
        ("classquery_jhmdb", {"actor_threshold": 0.6, "refill": True, "max_tubes": None}),
        ("standard", {"min_frames": 1}),
        ("standard", {"min_frames": 3, "min_score": 0.5, "max_boxes_per_frame": 2}),
        ("standard", {"min_frames": 2, "frame_nms_iou": 0.3, "link_iou": 0.2, "max_gap": 2, "count_last_frame": True}),
    ],
)
def test_video_map_matches_plain_evaluator(protocol, options, seed):
    rules = rules_of(protocol, options)
    if protocol == "classquery_jhmdb":
        rules |= {"first_frame": 0, "first_true_frame": 1}
        options = options | {"first_true_frame": 1}  # Not all videos have a tube in their first frame.
    detections, tubes = random_case(seed, first_frame=rules.get("first_frame", 1))
    plain_tubes = plain_standard_tubes if protocol == "standard" else plain_published_tubes

    result = video_map(detections, tubes, protocol=protocol, iou_thresholds=[0.1, 0.3, 0.5], **options)

    expected = plain_tubes(detections, rules)
    assert_same_tubes(result["tubes"], expected)
    truth = [tube for tube in tubes if tube["frames"]]
    for threshold, ap in zip([0.1, 0.3, 0.5], result["ap_per_label"], strict=True):
        np.testing.assert_allclose(ap, plain_average_precisions(expected, truth, 3, threshold, rules), atol=1e-12)


# Linking


def test_examples_of_the_docstrings_are_right():
    assert doctest.testmod(linking) == doctest.testmod(linking_classquery) == (0, 2)
    assert doctest.testmod(video_module) == (0, 5)


@pytest.mark.parametrize("seed", range(10))
def test_link_best_paths_finds_the_best_of_all_paths(seed):
    rng = np.random.default_rng(seed)
    frames = np.sort(np.concatenate([np.arange(4), rng.integers(0, 4, 6)]))
    corners = rng.uniform(0, 20, (10, 2))
    boxes, scores = np.concatenate([corners, corners + rng.uniform(5, 20, (10, 2))], axis=1), rng.random(10)
    order = rng.permutation(10)

    tubes = link_best_paths(7 * frames[order], boxes[order], scores[order])

    left = [np.flatnonzero(frames == frame).tolist() for frame in range(4)]
    for tube in tubes:
        path = plain_best_path([[(boxes[row], scores[row]) for row in rows] for rows in left])
        rows = [rows.pop(box) for rows, box in zip(left, path, strict=True)]
        assert order[tube["rows"]].tolist() == rows
        assert tube["frames"].tolist() == [0, 7, 14, 21]
        np.testing.assert_array_equal(tube["boxes"], boxes[rows])
        np.testing.assert_array_equal(tube["scores"], scores[rows])
        assert tube["score"] == pytest.approx(scores[rows].mean())
    assert min(map(len, left)) == 0


def test_link_best_paths_stops_after_so_many_tubes():
    boxes, scores = [BOX, FAR_BOX] * 2, [0.9, 0.8, 0.9, 0.8]

    assert len(link_best_paths([1, 1, 2, 2], boxes, scores)) == 2
    assert len(link_best_paths([1, 1, 2, 2], boxes, scores, max_tubes=1)) == 1


def test_first_of_equally_good_paths_wins():
    tubes = link_best_paths([1, 1, 2, 2], [BOX] * 4, [0.5] * 4)

    assert [tube["rows"].tolist() for tube in tubes] == [[0, 2], [1, 3]]


def rows_of_greedy_tubes(frames, boxes, scores, **options):
    return [tube["rows"].tolist() for tube in link_greedily(frames, boxes, scores, **options)]


def test_link_greedily_gives_the_first_choice_to_the_tube_with_the_highest_score():
    boxes = [BOX, NEAR_BOX, NEAR_BOX]

    assert rows_of_greedy_tubes([1, 1, 2], boxes, [0.8, 0.9, 0.7]) == [[0], [1, 2]]
    assert rows_of_greedy_tubes([1, 1, 2], boxes, [0.9, 0.8, 0.7]) == [[0, 2], [1]]
    assert rows_of_greedy_tubes([1, 1, 2], boxes, [0.9, 0.9, 0.7]) == [[0, 2], [1]]


def test_link_greedily_takes_the_highest_score_and_not_the_largest_overlap():
    assert rows_of_greedy_tubes([1, 2, 2], [BOX, BOX, NEAR_BOX], [0.9, 0.5, 0.6]) == [[0, 2], [1]]
    assert rows_of_greedy_tubes([1, 2, 2], [BOX, BOX, NEAR_BOX], [0.9, 0.6, 0.6]) == [[0, 1], [2]]


def test_link_greedily_takes_the_largest_overlap_if_that_is_preferred():
    rows = rows_of_greedy_tubes([1, 2, 2], [BOX, NEAR_BOX, BOX], [0.9, 0.6, 0.5], prefer="overlap")

    assert rows == [[0, 2], [1]]


def test_link_greedily_judges_tubes_by_their_mean_score():
    # In frame 3, the tube of the first row has the mean (0.9 + 0.1) / 2, the other one 0.6.
    rows = rows_of_greedy_tubes(
        [1, 1, 2, 2, 3], [BOX, FAR_BOX, BOX, FAR_BOX, [0, 0, 90, 90]], [0.9, 0.6, 0.1, 0.6, 0.5], iou_threshold=0.1
    )

    assert rows == [[0, 2], [1, 3, 4]]


def test_link_greedily_needs_overlap_at_the_threshold():
    boxes = [BOX, [0, 0, 40, 20]]

    assert rows_of_greedy_tubes([1, 2], boxes, [0.5, 0.5], iou_threshold=0.5) == [[0, 1]]
    assert rows_of_greedy_tubes([1, 2], boxes, [0.5, 0.5], iou_threshold=0.51) == [[0], [1]]


@pytest.mark.parametrize(
    ("max_gap", "expected"), [(0, [[0, 1], [2], [3]]), (1, [[0, 1, 2], [3]]), (2, [[0, 1, 2, 3]])]
)
def test_tubes_survive_gaps_up_to_the_largest(max_gap, expected):
    assert rows_of_greedy_tubes([1, 2, 4, 7], [BOX] * 4, [0.5] * 4, max_gap=max_gap) == expected


@pytest.mark.parametrize("link", [link_best_paths, link_greedily])
def test_nothing_is_linked_to_nothing(link):
    assert link([], [], []) == []


@pytest.mark.parametrize("link", [link_best_paths, link_greedily])
@pytest.mark.parametrize(
    ("frames", "boxes", "scores", "message"),
    [
        ([1, 2], [BOX], [0.5, 0.5], r"got shapes \(2,\), \(1, 4\) and \(2,\)"),
        ([1], [BOX], [0.5, 0.5], r"got shapes \(1,\), \(1, 4\) and \(2,\)"),
        ([1.5], [BOX], [0.5], "frames must be integers, got float64"),
        ([1], [[0, 0, math.nan, 1]], [0.5], "boxes must be finite"),
        ([1], [BOX], [math.inf], "scores must be finite"),
    ],
)
def test_linking_raises_on_wrong_input(link, frames, boxes, scores, message):
    with pytest.raises(ValueError, match=message):
        link(frames, boxes, scores)


# Overlap of tubes


def tube_of(frames, box=BOX, **others):
    return {"frames": list(frames), "boxes": [box] * len(frames), **others}


@pytest.mark.parametrize(
    ("frames", "other_frames", "options", "expected"),
    [
        (range(10), range(10), {}, 1),
        (range(10), range(5, 15), {}, 5 / 15),
        (range(10), range(5, 15), {"count_last_frame": False}, 4 / 14),
        (range(10), range(5, 15), {"spatial_only": True}, 1),
        (range(10), range(5, 8), {"spatial_only": True}, 1),
        (range(10), range(10, 20), {}, 0),
        (range(10), range(10, 20), {"min_common_frames": 0}, 0),
        (range(10), range(10, 20), {"spatial_only": True}, 1),  # As long: box by box.
        (range(10), range(10, 21), {"spatial_only": True}, 0),
        (range(10), range(9, 19), {}, 1 / 19),
        (range(10), range(9, 19), {"count_last_frame": False}, 0),
        (range(10), range(9, 19), {"min_common_frames": 2}, 0),
        (range(10), range(8, 18), {"min_common_frames": 2}, 2 / 18),
        ([3], [3], {}, 1),
        ([3], [3], {"count_last_frame": False}, 0),
        ([1, 2, 5, 6], [2, 3, 4, 5], {}, 2 / 6),  # With a gap.
        ([], [1], {}, 0),
    ],
)
def test_overlap_of_tubes_with_equal_boxes(frames, other_frames, options, expected):
    assert tube_iou(tube_of(frames), tube_of(other_frames), **options) == pytest.approx(expected)
    assert tube_iou(tube_of(other_frames), tube_of(frames), **options) == pytest.approx(expected)


def test_overlap_of_tubes_is_the_mean_over_common_frames():
    tube = {"frames": [1, 2, 3], "boxes": [FAR_BOX, BOX, BOX]}
    other = {"frames": [2, 3, 4], "boxes": [BOX, [0, 0, 20, 40], BOX]}

    assert tube_iou(tube, other) == pytest.approx((1 + 0.5) / 2 * 2 / 4)


def test_extra_pixel_is_added_to_both_sides_of_boxes():
    assert tube_iou(tube_of([1], [0, 0, 9, 9]), tube_of([1], [0, 5, 9, 9]), extra_pixel=1) == pytest.approx(0.5)
    assert tube_iou(tube_of([1], [0, 0, 9, 9]), tube_of([1], [10, 0, 19, 9]), extra_pixel=1) == 0


def test_empty_boxes_do_not_overlap():
    assert tube_iou(tube_of([1], [5, 5, 5, 5]), tube_of([1], [5, 5, 5, 5])) == 0


def test_overlap_of_tubes_raises_without_one_box_for_each_frame():
    with pytest.raises(ValueError, match=r"got shapes \(1, 4\) for 2 frames and \(1, 4\) for 1"):
        tube_iou({"frames": [1, 2], "boxes": [BOX]}, tube_of([1]))


# The published protocols, by hand


def rows_to_detections(*rows, num_labels=1):
    """Detections from rows (video, frame, box, score, actor), whose score is for label 0."""
    video, frame, boxes, scores, actor = (list(column) for column in zip(*rows, strict=True))
    scores = np.outer(scores, np.eye(num_labels)[0])
    return {"video": video, "frame": frame, "boxes": boxes, "scores": scores, "actor": actor}


def in_frames(frames, box=BOX, score=0.5, actor=1.0, video="v"):
    return [(video, frame, box, score, actor) for frame in frames]


def true_tube(frames, box=BOX, video="v", label=0):
    return tube_of(frames, box, video=video, label=label)


def linked_frames(rows, protocol="classquery_ucf", **options):
    result = video_map(rows_to_detections(*rows), [true_tube([1])], protocol=protocol, **options)
    return [tube["frames"].tolist() for tube in result["tubes"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4, 5, 6]),
        ({"trim_offset": 0}, [3, 4, 5]),
        ({"trim": "span"}, [3, 4, 5, 6]),
        ({"trim": "none"}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"trim": "window"}, [4, 5, 6]),  # As "count", because the first frame has no candidates.
    ],
)
def test_tubes_are_trimmed_to_the_frames_with_candidates(options, expected):
    rows = in_frames([3, 4, 6]) + in_frames([1, 2, 5, 7, 8], actor=0.6)

    assert linked_frames(rows, **options) == [expected]


def test_tube_that_is_trimmed_away_is_a_false_positive_at_the_end():
    rows = in_frames([1, 2, 3, 4]) + in_frames([1, 2, 3], actor=0, video="w") + in_frames([4], FAR_BOX, video="w")

    result = video_map(rows_to_detections(*rows), [true_tube([2, 3, 4])], protocol="classquery_ucf", recall_epsilon=0)

    assert [len(tube["frames"]) for tube in result["tubes"]] == [3, 0]
    assert math.isnan(result["tubes"][1]["score"])
    assert result["video_map_50"] == 1


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # The run above the mean is frames 4 to 6, d = 2: extended by (8 - 2) // 2, clamped, without the last frame.
        ([0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1], [1, 2, 3, 4, 5, 6, 7, 8]),
        ([0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [1, 2, 3, 4]),
        ([0.5] * 8, [1, 2, 3]),
    ],
)
def test_window_is_around_the_highest_scores(scores, expected):
    rows = [("v", frame, BOX, score, 1.0) for frame, score in enumerate(scores)]

    assert linked_frames(rows, "classquery_jhmdb") == [expected]


def test_window_narrows_to_the_number_of_frames_with_candidates():
    # Frames 3 to 5 take the candidate of frame 2: d = 3 and (2 - 3) // 2 is rounded to 0.
    rows = in_frames([1], score=0.1) + in_frames([2], score=0.9) + in_frames([3, 4, 5], actor=0)

    assert linked_frames(rows, trim="window") == [[2, 3, 4]]


def test_jumps_negate_the_score():
    rows = in_frames([0, 1, 2]) + in_frames([3], FAR_BOX, score=0.75)

    (tube,) = video_map(rows_to_detections(*rows), [true_tube([1])], protocol="classquery_jhmdb")["tubes"]

    assert 0.75 not in tube["scores"]


def test_frames_without_candidates_take_those_of_the_nearest_frame():
    rows = in_frames([1], BOX) + in_frames([2, 3, 4], [0, 0, 9, 9], actor=0) + in_frames([5], NEAR_BOX)

    (tube,) = video_map(rows_to_detections(*rows), [true_tube([1])], protocol="classquery_ucf", trim="none")["tubes"]

    assert tube["boxes"].tolist() == [BOX, BOX, BOX, NEAR_BOX, NEAR_BOX]
    assert tube["rows"].tolist() == [0, 0, 0, 4, 4]


def test_candidates_have_the_actor_score_and_the_label_as_their_best():
    detections = rows_to_detections(*in_frames([1, 2]), *in_frames([1, 2], FAR_BOX, actor=0.69), num_labels=2)
    detections["scores"][:, 1] = [0.4, 0.4, 0.6, 0.6]

    def found(**options):
        tubes = video_map(detections, [true_tube([1])], protocol="classquery_ucf", trim="none", **options)["tubes"]
        return [(tube["label"], tube["boxes"][0].tolist()) for tube in tubes]

    assert found() == [(0, BOX)]
    assert found(actor_threshold=0.6) == [(0, BOX), (1, FAR_BOX)]
    assert found(actor_threshold=None) == [(0, BOX), (1, FAR_BOX)]
    assert found(top_label_only=False) == [(0, BOX), (1, BOX)]


def test_frame_with_one_candidate_limits_the_number_of_tubes_unless_refilled():
    rows = in_frames([1, 2, 3]) + in_frames([1, 3], FAR_BOX)

    assert len(linked_frames(rows)) == 1
    assert len(linked_frames(rows, refill=True)) == 2


def test_there_are_three_tubes_at_most_unless_asked_for():
    rows = [row for x in range(0, 500, 100) for row in in_frames([1, 2], [x, 0, x + 40, 40])]

    assert len(linked_frames(rows)) == 3
    assert len(linked_frames(rows, max_tubes=None)) == 5


def test_overlapping_tubes_are_thinned_out():
    rows = in_frames([1, 2], BOX, score=0.5) + in_frames([1, 2], NEAR_BOX, score=0.6)

    (tube,) = video_map(rows_to_detections(*rows), [true_tube([1])], protocol="classquery_ucf", trim="none")["tubes"]

    assert tube["boxes"].tolist() == [NEAR_BOX, NEAR_BOX]
    assert len(linked_frames(rows, tube_nms_iou=0.9)) == 2
    assert len(linked_frames(in_frames([1], BOX) + in_frames([1], NEAR_BOX))) == 2  # One frame is no overlap.


def test_only_the_first_fifteen_boxes_of_a_frame_count(caplog):
    rows = in_frames([1, 2], score=0.1) * 15 + in_frames([1, 2], FAR_BOX, score=0.9)

    def found(**options):
        result = video_map(rows_to_detections(*rows), [true_tube([1])], protocol="classquery_ucf", **options)
        return [tube["boxes"][0].tolist() for tube in result["tubes"]]

    assert found() == [BOX]
    assert "2 of 32 detections are ignored because their frame has more than 15" in caplog.text
    assert found(max_boxes_per_frame=None) == [FAR_BOX, BOX]


def test_frames_are_sorted_as_text():
    rows = in_frames([998, 999, 1000]) + in_frames([1001], NEAR_BOX)

    def found(**options):
        result = video_map(
            rows_to_detections(*rows), [true_tube([1])], protocol="classquery_ucf", trim="none", **options
        )
        return [tube["rows"].tolist() for tube in result["tubes"]]

    assert found() == [[2, 3, 0, 1]]
    assert found(key_digits=None) == [[0, 1, 2, 3]]


def test_frames_are_numbered_by_row_unless_they_keep_their_numbers():
    rows = in_frames([3, 4, 8])

    assert linked_frames(rows, trim="none") == [[1, 2, 3]]
    assert linked_frames(rows, trim="none", number_frames_by_row=False) == [[3, 4, 8]]
    assert linked_frames(rows, trim="count") == [[]]
    assert linked_frames(rows, trim="count", trim_offset=0, number_frames_by_row=False) == [[3, 4, 8]]


def test_numbering_may_start_elsewhere():
    rows = in_frames([2, 3, 4], box=BOX) + in_frames([0, 1, 5], actor=0)

    assert linked_frames(rows, first_frame=0, trim_offset=0) == [[3, 4, 5]]
    assert linked_frames(rows, first_frame=0, first_true_frame=0, trim_offset=0) == [[2, 3, 4]]


@pytest.mark.parametrize(("first_frame", "first_true_frame"), [(0, 1), (0, 0), (1, 1)])
def test_numbering_is_inferred_on_jhmdb(first_frame, first_true_frame):
    detections, tubes = random_case(1, first_frame=0, first_true_frame=1)
    tubes.append(true_tube([1]))
    expected = video_map(detections, tubes, protocol="classquery_jhmdb", spatial_only=False)

    detections["frame"] = [frame + first_frame for frame in detections["frame"]]
    tubes = [tube | {"frames": [frame - 1 + first_true_frame for frame in tube["frames"]]} for tube in tubes]
    result = video_map(detections, tubes, protocol="classquery_jhmdb", spatial_only=False)

    np.testing.assert_array_equal(result["ap_per_label"], expected["ap_per_label"])
    for tube, other in zip(result["tubes"], expected["tubes"], strict=True):
        np.testing.assert_array_equal(tube["frames"], other["frames"] - 1 + first_true_frame)


def pairing_case():
    """The detections of video "a_1" are those of its tube, and so are those of "a_10", elsewhere."""
    rows = in_frames(range(4), BOX, video="a_1") + in_frames(range(4), FAR_BOX, video="a_10")
    tubes = [true_tube(range(1, 5), BOX, "a_1"), true_tube(range(1, 5), FAR_BOX, "a_10")]
    return rows_to_detections(*rows), tubes


def test_videos_are_paired_by_rank_on_jhmdb(caplog):
    detections, tubes = pairing_case()

    assert video_map(detections, tubes, protocol="classquery_jhmdb")["video_map_50"] == 0
    assert "2 of 2 videos are compared with the tubes of another one" in caplog.text


def test_videos_may_be_paired_by_name_on_jhmdb(caplog):
    detections, tubes = pairing_case()

    result = video_map(detections, tubes, protocol="classquery_jhmdb", pair_videos_by_rank=False)

    assert result["video_map_50"] == pytest.approx(1, abs=1e-5)
    assert not caplog.records


def test_video_without_detections_shifts_the_pairs_on_jhmdb():
    detections, tubes = pairing_case()
    tubes.append(true_tube(range(1, 5), BOX, "A"))

    assert video_map(detections, tubes, protocol="classquery_jhmdb")["video_map_50"] == pytest.approx(1 / 3, abs=1e-5)


def test_integer_videos_are_paired_by_value_on_jhmdb():
    detections, tubes = pairing_case()
    numbers = {"a_1": 1, "a_10": 10}
    detections["video"] = [numbers[video] for video in detections["video"]]
    tubes = [tube | {"video": numbers[tube["video"]]} for tube in tubes]

    assert video_map(detections, tubes, protocol="classquery_jhmdb")["video_map_50"] == pytest.approx(1, abs=1e-5)


def scored(boxes_and_scores, true_tubes, **options):
    """AP of tubes of four frames with the given boxes and scores."""
    linked = [true_tube(range(1, 5), box) | {"score": score} for box, score in boxes_and_scores]
    return tube_map(linked, true_tubes, num_labels=1, iou_thresholds=0.5, **options)["ap_per_label"].item()


def test_second_tube_takes_what_the_first_has_left_only_if_published():
    tubes = [true_tube(range(1, 5)), true_tube(range(1, 5), NEAR_BOX)]
    found = [(BOX, 0.9), (BOX, 0.8)]

    assert scored(found, tubes, protocol="standard") == 0.5
    assert scored(found, tubes, protocol="classquery_ucf") == pytest.approx(2 / (2 + 1e-5))
    assert scored(found, tubes, protocol="classquery_ucf", recall_epsilon=0) == 1
    assert scored(found, tubes, protocol="classquery_ucf", recall_epsilon=0, match_remaining=False) == 0.5


def test_equal_scores_keep_the_order_of_tubes():
    tubes = [true_tube(range(1, 5))]

    assert scored([(BOX, 0.5), (FAR_BOX, 0.5)], tubes) == 1
    assert scored([(FAR_BOX, 0.5), (BOX, 0.5)], tubes) == 0.5
    assert scored([(FAR_BOX, math.nan), (BOX, 0)], tubes) == 1


def test_labels_without_ground_truth_count_only_if_published():
    linked = [true_tube(range(1, 5)) | {"score": 0.5}]
    tubes = [true_tube(range(1, 5))]

    def result(**options):
        return tube_map(linked, tubes, num_labels=4, iou_thresholds=0.5, **options)

    np.testing.assert_array_equal(result()["ap_per_label"], [1, np.nan, np.nan, np.nan])
    assert result()["video_map_50"] == 1
    assert result(protocol="classquery_ucf", recall_epsilon=0)["video_map_50"] == 0.25
    assert result(protocol="classquery_ucf", recall_epsilon=0, count_missing_labels=False)["video_map_50"] == 1


def test_standard_drops_short_and_weak_tubes_and_empty_boxes():
    rows = (
        in_frames(range(20), BOX, score=0.5)
        + in_frames(range(14), FAR_BOX)
        + in_frames(range(20), [200, 0, 240, 40], 0.004)
    )
    rows += in_frames(range(20), [300, 0, 300, 40]) + in_frames(range(20), [340, 0, 300, 40])
    detections = rows_to_detections(*rows)
    del detections["actor"]

    tubes = video_map(detections, [true_tube(range(20))], protocol="standard")["tubes"]

    assert [tube["boxes"][0].tolist() for tube in tubes] == [BOX]
    np.testing.assert_array_equal(tubes[0]["rows"], range(20))


def test_standard_without_any_box_left_finds_nothing():
    detections = rows_to_detections(*in_frames(range(20), [5, 5, 5, 9]))

    assert video_map(detections, [true_tube(range(20))], protocol="standard")["tubes"] == []


def test_standard_takes_any_numbering():
    rows = in_frames(range(-20, 0)) + in_frames(range(-20, 0), video="w")
    tubes = [true_tube(range(-20, 0)), true_tube(range(-20, 0), video="w")]

    assert video_map(rows_to_detections(*rows), tubes, protocol="standard")["video_map_50"] == 1


# Arguments and results


def simple_case():
    rows = in_frames([1, 2, 3, 4], BOX) + in_frames([1, 2, 3, 4], FAR_BOX, video="w")
    return rows_to_detections(*rows, num_labels=2), [true_tube([2, 3, 4]), true_tube([2, 3, 4], FAR_BOX, "w", 1)]


def test_one_threshold_gives_one_row_and_a_sequence_one_row_for_each():
    case = simple_case()

    single = video_map(*case, protocol="classquery_ucf", iou_thresholds=0.75)
    default = video_map(*case, protocol="classquery_ucf")
    all_ten = video_map(*case, protocol="classquery_ucf", iou_thresholds=ALL_THRESHOLDS)

    assert list(single) == ["video_map_75", "ap_per_label", "tubes"]
    assert list(default) == ["video_map_20", "video_map_50", "ap_per_label", "tubes"]
    assert (single["ap_per_label"].shape, default["ap_per_label"].shape) == ((2,), (2, 2))
    assert all_ten["video_map_50_95"] == pytest.approx(all_ten["ap_per_label"][1:].mean())


@pytest.mark.parametrize("convert", [np.ndarray.tolist, torch.from_numpy])
def test_type_of_arrays_does_not_matter(convert):
    detections, tubes = random_case(0)
    expected = video_map(detections, tubes, protocol="classquery_ucf", actor_threshold=0.3)

    converted = {key: value if key == "video" else convert(np.array(value)) for key, value in detections.items()}
    converted_tubes = [
        tube | {"frames": convert(np.array(tube["frames"], float)), "boxes": convert(np.array(tube["boxes"]))}
        for tube in tubes
    ]
    result = video_map(converted, converted_tubes, protocol="classquery_ucf", actor_threshold=0.3)

    np.testing.assert_array_equal(result["ap_per_label"], expected["ap_per_label"])


@pytest.mark.parametrize("protocol", ["standard", "classquery_ucf", "classquery_jhmdb"])
def test_order_of_rows_does_not_matter(protocol):
    detections, tubes = random_case(1, first_frame=1)
    order = np.random.default_rng(0).permutation(len(detections["frame"]))
    shuffled = {key: np.array(value)[order] for key, value in detections.items()}

    results = [video_map(rows, tubes, protocol=protocol) for rows in (detections, shuffled)]

    np.testing.assert_array_equal(results[0]["ap_per_label"], results[1]["ap_per_label"])
    np.testing.assert_array_equal(*([tube["score"] for tube in result["tubes"]] for result in results))


def test_video_in_parts_gives_the_same_tubes(monkeypatch):
    case, _ = load_case("ucf_pub_a")
    arguments = detections_of_case(case), tubes_of_case(case)
    expected = video_map(*arguments, protocol="classquery_ucf")

    monkeypatch.setattr("classquery.data.metrics.protocols._PAIRS_AT_ONCE", 1)
    result = video_map(*arguments, protocol="classquery_ucf")

    assert [tube["score"] for tube in result["tubes"]] == [tube["score"] for tube in expected["tubes"]]


@pytest.mark.parametrize("protocol", ["standard", "classquery_ucf", "classquery_jhmdb"])
def test_empty_detections_find_nothing(protocol, caplog):
    empty = {"video": [], "frame": [], "boxes": [], "scores": [], "actor": []}

    result = video_map(empty, [true_tube([1, 2], label=1)], protocol=protocol)

    assert (result["video_map_50"], result["tubes"]) == (0, [])
    assert result["ap_per_label"].shape == (2, 2)
    assert "Video mAP is 0: none of 0 detections was linked" in caplog.text


@pytest.mark.parametrize(("protocol", "expected"), [("standard", math.nan), ("classquery_ucf", 0)])
def test_without_ground_truth_the_mean_is_what_labels_without_it_count(protocol, expected, caplog):
    detections, _ = simple_case()

    result = video_map(detections, [], protocol=protocol)

    np.testing.assert_equal(result["video_map_50"], expected)
    assert result["ap_per_label"].shape == (2, 2)
    assert "there is no ground truth" in caplog.text


def test_detections_in_a_video_without_ground_truth_are_false_positives():
    detections, tubes = simple_case()
    detections["scores"][4:] = 0.9  # The tube in "w" has the higher score.

    ap = video_map(detections, tubes[:1], protocol="classquery_ucf", recall_epsilon=0)["ap_per_label"][1]

    assert ap[0] == 0.5


def test_tubes_without_frames_are_ignored():
    detections, tubes = simple_case()
    expected = video_map(detections, tubes, protocol="classquery_ucf")

    result = video_map(detections, [*tubes, true_tube([])], protocol="classquery_ucf")

    np.testing.assert_array_equal(result["ap_per_label"], expected["ap_per_label"])


@pytest.mark.parametrize("protocol", ["classquery_ucf", "classquery_jhmdb"])
def test_inverted_boxes_of_detections_are_linked_and_overlap_nothing(protocol):
    detections, tubes = simple_case()
    detections["boxes"][:4] = [[40, 0, 0, 40]] * 4

    result = video_map(detections, tubes[:1], protocol=protocol)

    assert any(tube["boxes"].tolist()[:1] == [[40, 0, 0, 40]] for tube in result["tubes"])
    assert result["video_map_20"] == 0


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"actor": [0.1] * 8}, "none of 8 detections was linked into a tube"),
        ({"video": ["x"] * 4 + ["y"] * 4}, "no video of the detections has ground truth, compare 'x' with '[vw]'"),
        ({"boxes": [[300, 0, 400, 50]] * 8}, "compare frames, 1 to 4 and 2 to 4 .* the largest corners, 400 and 90"),
    ],
)
def test_zero_comes_with_its_likely_cause(changes, cause, caplog):
    detections, tubes = simple_case()

    assert video_map(detections | changes, tubes, protocol="classquery_ucf")["video_map_20"] == 0

    assert re.search(f"Video mAP is 0: .*{cause}", caplog.text)


# Wrong input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": ["v"]}, r"detections\['video'\] must be of shape \(8,\) .* got \(1,\)"),
        ({"actor": [0.5]}, r"detections\['actor'\] must be of shape \(8,\) .* got \(1,\)"),
        ({"frame": [1, 2]}, r"detections\['boxes'\] must be of shape \(2, 4\) .* got \(8, 4\)"),
        ({"scores": [[0.5, 0.5]]}, r"detections\['scores'\] must be of shape \(8, K\) .* got \(1, 2\)"),
        ({"frame": list("12345678")}, r"detections\['frame'\] must hold integers, got <U1"),
        ({"frame": [0.5] * 8}, "must hold integers or strings, got float64"),
        ({"video": [0.5] * 8}, r"detections\['video'\] must hold integers or strings, got float64"),
        ({"video": [1] * 8}, "videos must be all integers or all strings"),
        ({"boxes": [[0, 0, math.nan, 9]] * 8}, r"detections\['boxes'\] must be finite"),
        ({"scores": [[0.5, 1.5]] * 8}, r"detections\['scores'\] must be in \[0, 1\]"),
        ({"scores": [[0.5, math.nan]] * 8}, r"detections\['scores'\] must be in \[0, 1\] without NaN"),
        ({"actor": [-0.5] * 8}, r"detections\['actor'\] must be in \[0, 1\] .* from -0.5"),
        ({"boxes": [[0, 0, 0.5, 0.5]] * 8}, "boxes of detections must be in pixels.*beyond 0.5"),
        ({"frame": [0, 1, 2, 3] * 2}, "detections have a frame 0, but .* counts .* from 1; pass first_frame=0"),
    ],
)
def test_video_map_raises_on_wrong_detections(changes, message):
    detections, tubes = simple_case()

    with pytest.raises(ValueError, match=message):
        video_map(detections | changes, tubes, protocol="classquery_ucf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 2}, r"tubes\[1\]\['label'\] must be an integer from 0, below .* \(2\), got 2; labels are 0-based"),
        ({"label": -1}, "got -1"),
        ({"label": "walk"}, "got 'walk'"),
        ({"video": 1.5}, r"tubes\[1\]\['video'\] must be an integer or a string, got 1.5"),
        ({"video": 1}, "the videos of tubes must be all integers or all strings"),
        ({"frames": [2, 3]}, r"tubes\[1\]\['boxes'\] must be of shape \(2, 4\) as 2 frames are given, got \(3, 4\)"),
        ({"frames": [2, 4, 3]}, r"tubes\[1\]\['frames'\] must be whole numbers in ascending order.*got \[2, 4, 3\]"),
        ({"frames": [2, 2, 3]}, "whole numbers in ascending order"),
        ({"frames": [1.5, 2, 3]}, "whole numbers in ascending order"),
        ({"frames": [1, math.nan, 3]}, "whole numbers in ascending order"),
        ({"frames": [0, 1, 2]}, "tubes have a frame 0, but .* from 1; pass first_true_frame=0"),
        ({"boxes": [BOX, BOX, [0, 0, math.inf, 9]]}, r"tubes\[1\]\['boxes'\] must be finite.* in row 2"),
        ({"boxes": [BOX, [9, 0, 4, 9], BOX]}, r"tubes\[1\]\['boxes'\] must have x1 <= x2 .* in row 1"),
        ({"boxes": [BOX, [0, 9, 9, 4], BOX]}, r"tubes\[1\]\['boxes'\] must have x1 <= x2 and y1 <= y2"),
    ],
)
def test_video_map_raises_on_wrong_tubes(changes, message):
    detections, tubes = simple_case()
    tubes[1] |= changes

    with pytest.raises(ValueError, match=message):
        video_map(detections, tubes, protocol="classquery_ucf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "coco"}, "protocol must be one of .*'classquery_jhmdb'.*, got 'coco'"),
        ({"max_tube": 3}, r"has no option \['max_tube'\], expected some of .*'max_tubes'"),
        ({"protocol": "standard", "trim": "none"}, r"\"standard\" has no option \['trim'\]"),
        ({"trim": "all"}, "trim must be .* got 'all'"),
        ({"iou_thresholds": 50}, r"must be a number in \(0, 1\]"),
        ({"iou_thresholds": [0.5, 0.5]}, "must not repeat a value"),
    ],
)
def test_video_map_raises_on_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        video_map(*simple_case(), **{"protocol": "classquery_ucf"} | options)


@pytest.mark.parametrize("key", ["video", "frame", "boxes", "scores", "actor"])
def test_video_map_names_the_missing_key_of_detections(key):
    detections, tubes = simple_case()
    del detections[key]

    with pytest.raises(ValueError, match=f"detections must have the keys .*'{key}'"):
        video_map(detections, tubes, protocol="classquery_ucf")


@pytest.mark.parametrize("key", ["video", "label", "frames", "boxes"])
def test_video_map_names_the_missing_key_of_a_tube(key):
    detections, tubes = simple_case()
    del tubes[1][key]

    with pytest.raises(ValueError, match=rf"tubes\[1\] must have the keys .*'{key}'"):
        video_map(detections, tubes, protocol="classquery_ucf")


def test_tube_map_names_the_missing_score():
    with pytest.raises(ValueError, match=r"linked\[0\] must have the keys .*'score'"):
        tube_map([true_tube([1])], [true_tube([1])], num_labels=1)


def test_inputs_are_left_unchanged():
    case, _ = load_case("ucf_pub_a")
    detections = detections_of_case(case)
    copies = {key: value.copy() for key, value in detections.items()}

    video_map(detections, tubes_of_case(case), protocol="classquery_ucf")

    for key, value in detections.items():
        np.testing.assert_array_equal(value, copies[key])
