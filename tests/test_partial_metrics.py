"""Metrics of partial annotations: what is detected where nobody knows is neither right nor wrong."""

import numpy as np
import pytest
import torch
from partial_annotations import partial_rows
from torchvision.ops import box_iou

from classquery import ClassQueryVideoProcessor
from classquery.data.clips import ClipCollator, TubeClips
from classquery.data.metrics import analyze, frame_map, video_map
from classquery.data.metrics.records import frame_tables, read_records, unknown_table
from classquery.engine.training.evaluation import FrameScorer, TubeScorer, clip_records, report_errors, save_records


NUM_LABELS = 3


def random_boxes(generator, count):
    corners = generator.uniform(0, 0.6, (count, 2))
    return np.concatenate((corners, corners + generator.uniform(0.2, 0.4, (count, 2))), axis=1)


def random_tables(seed):
    generator = np.random.default_rng(seed)

    def table(count, spread):
        boxes = np.repeat(random_boxes(np.random.default_rng(7), 8), count, axis=0)
        boxes = boxes + generator.normal(0, spread, boxes.shape)
        return {"frame": np.repeat(np.arange(8) // 2, count), "boxes": boxes}

    detections = table(5, 0.03) | {"scores": generator.uniform(0, 1, (40, NUM_LABELS))}
    truth = table(1, 0.0) | {"labels": generator.integers(0, 2, (8, NUM_LABELS))}
    unknown = table(1, 0.02) | {
        "labels": generator.integers(0, 2, (8, NUM_LABELS)),
        "is_region": np.arange(8) % 3 == 0,
    }
    unknown["frame"] = np.roll(unknown["frame"], 2)
    unknown["boxes"] = np.roll(unknown["boxes"], 1, axis=0)
    return detections, truth, unknown


def known_pairs(detections, truth, unknown, threshold):
    """Detections as pairs of a box and a label, one after the other, without those that nobody knows about."""
    kept = []
    for row, (frame, box) in enumerate(zip(detections["frame"], detections["boxes"], strict=True)):
        box = torch.tensor(box)[None]
        area = (box[0, 2] - box[0, 0]) * (box[0, 3] - box[0, 1])
        for label in range(NUM_LABELS):
            claims = any(
                box_iou(box, torch.tensor(other)[None]) >= threshold
                for other_frame, other, labels in zip(truth["frame"], truth["boxes"], truth["labels"], strict=True)
                if other_frame == frame and labels[label]
            )
            is_open = False
            for place in range(len(unknown["frame"])):
                if unknown["frame"][place] != frame or not unknown["labels"][place, label]:
                    continue
                other = torch.tensor(unknown["boxes"][place])[None]
                sides = torch.minimum(box, other)[0, 2:] - torch.maximum(box, other)[0, :2]
                inside = sides.clamp(min=0).prod() / area
                is_open |= bool(inside > 0.5 if unknown["is_region"][place] else box_iou(box, other) >= threshold)
            if claims or not is_open:
                kept.append((row, label))
    row, label = np.array(kept).T
    pairs = {"frame": detections["frame"][row], "boxes": detections["boxes"][row], "label": label}
    return pairs | {"scores": detections["scores"][row, label]}


@pytest.mark.parametrize("threshold", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(4))
def test_frame_map_is_that_of_what_is_known(seed, threshold):
    detections, truth, unknown = random_tables(seed)
    pairs = known_pairs(detections, truth, unknown, threshold)
    assert len(detections["frame"]) * NUM_LABELS * 0.3 < len(pairs["frame"]) < len(detections["frame"]) * NUM_LABELS

    found = frame_map(detections, truth, iou_threshold=threshold, unknown=unknown)

    expected = frame_map(pairs, truth, iou_threshold=threshold)
    np.testing.assert_allclose(found["ap_per_label"], expected["ap_per_label"], rtol=1e-12)
    everything = {name: np.repeat(detections[name], NUM_LABELS, axis=0) for name in ("frame", "boxes")}
    everything |= {"scores": detections["scores"].ravel(), "label": np.tile(np.arange(NUM_LABELS), 40)}
    of_pairs = frame_map(everything, truth, iou_threshold=threshold, unknown=unknown)
    np.testing.assert_allclose(of_pairs["ap_per_label"], expected["ap_per_label"], rtol=1e-12)
    if threshold == 0.5:
        analysis = analyze(detections, truth, unknown=unknown)
        assert analysis["frame_map"] == pytest.approx(found["frame_map_50"])
        assert sum(kind["count"] for kind in analysis["kinds"].values()) == len(pairs["frame"])


def test_nothing_unknown_changes_nothing():
    detections, truth, unknown = random_tables(0)
    nothing = {name: column[:0] for name, column in unknown.items()}

    found = frame_map(detections, truth, unknown=nothing)

    assert np.array_equal(found["ap_per_label"], frame_map(detections, truth)["ap_per_label"], equal_nan=True)


def test_unknown_labels_of_another_number_raise():
    detections, truth, unknown = random_tables(0)

    with pytest.raises(ValueError, match=r"unknown\['labels'\] must have 3 columns, got 2"):
        frame_map(detections, truth, unknown=unknown | {"labels": unknown["labels"][:, :2]})


BOX, OTHER = [10.0, 10.0, 50.0, 90.0], [60.0, 10.0, 90.0, 90.0]


def detections_of(*boxes_and_scores):
    """Two frames of a video with a label, and the given boxes in both."""
    columns = [(frame, box, [score]) for box, score in boxes_and_scores for frame in (1, 2)]
    frames, boxes, scores = zip(*columns, strict=True)
    return {"video": ["v"] * len(frames), "frame": frames, "boxes": boxes, "scores": scores}


def unknown_of(boxes, *, is_region=False, labels=(0,), video="v"):
    return {"video": video, "frames": [1, 2], "boxes": [boxes] * 2, "labels": list(labels), "is_region": is_region}


@pytest.mark.parametrize(
    ("unknown", "expected"),
    [
        ([], 0.5),
        ([unknown_of(OTHER)], 1.0),
        ([unknown_of([0, 0, 100, 100], is_region=True)], 1.0),
        ([unknown_of([0, 0, 100, 100])], 0.5),
        ([unknown_of([80, 10, 100, 90], is_region=True)], 0.5),
        ([unknown_of(OTHER, labels=())], 0.5),
        ([unknown_of(OTHER, video="w")], 0.5),
        # Where there is ground truth, everything counts.
        ([unknown_of(BOX)], 0.5),
    ],
)
def test_video_map_leaves_out_tubes_of_which_nobody_knows(unknown, expected):
    truth = [{"video": "v", "label": 0, "frames": [1, 2], "boxes": [BOX] * 2}]
    settings = {"protocol": "standard", "iou_thresholds": 0.5, "min_frames": 1}

    result = video_map(detections_of((BOX, 0.6), (OTHER, 0.9)), truth, unknown=unknown, **settings)

    assert result["video_map_50"] == expected


def outputs_for(labels):
    """Detections of both actors, in the region, and somewhere else; all with all classes."""
    frames = labels[0]["frame_mask"].shape[0]
    boxes = torch.tensor([[0.3125, 0.5, 0.375, 0.5], [0.625, 0.5, 0.25, 1.0], [0.125, 0.75, 0.25, 0.5]])
    scores = torch.tensor([0.5, 0.9, 0.8])
    return {
        "pred_boxes": boxes.expand(len(labels), frames, 3, 4),
        "scores": scores[:, None].expand(len(labels), frames, 3, 3),
        "actor_logits": torch.tensor([-30.0, 30.0, -30.0]).expand(len(labels), frames, 3, 3),
    }


@pytest.fixture
def rows(tmp_path):
    return partial_rows(tmp_path)


@pytest.fixture
def records(rows):
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 32})
    clips = TubeClips(rows, num_labels=NUM_LABELS, num_frames=5)
    labels = ClipCollator(processor)([clips[0], clips[1]])["labels"]
    return clip_records(processor, outputs_for(labels), labels)


