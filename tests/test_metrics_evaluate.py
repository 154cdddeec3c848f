"""The modules of HF `evaluate`: loaded from the folder without a network, and equal to the functions."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from test_metrics_frame import BOX, random_case
from test_metrics_video import random_case as random_tubes

from classquery.data import metrics


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Loads a module of our folder, with its cache in `tmp_path`."""
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda name, **options: evaluate.load(metrics.module_path(name), cache_dir=str(tmp_path), **options)


def by_frame(table, value_key):
    """One dict for each frame of a table."""
    frames = {}
    for frame, box, values in zip(table["frame"], table["boxes"], table[value_key], strict=True):
        entry = frames.setdefault(str(frame), {"frame": str(frame), "boxes": [], value_key: []})
        entry["boxes"].append(box.tolist())
        entry[value_key].append(values.astype(float if value_key == "scores" else int).tolist())
    return frames


@pytest.fixture
def frames():
    """Detections and ground truth, and the same as predictions and references by frame."""
    detections, ground_truth = random_case(0)
    found, truth = by_frame(detections, "scores"), by_frame(ground_truth, "labels")
    names = sorted(found.keys() | truth.keys())
    nothing = {"boxes": [], "scores": [], "labels": []}

    def of_side(side, key):
        empty = {name: nothing[name] for name in ("boxes", key)}
        return [side.get(name, {"frame": name, **empty}) for name in names]

    return (detections, ground_truth), of_side(found, "scores"), of_side(truth, "labels")


def test_frame_map_equals_the_function(load, frames):
    tables, predictions, references = frames
    expected = metrics.frame_map(*tables, iou_threshold=[0.3, 0.5], label_ids=[1, 2])

    result = load("frame_map").compute(
        predictions=predictions, references=references, iou_threshold=[0.3, 0.5], label_ids=[1, 2]
    )

    assert result.keys() == expected.keys()
    assert result["frame_map_50"] == pytest.approx(expected["frame_map_50"], rel=0, abs=1e-12)
    np.testing.assert_allclose(result["ap_per_label"], expected["ap_per_label"], rtol=0, atol=1e-12)


def test_frames_are_added_one_by_one_or_in_batches_and_count_once(load, frames):
    tables, predictions, references = frames
    module = load("frame_map")

    module.add(prediction=predictions[0], reference=references[0])
    for start in range(0, len(predictions), 4):
        module.add_batch(predictions=predictions[start : start + 4], references=references[start : start + 4])

    assert module.compute()["frame_map_50"] == pytest.approx(metrics.frame_map(*tables)["frame_map_50"], abs=1e-12)


def test_frames_without_anything_are_scored(load):
    module = load("frame_map")
    module.add(
        prediction={"frame": "a", "boxes": [], "scores": []},
        reference={"frame": "a", "boxes": [BOX], "labels": [[1, 0]]},
    )

    assert module.compute()["frame_map_50"] == 0


@pytest.mark.parametrize(
    ("protocol", "options"), [("standard", {"min_frames": 2}), ("classquery_ucf", {"actor_threshold": 0.3})]
)
def test_video_map_equals_the_function(load, protocol, options):
    detections, tubes = random_tubes(1)
    expected = metrics.video_map(detections, tubes, protocol=protocol, iou_thresholds=[0.2, 0.5], **options)
    predictions, references = [], []
    for name in sorted(set(detections["video"])):
        rows = [row for row, video in enumerate(detections["video"]) if video == name]
        of_video = {key: [np.asarray(detections[key][row]).tolist() for row in rows] for key in detections}
        predictions.append(
            {
                "video": name,
                "frames": of_video["frame"],
                **{key: of_video[key] for key in ("boxes", "scores", "actor")},
            }
        )
        own = [{key: tube[key] for key in ("label", "frames", "boxes")} for tube in tubes if tube["video"] == name]
        references.append({"video": name, "tubes": [tube for tube in own if tube["frames"]]})
    module = load("video_map")

    module.add_batch(predictions=predictions, references=references)
    module.add(prediction=predictions[0], reference=references[0])
    result = module.compute(protocol=protocol, **options)

    assert result["video_map_20"] == pytest.approx(expected["video_map_20"], abs=1e-12, nan_ok=True)
    np.testing.assert_allclose(result["ap_per_label"], expected["ap_per_label"], atol=1e-12)
    assert len(result["tubes"]) == len(expected["tubes"]) > 0


def test_modules_do_not_hide_the_functions(load):
    load("frame_map"), load("video_map")

    assert callable(metrics.frame_map)
    assert callable(metrics.video_map)


@pytest.mark.parametrize("name", ["frame_map", "video_map"])
def test_examples_of_the_modules_are_right(load, name):
    description = load(name).inputs_description
    lines = [line.strip() for line in description.split("Examples:")[1].splitlines()]
    code = "\n".join(line[4:] for line in lines if line.startswith((">>> ", "... ")))
    body, _, last = code.rpartition("\n")
    names = {"evaluate": type("", (), {"load": staticmethod(lambda path: load(Path(path).name))})}
    exec(body, names)

    assert eval(last, names) == 1.0


def test_modules_are_found_by_name():
    with pytest.raises(ValueError, match='"frame_map" or "video_map", got \'map\''):
        metrics.module_path("map")
