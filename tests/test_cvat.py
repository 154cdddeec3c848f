"""The reader of CVAT's tracks: the convention that makes actions of them, and files that are something else."""

from pathlib import Path

import numpy as np
import pytest

from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.cvat import read_cvat_video
from classquery.data.annotations.schema import AnnotationError, ProblemCollector


def box(frame: int, corners: str = "0 0 10 20", outside: int = 0, **attributes: str) -> str:
    xtl, ytl, xbr, ybr = corners.split()
    inside = "".join(f'<attribute name="{name}">{value}</attribute>' for name, value in attributes.items())
    corners = f'xtl="{xtl}" ytl="{ytl}" xbr="{xbr}" ybr="{ybr}"'
    return f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="1" {corners} z_order="0">{inside}</box>'


def track(*boxes: str, label: str = "person", number: int = 0) -> str:
    return f'<track id="{number}" label="{label}" source="manual">{"".join(boxes)}</track>'


def document(*tracks: str, source: str = "demo_val_000.mp4", stop: int = 29, start: int = 0, size: str = "") -> str:
    size = size or "<original_size><width>128</width><height>96</height></original_size>"
    frames = f"<start_frame>{start}</start_frame><stop_frame>{stop}</stop_frame>"
    segments = "<segments><segment><start>0</start></segment></segments>"
    meta = f"<meta><task><id>1</id>{frames}{segments}{size}<source>{source}</source></task></meta>"
    content = f"<annotations><version>1.1</version>{meta}{''.join(tracks)}</annotations>"
    return f"<?xml version='1.0' encoding='utf-8'?>\n{content}"


def read(tmp_path: Path, *tracks: str, classes: list[str] | None = None) -> list:
    path = tmp_path / "video.xml"
    path.write_text(document(*tracks))
    problems = ProblemCollector(path)
    tubes = read_cvat_video(path, problems, classes).tubes
    problems.raise_if_any()
    return tubes


def summary(tubes: list) -> list[tuple]:
    return [(tube.track_id, tube.label, tube.frames.tolist()) for tube in tubes]


def test_label_of_the_track_is_the_action_without_attributes(tmp_path):
    tubes = read(tmp_path, track(box(3), box(4, "1 0 11 20"), label="walk", number=5))

    assert summary(tubes) == [(5, "walk", [3, 4])]
    assert tubes[0].boxes.tolist() == [[0, 0, 10, 20], [1, 0, 11, 20]]


def test_attribute_action_says_what_happens_in_each_frame(tmp_path):
    values = ["walk", "walk", "none", "__undefined__", "", "sit"]

    tubes = read(tmp_path, track(*(box(frame, action=value) for frame, value in enumerate(values))))

    assert summary(tubes) == [(0, "sit", [5]), (0, "walk", [0, 1])]


def test_checkboxes_are_actions_at_the_same_time(tmp_path):
    boxes = [box(0, wave="true", walk="false"), box(1, wave="true", walk="true"), box(2, wave="false", walk="false")]

    assert summary(read(tmp_path, track(*boxes))) == [(0, "walk", [1]), (0, "wave", [0, 1])]


def test_only_checkboxes_that_are_classes_count(tmp_path):
    boxes = [box(0, blurred="true"), box(1, blurred="false")]

    assert summary(read(tmp_path, track(*boxes, label="walk"), classes=["walk"])) == [(0, "walk", [0, 1])]


def test_frames_that_are_left_out_are_filled_in(tmp_path):
    boxes = [box(8, "8 8 18 28", action="sit"), box(0, "0 0 10 20", action="walk"), box(10, "0 0 1 1", outside=1)]

    walk, sit = sorted(read(tmp_path, track(*boxes)), key=lambda tube: tube.frames[0])

    assert (walk.label, walk.frames.tolist()) == ("walk", list(range(8)))
    np.testing.assert_allclose(walk.boxes[:, 0], np.arange(8))
    np.testing.assert_allclose(walk.boxes[:, 3], 20 + np.arange(8))
    assert (sit.label, sit.frames.tolist()) == ("sit", [8, 9])
    np.testing.assert_allclose(sit.boxes, [[8, 8, 18, 28]] * 2)


