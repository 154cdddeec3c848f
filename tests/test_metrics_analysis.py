"""What costs frame mAP: kinds of error by construction and against a plain count, oracles, sizes, and the page."""

import doctest
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from test_metrics_frame import BOX, FAR_BOX, brute_force_frame_map, iou, random_case

from classquery.data.metrics import analysis as analysis_module
from classquery.data.metrics import analyze, frame_map
from classquery.data.metrics.analysis import FALSE_POSITIVES, KINDS, SIZES
from classquery.data.metrics.report import write_report


HALF_OFF, HARDLY = [0, 0, 10, 4], [0, 0, 10, 0.5]  # IoU 0.4 and 0.05 with BOX.


def kinds_of(detections, ground_truth, **options):
    """How many detections are of each kind that occurs, and how much is missed."""
    result = analyze(detections, ground_truth, **options)
    counts = {kind: numbers["count"] for kind, numbers in result["kinds"].items() if numbers["count"]}
    return counts, result["missed"]["count"]


def one_label(boxes, scores=None):
    scores = np.linspace(0.9, 0.5, len(boxes)) if scores is None else scores
    return {"frame": [1] * len(boxes), "boxes": boxes, "scores": np.reshape(scores, (-1, 1))}


TRUTH = {"frame": [1], "boxes": [BOX], "labels": [[1]]}


def test_example_of_the_docstring_is_right():
    assert doctest.testmod(analysis_module) == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "expected", "missed"),
    [
        ([BOX], {"true_positive": 1}, 0),
        ([BOX, BOX, BOX], {"true_positive": 1, "duplicate": 2}, 0),
        ([HALF_OFF], {"localisation": 1}, 1),
        ([HARDLY], {"background": 1}, 1),
        ([FAR_BOX], {"background": 1}, 1),
        ([HALF_OFF, BOX, FAR_BOX], {"localisation": 1, "true_positive": 1, "background": 1}, 0),
        ([[0, 0, 0, 10]], {}, 1),  # A degenerate box is no detection.
    ],
)
def test_kinds_of_a_single_label(boxes, expected, missed):
    assert kinds_of(one_label(boxes), TRUTH) == (expected, missed)


@pytest.mark.parametrize(
    ("box", "expected"),
    [(BOX, "class_confusion"), (HALF_OFF, "localisation_and_class"), (HARDLY, "background")],
)
def test_box_on_an_actor_of_another_label(box, expected):
    truth = {"frame": [1, 2], "boxes": [BOX, BOX], "labels": [[1, 0], [0, 1]]}
    detections = {"frame": [1], "boxes": [box], "scores": [0.9], "label": [1]}

    assert kinds_of(detections, truth)[0] == {expected: 1}


def test_right_box_on_an_actor_is_no_localisation_error_of_a_neighbour():
    # Both actors overlap the box: 1.0 with the one who does something else, 0.4 with the one who does it.
    truth = {"frame": [1, 1], "boxes": [BOX, HALF_OFF], "labels": [[1, 0], [0, 1]]}
    detections = {"frame": [1], "boxes": [BOX], "scores": [0.9], "label": [1]}

    assert kinds_of(detections, truth)[0] == {"class_confusion": 1}


def test_actors_without_a_scored_label_are_nobody():
    truth = {"frame": [1, 2], "boxes": [BOX, BOX], "labels": [[1, 0], [0, 1]]}
    detections = {"frame": [1], "boxes": [BOX], "scores": [[0.9, 0.8]]}

    assert kinds_of(detections, truth, label_ids=[2]) == ({"background": 1}, 1)


def plain_kinds(detections, ground_truth, iou_threshold=0.5, background_iou=0.1):
    """One detection at a time, as the module describes."""
    kinds, num_missed = dict.fromkeys(KINDS, 0), 0
    actors = list(zip(*(np.asarray(ground_truth[key]).tolist() for key in ("frame", "boxes", "labels")), strict=True))
    actors = [actor for actor in actors if any(actor[2])]
    boxes = list(zip(*(np.asarray(detections[key]).tolist() for key in ("frame", "boxes", "scores")), strict=True))
    for label in range(len(actors[0][2])):
        own = [index for index, actor in enumerate(actors) if actor[2][label]]
        if not own:
            continue
        claimed = set()
        for frame, box, _ in sorted(boxes, key=lambda row: -row[2][label]):
            if not (box[0] < box[2] and box[1] < box[3]):
                continue
            overlaps = {i: iou(box, actor[1]) for i, actor in enumerate(actors) if actor[0] == frame}
            best = max((i for i in own if i in overlaps), key=overlaps.get, default=None)
            own_iou, any_iou = overlaps.get(best, 0), max(overlaps.values(), default=0)
            if own_iou >= iou_threshold:
                kinds["duplicate" if best in claimed else "true_positive"] += 1
                claimed.add(best)
            elif any_iou >= iou_threshold:
                kinds["class_confusion"] += 1
            elif own_iou >= background_iou:
                kinds["localisation"] += 1
            else:
                kinds["localisation_and_class" if any_iou >= background_iou else "background"] += 1
        num_missed += len(own) - len(claimed)
    return kinds, num_missed