def test_records_carry_what_is_unknown(records, rows, tmp_path):
    save_records(records, tmp_path / "records.parquet")

    read = read_records(tmp_path / "records.parquet")

    for one, other in zip(read, records, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    detections, truth = frame_tables(read)
    unknown = unknown_table(read)
    # Class 1 was not looked for; of class 2, the labelled actor is in five frames, where others are detected first.
    with_all, without = (frame_map(detections, truth, unknown=place) for place in (unknown, None))
    np.testing.assert_allclose(with_all["ap_per_label"], [np.nan, np.nan, expected_ap()])
    assert without["ap_per_label"][2] < with_all["ap_per_label"][2]
    id2label = dict(enumerate("abc"))
    assert FrameScorer(id2label)(read)["frame_map_50"] == with_all["frame_map_50"]


def expected_ap():
    """AP of class 2: in frames 2 and 3, the actor who is never labelled; in 3 and 4, the region; from 5, the other."""
    ranked = []
    for frame in range(10):
        ranked.append((0.9, frame not in {2, 3}, False))
        ranked.append((0.8, frame not in {3, 4}, False))
        ranked.append((0.5, frame < 5, frame < 5))
    ranked.sort(key=lambda entry: -entry[0])
    counted = [is_true for _, counts, is_true in ranked if counts]
    precision = np.cumsum(counted) / np.arange(1, len(counted) + 1)
    return np.mean([precision[index:].max() for index, is_true in enumerate(counted) if is_true])


def test_scorers_and_report_respect_it(records, rows, tmp_path):
    scorer = TubeScorer(dict(enumerate("abc")), rows, "standard", shortest_edge=32)

    metrics = scorer(records)
    page = report_errors(records, metrics, tmp_path / "report", scorer)

    assert {name for name in metrics if "/" in name} == {"frame_ap_50/c", "video_ap_50/c"}
    assert metrics["frame_ap_50/c"] == pytest.approx(expected_ap())
    assert page.exists()
