"""The way from detections to a tool and back to training: few key frames, corrections that hold, what changed."""

import dataclasses
import itertools
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from test_detection import write_video
from test_people import frames_of

from classquery.data.__main__ import main
from classquery.data.annotations.comparing import compare_annotations
from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.key_frames import choose_key_frames
from classquery.engine.detection.corrections import write_for_correction
from classquery.engine.detection.people import Person, link_people, list_people
from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.engine.detection.uncertain import list_uncertain, write_uncertain
from classquery.engine.detection.writing import VideoFacts


LABEL_IDS = {"stand": 0, "walk": 1, "talk to (e.g., self, a person, a group)": 2}
BOTH = ["talk to (e.g., self, a person, a group)", "walk"]
SIZE = np.array([300, 100, 300, 100])


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> VideoFacts:
    path = write_video(tmp_path_factory.mktemp("video") / "kitchen.mp4", np.arange(130) / 30, (300, 100))
    return VideoFacts(path, 30.0, 130, 100, 300)


@pytest.fixture
def people() -> list[Person]:
    """Two people at 0, 1, 2 and 3 s; the second comes late, is missed once, and does two things."""
    both = [("walk", 0.7), (BOTH[0], 0.4)]
    places = {"a": 0}, {"a": 6, "b": 100}, {"a": 12}, {"a": 18, "b": 110}
    return list_people(link_people(frames_of(*places, actions={("b", 3): both})))


@pytest.fixture
def walker() -> list[FrameDetections]:
    """Somebody who walks, stops and waves, seen in every frame, with noise."""
    rng = np.random.default_rng(0)
    actions = ["walk"] * 60 + ["stand", BOTH[0]] * 2 + ["stand"] * 56
    left = np.concatenate([np.linspace(0, 160, 60), np.full(60, 160)]) + rng.uniform(-1, 1, 120)
    return [
        FrameDetections(
            index,
            index / 30,
            [ActorDetection((x, 20, x + 60 + rng.uniform(-1, 1), 90), 0.9, [(action, 0.8)])],
            (100, 300),
            "kitchen.mp4",
        )
        for index, (x, action) in enumerate(zip(left, actions, strict=True))
    ]


def read_back(folder: Path, file: Path, video: VideoFacts) -> dict[tuple, tuple[np.ndarray, set[str] | None]]:
    """What the reader makes of one file: boxes in pixels and labels by person and frame, or millisecond."""
    data_dir = folder / f"data_{file.stem}"
    (data_dir / "videos").mkdir(parents=True)
    (data_dir / "videos" / "kitchen.mp4").symlink_to(video.path)
    (data_dir / "train").mkdir()
    shutil.copy(file, data_dir / "train" / file.name)
    names = load_custom_labels(data_dir) if "walk" in file.read_text() else {}
    said: dict[tuple, tuple[np.ndarray, set[str] | None]] = {}
    for row in load_custom(data_dir, "train"):
        for tube in row["tubes"]:
            times = tube["frames"] or [round(1000 * row["video_seconds"])]
            for time, box in zip(times, np.array(tube["boxes"]) * SIZE, strict=True):
                _, known = said.get((tube["track_id"], time), (None, None))
                labels = (
                    known if tube["labels"] is None else {names[label] for label in tube["labels"]} | (known or set())
                )
                said[tube["track_id"], time] = box, labels
    return said


