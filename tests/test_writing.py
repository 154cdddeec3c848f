"""Files of detections: complete, readable by others, and the way back to training."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_detection import write_video
from test_people import frames_of

from classquery.data.annotations.ava import load_ava, load_ava_labels
from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.engine.detection.people import link_people, list_people
from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.engine.detection.writing import (
    VideoFacts,
    read_detections,
    write_ava,
    write_csv,
    write_detections,
    write_timeline,
)


LABEL_IDS = {"stand": 0, "walk": 1, "talk to (e.g., self, a person, a group)": 2}
VIDEO = VideoFacts("videos/kitchen.mp4", 30.0, 100, 100, 300)
ACTOR = ActorDetection((1.004, 2, 30, 47.5), 0.91239, [("sit", 0.8), ("walk", 0.31)], {"sit": np.ones((2, 2)) / 4})


@pytest.fixture
def frames() -> list[FrameDetections]:
    """Two people at 0, 1, 2 and 3 s; the second comes late, is missed once, and does two things."""
    both = [("walk", 0.7), ("talk to (e.g., self, a person, a group)", 0.4)]
    return link_people(
        frames_of({"a": 0}, {"a": 6, "b": 100}, {"a": 12}, {"a": 18, "b": 110}, actions={("b", 3): both})
    )


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_json_holds_the_video_and_its_detections(tmp_path):
    frames = [FrameDetections(0, 0.0, [ACTOR]), FrameDetections(20, 1.0, [], num_dropped=3)]

    write_detections(tmp_path / "detections.json", VIDEO, iter(frames))

    assert json.loads((tmp_path / "detections.json").read_text()) == {
        "video": "videos/kitchen.mp4",
        "frames_per_second": 30.0,
        "num_frames": 100,
        "height": 100,
        "width": 300,
        "keyframes": [
            {
                "frame_index": 0,
                "seconds": 0.0,
                "actors": [
                    {
                        "box": [1.0, 2, 30, 47.5],
                        "actor_score": 0.9124,
                        "actions": [{"label": "sit", "score": 0.8}, {"label": "walk", "score": 0.31}],
                    }
                ],
            },
            {"frame_index": 20, "seconds": 1.0, "num_dropped": 3, "actors": []},
        ],
    }


def test_json_is_read_back(frames, tmp_path):
    people = list_people(frames)

    write_detections(tmp_path / "detections.json", VIDEO, frames, people)

    video, again = read_detections(tmp_path / "detections.json")
    assert video == VIDEO
    assert [frame.to_dict() for frame in again] == [frame.to_dict() for frame in frames]
    assert [person.to_dict() for person in list_people(again)] == [person.to_dict() for person in people]


@pytest.mark.parametrize("moment", ["detecting", "writing"])
def test_failure_keeps_the_json_that_was_there(moment, tmp_path):
    output = tmp_path / "detections.json"
    output.write_text("good")

    def frames():
        yield FrameDetections(0, 0.0, [ACTOR])
        if moment == "detecting":
            raise OSError("damaged")
        yield FrameDetections(1, 0.1, [ActorDetection(ACTOR.box, 0.9, [(object(), 0.5)])])

    with pytest.raises((OSError, TypeError)):
        write_detections(output, VIDEO, frames())

    assert [file.read_text() for file in tmp_path.iterdir()] == ["good"]


def test_csv_has_a_row_for_each_action(frames, tmp_path):
    write_csv(tmp_path / "detections.csv", frames)

    rows = rows_of(tmp_path / "detections.csv")
    assert len(rows) == 7
    assert rows[0] == {
        **{"video": "kitchen.mp4", "timestamp": "0.0", "label": "stand", "track_id": "1", "score": "0.8"},
        **{"x1": "0.0", "y1": "0.1", "x2": "0.06667", "y2": "0.5"},
    }
    assert [row["label"] for row in rows[-2:]] == ["walk", "talk to (e.g., self, a person, a group)"]


def test_timeline_has_a_row_for_each_action_of_each_person(frames, tmp_path):
    write_timeline(tmp_path / "timeline.csv", list_people(frames))

    rows = rows_of(tmp_path / "timeline.csv")
    assert [(row["person_id"], row["label"], row["start_seconds"], row["end_seconds"]) for row in rows] == [
        ("1", "stand", "0.0", "3.5"),
        ("2", "stand", "0.5", "1.5"),
        ("2", "talk to (e.g., self, a person, a group)", "2.5", "3.5"),
        ("2", "walk", "2.5", "3.5"),
    ]


# Round trips to training data


def test_ava_csv_is_read_by_the_data_set(frames, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "kitchen.mp4", np.arange(80) / 20, (300, 100))

    write_ava(tmp_path / "annotations" / "ava_train_v2.2.csv", frames, LABEL_IDS)

    rows = load_ava(tmp_path, "train")
    assert list(load_ava_labels(tmp_path).values())[:3] == list(LABEL_IDS)
    assert rows["timestamp"][:] == [900, 901, 902, 903]
    for row, frame in zip(rows, frames, strict=True):
        tubes = {tube["track_id"]: tube for tube in row["tubes"]}
        assert set(tubes) == {actor.person_id for actor in frame.actors}
        for actor in frame.actors:
            boxes = np.array(tubes[actor.person_id]["boxes"]) * [300, 100, 300, 100]
            np.testing.assert_allclose(boxes, [actor.box], atol=0.01)
            assert sorted(tubes[actor.person_id]["labels"]) == sorted(LABEL_IDS[label] for label, _ in actor.actions)


def test_ava_csv_has_the_keyframes_nearest_to_whole_seconds(tmp_path):
    frames = link_people(
        [
            FrameDetections(index, seconds, [ACTOR], (50, 50), "x.mp4")
            for index, seconds in enumerate((0.02, 0.08, 0.6, 1.95))
        ]
    )

    write_ava(tmp_path / "ava.csv", frames, {"sit": 0, "walk": 1}, movie_start_seconds=0)

    with (tmp_path / "ava.csv").open() as file:
        assert [row[1] for row in csv.reader(file)] == ["0000", "0000", "0002", "0002"]


def test_action_list_of_ava_is_in_the_syntax_of_the_official_one(tmp_path):
    write_ava(tmp_path / "ava.csv", [], {'say "hi"': 1, "carry/hold (an object)": 0})

    assert (tmp_path / "ava_action_list.pbtxt").read_text() == (
        'label {\n  name: "carry/hold (an object)"\n  label_id: 1\n  label_type: OBJECT_MANIPULATION\n}\n'
        "label {\n  name: 'say \"hi\"'\n  label_id: 2\n  label_type: PERSON_MOVEMENT\n}\n"
    )


def test_csv_is_read_by_the_custom_data_set(frames, tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "kitchen.mp4", np.arange(80) / 20, (300, 100))

    write_csv(tmp_path / "train.csv", frames)

    labels = load_custom_labels(tmp_path)
    rows = load_custom(tmp_path, "train")
    assert rows["timestamp"][:] == [0, 1, 2, 3]
    for row, frame in zip(rows, frames, strict=True):
        tubes = {tube["track_id"]: tube for tube in row["tubes"]}
        for actor in frame.actors:
            tube = tubes.pop(actor.person_id)
            np.testing.assert_allclose(np.array(tube["boxes"]) * [300, 100, 300, 100], [actor.box], atol=0.01)
            assert {labels[label] for label in tube["labels"]} == {label for label, _ in actor.actions}
        assert not tubes
