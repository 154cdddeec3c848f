"""Splits that nobody made: balanced, seeded, kept, and never through a group."""

import json

import numpy as np
import pytest

from classquery.data import load_action_dataset
from classquery.data.__main__ import main
from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.splitting import SPLIT_FILE, split_videos


def random_counts(num_videos: int, seed: int = 0) -> dict[str, dict[str, int]]:
    """Classes of very different frequency."""
    rng = np.random.default_rng(seed)
    labels = {"walk": 20.0, "sit": 5.0, "fall": 0.6}
    return {
        f"{number}.mp4": {label: int(count) for label, mean in labels.items() if (count := rng.poisson(mean))}
        for number in range(num_videos)
    }


def shares(counts: dict, split: dict) -> dict[str, float]:
    totals: dict[str, list[int]] = {}
    for video, labels in counts.items():
        for label, count in labels.items():
            total = totals.setdefault(label, [0, 0])
            total[0] += count * split[video]
            total[1] += count
    return {label: inside / total for label, (inside, total) in totals.items()}


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.4])
def test_every_class_has_its_part(fraction):
    counts = random_counts(100)

    split = split_videos(counts, {}, fraction)

    assert split.keys() == counts.keys()
    # 100 videos leave room for a hundredth more or less of the frequent classes, some boxes of the rare one.
    assert shares(counts, split) == pytest.approx(dict.fromkeys(("walk", "sit", "fall"), fraction), abs=0.03)


def test_split_depends_on_the_seed_alone():
    counts = random_counts(40)
    turned = dict(reversed(counts.items()))

    assert split_videos(counts, {}, 0.25) == split_videos(turned, {}, 0.25)
    assert split_videos(counts, {}, 0.25) != split_videos(counts, {}, 0.25, seed=1)


def test_groups_are_not_divided():
    counts = random_counts(60)
    groups = {video: f"day {number // 5}" for number, video in enumerate(counts)}

    split = split_videos(counts, groups, 0.25)

    assert 0 < sum(split.values()) < 60
    for day in set(groups.values()):
        assert len({split[video] for video in counts if groups[video] == day}) == 1


def test_classes_of_one_video_stay_in_training():
    counts = {"a": {"walk": 5}, "b": {"walk": 5, "fall": 1}, "c": {"walk": 5}}

    for seed in range(5):
        split = split_videos(counts, {}, 0.3, seed=seed)
        assert sum(split.values()) == 1
        assert not split["b"]
    assert split_videos({"a": {"walk": 5}}, {}, 0.5) == {"a": False}


def test_videos_stay_where_they_were():
    counts = random_counts(30)
    before = split_videos(counts, {}, 0.3)
    more = random_counts(60)

    after = split_videos(more, {}, 0.3, kept=before)

    assert {video: after[video] for video in before} == before
    assert shares(more, after)["walk"] == pytest.approx(0.3, abs=0.05)


@pytest.fixture
def folder(tmp_path):
    rows = [
        f"{number}.mp4,{frame},0.1,0.1,0.5,0.5,{label},0,day {number // 2}"
        for number in range(12)
        for frame, label in enumerate(("walk", "sit"))
    ]
    (tmp_path / "train.csv").write_text("\n".join(["video,frame,x1,y1,x2,y2,label,track_id,group", *rows]))
    return tmp_path


def test_custom_data_without_validation_are_divided(folder):
    options = {"require_videos": False, "validation_fraction": 0.34}

    train, validation = (load_custom(folder, split, **options) for split in ("train", "validation"))

    assert (len(train), len(validation)) == (8, 4)
    days = [{int(clip_id) // 2 for clip_id in rows["clip_id"]} for rows in (train, validation)]
    assert not days[0] & days[1]
    assert "validation: 4 of 12 videos (" in validation.info.description
    assert "validation has of sit 33%, walk 33%" in validation.info.description
    assert load_custom_labels(folder) == {0: "sit", 1: "walk"}
    kept = json.loads((folder / SPLIT_FILE).read_text())
    assert [video.removesuffix(".mp4") for video in kept["validation"]] == sorted(validation["clip_id"])


def test_check_looks_at_the_split_that_training_makes(folder, capsys):
    arguments = ["check", "--dataset", "custom", "--data_dir", str(folder)]

    assert main([*arguments, "--validation_fraction", "0.34"]) == 1  # There are no videos.

    assert "validation: 4 rows" in capsys.readouterr().out


def test_a_split_that_is_kept_counts(folder):
    names = [f"{number}.mp4" for number in range(12)]
    (folder / SPLIT_FILE).write_text(json.dumps({"train": names[2:], "validation": names[:2]}))

    rows = load_custom(folder, "validation", require_videos=False, validation_fraction=0.2)

    assert rows["clip_id"][:] == ["0", "1"]
    assert "12 videos stay where validation_split.json has them: remove it to divide anew" in rows.info.description


def test_the_seed_of_the_split_chooses_other_videos_and_is_kept(folder):
    options = {"require_videos": False, "validation_fraction": 0.34}

    chosen = set()
    for seed in range(4):
        chosen.add(tuple(load_custom(folder, "validation", split_seed=seed, **options)["clip_id"]))
        assert json.loads((folder / SPLIT_FILE).read_text())["split_seed"] == seed
        # What is kept counts more than another seed, and says how it was chosen.
        assert tuple(load_custom(folder, "validation", split_seed=9, **options)["clip_id"]) in chosen
        assert json.loads((folder / SPLIT_FILE).read_text())["split_seed"] == seed
        (folder / SPLIT_FILE).unlink()

    assert len(chosen) > 1
    with pytest.raises(ValueError, match="split_seed must be at least 0, got -1"):
        load_custom(folder, "train", split_seed=-1, **options)


def test_prepared_data_have_the_split_of_their_originals(tmp_path, two_movies):
    source, prepared = tmp_path / "source", tmp_path / "prepared"
    source.mkdir()
    (source / "videos").symlink_to(two_movies)
    rows = [f"demo_val_00{number}.mp4,0,0.1,0.1,0.5,0.5,walk,0" for number in range(2)]
    (source / "train.csv").write_text("\n".join(["video,frame,x1,y1,x2,y2,label,track_id", *rows]))
    folders = ["--source_dir", str(source), "--data_dir", str(prepared)]

    code = main(["prepare", "--dataset", "custom", *folders, "--gop", "0", "--validation_fraction", "0.5"])

    assert code == 0
    assert (prepared / SPLIT_FILE).read_text() == (source / SPLIT_FILE).read_text()
    splits = [load_action_dataset("parquet", prepared, split)["clip_id"][:] for split in ("train", "validation")]
    assert sorted(sum(splits, [])) == ["demo_val_000", "demo_val_001"]


def test_data_with_a_validation_split_are_not_divided(folder):
    (folder / "val.csv").write_text((folder / "train.csv").read_text())

    with pytest.raises(ValueError, match=r"without a validation file, and there is .*val.csv"):
        load_custom(folder, "train", require_videos=False, validation_fraction=0.2)

    (folder / "val.csv").unlink()
    (folder / "train.csv").rename(folder / "annotations.csv")
    (folder / "annotations.csv").write_text((folder / "annotations.csv").read_text().replace("group", "split"))
    with pytest.raises(ValueError, match="has a column `split`"):
        load_custom(folder, "train", require_videos=False, validation_fraction=0.2)
