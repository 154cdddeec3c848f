"""Annotations in Parquet: what was saved is loaded, also after the folder has moved."""

import shutil

import pytest
from datasets import Dataset

from classquery.data import load_action_dataset, load_action_labels, save_action_dataset
from classquery.data.annotations.ava import load_ava, load_ava_labels
from classquery.data.annotations.schema import ACTION_FEATURES, AnnotationError
from classquery.data.annotations.tubes import load_jhmdb_21, load_jhmdb_21_labels
from classquery.data.demo.tubes import write_demo_tubes


@pytest.fixture
def moved(demo_dir, tmp_path):
    """The demo's training split, saved in one folder that is now another one; and its rows there."""
    first = tmp_path / "first"
    shutil.copytree(demo_dir, first)
    save_action_dataset(load_ava(first, "train"), load_ava_labels(first), first, "train")
    return first.rename(tmp_path / "second")


def test_rows_and_classes_move_with_their_folder(moved):
    rows = load_action_dataset("parquet", moved, "train")

    assert rows.features == ACTION_FEATURES
    assert list(rows) == list(load_ava(moved, "train"))
    assert load_action_labels("parquet", moved) == load_ava_labels(moved)


def test_tubes_of_a_selection_are_saved(tmp_path):
    write_demo_tubes(tmp_path / "data", "jhmdb_21", num_train_videos=4, num_validation_videos=0)
    rows = load_jhmdb_21(tmp_path / "data", "train").select([3, 1])

    path = save_action_dataset(rows, load_jhmdb_21_labels(tmp_path / "data"), tmp_path / "data", "train")

    assert list(load_action_dataset("parquet", tmp_path / "data", "train")) == list(rows)
    # What is written are plain columns, as `datasets` reads and pushes them.
    assert Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).features == ACTION_FEATURES


def test_parquet_may_be_streamed(moved):
    stream = load_action_dataset("parquet", moved, "train", streaming=True, num_shards=4)

    assert stream.num_shards == 4
    assert list(stream) == list(load_ava(moved, "train"))


def test_missing_videos_and_files_are_errors(moved):
    (moved / "videos" / "demo_train_001.mp4").unlink()

    with pytest.raises(FileNotFoundError, match=r"1 of 3 videos .*: videos/demo_train_001.mp4"):
        load_action_dataset("parquet", moved, "train")
    assert len(load_action_dataset("parquet", moved, "train", require_videos=False)) == 14
    with pytest.raises(FileNotFoundError, match="No validation.parquet in"):
        load_action_dataset("parquet", moved, "validation")


def test_other_tables_and_unnamed_classes_are_refused(moved):
    classes = moved / "parquet" / "classes.txt"
    classes.write_text("only one\n")
    with pytest.raises(AnnotationError, match="classes 0 to 7, and 1 have names"):
        load_action_dataset("parquet", moved, "train")

    Dataset.from_dict({"clip_id": ["a"]}).to_parquet(moved / "parquet" / "train.parquet")
    with pytest.raises(AnnotationError, match="holds no rows"):
        load_action_dataset("parquet", moved, "train")
    (moved / "parquet" / "train.parquet").write_text("no table")
    with pytest.raises(AnnotationError, match="holds no rows"):
        load_action_dataset("parquet", moved, "train")
