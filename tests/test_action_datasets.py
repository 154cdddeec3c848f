"""The data sets by name: every name works from annotations to clips."""

from typing import get_args

import pytest

from classquery.data.annotations import registry
from classquery.data.annotations.ava import AVA_LABELS
from classquery.data.annotations.registry import (
    DatasetName,
    load_action_dataset,
    load_action_labels,
    make_clips,
    prepare_dataset,
    scored_label_ids,
)
from classquery.data.clips import KeyframeClips, TubeClips
from classquery.data.demo.tubes import write_demo_tubes
from classquery.data.metrics import ava_label_ids


SAMPLING = {"num_frames": 8, "frame_stride": 1, "frames_per_second": 15.0}


def test_every_name_has_a_reader():
    assert set(get_args(DatasetName)) == set(registry._READERS)


def test_sixty_labels_of_ava_and_of_multisports_are_scored():
    left_out = ["kick jump", "off axis jump", "butterfly jump", "balance turn"]
    names = [f"football {number}" for number in range(60)] + [f"aerobic {name}" for name in left_out]
    multisports = dict(enumerate([*names, "basketball save", "basketball jump ball"]))

    assert scored_label_ids("multisports", multisports) == list(range(1, 61))
    assert scored_label_ids("ava", dict(enumerate(AVA_LABELS))) == ava_label_ids()
    # In the layout of one of them, but not its classes.
    assert scored_label_ids("ava", {0: "walk"}) is scored_label_ids("multisports", {0: "walk"}) is None


def test_keyframes_are_read_in_the_layout_of_ava(demo_dir):
    rows = load_action_dataset("ava", demo_dir, "validation")
    labels = load_action_labels("ava", demo_dir)

    clips = make_clips(rows, num_labels=len(labels), **SAMPLING | {"frame_stride": 2})

    assert isinstance(clips, KeyframeClips)
    assert clips[0]["frames"].shape[0] == 8


@pytest.mark.parametrize("layout", ["ucf101_24", "jhmdb_21"])
def test_tubes_are_read_in_the_layout_of(layout, tmp_path):
    write_demo_tubes(tmp_path / "data", layout=layout, num_train_videos=2, num_validation_videos=1)
    labels = load_action_labels(layout, tmp_path / "data")
    rows = load_action_dataset(layout, tmp_path / "data", "train")

    clips = make_clips(rows, num_labels=len(labels), **SAMPLING)

    assert isinstance(clips, TubeClips)
    assert clips[0]["boxes"].shape[1:] == (8, 4)
    assert clips[0]["class_labels"].shape[2] == len(labels) == 5


def test_folds_are_different_splits(tmp_path):
    write_demo_tubes(tmp_path / "data", layout="jhmdb_21", num_train_videos=4, num_validation_videos=2)

    folds = [load_action_dataset("jhmdb_21", tmp_path / "data", "validation", fold=fold) for fold in range(3)]

    names = {name for fold in folds for name in fold["clip_id"]}
    assert len(names) == 6
    with pytest.raises(ValueError, match="folds 0 to 2, got 3"):
        load_action_dataset("jhmdb_21", tmp_path / "data", "train", fold=3)


def test_demo_sets_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry._READERS,
        "demo_jhmdb_21",
        registry._READERS["jhmdb_21"]._replace(
            write_demo=lambda folder: write_demo_tubes(
                folder, layout="jhmdb_21", num_train_videos=1, num_validation_videos=1
            )
        ),
    )

    folder = prepare_dataset("demo_jhmdb_21", tmp_path / "data")
    written = (folder / "JHMDB-GT.pkl").stat().st_mtime_ns
    prepare_dataset("demo_jhmdb_21", tmp_path / "data")

    assert (folder / "JHMDB-GT.pkl").stat().st_mtime_ns == written
    assert len(load_action_dataset("demo_jhmdb_21", folder, "train")) == 1


def test_clips_of_tubes_take_every_frame(tmp_path):
    write_demo_tubes(tmp_path / "data", layout="jhmdb_21", num_train_videos=1, num_validation_videos=0)
    rows = load_action_dataset("jhmdb_21", tmp_path / "data", "train")

    with pytest.raises(ValueError, match="`frame_stride` must be 1, got 2"):
        make_clips(rows, num_labels=5, **SAMPLING | {"frame_stride": 2})
