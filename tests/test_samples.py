"""The readers on real files that are not in the repository: CLASSQUERY_SAMPLES names the folder that has them."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from classquery.data.annotations.ava import load_ava
from classquery.data.annotations.tubes import load_jhmdb_21, load_jhmdb_21_labels
from classquery.data.clips import TubeClips, tile_starts


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CLASSQUERY_SAMPLES" not in os.environ, reason="CLASSQUERY_SAMPLES is not set"),
]


@pytest.fixture
def samples() -> Path:
    return Path(os.environ["CLASSQUERY_SAMPLES"])


def test_jhmdb_has_the_facts_of_the_published_ground_truth(samples):
    folder = samples / "jhmdb"
    splits = [
        [load_jhmdb_21(folder, split, fold=fold, require_videos=False) for split in ("train", "validation")]
        for fold in range(3)
    ]

    assert [[len(rows) for rows in fold] for fold in splits] == [[660, 268], [658, 270], [663, 265]]
    for train, validation in splits:
        assert not set(train["clip_id"]) & set(validation["clip_id"])
    rows = [row for of_split in splits[0] for row in of_split]
    assert len({row["clip_id"] for row in rows}) == 928
    assert {(row["height"], row["width"]) for row in rows} == {(240, 320)}
    num_frames = [row["num_frames"] for row in rows]
    assert (min(num_frames), max(num_frames), Counter(num_frames)[40]) == (15, 40, 475)
    assert np.mean(num_frames) == pytest.approx(34.3, abs=0.05)
    labels = load_jhmdb_21_labels(folder)
    assert (len(labels), labels[0], labels[20]) == (21, "brush_hair", "wave")
    for row in rows:
        (tube,) = row["tubes"]
        assert labels[tube["labels"][0]] == row["clip_id"].split("/")[0]
        assert tube["frames"] == list(range(row["num_frames"]))
        pixels = np.array(tube["boxes"]) * [320, 240, 320, 240]
        np.testing.assert_allclose(pixels, pixels.round(), atol=1e-4)
        assert (pixels[:, 2:] > pixels[:, :2]).all()
        assert pixels.max(axis=0)[[0, 2]].max() <= 319.001
        assert pixels.max(axis=0)[[1, 3]].max() <= 239.001


def test_jhmdb_is_one_clip_a_video_centred_in_forty_frames(samples):
    rows = load_jhmdb_21(samples / "jhmdb", "train", require_videos=False)

    clips = TubeClips(rows, num_labels=21, num_frames=40)

    assert len(clips) == 660
    assert all(tile_starts(n, 40) == tile_starts(n, 40, "released") for n in set(rows["num_frames"]) - {40})


def test_rows_in_the_format_of_ava_load(samples, tmp_path):
    source = samples / "ava_format"
    shutil.copy(source / "ava_sample.csv", tmp_path / "ava_train_v2.2.csv")
    shutil.copy(source / "ava_excluded_timestamps_sample.csv", tmp_path / "ava_train_excluded_timestamps_v2.2.csv")

    rows = load_ava(tmp_path, "train", require_videos=False)

    excluded = {line.replace(",", "_") for line in (source / "ava_excluded_timestamps_sample.csv").read_text().split()}
    lines = [line.split(",") for line in (source / "ava_sample.csv").read_text().split()]
    expected = Counter(f"{line[0]}_{line[1]}" for line in lines)
    found = {row["clip_id"]: sum(len(tube["labels"]) for tube in row["tubes"]) for row in rows}
    assert found == {name: count for name, count in expected.items() if name not in excluded}
    # Nobody is lost for having id 0.
    assert any(tube["track_id"] == 0 for row in rows for tube in row["tubes"])
