"""The reader of CVAT's tracks: the convention that makes actions of them, and files that are something else."""

import re
from pathlib import Path

import numpy as np
import pytest

from classquery.data import make_clips
from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.cvat import read_cvat
from classquery.data.annotations.entries import Content, Context, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, AnnotationWarning, ProblemCollector


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


def read_content(path: Path, *texts: str, classes: list[str] | None = None) -> Content:
    """Read files of some texts, called 0.xml and so on, and raise if there was any problem."""
    sources = []
    for number, text in enumerate(texts):
        sources.append(Source(path / f"{number}.xml", f"{number}.xml" if len(texts) > 1 else ""))
        sources[-1].path.write_text(text)
    problems = ProblemCollector(path)
    content = read_cvat(sources, Context(problems, classes))
    problems.raise_if_any()
    return content


def read(tmp_path: Path, *tracks: str, classes: list[str] | None = None) -> list:
    return read_content(tmp_path, document(*tracks), classes=classes).entries


def summary(entries: list) -> list[tuple]:
    """Track, action and frames of all tubes in which somebody does something."""
    return [(entry.track_id[1], *entry.labels, entry.frames.tolist()) for entry in entries if entry.labels]


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

    assert (walk.labels, walk.frames.tolist()) == (("walk",), list(range(8)))
    np.testing.assert_allclose(walk.boxes[:, 0], np.arange(8))
    np.testing.assert_allclose(walk.boxes[:, 3], 20 + np.arange(8))
    assert (sit.labels, sit.frames.tolist()) == (("sit",), [8, 9])
    np.testing.assert_allclose(sit.boxes, [[8, 8, 18, 28]] * 2)


def test_actor_comes_back(tmp_path):
    boxes = [box(0), box(1, outside=1), box(5), box(6, outside=1)]

    assert summary(read(tmp_path, track(*boxes))) == [(0, "person", [0, 5])]


def test_nothing_is_held_after_the_last_box(tmp_path):
    assert summary(read(tmp_path, track(box(3), box(5)))) == [(0, "person", [3, 4, 5])]


def test_boxes_in_which_nobody_said_what_happens_have_no_action(tmp_path):
    boxes = [box(0, Action="Walk"), box(1, Action="None"), box(2, Action=""), box(3, outside=1, Action="")]

    content = read_content(tmp_path, document(track(*boxes)))

    assert [(entry.labels, entry.frames.tolist()) for entry in content.entries] == [
        (("Walk",), [0]),
        ((), [1]),
        (None, [2]),
    ]
    assert "boxes of people who do nothing: 1" in content.notes
    assert content.warnings == [
        "boxes of which nobody said what happens (1 of 'person'): give them an action, or 'none' for nothing"
    ]


def test_rotated_boxes_are_enclosed_and_cut_off_at_the_frame(tmp_path):
    quarter = box(0, "20 10 60 30").replace("z_order", 'rotation="90.00" z_order')
    tilted = box(1, "0 0 20 20").replace("z_order", 'rotation="-45" z_order')
    gone = box(2, "0 0 20 20", outside=1)

    (tube,) = read(tmp_path, track(quarter, tilted, gone))

    np.testing.assert_allclose(tube.boxes[0], [30, 0, 50, 40])
    np.testing.assert_allclose(tube.boxes[1], [0, 0, 10 + 200**0.5, 10 + 200**0.5])


def test_rotation_between_two_boxes_goes_the_short_way(tmp_path):
    first, last = (
        box(frame, "20 40 60 60").replace("z_order", f'rotation="{angle}" z_order')
        for frame, angle in ((0, 350), (2, 10))
    )

    (tube,) = read(tmp_path, track(first, last))

    np.testing.assert_allclose(tube.boxes[1], [20, 40, 60, 60])


def test_frames_that_a_task_leaves_out_have_no_box(tmp_path):
    text = document(track(box(4, "0 0 10 20"), box(12, "8 0 18 20"), box(16, outside=1)), start=4, stop=24)
    text = text.replace("<segments>", "<frame_filter>step=4</frame_filter><segments>")

    content = read_content(tmp_path, text)

    assert summary(content.entries) == [(0, "person", [4, 8, 12])]
    np.testing.assert_allclose(content.entries[0].boxes[:, 0], [0, 4, 8])
    assert content.videos["demo_val_000.mp4"].annotated_frames == range(4, 25, 4)


def test_jobs_name_no_video_and_count_as_their_task(tmp_path):
    text = document(track(box(10), box(11, outside=1)), start=10, stop=19)
    size = "<original_size><width>128</width><height>96</height></original_size>"
    text = text.replace("<task>", "<job>").replace("</task>", f"</job>{size}").replace(size, "", 1)
    text = text.replace("<source>demo_val_000.mp4</source>", "")

    content = read_content(tmp_path, text)

    assert summary(content.entries) == [(0, "person", [10])]
    assert content.videos["0"] == VideoClaim(("0", "0"), (128, 96), None, None, range(10, 20), is_named=False)


