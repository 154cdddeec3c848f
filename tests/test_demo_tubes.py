"""The demo data in the layouts of UCF101-24 and JHMDB-21: its tubes are what one sees."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from classquery.data.annotations.tubes import (
    load_jhmdb_21,
    load_jhmdb_21_labels,
    load_ucf101_24,
    load_ucf101_24_labels,
)
from classquery.data.demo.movies import POSES
from classquery.data.demo.tubes import (
    LAYOUTS,
    TUBE_LABELS,
    make_tube_video,
    tube_crop_baseline,
    tube_label,
    write_demo_tubes,
)
from classquery.data.video.reader import ClipReader


SMALL = {"num_train_videos": 6, "num_validation_videos": 2}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tubes")
    for layout in LAYOUTS:
        write_demo_tubes(folder / layout, layout, **SMALL)
    return {layout: folder / layout for layout in LAYOUTS}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def rows(request, data_dirs) -> Dataset:
    load = {"ucf101_24": load_ucf101_24, "jhmdb_21": load_jhmdb_21}[request.param]
    return load(data_dirs[request.param], "train")


def boxes_in(row: dict, frame: int) -> list[tuple[str, tuple[int, ...]]]:
    """Label and box in pixels of everybody in a frame."""
    found = []
    for tube in row["tubes"]:
        if frame in tube["frames"]:
            box = np.multiply(tube["boxes"][tube["frames"].index(frame)], [128, 96, 128, 96])
            found.append((TUBE_LABELS[tube["labels"][0]], tuple(box.round().astype(int).tolist())))
    return found


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_same_arguments_give_the_same_bytes(data_dirs, layout, tmp_path):
    write_demo_tubes(tmp_path / "again", layout, **SMALL)

    files = {
        folder: {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (data_dirs[layout], tmp_path / "again")
    }
    assert files[data_dirs[layout]] == files[tmp_path / "again"]


def test_videos_depend_on_layout_split_index_and_seed():
    drawn = [("ucf101_24", "train", 0, 0), ("jhmdb_21", "train", 0, 0), ("ucf101_24", "validation", 0, 0)]
    drawn += [("ucf101_24", "train", 1, 0), ("ucf101_24", "train", 0, 1)]

    shots = [make_tube_video(layout, split, index, seed=seed).shot for layout, split, index, seed in drawn]

    assert len(set(shots)) == len(shots)


def test_light_people_are_in_their_boxes_and_nowhere_else(rows):
    for row in rows:
        for frame, image in enumerate(ClipReader().read(row["video"], range(row["num_frames"]))):
            light = image.min(-1) > 150
            for _, (x_min, y_min, x_max, y_max) in boxes_in(row, frame):
                inside = light[y_min:y_max, x_min:x_max]
                # The dark outline is inside of the box, too: the light part begins one or two pixels further in.
                assert inside[:5].any()
                assert inside[-5:].any()
                assert inside[:, :4].any()
                assert inside[:, -4:].any()
                light[y_min:y_max, x_min:x_max] = False
            assert not light.any()


def test_ball_labels_are_what_the_video_shows(rows):
    for row in rows:
        for frame, image in enumerate(ClipReader().read(row["video"], range(row["num_frames"]))):
            red = image[..., 0].astype(int) - image[..., 1:].max(-1) > 80
            for label, (x_min, y_min, x_max, y_max) in boxes_in(row, frame):
                on_the_left = red[y_min:y_max, max(x_min - 20, 0) : x_min].sum() > 40
                on_the_right = red[y_min:y_max, x_max : x_max + 20].sum() > 40
                assert (on_the_left, on_the_right) == (label == "ball on the left", label == "ball on the right")


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_who_has_no_ball_moves_as_labelled(layout):
    seen = set()
    for index in range(40):
        video = make_tube_video(layout, "train", index)
        for number, actor in enumerate(video.shot.actors):
            moves = np.ptp(video.tube(number)[:, 1:3], axis=0) > 3
            if actor.symbol_kind != "ball":
                expected = {"stand": [False, False], "walk": [True, False], "jump": [False, True]}[actor.pose]
                assert moves.tolist() == expected
                seen.add(actor.pose)
    assert seen == {"stand", "walk", "jump"}


def test_people_of_ucf_come_and_go():
    videos = [make_tube_video("ucf101_24", "train", index) for index in range(100)]

    spans = [(span, video.num_frames) for video in videos for span in video.spans]

    assert {len(video.spans) for video in videos} == {1, 2, 3}
    assert {video.num_frames % 8 == 0 for video in videos} == {True, False}
    assert all(0 <= span.start < span.stop <= num_frames for span, num_frames in spans)
    whole = sum(len(span) == num_frames for span, num_frames in spans)
    assert 0.02 * len(spans) < whole < 0.5 * len(spans)


def test_the_person_of_jhmdb_is_there_from_the_first_to_the_last_frame():
    videos = [make_tube_video("jhmdb_21", "train", index) for index in range(100)]

    assert all(video.spans == (range(video.num_frames),) for video in videos)
    assert {video.num_frames for video in videos} == {5, 6, 7, 8}


def test_folds_of_jhmdb_divide_the_videos(data_dirs):
    splits = [
        [set(load_jhmdb_21(data_dirs["jhmdb_21"], split, fold=fold)["clip_id"]) for split in ("train", "validation")]
        for fold in range(3)
    ]

    assert [(len(train), len(test), len(train & test)) for train, test in splits] == [(6, 2, 0)] * 3
    assert len(splits[0][1] | splits[1][1] | splits[2][1]) == 6
    assert len({frozenset(train | test) for train, test in splits}) == 1
    assert all(name.split("/")[1].startswith("validation") for name in splits[0][1])


def test_labels_are_in_both_layouts(data_dirs):
    assert load_ucf101_24_labels(data_dirs["ucf101_24"]) == dict(enumerate(TUBE_LABELS))
    assert load_jhmdb_21_labels(data_dirs["jhmdb_21"]) == dict(enumerate(TUBE_LABELS))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_labels_are_balanced(layout):
    videos = [make_tube_video(layout, "train", index) for index in range(150)]

    labels = [tube_label(actor) for video in videos for actor in video.shot.actors]

    shares = [labels.count(label) / len(labels) for label in TUBE_LABELS]
    # A ball is on either side of 0.35 of the actors; three standard deviations of a share of 150 are 0.1.
    np.testing.assert_allclose(shares, [0.65 / 3] * 3 + [0.175] * 2, atol=0.1)
    assert sum(shares) == pytest.approx(1)


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'ava'"):
        write_demo_tubes(tmp_path / "data", "ava", **SMALL)


@pytest.mark.parametrize("bad", [{"num_train_videos": -1}, {"num_validation_videos": -1}, {"seed": -1}])
def test_number_that_is_too_small_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        write_demo_tubes(tmp_path / "data", "ucf101_24", **SMALL | bad)


def test_other_demo_data_in_the_folder_are_left_alone(data_dirs):
    with pytest.raises(FileExistsError, match="'layout': 'ucf101_24'"):
        write_demo_tubes(data_dirs["ucf101_24"], "jhmdb_21", **SMALL)


@pytest.mark.parametrize("layout", ["ucf101_24", "jhmdb_21"])
def test_crops_of_the_actors_do_not_tell_who_has_a_ball(layout, tmp_path):
    """Of actors who move alike, as many of a kind are right as there are: no better than without any knowledge."""
    arguments = {"layout": layout, "num_validation_videos": 300, "seed": 0}
    (tmp_path / "demo.json").write_text(json.dumps(arguments))

    baseline = tube_crop_baseline(tmp_path, "validation")

    videos = [make_tube_video(layout, "validation", index) for index in range(300)]
    actors = [(a, len(span)) for v in videos for a, span in zip(v.shot.actors, v.spans, strict=True)]
    total = sum(length for _, length in actors)
    for label, ap in zip(TUBE_LABELS, baseline["ap_per_label"], strict=True):
        # The best order of crops has those first that move so, or any if it is about a ball.
        group = [(a, n) for a, n in actors if a.pose == label] if label in POSES else actors
        share = sum(n for a, n in group if tube_label(a) == label) / sum(n for _, n in group)
        assert share < 0.8
        # A few hundred actors, in random order.
        assert ap == pytest.approx(share, abs=0.12)
    assert total > 1000
    assert baseline["frame_map_50"] < 0.7
