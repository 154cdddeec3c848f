"""The demo data set: its files, and that its labels are what one sees."""

from pathlib import Path

import av
import numpy as np
import pytest

from classquery.data.annotations.ava import load_ava, load_ava_labels
from classquery.data.demo import movies as demo


SMALL = {"num_train_movies": 2, "num_validation_movies": 1, "seconds_per_movie": 6}
SHOTS = [shot for index in range(100) for shot in demo.make_movie("train", index).shots]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    demo.write_demo(folder, **SMALL)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decode(path: str | Path) -> np.ndarray:
    """Return all frames, shape (num_frames, height, width, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def relations_seen(frame: np.ndarray, box: list[float]) -> list[str]:
    """Look for red and cyan beside a box (x1, y1, x2, y2) in [0, 1], knowing nothing about the scene."""
    x1, y1, x2, y2 = (round(edge * size) for edge, size in zip(box, (128, 96, 128, 96), strict=True))
    sides = {"left": frame[y1:y2, max(x1 - 20, 0) : x1], "right": frame[y1:y2, x2 : x2 + 20]}
    seen = []
    for side, region in sides.items():
        red, others = region[..., 0], region[..., 1:]
        if (red - others.max(-1) > 80).sum() > 40:
            seen.append(f"ball on the {side}")
        if (others.min(-1) - red > 80).sum() > 40:
            seen.append(f"kite on the {side}")
    return seen


def test_write_demo_gives_the_same_bytes_again(data_dir, tmp_path):
    demo.write_demo(tmp_path / "again", **SMALL)

    assert read_files(tmp_path / "again") == read_files(data_dir)


def test_write_demo_movie_gives_the_same_bytes_as_the_whole_set(data_dir, tmp_path):
    path = demo.write_demo_movie(tmp_path, "validation", 0, seconds_per_movie=SMALL["seconds_per_movie"])

    assert path.read_bytes() == (data_dir / "videos" / path.name).read_bytes()


def test_make_movie_depends_on_seed_split_and_index():
    drawn = [("train", 0, 0), ("train", 1, 0), ("validation", 0, 0), ("train", 0, 1)]

    movies = [demo.make_movie(split, index, seed=seed) for split, index, seed in drawn]

    assert len({movie.shots for movie in movies}) == len(movies)


def test_write_demo_gives_videos_of_the_stated_size(data_dir):
    paths = sorted((data_dir / "videos").iterdir())

    assert [path.name for path in paths] == ["demo_train_000.mp4", "demo_train_001.mp4", "demo_val_000.mp4"]
    with av.open(str(paths[0])) as container:
        assert container.streams.video[0].average_rate == 15
        assert container.streams.video[0].start_time == 0
    assert decode(paths[0]).shape == (6 * 15, 96, 128, 3)


def test_load_ava_reads_the_demo_without_its_excluded_keyframe(data_dir):
    dataset = load_ava(data_dir, "train")

    timestamps = [(name, t) for name in ("demo_train_000", "demo_train_001") for t in range(901, 906)]
    assert dataset["clip_id"][:] == [f"{name}_0{t}" for name, t in timestamps if (name, t) != ("demo_train_000", 901)]
    assert tuple(load_ava_labels(data_dir).values()) == demo.LABELS


@pytest.mark.parametrize("split", ["train", "validation"])
def test_relation_labels_are_what_the_video_shows(data_dir, split):
    for row in load_ava(data_dir, split):
        frame = decode(row["video"])[round(row["video_seconds"] * 15)]
        for tube in row["tubes"]:
            labels = [demo.LABELS[label] for label in tube["labels"]]
            assert [label for label in labels if label in demo.RELATIONS] == relations_seen(frame, tube["boxes"][0])


def test_boxes_are_tight_around_the_light_figure(data_dir):
    for row in load_ava(data_dir, "validation"):
        frame = decode(row["video"])[round(row["video_seconds"] * 15)]
        for tube in row["tubes"]:
            x1, y1, x2, y2 = (round(v * s) for v, s in zip(tube["boxes"][0], (128, 96, 128, 96), strict=True))
            light = frame[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2].min(-1) > 150
            rows, columns = np.flatnonzero(light.any(1)), np.flatnonzero(light.any(0))
            # The dark outline is inside the box, the light part begins one or two pixels further in.
            assert rows[0] in range(2, 6)
            assert columns[0] in range(2, 6)
            assert y2 - y1 + 4 - rows[-1] in range(3, 7)
            assert x2 - x1 + 4 - columns[-1] in range(3, 7)


def test_watch_a_jump_means_that_another_actor_jumps(data_dir):
    for row in load_ava(data_dir, "train"):
        labels = [{demo.LABELS[label] for label in tube["labels"]} for tube in row["tubes"]]
        for i, own in enumerate(labels):
            others = labels[:i] + labels[i + 1 :]
            assert ("watch a jump" in own) == any("jump" in other for other in others)


def test_actors_move_as_their_pose_says():
    for shot in SHOTS:
        if shot.end_seconds - shot.start_seconds < 1:
            continue
        for actor in shot.actors:
            times = np.arange(shot.start_seconds, shot.end_seconds, 1 / 60)
            x, y, *_ = np.array([actor.box(t) for t in times]).T
            path_x, path_y = np.abs(np.diff(x)).sum(), np.abs(np.diff(y)).sum()
            speed = path_x / (times[-1] - times[0])
            assert (path_x > 0, path_y > 0) == (actor.pose == "walk", actor.pose == "jump")
            assert actor.pose != "walk" or 40 < speed < 50
            assert actor.pose != "jump" or 14 <= np.ptp(y) <= 18


def test_everything_stays_inside_the_frame_and_apart():
    frame = demo.Box(0, 0, 128, 96)
    for shot in SHOTS:
        for seconds in np.linspace(shot.start_seconds, shot.end_seconds, 20, endpoint=False):
            bodies = [actor.box(seconds) for actor in shot.actors]
            symbols = [actor.symbol_box(body) for actor, body in zip(shot.actors, bodies, strict=True)]
            free = [symbol.box(shot.fraction(seconds)) for symbol in shot.free_symbols]
            boxes = bodies + free + [symbol for symbol in symbols if symbol]
            for i, box in enumerate(boxes):
                assert 0 <= box.x_min < box.x_max <= frame.x_max
                assert 0 <= box.y_min < box.y_max <= frame.y_max
                assert not any(box.overlaps(other) for other in boxes[:i])


def test_only_the_own_symbol_is_beside_an_actor():
    for shot in SHOTS:
        for seconds in np.linspace(shot.start_seconds, shot.end_seconds, 20, endpoint=False):
            for actor in shot.actors:
                body = actor.box(seconds)
                others = [other.symbol_box(other.box(seconds)) for other in shot.actors if other is not actor]
                others += [symbol.box(shot.fraction(seconds)) for symbol in shot.free_symbols]
                assert not any(body.expanded(20, 0).overlaps(other) for other in others if other)


def test_keyframes_are_far_from_cuts():
    movie = demo.make_movie("train", 0)

    first_frames = [np.ceil(shot.start_seconds * 15) for shot in movie.shots[1:]]

    assert min(abs(first / 15 - keyframe) for first in first_frames for keyframe in movie.keyframes) >= 0.4


def test_labels_are_balanced():
    labels = [label for shot in SHOTS for actor in shot.actors for label in shot.labels(actor)]

    counts = {label: labels.count(label) for label in demo.LABELS}

    assert max(counts[p] for p in demo.POSES) < 1.2 * min(counts[p] for p in demo.POSES)
    assert max(counts[r] for r in demo.RELATIONS) < 1.4 * min(counts[r] for r in demo.RELATIONS)
    assert 0.25 < counts["watch a jump"] / sum(counts[p] for p in demo.POSES) < 0.5


def test_interrupted_write_demo_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(folder, movie):
        (folder / "half.mp4").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_video", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.write_demo(tmp_path / "demo", **SMALL)

    assert list(tmp_path.iterdir()) == []


def test_write_demo_fills_an_empty_folder(tmp_path):
    demo.write_demo(tmp_path, **{**SMALL, "num_train_movies": 0, "seconds_per_movie": 2})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "demo.json", "videos"]
    assert len(load_ava(tmp_path, "train")) == 0


def test_write_demo_leaves_a_finished_demo_alone(data_dir, monkeypatch):
    monkeypatch.setattr(demo, "_write_files", lambda *args: pytest.fail("wrote again"))

    demo.write_demo(data_dir, **SMALL)


def test_write_demo_refuses_a_demo_with_other_arguments(data_dir):
    with pytest.raises(FileExistsError, match="seed"):
        demo.write_demo(data_dir, **SMALL, seed=1)


def test_write_demo_refuses_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")

    with pytest.raises(FileExistsError, match="not a demo data set"):
        demo.write_demo(tmp_path, **SMALL)

    assert read_files(tmp_path) == {"thesis.txt": b"three years of work"}


@pytest.mark.parametrize("bad", [{"num_train_movies": -1}, {"seconds_per_movie": 1}, {"seed": -1}])
def test_write_demo_names_a_number_that_is_too_small(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        demo.write_demo(tmp_path / "demo", **{**SMALL, **bad})


def test_actor_crop_baseline_knows_the_poses_of_the_demo(data_dir):
    result = demo.actor_crop_baseline(data_dir, "train")

    np.testing.assert_array_equal(result["ap_per_label"][:3], 1.0)
    assert result["frame_map_50"] < 0.9


def test_actor_crop_baseline_is_at_chance_beyond_the_poses(monkeypatch):
    num_actors, shares = 5000, [1 / 3, 1 / 3, 1 / 3, 0.2, 0.2, 0.2, 0.2, 0.4]
    labels = np.random.default_rng(1).random((num_actors, 8)) < shares
    boxes = np.tile([0.1, 0.1, 0.2, 0.2], (num_actors, 1))
    actors = {"frame": np.arange(num_actors), "boxes": boxes, "labels": labels}
    monkeypatch.setattr(demo, "_ground_truth", lambda data_dir, split: actors)

    result = demo.actor_crop_baseline("anywhere", "train")

    np.testing.assert_allclose(result["ap_per_label"], [1, 1, 1, *shares[3:]], atol=0.03)


def test_main_prints_counts_and_the_control(data_dir, monkeypatch, capsys):
    arguments = [f"--{name}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr("sys.argv", ["demo", str(data_dir), *arguments])

    demo.main()

    printed = capsys.readouterr().out
    assert all(label in printed for label in demo.LABELS)
    assert "mean" in printed
