"""Columns of boxes become rows as a plain loop over the boxes would make them."""

import numpy as np
import pytest

from classquery.data.annotations.custom import load_custom


VIDEOS = ("a.mp4", "b.mp4", "c.mp4")
LABELS = ("lie", "sit", "walk")
BOXES = ("0.1,0.1,0.5,0.5", "0.2,0.2,0.9,0.8", "0.3,0,1,1")


def random_rows(seed: int, kind: str) -> list[tuple]:
    """(video, time, box, label, track) in any order, none twice; a track has one box at a time."""
    rng = np.random.default_rng(seed)
    rows = {}
    for _ in range(120):
        video, time, label, track = (int(rng.integers(size)) for size in (3, 5, 3, 4))
        box = (video + time + track) % len(BOXES)
        track = None if kind == "timestamp" and track == 3 else track
        key = (video, time, label, box if track is None else track, track is None)
        rows[key] = (VIDEOS[video], time, BOXES[box], LABELS[label], track)
    return list(rows.values())


def expected_tubes(rows: list[tuple], kind: str) -> dict:
    """By clip: for each (track, box or None) and label the frames with their boxes; then labels of equal frames."""
    clips: dict = {}
    for video, time, box, label, track in rows:
        clip = video[:1] if kind == "frame" else f"{video[:1]}_{time:.3f}"
        who = ("track", track) if track is not None else ("box", box)
        frames = clips.setdefault(clip, {}).setdefault((who, LABELS.index(label)), {})
        frames[time if kind == "frame" else None] = box
    joined = {}
    for clip, groups in clips.items():
        tubes: dict = {}
        for (who, label), frames in groups.items():
            tubes.setdefault((who, tuple(sorted(frames.items()))), []).append(label)
        joined[clip] = [
            (
                who[1] if who[0] == "track" else None,
                sorted(labels),
                [frame for frame, _ in frames],
                [b for _, b in frames],
            )
            for (who, frames), labels in tubes.items()
        ]
    return joined


@pytest.mark.parametrize("kind", ["frame", "timestamp"])
@pytest.mark.parametrize("seed", range(5))
def test_rows_are_those_of_a_plain_loop(tmp_path, kind, seed):
    rows = random_rows(seed, kind)
    lines = [
        f"{video},{time},{box},{label},{'' if track is None else track}" for video, time, box, label, track in rows
    ]
    (tmp_path / "train.csv").write_text("\n".join([f"video,{kind},x1,y1,x2,y2,label,track_id", *lines]))

    loaded = load_custom(tmp_path, "train", require_videos=False)

    found = {
        row["clip_id"]: [
            (
                tube["track_id"],
                tube["labels"],
                tube["frames"] or [None],
                [",".join(f"{np.round(corner, 6):g}" for corner in box) for box in tube["boxes"]],
            )
            for tube in row["tubes"]
        ]
        for row in loaded
    }
    expected = expected_tubes(rows, kind)
    assert list(found) == list(expected)
    assert found == expected