def test_actor_comes_back(tmp_path):
    boxes = [box(0), box(1, outside=1), box(5), box(6, outside=1)]

    assert summary(read(tmp_path, track(*boxes))) == [(0, "person", [0, 5])]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (track(), "track 0: must be made of boxes, got none"),
        (track('<polygon frame="0" points="1,1;2,2" />'), "got polygon"),
        (track(box(2), box(2)), "two boxes in frame 2"),
        (track(box(2).replace('xtl="0"', 'xtl="left"')), "four corners, all of them numbers, got .*left"),
        (track(box(2).replace('frame="2"', "")), "needs a frame"),
        (track(box(2), label=""), "needs a whole number as id and a label"),
    ],
)
def test_problems_are_told_by_track(tmp_path, bad, message):
    with pytest.raises(
        AnnotationError, match=rf"1 problem in .*video.xml:\n  track 0: .*{message.removeprefix('track 0: ')}"
    ):
        read(tmp_path, bad, track(box(0), number=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (document()[:-5], "no valid XML"),
        ("<annotations><image id='0' /></annotations>", "CVAT for video 1.1"),
        ("<html></html>", "CVAT for video 1.1"),
        (document(source="a</source><source>b"), "names 2 videos"),
        (document(start=7), "starts at frame 7"),
        (document(size="<original_size><width>128</width></original_size>"), "<original_size>"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)

    with pytest.raises(AnnotationError, match=message):
        read_cvat_video(tmp_path / "a.xml", ProblemCollector("a.xml"))


# In a folder of data


@pytest.fixture
def folder(tmp_path, two_movies):
    (tmp_path / "videos").symlink_to(two_movies)
    (tmp_path / "train").mkdir()
    return tmp_path


def test_files_of_a_folder_are_a_split(folder):
    walk, wave = track(box(0, "0 0 64 48"), label="walk"), track(box(3, "0 0 129 97"), label="wave", number=4)
    (folder / "train" / "a.xml").write_text(document(walk, wave, stop=19))
    # Its video has the name of the file, and nobody in it.
    (folder / "train" / "demo_val_001.xml").write_text(document(source="upload_17.mov"))

    rows = load_custom(folder, "train")

    assert rows["clip_id"][:] == ["demo_val_000", "demo_val_001"]
    assert rows["num_frames"][:] == [20, 30]
    assert load_custom_labels(folder) == {0: "walk", 1: "wave"}
    assert [tube["labels"] for tube in rows[0]["tubes"]] == [[0], [1]]
    assert [tube["boxes"] for tube in rows[0]["tubes"]] == [[[0, 0, 0.5, 0.5]], [[0, 0, 1, 1]]]
    assert rows[1]["tubes"] == []


def test_problems_name_file_and_track(folder):
    (folder / "train" / "a.xml").write_text(document(track(box(30))))
    (folder / "train" / "b.xml").write_text(document(track(box(0, "0 0 140 20")), source="demo_val_001.mp4"))
    (folder / "train" / "c.xml").write_text("<annotations>")
    (folder / "train" / "d.xml").write_text(document(track()))

    with pytest.raises(AnnotationError) as error:
        load_custom(folder, "train")

    lines = str(error.value).splitlines()
    assert lines[0].startswith("4 problems in ")
    assert lines[1].startswith("  c.xml: ")
    assert lines[2].startswith("  d.xml, track 0: must be made of boxes")
    assert lines[3].startswith("  a.xml, track 0: frame 30 is not in the video")
    assert lines[4].startswith("  b.xml, track 0: a box x1, y1, x2, y2 must lie in the 128 x 96 pixels")