def test_two_files_of_one_video_keep_their_people_apart(tmp_path):
    first = document(track(box(0), box(1, outside=1)), stop=9)
    second = document(track(box(10), box(11, outside=1)), start=10, stop=19)

    content = read_content(tmp_path, first, second)

    assert [entry.track_id for entry in content.entries] == [("0.xml", 0), ("1.xml", 0)]
    assert content.videos["demo_val_000.mp4"].annotated_frames.tolist() == list(range(20))


def project(*tracks: str) -> str:
    tasks = "".join(
        f"<task><id>{number}</id><size>{size}</size><subset>{subset}</subset><start_frame>{start}</start_frame>"
        f"<stop_frame>{stop}</stop_frame><frame_filter>{step}</frame_filter><original_size><width>128</width>"
        f"<height>96</height></original_size><source>{source}</source></task>"
        for number, size, subset, start, stop, step, source in (
            (12, 20, "Train", 0, 19, "", "b.mp4"),
            (9, 5, "Train", 2, 10, "step=2", "a.mp4"),
            (10, 30, "Test", 0, 29, "", "c.mp4"),
        )
    )
    meta = f"<meta><project><tasks>{tasks}</tasks></project></meta>"
    return f"<annotations><version>1.1</version>{meta}{''.join(tracks)}</annotations>"


def of_task(text: str, task: int, subset: str) -> str:
    return text.replace("source=", f'task_id="{task}" subset="{subset}" source=')


def test_later_tasks_of_a_subset_are_shifted_in_a_project(tmp_path):
    # Task 9 takes 2 + 2 * 5 frames of the numbers of its subset; the other subset counts for itself.
    tracks = [
        of_task(track(box(4), box(6, outside=1)), 9, "Train"),
        of_task(track(box(12), box(13, outside=1), number=1), 12, "Train"),
        of_task(track(box(12), box(13, outside=1), number=2), 10, "Test"),
    ]

    content = read_content(tmp_path, project(*tracks))

    found = [(entry.video, entry.track_id[1], entry.frames.tolist()) for entry in content.entries]
    assert found == [("a.mp4", 0, [4]), ("b.mp4", 1, [0]), ("c.mp4", 2, [12])]
    assert content.videos["a.mp4"].annotated_frames == range(2, 11, 2)


def test_tracks_without_meta_are_of_the_video_of_the_same_name(tmp_path):
    text = document(track(box(0), box(1, outside=1), label="Grevy"))

    content = read_content(tmp_path, text[: text.index("<meta>")] + text[text.index("</meta>") + len("</meta>") :])

    assert summary(content.entries) == [(0, "Grevy", [0])]
    assert content.videos["0"] == VideoClaim(("0", "0"), is_named=False)


def test_turned_boxes_are_cut_off_at_the_video_where_the_file_says_no_size(folder):
    tall = box(0, "0 0 20 90").replace("z_order", 'rotation="90" z_order')
    (folder / "train" / "demo_val_000.xml").write_text(f"<annotations>{track(tall)}</annotations>")

    (row,) = load_custom(folder, "train")

    # Turned about (10, 45), from -35 to 55 in x.
    np.testing.assert_allclose(row["tubes"][0]["boxes"], [[0, 35 / 96, 55 / 128, 55 / 96]], atol=1e-6)


def test_twin_boxes_that_agree_are_one(tmp_path):
    assert summary(read(tmp_path, track(box(2), box(2)))) == [(0, "person", [2])]


def test_other_shapes_are_counted_and_named(tmp_path):
    polygon = track('<polygon frame="0" points="1,1;2,2" />', number=1)
    skeleton = track('<skeleton frame="0"><points label="nose" /></skeleton>', number=2)

    content = read_content(tmp_path, document(track(box(0)), polygon, skeleton, skeleton, track(number=3)))

    assert content.ignored == {"tracks of polygons": 1, "tracks of skeletons": 2, "tracks without a box": 1}
    assert summary(content.entries) == [(0, "person", [0])]


SIT = {"label": "sit", "number": 2}


def checkbox(name: str, value: str = "true") -> str:
    return box(0).replace("</box>", f'<attribute name="{name}">{value}</attribute></box>')