@pytest.mark.parametrize("seed", range(6))
def test_every_detection_is_of_exactly_one_kind(seed):
    detections, ground_truth = random_case(seed)

    result = analyze(detections, ground_truth)

    expected, missed = plain_kinds(detections, ground_truth)
    assert {kind: numbers["count"] for kind, numbers in result["kinds"].items()} == expected
    assert result["missed"]["count"] == missed
    assert sum(map(bool, expected.values())) >= len(KINDS) - 1, "several kinds do not occur"
    assert sum(expected.values()) == sum(label["detections"] for label in result["labels"])
    for label in result["labels"]:
        assert sum(label["best"].values()) == min(label["ground_truth"], label["detections"])
        assert label["ground_truth"] == label["true_positives"] + label["missed"]


@pytest.mark.parametrize("seed", range(3))
def test_analysis_agrees_with_frame_map(seed):
    detections, ground_truth = random_case(seed)
    expected = frame_map(detections, ground_truth, label_ids=[1, 3])

    result = analyze(detections, ground_truth, label_ids=[1, 3], id2label={0: "stand", 2: "walk"})

    assert result["frame_map"] == expected["frame_map_50"]
    assert [(label["id"], label["name"]) for label in result["labels"]] == [(1, "stand"), (3, "walk")]
    assert [label["ap"] for label in result["labels"]] == expected["ap_per_label"][[0, 2]].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_boxes_and_labels_are_analyzed_like_rows_with_all_scores(seed):
    detections, ground_truth = random_case(seed)
    rows, labels = np.nonzero(np.ones_like(detections["scores"], dtype=bool))
    order = np.argsort(labels, kind="stable")  # Equal scores of the class oracle keep the order of boxes.
    rows, labels = rows[order], labels[order]
    # Rows of one box and one frame could not be told apart.
    boxes = detections["boxes"] + np.arange(len(detections["boxes"]))[:, None] * 1e-9
    dense = detections | {"boxes": boxes}
    pairs = {
        "frame": detections["frame"][rows],
        "boxes": boxes[rows],
        "scores": detections["scores"][rows, labels],
        "label": labels,
    }

    np.testing.assert_array_equal(
        frame_map(pairs, ground_truth)["ap_per_label"], frame_map(dense, ground_truth)["ap_per_label"]
    )
    assert analyze(pairs, ground_truth) == analyze(dense, ground_truth)


# Gains


def mended_map(detections, ground_truth, keep):
    """Frame mAP without the detections of a single label that `keep` is false for."""
    kept = {key: np.asarray(value)[keep] for key, value in detections.items()}
    return brute_force_frame_map(kept, ground_truth)["ap_per_label"][0]


def test_gain_of_a_kind_is_what_leaving_it_out_gains():
    boxes = [FAR_BOX, HALF_OFF, BOX, BOX, [100, 100, 110, 110], [100, 100, 110, 110]]
    detections = one_label(boxes)
    truth = {"frame": [1, 1], "boxes": [BOX, [100, 100, 110, 110]], "labels": [[1], [1]]}
    ap = brute_force_frame_map(detections, truth)["ap_per_label"][0]

    result = analyze(detections, truth)

    assert result["kinds"]["background"]["gain"] == pytest.approx(
        mended_map(detections, truth, np.ones(6) == [0, 1, 1, 1, 1, 1]) - ap
    )
    assert result["kinds"]["duplicate"]["gain"] == pytest.approx(
        mended_map(detections, truth, np.ones(6) == [1, 1, 1, 0, 1, 0]) - ap
    )
    # The ground truth has been found by another detection, so the box that is off cannot claim it.
    assert result["kinds"]["localisation"]["gain"] == pytest.approx(
        mended_map(detections, truth, np.ones(6) == [1, 0, 1, 1, 1, 1]) - ap
    )
    assert result["missed"]["gain"] == 0


def test_boxes_that_are_off_claim_what_is_left():
    truth = {"frame": [1, 1], "boxes": [BOX, FAR_BOX], "labels": [[1], [1]]}
    detections = one_label([HALF_OFF, HALF_OFF, FAR_BOX])

    result = analyze(detections, truth)

    # Before, the only hit was third; mended, hits are first and second, and the second box that was off is gone.
    assert result["frame_map"] == pytest.approx(1 / 2 * 1 / 3)
    assert result["kinds"]["localisation"]["gain"] == pytest.approx(1 - 1 / 6)
    assert result["missed"]["gain"] == pytest.approx((1 + 2 / 4) / 2 - 1 / 6)


