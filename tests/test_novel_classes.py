"""Base-to-novel splits: which classes are novel, what training sees of them, and how both parts are scored."""

import json

import pytest
from partial_annotations import to_dataset

from classquery.data.annotations.schema import AnnotationError
from classquery.data.novel_classes import (
    JHMDB_SPLITS,
    base_and_novel_means,
    find_novel_classes,
    hide_novel_classes,
)


JHMDB_LABELS = (
    "brush_hair catch clap climb_stairs golf jump kick_ball pick pour pullup push run shoot_ball shoot_bow shoot_gun "
    "sit stand swing_baseball throw walk wave"
)
LABELS = ["Kick ball", "run", "sit", "wave"]


def row(*labels, annotated=None):
    tubes = [{"track_id": i, "labels": of, "frames": [0], "boxes": [[0, 0, 1, 1]]} for i, of in enumerate(labels)]
    empty = dict.fromkeys(("clip_id", "video", "source", "fps", "num_frames", "height", "width", "timestamp"))
    return empty | {
        "video_seconds": None,
        "center_frame": 0,
        "tubes": tubes,
        "ignored": None,
        "annotated_frames": None,
        "annotated_labels": annotated,
    }


def test_published_splits_are_six_of_the_classes_of_jhmdb():
    labels = JHMDB_LABELS.split()

    splits = [find_novel_classes([name], labels) for name in JHMDB_SPLITS]

    assert [len(novel) for novel in splits] == [6, 6, 6, 6]
    # The fourth repeats three of the first.
    assert len(set().union(*splits)) == 21


def test_classes_are_named_drawn_or_read(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"base": ["run"], "novel": ["wave", "kick_ball"]}))
    (tmp_path / "split.txt").write_text("wave\n\nKickBall\n")
    for values in (["wave", "kick ball"], [str(tmp_path / "split.json")], [str(tmp_path / "split.txt")]):
        assert find_novel_classes(values, LABELS) == ["Kick ball", "wave"]
    assert find_novel_classes(["sit"], LABELS) == ["sit"]


def test_names_that_differ_in_spaces_only_stay_apart():
    labels = ["pick_up", "pickup", "run"]
    assert find_novel_classes(["pick_up"], labels) == ["pick_up"]
    with pytest.raises(AnnotationError, match="'Pick up' may be each of the classes .*'pick_up', 'pickup'"):
        find_novel_classes(["Pick up"], labels)


def test_draws_hold_their_part_and_differ_with_the_seed():
    labels = [f"class {index}" for index in range(24)]
    drawn = {seed: find_novel_classes([f"seed:{seed}:75"], labels) for seed in range(3)}

    assert all(len(novel) == 6 for novel in drawn.values())
    assert len(set(map(tuple, drawn.values()))) == 3
    assert len(find_novel_classes(["seed:0:50"], labels)) == 12
    # Not to change: numbers were measured on it.
    assert drawn[0] == EXPECTED_DRAW


EXPECTED_DRAW = ["class 1", "class 5", "class 9", "class 14", "class 15", "class 17"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["wafe"], "there is no class 'wafe' to be novel, did you mean 'wave'"),
        (["jhmdb_1"], "there is no class 'clap' to be novel"),
        (["seed:0"], "give seed:S:PERCENT"),
        (["seed:0:100"], "got 0 of 4"),
        (["seed:0:0"], "got 4 of 4"),
        (["seed:0:-5"], "there is no part of -5 percent"),
        (["none.json"], "none.json"),
    ],
)
def test_splits_that_cannot_be_are_refused(values, message):
    with pytest.raises((AnnotationError, OSError), match=message):
        find_novel_classes(values, LABELS)


@pytest.mark.parametrize("streaming", [False, True])
def test_training_does_not_see_novel_classes_and_takes_them_for_unknown(streaming):
    rows = to_dataset([row([0, 2], [3]), row([3], [2, 3]), row([2]), row(None, [1], annotated=[1, 2]), row()])
    rows = rows.to_iterable_dataset() if streaming else rows

    hidden = list(hide_novel_classes(rows, [2, 3], 4))

    assert [[tube["labels"] for tube in one["tubes"]] for one in hidden] == [[[0], []], [None, [1]], []]
    assert [one["annotated_labels"] for one in hidden] == [[0, 1], [1], [0, 1]]


def test_shards_are_refused():
    with pytest.raises(ValueError, match="not in shards"):
        hide_novel_classes(object(), [1], 4)


def test_means_of_both_parts_and_their_harmonic_mean():
    ap = {"frame_map_50": {"run": 0.9, "sit": 0.3, "wave": 0.2}, "video_map_20": {"run": 0.0, "wave": 0.0}}

    means = base_and_novel_means(ap, ["wave"])

    assert means == pytest.approx(
        {
            "frame_map_50_base": 0.6,
            "frame_map_50_novel": 0.2,
            "frame_map_50_harmonic": 0.3,
            "video_map_20_base": 0.0,
            "video_map_20_novel": 0.0,
            "video_map_20_harmonic": 0.0,
        }
    )