@pytest.mark.parametrize(
    ("tracks", "classes", "found", "warning"),
    [
        ([track(checkbox("Low Confidence"), label="walk")], None, ["walk"], "that are not read .* Low Confidence"),
        ([track(checkbox("wave"))], None, ["wave"], None),
        ([track(checkbox("wave")), track(box(0), label="run", number=1)], None, ["run", "wave"], "beside others"),
        ([track(checkbox("left")), track(checkbox("fast"), label="run", number=1), track(box(0), **SIT)],
         None, ["person", "run", "sit"], "checkboxes that are not read as actions: fast, left"),
        ([track(checkbox("left"), label="run")], ["run", "left"], ["left", "run"], None),
        ([track(checkbox("left"), label="run")], ["run"], ["run"], None),
        ([track(checkbox("age", "old"), label="run")], None, ["run"], "attributes that nothing reads: age"),
        ([track(checkbox("age", "old"), label="run")], ["run"], ["run"], None),
    ],
)  # fmt: skip
def test_what_is_an_action_and_what_may_be_misunderstood(tmp_path, tracks, classes, found, warning):
    content = read_content(tmp_path, document(*tracks), classes=classes)

    assert sorted({label for entry in content.entries for label in entry.labels or ()}) == found
    assert [bool(re.search(warning, text)) for text in content.warnings] == [True] if warning else not content.warnings


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (track(box(2), box(2, "5 5 9 9")), "two boxes in frame 2"),
        (track(box(2).replace('xtl="0"', 'xtl="left"')), "four corners, all of them numbers, got .*left"),
        (track(box(2).replace('frame="2"', "")), "needs a frame"),
        (track(box(-1)), "frames count from 0 in the video, got frame -1"),
        (track(box(30)), "has frames 30 to 30, and those of its task are 0 to 29"),
        (track(box(2), label=""), "needs a whole number as id and a label"),
    ],
)
def test_problems_are_told_by_track(tmp_path, bad, message):
    with pytest.raises(AnnotationError, match=rf"1 problem in .*:\n  track 0: .*{message.removeprefix('track 0: ')}"):
        read(tmp_path, bad, track(box(0), number=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (document()[:-5], "no valid XML"),
        ("<annotations><image id='0' /></annotations>", "CVAT for video 1.1"),
        ("<html></html>", "CVAT for video 1.1"),
        (document().replace("<version>1.1", "<version>2.0"), "has version '2.0'"),
        (project(of_task(track(box(0)), 7, "Train")), "is of task '7', and the file has 10, 9, 12"),
        (project().replace("<source>b.mp4</source>", ""), "task '12' of the project does not say its <source>"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    with pytest.raises(AnnotationError, match=message):
        read_content(tmp_path, text)


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
    (folder / "train" / "d.xml").write_text(document(track(box(-1))))

    with pytest.raises(AnnotationError) as error:
        load_custom(folder, "train")

    lines = str(error.value).splitlines()
    assert lines[0].startswith("4 problems in ")
    assert lines[1].startswith("  c.xml: ")
    assert lines[2].startswith("  a.xml, track 0: has frames 30 to 30")
    assert lines[3].startswith("  d.xml, track 0: frames count from 0")
    assert lines[4].startswith("  b.xml, track 0: a box x1, y1, x2, y2 must lie in the 128 x 96 pixels")


def test_actors_of_whom_nobody_said_what_they_do_have_no_labels(folder):
    boxes = [box(0, action="walk"), box(1, action="none"), box(2, action=""), box(3, outside=1)]
    (folder / "train" / "a.xml").write_text(document(track(*boxes)))

    with pytest.warns(AnnotationWarning, match="nobody said what happens"):
        (row,) = load_custom(folder, "train")

    assert [(tube["labels"], tube["frames"]) for tube in row["tubes"]] == [([0], [0]), ([], [1]), (None, [2])]


def test_what_may_be_misunderstood_is_a_warning(folder):
    (folder / "train" / "a.xml").write_text(document(track(checkbox("Low Confidence"), label="walk")))

    with pytest.warns(AnnotationWarning, match="Low Confidence"):
        rows = load_custom(folder, "train")

    assert "classes from the label: walk" in rows.info.description


def test_frames_that_nobody_annotated_count_for_nothing(folder):
    text = document(track(box(8), box(12), box(16, outside=1)), start=8, stop=28)
    (folder / "train" / "a.xml").write_text(
        text.replace("<segments>", "<frame_filter>step=4</frame_filter><segments>")
    )

    rows = load_custom(folder, "train")
    sampling = {"num_labels": 1, "num_frames": 8, "frame_stride": 1, "frames_per_second": 15.0}
    tubes = make_clips(rows, **sampling)
    keyframes = make_clips(rows, output_frames="keyframe", keyframes_per_second=2.5, **sampling)

    assert rows[0]["annotated_frames"] == [[8, 29, 4]]
    # 29 frames make 4 clips with a frame of padding before; nobody looked into the first.
    assert [clip["frame_numbers"][clip["frame_mask"]].tolist() for clip in tubes] == [[8, 12], [16, 20], [24, 28]]
    # Every sixth frame, or the nearest that was annotated, at most three frames away.
    assert keyframes.clip_ids == ["demo_val_000_000008", "demo_val_000_000012"]
