"""Records of an evaluation: complete, scored over frames and tubes, written whole."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from classquery import ClassQueryVideoProcessor
from classquery.data.annotations.schema import ACTION_FEATURES
from classquery.data.metrics.records import read_records
from classquery.engine.training.evaluation import FrameScorer, TubeScorer, clip_records, once_per_clip, save_records


LABELS = {0: "stand", 1: "walk"}


def record(clip_id: str, num_frames: int = 1, start: int = 0, video: str | None = None) -> dict:
    """One actor that stands at one place, found with the first of two candidates."""
    box, other = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    return {
        "clip_id": clip_id,
        "video": video or clip_id,
        "frame_numbers": np.arange(start, start + num_frames),
        "boxes": np.array([[box, other]] * num_frames, np.float32),
        "scores": np.array([[[0.9, 0.1], [0.1, 0.2]]] * num_frames, np.float32),
        "actor_scores": np.array([[0.9, 0.1]] * num_frames, np.float32),
        "true_boxes": np.array([[box] * num_frames], np.float32),
        "true_labels": np.array([[[1.0, 0.0]] * num_frames], np.float32),
        "true_valid": np.ones((1, num_frames), bool),
    }


def test_clips_repeated_by_a_sampler_count_once():
    records = once_per_clip([record("b"), record("a"), record("b")], ["a", "b"])

    assert [r["clip_id"] for r in records] == ["a", "b"]


def test_missing_and_foreign_clips_raise():
    with pytest.raises(RuntimeError, match=r"1 were not predicted \(\['c'\]\) and 1 are unknown \(\['b'\]\)"):
        once_per_clip([record("a"), record("b")], ["a", "c"])


def test_perfect_detections_score_one_and_labels_without_ground_truth_are_left_out():
    metrics = FrameScorer(LABELS)([record("a"), record("b")])

    assert metrics == {"frame_map_50": 1.0, "frame_ap_50/stand": 1.0}


def test_clip_without_actors_is_scored():
    empty = record("b")
    for name in ("true_boxes", "true_labels", "true_valid"):
        empty[name] = empty[name][:0]
    empty["scores"] = empty["scores"] / 2

    assert FrameScorer(LABELS)([record("a"), empty])["frame_map_50"] == 1.0


def test_frames_where_an_actor_has_no_box_are_no_ground_truth():
    clip = record("a", num_frames=3)
    clip["true_valid"][0, 1] = False
    clip["scores"][1] = 0.0

    assert FrameScorer(LABELS)([clip])["frame_map_50"] == 1.0


def tube_rows(num_frames: int) -> Dataset:
    tube = {
        "track_id": 0,
        "labels": [0],
        "frames": list(range(num_frames)),
        "boxes": [[0.1, 0.1, 0.5, 0.5]] * num_frames,
    }
    row = dict.fromkeys(ACTION_FEATURES) | {
        "clip_id": "v",
        "num_frames": num_frames,
        "height": 120,
        "width": 160,
        "tubes": [tube],
    }
    return Dataset.from_list([row], features=ACTION_FEATURES)


@pytest.mark.parametrize(("protocol", "counted"), [("standard", 1), ("classquery_ucf", 2), ("classquery_jhmdb", 2)])
def test_tubes_are_linked_over_the_clips_of_a_video(protocol, counted):
    clips = [record("v_001", 10, start=10, video="v"), record("v_000", 10, start=0, video="v")]

    metrics = TubeScorer(LABELS, tube_rows(20), protocol, shortest_edge=60)(clips)

    # The published protocols count labels without ground truth as 0, and hold back a little of every recall.
    assert metrics["video_map_50"] == pytest.approx(1 / counted, abs=1e-4)
    assert metrics["video_map_20"] == pytest.approx(1 / counted, abs=1e-4)
    assert metrics["frame_map_50"] == 1.0
    assert metrics["video_ap_50/stand"] == pytest.approx(1, abs=1e-4)


def test_actor_at_another_place_is_no_tube():
    clip = record("v_000", 8, video="v")
    clip["boxes"] = clip["boxes"][:, ::-1]

    metrics = TubeScorer(LABELS, tube_rows(8), "standard", shortest_edge=60)([clip])

    assert metrics["video_map_50"] == 0


def test_base_and_novel_tubes_are_scored_by_themselves_at_both_overlaps():
    """Four people, who do one thing each: two are found in their place, one in a third of it, one nowhere."""
    boxes = [(0.1 * n, 0.1, 0.1 * n + 0.1, 0.4) for n in (0, 2, 4, 6)]
    found = [boxes[0], (0.2, 0.1, 0.3, 0.2), boxes[2], (0.9, 0.6, 1.0, 0.9)]
    rows = tube_rows(20)
    tubes = [{**rows[0]["tubes"][0], "labels": [n], "boxes": [boxes[n]] * 20, "track_id": n} for n in range(4)]
    rows = Dataset.from_list([{**rows[0], "tubes": tubes}], features=ACTION_FEATURES)
    clip = record("v_000", 20, video="v") | {
        "boxes": np.array([found] * 20, np.float32),
        "scores": np.array([np.eye(4) * 0.8 + 0.01] * 20, np.float32),
        "actor_scores": np.full((20, 4), 0.9, np.float32),
        "true_boxes": np.array([[box] * 20 for box in boxes], np.float32),
        "true_labels": np.eye(4, dtype=np.float32)[:, None].repeat(20, 1),
        "true_valid": np.ones((4, 20), bool),
    }

    metrics = TubeScorer(dict(enumerate("abcd")), rows, "standard", shortest_edge=120, novel=["c", "d"])([clip])

    expected = {"video_map_20": (1.0, 0.5), "video_map_50": (0.5, 0.5), "frame_map_50": (0.5, 0.5)}
    for name, (base, novel) in expected.items():
        assert metrics[name] == pytest.approx((base + novel) / 2)
        means = [metrics[f"{name}_{part}"] for part in ("base", "novel", "harmonic")]
        assert means == pytest.approx([base, novel, 2 * base * novel / (base + novel)])


def test_records_hold_real_frames_only():
    outputs = {
        "pred_boxes": torch.rand(1, 3, 2, 4),
        "scores": torch.rand(1, 3, 2, 5),
        "actor_logits": torch.rand(1, 3, 2, 3),
    }
    label = {
        "clip_id": "v_000",
        "video": "v",
        "frame_numbers": torch.tensor([0, 0, 1]),
        "frame_mask": torch.tensor([False, True, True]),
        "boxes": torch.rand(1, 3, 4),
        "class_labels": torch.zeros(1, 3, 5),
        "valid": torch.tensor([[True, True, False]]),
    }

    (clip,) = clip_records(ClassQueryVideoProcessor(), outputs, [label])

    assert clip["frame_numbers"].tolist() == [0, 1]
    assert clip["boxes"].shape == (2, 2, 4)
    np.testing.assert_allclose(clip["scores"], outputs["scores"][0, 1:])
    assert clip["true_boxes"].shape == (1, 2, 4)
    assert clip["true_valid"].tolist() == [[True, False]]


def test_records_are_written_whole_and_read_back(tmp_path):
    path = tmp_path / "predictions.parquet"
    records = [record("a", 2), record("b", 3)]
    for name in ("true_boxes", "true_labels", "true_valid"):
        records[0][name] = records[0][name][:0]

    save_records(records, path)

    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for row, expected in zip(pq.read_table(path).to_pylist(), records, strict=True):
        assert row["scores"] == expected["scores"].tolist()
    for row, expected in zip(read_records(path), records, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(row[name], value)
            assert np.shape(row[name]) == np.shape(value)