@pytest.mark.parametrize("seed", range(6))
def test_gains_are_not_negative_and_errors_without_detections_are_misses(seed):
    result = analyze(*random_case(seed, distinct_scores=False))

    assert all(result["kinds"][kind]["gain"] >= 0 for kind in FALSE_POSITIVES)
    assert result["missed"]["gain"] >= 0
    nothing = analyze({"frame": [], "boxes": [], "scores": []}, TRUTH)
    assert (nothing["frame_map"], nothing["missed"]) == (0, {"count": 1, "gain": 1})


# Oracles


def plain_assignment(boxes, actors, smallest):
    """The pairs with the largest sum of IoU, after trying all."""
    num_pairs = min(len(boxes), len(actors))
    options = [
        list(zip(chosen, order, strict=True))
        for chosen in itertools.combinations(range(len(boxes)), num_pairs)
        for order in itertools.permutations(range(len(actors)), num_pairs)
    ]
    overlaps = [[iou(box, actor) for actor in actors] for box in boxes]
    overlaps = [[value if value >= smallest else 0 for value in row] for row in overlaps]
    best = max(options, key=lambda pairs: sum(overlaps[box][actor] for box, actor in pairs))
    return [(box, actor) for box, actor in best if overlaps[box][actor] > 0]


@pytest.mark.parametrize("oracle_iou", [0.5, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_oracles_match_the_best_of_all_assignments(seed, oracle_iou):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 5, (24, 2))
    boxes = np.concatenate([corners, corners + rng.integers(4, 9, corners.shape)], axis=1).astype(float)
    frame = np.repeat([1, 2, 3], 8)
    is_actor = np.tile([0, 0, 0, 0, 0, 1, 1, 1], 3).astype(bool)
    labels = rng.random((9, 3)) < 0.5
    labels[:3] = np.eye(3)
    labels[~labels.any(1), 0] = True
    truth = {"frame": frame[is_actor], "boxes": boxes[is_actor], "labels": labels}
    found = {"frame": frame[~is_actor], "boxes": boxes[~is_actor], "scores": rng.random((15, 3))}
    right_boxes, right_scores, assigned = found["boxes"].copy(), np.full((15, 3), -1.0), 0
    for number in (1, 2, 3):
        rows, actors = (np.flatnonzero(table["frame"] == number) for table in (found, truth))
        for box, actor in plain_assignment(found["boxes"][rows], truth["boxes"][actors], oracle_iou):
            right_boxes[rows[box]] = truth["boxes"][actors[actor]]
            right_scores[rows[box]] = labels[actors[actor]]
            assigned += 1

    oracles = analyze(found, truth, oracle_iou=oracle_iou)["oracles"]

    of_boxes = brute_force_frame_map({**found, "boxes": right_boxes}, truth)["ap_per_label"]
    assert oracles["ground_truth_boxes"]["frame_map"] == pytest.approx(np.mean(of_boxes))
    rows, columns = np.nonzero(right_scores > 0)
    pairs = {"frame": found["frame"][rows], "boxes": found["boxes"][rows], "scores": np.ones(len(rows))}
    of_classes = frame_map(pairs | {"label": columns}, truth)["frame_map_50"]
    assert oracles["ground_truth_classes"]["frame_map"] == pytest.approx(of_classes)
    assert oracles["assigned_actors"] == pytest.approx(assigned / 9)


def test_class_oracle_of_right_boxes_is_perfect_and_gains_add_up_with_the_map():
    boxes = [BOX, FAR_BOX, [20, 20, 30, 30]]
    truth = {"frame": [1, 1], "boxes": boxes[:2], "labels": [[1, 0], [1, 1]]}
    detections = {"frame": [1, 1, 1], "boxes": boxes, "scores": [[0.1, 0.9], [0.2, 0.8], [0.9, 0.95]]}

    result = analyze(detections, truth)

    oracle = result["oracles"]["ground_truth_classes"]
    assert (oracle["frame_map"], oracle["gain"]) == (1, pytest.approx(1 - result["frame_map"]))


# Sizes and confusions


def test_actors_are_divided_by_size():
    side = np.arange(1, 10)
    boxes = np.stack([side * 20, side * 0, side * 20 + side, side], axis=1)
    truth = {"frame": [1] * 9, "boxes": boxes, "labels": [[1]] * 9}

    found_large = analyze(one_label(boxes[3:]), truth)["sizes"]
    by_edges = analyze(one_label(boxes), truth, size_edges=(4, 81))["sizes"]

    assert [size["name"] for size in found_large] == list(SIZES)
    assert [size["recall"] for size in found_large] == [0, 1, 1]
    assert [size["frame_map"] for size in found_large] == [0, 1, 1]
    assert [size["actors"] for size in by_edges] == [1, 7, 1]
    assert [(size["min_area"], size["max_area"]) for size in by_edges] == [(0, 4), (4, 81), (81, None)]


def test_false_positives_count_for_the_size_of_their_box_or_of_what_they_reach():
    small, large = [0, 0, 1, 1], [50, 50, 60, 60]
    truth = {"frame": [1, 1], "boxes": [small, large], "labels": [[1], [1]]}
    # A duplicate of the large actor, and small background, both before the hits.
    detections = one_label([large, large, [20, 20, 21, 21], small], [0.9, 0.8, 0.7, 0.6])

    sizes = analyze(detections, truth, size_edges=(10, 50))["sizes"]

    assert [size["frame_map"] for size in sizes] == [0.5, None, 1.0]


def test_confusions_name_what_the_actor_does():
    truth = {"frame": [1, 2, 3], "boxes": [BOX] * 3, "labels": [[1, 0, 0], [1, 0, 1], [0, 1, 0]]}
    detections = {"frame": [2, 1], "boxes": [BOX] * 2, "scores": [0.9, 0.8], "label": [1, 1]}

    confusions = analyze(detections, truth, id2label={0: "sit", 1: "walk", 2: "talk"})["confusions"]

    # One ground truth of "walk": its best detection is that with score 0.9.
    assert [tuple(entry.values()) for entry in confusions] == [("walk", "sit", 1), ("walk", "talk", 1)]


# Arguments, JSON and the page


def test_result_is_json_without_nan_for_any_input():
    empty = {"frame": [], "boxes": [], "scores": []}
    for detections, truth in [
        random_case(0),
        (empty, TRUTH),
        (one_label([BOX]), {"frame": [], "boxes": [], "labels": []}),
        (empty, {"frame": [], "boxes": [], "labels": []}),
        (one_label([BOX]), {"frame": [2], "boxes": [BOX], "labels": [[1]]}),
    ]:
        text = json.dumps(analyze(detections, truth), allow_nan=False)
        assert json.loads(text)["kinds"].keys() == set(KINDS)


@pytest.mark.parametrize(
    "options", [{"background_iou": 0.5}, {"size_edges": (4, 4)}, {"iou_threshold": 50}, {"oracle_iou": 0}]
)
def test_contradicting_options_raise(options):
    with pytest.raises(ValueError, match="background_iou < iou_threshold|must be a number in"):
        analyze(one_label([BOX]), TRUTH, **options)


class Page(HTMLParser):
    """Collects the text and checks that tags are closed and nothing is fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        assert not {"src", "href", "srcset"} & {name for name, _ in attributes}
        assert tag not in ("script", "link", "iframe")
        self.open += [tag] if tag != "meta" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def test_report_is_one_page_without_anything_from_outside(tmp_path):
    detections, truth = random_case(0)
    result = analyze(detections, truth, id2label={0: "sit <& stand>"})

    path = write_report(tmp_path / "report", result, metrics={"eval_frame_map_50": 0.25, "eval_loss": 3.0})

    assert sorted(file.name for file in path.parent.iterdir()) == ["analysis.json", "report.html", "report.png"]
    assert json.loads((path.parent / "analysis.json").read_text()) == result
    assert (path.parent / "report.png").read_bytes()[:4] == b"\x89PNG"
    page = Page(path.read_text())
    assert page.open == []
    assert {"25.0", "frame mAP 50", "sit <& stand>", "without class confusion"} <= set(page.text)
    assert not re.search(r"url\(|@import|//", path.read_text())


def test_report_of_nothing_is_written(tmp_path):
    empty = {"frame": [], "boxes": [], "scores": []}

    path = write_report(tmp_path, analyze(empty, {"frame": [], "boxes": [], "labels": []}))

    assert Page(path.read_text()).open == []


def test_numbers_of_few_boxes_are_marked(tmp_path):
    boxes, frames = [[0.1, 0.1, 0.5, 0.9]], [f"frame {index}" for index in range(25)]
    labels = np.zeros((25, 2), dtype=int)
    labels[:, 0], labels[:3, 1] = 1, 1
    truth = {"frame": frames, "boxes": boxes * 25, "labels": labels}
    found = {"frame": frames, "boxes": boxes * 25, "scores": labels * 0.9}

    text = write_report(tmp_path / "some", analyze(found, truth, id2label={0: "walk", 1: "fall"})).read_text()
    few = {name: value[:5] for name, value in truth.items()}
    of_few = write_report(tmp_path / "few", analyze({n: v[:5] for n, v in found.items()}, few)).read_text()

    assert '<tr class="few"><th>fall</th>' in text
    assert "<tr><th>walk</th>" in text
    assert "change by chance, and say little" not in text
    assert "All numbers are of 8 actions of actors only" in of_few