@pytest.mark.parametrize("tool", ["cvat.xml", "label_studio.json", "via3.json"])
def test_what_tools_get_is_read_back(people, video, tmp_path, tool):
    write_for_correction(tmp_path, video, people, LABEL_IDS)

    read = read_back(tmp_path, tmp_path / tool, video)

    in_every_frame = tool != "via3.json"
    for person in people:
        for frame, actor in zip(person.frame_indices.tolist(), person.actors, strict=True):
            time = frame if in_every_frame else round(1000 * frame / 30)
            box, labels = read[person.person_id, time]
            np.testing.assert_allclose(box, actor.box, atol=0.02)
            assert labels == {label for label, _ in actor.actions}
        times = sorted(time for track, time in read if track == person.person_id)
        first, last = person.frame_indices[[0, -1]]
        assert times == (
            list(range(first, last + 1)) if in_every_frame else [1000 * n // 30 for n in person.frame_indices]
        )
    if in_every_frame:
        # In between, boxes move in a straight line and actions go on.
        np.testing.assert_allclose(read[1, 15][0], [3, 10, 23, 50], atol=0.02)
        assert read[2, 89][1] == {"stand"}


@pytest.mark.parametrize("tool", ["cvat.xml", "label_studio.json"])
def test_few_key_frames_mean_the_same(walker, video, tmp_path, tool):
    write_for_correction(tmp_path, video, list_people(link_people(walker)), LABEL_IDS)

    text = (tmp_path / tool).read_text()
    assert text.count("<box ") + text.count('"frame"') < 14
    read = read_back(tmp_path, tmp_path / tool, video)
    assert sorted(frame for _, frame in read) == list(range(120))
    for frame in walker:
        box, labels = read[1, frame.frame_index]
        assert labels == set(frame.labels[0])
        np.testing.assert_allclose(box / SIZE, frame.boxes[0] / SIZE, atol=0.01)


def test_cvat_key_frames_are_where_actions_change(walker, video, tmp_path):
    write_for_correction(tmp_path, video, list_people(link_people(walker)), LABEL_IDS)

    boxes = ET.parse(tmp_path / "cvat.xml").getroot().findall("track/box")
    assert {0, 60, 61, 62, 63, 64, 119, 120} <= {int(box.get("frame")) for box in boxes}


def test_one_correction_holds_up_to_the_next_key_frame(walker, video, tmp_path):
    """Of a box, half-way to its neighbours; of an action, until the next change."""
    write_for_correction(tmp_path, video, list_people(link_people(walker)), LABEL_IDS)
    tree = ET.parse(tmp_path / "cvat.xml")
    boxes = {int(box.get("frame")): box for box in tree.getroot().iter("box")}
    start = boxes[64]
    start.set("ytl", "40.00")
    for attribute in start:
        attribute.text = "true" if attribute.get("name") == "walk" else "false"
    behind = min(frame for frame in boxes if frame > 64)
    tree.write(tmp_path / "corrected.xml")

    before = read_back(tmp_path, tmp_path / "cvat.xml", video)
    after = read_back(tmp_path, tmp_path / "corrected.xml", video)

    changed = [frame for _, frame in before if before[1, frame][1] != after[1, frame][1]]
    assert changed == list(range(64, behind))
    moved = [after[1, frame][0][1] - before[1, frame][0][1] for frame in range(63, behind + 1)]
    np.testing.assert_allclose(moved, [0, *np.linspace(20, 0, behind - 63)], atol=0.02)


def test_what_was_corrected_is_told_per_class(walker, video, tmp_path, capsys):
    """An action, a box that was moved, and somebody who is not there: in another order of the tracks."""
    write_for_correction(tmp_path, video, list_people(link_people(walker)), LABEL_IDS)
    tree = ET.parse(tmp_path / "cvat.xml")
    (track,) = tree.getroot().iter("track")
    track.set("id", "9")
    for box in track:
        if 64 <= int(box.get("frame")) < 120:
            for attribute in box:
                attribute.text = "true" if attribute.get("name") == "walk" else "false"
    boxes = [box for box in track if int(box.get("frame")) == 119]
    boxes[0].set("ytl", "50.00")
    added = ET.SubElement(tree.getroot(), "track", id="0", label="person")
    for frame in (5, 6):
        corners = {"xtl": "200", "ytl": "10", "xbr": "260", "ybr": "90"}
        box = ET.SubElement(added, "box", {"frame": str(frame), "outside": "0"} | corners)
        for attribute in track[0]:
            box.append(attribute)
    tree.write(tmp_path / "corrected.xml")

    found = compare_annotations(tmp_path / "cvat.xml", tmp_path / "corrected.xml")

    def counts(name: str) -> tuple[int, ...]:
        of = found.classes[name]
        return of.before, of.after, of.kept, of.added, of.removed

    # "walk" in frames 0 to 59 before; 64 to 119 were "stand".
    assert counts("walk") == (60, 60 + 56 + 2, 60, 56 + 2, 0)
    assert counts("stand") == (2 + 56, 2, 2, 0, 56)
    assert counts(BOTH[0]) == (2, 2, 2, 0, 0)
    assert found.boxes["new"] == 2
    assert found.boxes["gone"] == 0
    assert 1 <= found.boxes["moved"] < 60
    changes = {(change.who, change.start, change.end, change.what) for change in found.changes}
    assert {("0", 5, 6, "new: walk"), ("1", 64, 119, "stand -> walk")} <= changes
    assert main(["diff", str(tmp_path / "cvat.xml"), str(tmp_path / "corrected.xml")]) == 0
    assert "\nwalk " in capsys.readouterr().out


@pytest.mark.parametrize("tool", ["cvat.xml", "label_studio.json", "via3.json"])
def test_what_was_not_corrected_has_not_changed(people, video, tmp_path, tool):
    write_for_correction(tmp_path, video, people, LABEL_IDS)

    found = compare_annotations(tmp_path / tool, tmp_path / tool)

    assert found.changes == []
    assert set(found.boxes) == {"the same"}
    if tool != "via3.json":
        other = {"cvat.xml": "label_studio.json", "label_studio.json": "cvat.xml"}[tool]
        assert compare_annotations(tmp_path / tool, tmp_path / other).changes == []
    else:
        assert main(["diff", str(tmp_path / tool), str(tmp_path / "cvat.xml")]) == 1


@pytest.mark.filterwarnings("ignore:boxes of which nobody said")
def test_people_alone_are_written_for_other_classes(people, video, tmp_path):
    write_for_correction(tmp_path, video, people, LABEL_IDS, people_only=True)

    for tool in ("cvat.xml", "label_studio.json", "via3.json"):
        read = read_back(tmp_path, tmp_path / tool, video)
        assert {track for track, _ in read} == {1, 2}
        assert {labels is None for _, labels in read.values()} == {True}
    (label,) = json.loads((tmp_path / "cvat_labels.json").read_text())
    assert [attribute["values"] for attribute in label["attributes"]] == [["__undefined__", "none"]]
    # An annotator chooses from the list, and it is a class.
    chosen = (tmp_path / "cvat.xml").read_text().replace(">__undefined__</attribute>", ">walk</attribute>")
    (tmp_path / "chosen.xml").write_text(chosen)
    assert {frozenset(labels) for _, labels in read_back(tmp_path, tmp_path / "chosen.xml", video).values()} == {
        frozenset(["walk"])
    }


def test_the_least_certain_moments_come_first(tmp_path):
    """By how far scores are above the threshold of their class; of one person, one moment a second."""
    scores = {0: 0.9, 10: 0.52, 20: 0.55, 60: 0.7}
    frames = [
        FrameDetections(
            frame, frame / 30, [ActorDetection((1, 2, 30, 90), 0.9, [("walk", score), ("stand", 0.95)], person_id=1)]
        )
        for frame, score in scores.items()
    ]
    nearly_nobody = ActorDetection((100, 2, 130, 90), 0.51, [("stand", 0.9)], person_id=2)
    frames[3] = dataclasses.replace(frames[3], actors=[*frames[3].actors, nearly_nobody], size=(100, 300))

    moments = list_uncertain(frames, {"walk": 0.5, "stand": 0.3}, 0.5)

    found = [(moment.frame.frame_index, moment.actor.person_id, moment.label) for moment in moments]
    assert found == [(60, 2, "nobody there"), (10, 1, "walk"), (60, 1, "walk")]
    write_uncertain(tmp_path, moments, "a <b>.mp4", lambda video, frame: np.zeros((100, 300, 3), np.uint8))
    page = (tmp_path / "uncertain.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "a &lt;b&gt;.mp4: the least certain first" in page
    assert page.index("a%20%3Cb%3E.mp4#t=2.00") < page.index("a%20%3Cb%3E.mp4#t=0.33")
    assert (
        (tmp_path / "uncertain.csv")
        .read_text()
        .splitlines()[1]
        .startswith("a <b>.mp4,60,2.0,2,nobody there,0.51,0.5,file:")
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_fewer_key_frames_would_do(seed):
    """Against all choices of the boxes in between."""
    rng = np.random.default_rng(seed)
    frames = np.cumsum(rng.integers(1, 4, 9))
    boxes = np.cumsum(rng.normal(0, 2, (9, 4)), axis=0)

    chosen = choose_key_frames(frames, boxes, [0] * 9, np.full(4, 3.0))

    def is_near(indices: tuple[int, ...]) -> bool:
        between = [np.interp(frames, frames[list(indices)], boxes[list(indices), edge]) for edge in range(4)]
        return bool(np.abs(np.stack(between, axis=1) - boxes).max() <= 3)

    assert is_near(tuple(chosen))
    fewer = itertools.combinations(range(1, 8), len(chosen) - 3) if len(chosen) > 2 else []
    assert not any(is_near((0, *indices, 8)) for indices in fewer)


def test_cvat_xml_has_a_track_for_each_person(people, video, tmp_path):
    write_for_correction(tmp_path, video, people, LABEL_IDS)

    root = ET.parse(tmp_path / "cvat.xml").getroot()
    assert root.findtext("meta/task/source") == "kitchen.mp4"
    assert [track.get("id") for track in root.iter("track")] == ["1", "2"]
    boxes = root.findall("track[@id='2']/box")
    assert [(box.get("frame"), box.get("outside")) for box in boxes] == [("30", "0"), ("90", "0"), ("91", "1")]
    checked = {attribute.get("name") for attribute in boxes[1] if attribute.text == "true"}
    assert checked == set(BOTH)
    (label,) = json.loads((tmp_path / "cvat_labels.json").read_text())
    assert [attribute["name"] for attribute in label["attributes"]] == list(LABEL_IDS)
