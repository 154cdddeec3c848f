"""Streamed clips: each once, on any number of processes and workers, with its own labels; broken ones skipped."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import tiny_trainer

from classquery.data import load_action_dataset, make_clips
from classquery.data.annotations.ava import load_ava
from classquery.data.clips import KeyframeClips
from classquery.data.demo.tubes import write_demo_tubes
from classquery.data.streaming import shuffled
from classquery.data.transforms import ClipTransform
from classquery.data.video.reader import VideoReadError


SAMPLING = {"num_labels": 8, "num_frames": 4, "frame_stride": 2, "frames_per_second": 15.0}


def stream_of(demo_dir: Path, num_shards: int = 8, **options):
    rows = load_action_dataset("ava", demo_dir, "train", streaming=True, num_shards=num_shards)
    return make_clips(rows, **SAMPLING, **options)


def names(clips) -> list[str]:
    return [clip["clip_id"] for clip in clips]


def test_stream_holds_the_clips_that_are_looked_up(demo_dir):
    looked_up = KeyframeClips(load_ava(demo_dir, "train"), **SAMPLING)

    stream = stream_of(demo_dir)

    assert len(stream) == len(looked_up) == 14
    assert stream.clip_ids == looked_up.clip_ids
    for streamed, clip in zip(stream, (looked_up[i] for i in range(14)), strict=True):
        assert streamed.keys() == clip.keys()
        assert torch.equal(streamed["frames"], clip["frames"])
        assert torch.equal(streamed["class_labels"], clip["class_labels"])


def test_stream_of_tubes_holds_all_parts_of_the_videos(tmp_path):
    write_demo_tubes(tmp_path / "data", "ucf101_24", num_train_videos=3, num_validation_videos=0)
    rows = load_action_dataset("ucf101_24", tmp_path / "data", "train")
    sampling = SAMPLING | {"num_frames": 8, "frame_stride": 1}

    stream = make_clips(rows.to_iterable_dataset(2), **sampling)
    tubes = make_clips(rows, **sampling)

    assert stream.has_tubes
    assert names(stream) == stream.clip_ids == tubes.clip_ids


@pytest.mark.parametrize(("num_shards", "num_processes", "num_workers"), [(5, 1, 2), (5, 2, 0), (8, 3, 2)])
def test_processes_and_workers_share_the_clips(demo_dir, num_shards, num_processes, num_workers):
    stream, seen = stream_of(demo_dir, num_shards), []
    for process in range(num_processes):
        part = stream.for_process(process, num_processes)
        seen += names(torch.utils.data.DataLoader(part, batch_size=None, num_workers=num_workers))

    assert sorted(seen) == sorted(stream.clip_ids)


def test_shuffled_order_depends_on_seed_and_epoch_alone(demo_dir):
    def order(seed: int, epoch: int) -> list[str]:
        stream = stream_of(demo_dir, shuffle=True, seed=seed)
        stream.set_epoch(epoch)
        return names(stream)

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == sorted(order(0, 1)) == sorted(order(1, 0))
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def stream_of_tubes(data_dir: Path, **options):
    if not data_dir.exists():
        write_demo_tubes(data_dir, "ucf101_24", num_train_videos=6, num_validation_videos=0)
    rows = load_action_dataset("ucf101_24", data_dir, "train", streaming=True, num_shards=4)
    return make_clips(rows, **SAMPLING | {"frame_stride": 1}, **options)


def test_clips_of_a_video_do_not_follow_each_other(tmp_path):
    """Of a worker as of all: every clip once, and neighbours in the order are no neighbours in a video."""

    def order(part) -> list[str]:
        return [clip["clip_id"] for clip in part]

    stream = stream_of_tubes(tmp_path / "data", shuffle=True, seed=1)
    worker = stream.for_process(0, 2)
    for part in (stream, worker):
        clips = order(part)
        videos = [name.rpartition("_")[0] for name in clips]
        follows = sum(one == other for one, other in zip(videos[:-1], videos[1:], strict=True))
        # By chance, as often as clips are of the same video; one after the other, nearly always.
        expected = sum((videos.count(video) - 1) / (len(videos) - 1) for video in videos[1:])
        assert len(set(videos)) > 1
        assert follows < 2 * expected < len(videos) - len(set(videos))
        part.set_epoch(1)
        assert sorted(order(part)) == sorted(clips)
        assert order(part) != clips
        part.set_epoch(0)
        assert order(part) == clips
    assert sorted(order(stream)) == sorted(stream.clip_ids)


def test_buffer_shuffles_far_and_loses_nothing():
    def order(buffer_size: int, seed: int = 0) -> list[int]:
        return list(shuffled(range(1000), buffer_size, np.random.default_rng(seed)))

    assert sorted(order(100)) == sorted(order(5000)) == list(range(1000))
    assert order(100) == order(100) != order(100, seed=1)
    # How far on average an item moves, in a buffer of 100 and among all: 1000 / 3 for a random order.
    moved = [np.abs(np.array(order(size)) - np.arange(1000)).mean() for size in (1, 100, 5000)]
    assert moved[0] == 0
    assert 50 < moved[1] < 150
    assert 300 < moved[2] < 370


def test_draws_depend_on_seed_epoch_and_clip_alone(demo_dir):
    def draws(num_shards: int, epoch: int) -> dict[str, int]:
        stream = stream_of(demo_dir, num_shards, shuffle=True, transform=ClipTransform(96, 60))
        stream.set_epoch(epoch)
        return {clip["clip_id"]: int(clip["frames"].sum()) for clip in stream}

    assert draws(8, 0) == draws(3, 0)
    assert draws(8, 0) != draws(8, 1)


@pytest.mark.parametrize(("num_processes", "num_workers", "batch_size"), [(1, 1, 4), (2, 2, 2), (2, 3, 3)])
def test_training_gives_every_process_the_same_number_of_full_batches(
    demo_dir, num_processes, num_workers, batch_size
):
    stream = stream_of(demo_dir, shuffle=True)
    for process in range(num_processes):
        part = stream.for_process(process, num_processes, batch_size=batch_size)
        loader = torch.utils.data.DataLoader(part, batch_size, num_workers=num_workers, collate_fn=names)
        batches = list(loader)

        assert len(batches) == len(loader) == -(-14 // num_processes // batch_size)
        assert {len(batch) for batch in batches} == {batch_size}


def test_too_few_shards_are_refused(demo_dir):
    with pytest.raises(ValueError, match="3 processes cannot share 2 shards"):
        stream_of(demo_dir, 2).for_process(0, 3)
    part = stream_of(demo_dir, 2).for_process(0, 1, batch_size=1)
    with pytest.raises(ValueError, match="fewer shards of annotations than workers"):
        list(torch.utils.data.DataLoader(part, batch_size=1, num_workers=3, collate_fn=names))


@pytest.mark.slow
def test_tubes_that_are_streamed_do_not_become_keyframes(tmp_path):
    write_demo_tubes(tmp_path / "data", "jhmdb_21", num_train_videos=2, num_validation_videos=0)
    rows = load_action_dataset("jhmdb_21", tmp_path / "data", "train", streaming=True)

    with pytest.raises(ValueError, match="leave streaming out"):
        make_clips(rows, output_frames="keyframe", **SAMPLING)


@pytest.mark.slow
def test_two_processes_with_two_workers_see_each_clip_once(demo_dir, tmp_path):
    """In evaluation; training sees as many, in full batches."""
    arguments = {"data_dir": str(demo_dir), "output_dir": str(tmp_path), "num_workers": 2}
    script = Path(__file__).parent / "streamed_clips.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*command, str(script), json.dumps(arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "seen.json").read_text())

    clips = KeyframeClips(load_ava(demo_dir, "train"), **SAMPLING)
    expected = {}
    for clip in (clips[index] for index in range(len(clips))):
        x_min, y_min, x_max, y_max = clip["boxes"].unbind(-1)
        boxes = torch.stack(((x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min), -1)
        expected[clip["clip_id"]] = int(clip["frames"].sum()), boxes

    assert Counter(name for name, _, _ in found["seen"]) == Counter(list(expected))
    for name, checksum, boxes in found["seen"]:
        assert checksum == expected[name][0]
        torch.testing.assert_close(torch.tensor(boxes), expected[name][1])
    assert found["frame_map_50"][0] == pytest.approx(found["frame_map_50"][1], abs=1e-6)
    # 7 clips for each process are 4 batches of 2, in each of 2 epochs.
    assert found["num_updates"] == 8
    assert [[len(batch) for batch in process] for process in found["trained"]] == [[2] * 8] * 2
    assert {name for process in found["trained"] for batch in process for name in batch} <= set(expected)


# Broken videos


@pytest.fixture
def broken_dir(demo_dir, tmp_path):
    """The demo data with a training movie that is cut off in the middle."""
    (tmp_path / "annotations").symlink_to(demo_dir / "annotations")
    (tmp_path / "videos").mkdir()
    for path in (demo_dir / "videos").iterdir():
        content = path.read_bytes()
        (tmp_path / "videos" / path.name).write_bytes(content[:1000] if path.stem == "demo_train_001" else content)
    return tmp_path


def is_broken(clip_id: str) -> bool:
    return clip_id.startswith("demo_train_001")


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_video_is_an_error_unless_it_may_be_skipped(broken_dir, streaming):
    rows = load_action_dataset("ava", broken_dir, "train", streaming=streaming)

    with pytest.raises(VideoReadError, match="demo_train_001"):
        names(make_clips(rows, **SAMPLING))
    with pytest.raises(ValueError, match="'ignore'"):
        make_clips(rows, on_error="ignore", **SAMPLING)


def test_another_clip_takes_the_place_of_a_broken_one(broken_dir):
    rows = load_action_dataset("ava", broken_dir, "train")
    clips = make_clips(rows, on_error="skip", **SAMPLING)

    for index, name in enumerate(clips.clip_ids):
        clip = clips[index]
        assert not is_broken(clip["clip_id"])
        assert ("skipped" in clip) == is_broken(name)
        if is_broken(name):
            assert all(is_broken(message) for message in clip["skipped"])
            assert clip["skipped"][0].startswith(f"{name}: ")
            assert clips[index]["clip_id"] == clip["clip_id"]


def test_stream_leaves_broken_clips_out(broken_dir):
    rows = load_action_dataset("ava", broken_dir, "train", streaming=True)

    clips = list(make_clips(rows, on_error="skip", **SAMPLING))

    assert len(clips) == 9
    skipped = [message for clip in clips for message in clip.get("skipped", ())]
    assert len(skipped) == 5
    assert all(is_broken(message) for message in skipped)


@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_but_broken_clips_is_an_error(broken_dir, streaming):
    rows = load_ava(broken_dir, "train").filter(lambda row: is_broken(row["clip_id"]), load_from_cache_file=False)
    if streaming:
        clips = make_clips(rows.to_iterable_dataset(1), on_error="skip", **SAMPLING).for_process(0, 1, batch_size=2)
    else:
        clips = make_clips(rows, on_error="skip", **SAMPLING)

    with pytest.raises((VideoReadError, ValueError), match="cannot be read|can be read"):
        next(iter(clips)) if streaming else clips[0]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("streaming", [False, True])
def test_training_counts_and_reports_what_it_skips(broken_dir, tmp_path, caplog, streaming):
    trainer = tiny_trainer(broken_dir, tmp_path / "out", num_train_epochs=1)
    rows = load_action_dataset("ava", broken_dir, "train", streaming=streaming)
    trainer.train_dataset = make_clips(rows, on_error="skip", **SAMPLING)

    trainer.train()

    # 14 clips are 7 batches, filled up from the start of the stream.
    assert trainer.state.global_step == 7
    logs = [entry["skipped_clips"] for entry in trainer.state.log_history if "skipped_clips" in entry]
    assert logs[-1] == trainer.monitor.num_skipped >= 5
    reported = [message for message in caplog.messages if message.startswith("skipped clip demo_train_001")]
    assert len(reported) == logs[-1]


@pytest.mark.usefixtures("one_thread")
def test_run_that_is_resumed_in_a_stream_is_the_same_bit_for_bit(demo_dir, tmp_path):
    """From the first update of the second epoch, of 7 updates each."""

    def train(resume: str | None = None) -> dict[str, torch.Tensor]:
        trainer = tiny_trainer(demo_dir, tmp_path, max_steps=10, save_strategy="steps", save_steps=8)
        trainer.train_dataset = stream_of(demo_dir, shuffle=True, transform=ClipTransform(36, 32, 0.5))
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    at_once, resumed = train(), train(str(tmp_path / "checkpoint-8"))

    assert all(torch.equal(at_once[name], resumed[name]) for name in at_once)


@pytest.mark.usefixtures("one_thread")
def test_evaluation_never_skips(broken_dir, tmp_path):
    trainer = tiny_trainer(broken_dir, tmp_path / "out")

    with pytest.raises(VideoReadError, match="demo_train_001"):
        trainer.predict(trainer.train_dataset)
