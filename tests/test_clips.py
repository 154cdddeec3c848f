"""Clips: the right frames at any frame rate, and batches the model takes."""

import pickle
from multiprocessing.reduction import ForkingPickler

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from classquery import ClassQueryConfig, ClassQueryVideoProcessor
from classquery.data.annotations.ava import load_ava
from classquery.data.annotations.tubes import load_jhmdb_21, load_ucf101_24
from classquery.data.clips import ClipCollator, KeyframeClips, TubeClips, clip_seconds, tile_starts
from classquery.data.demo.tubes import TUBE_LABELS, write_demo_tubes
from classquery.data.transforms import ClipTransform
from classquery.data.video.reader import ClipReader
from classquery.loss_classquery import action_detection_loss


SAMPLING = {"num_labels": 8, "num_frames": 8, "frame_stride": 2}
TUBES = {"num_labels": len(TUBE_LABELS), "num_frames": 8}


@pytest.fixture(scope="module")
def rows(demo_dir):
    return load_ava(demo_dir, "train")


@pytest.fixture(scope="module")
def tube_rows(tmp_path_factory):
    """Four videos of 48 to 70 frames with people who come and go."""
    folder = tmp_path_factory.mktemp("ucf") / "data"
    write_demo_tubes(folder, "ucf101_24", num_train_videos=4, num_validation_videos=0)
    return load_ucf101_24(folder, "train")


def test_clip_seconds_put_the_keyframe_in_the_middle():
    seconds = clip_seconds(10.0, num_frames=16, frame_stride=4)

    assert seconds[8] == 10.0
    np.testing.assert_allclose(np.diff(seconds), 4 / 30)


def test_clip_of_ava_at_30_hz_has_the_frames_of_the_published_rule(tmp_path):
    """Frame key_index - 32 + 4 k of the movie cut at 900 s, for a clip of 16 frames with stride 4."""
    path = tmp_path / "movie.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(150):
            frame = np.full((32, 32, 3), index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))

    indices = ClipReader().frame_indices_at(path, clip_seconds(2.0, num_frames=16, frame_stride=4))

    assert indices.tolist() == [2 * 30 - 32 + 4 * k for k in range(16)]


def test_clip_holds_the_annotated_people(rows):
    clips = KeyframeClips(rows, **SAMPLING)

    for index in range(len(clips)):
        clip = clips[index]
        height, width = clip["orig_size"]
        keyframe = clip["frames"][SAMPLING["num_frames"] // 2].float().mean(0)
        for box in clip["boxes"][:, 0]:
            x_min, y_min, x_max, y_max = (box * box.new_tensor([width, height, width, height])).round().int().tolist()
            # The people are drawn in a light colour on a dim background.
            assert keyframe[y_min:y_max, x_min:x_max].mean() > keyframe.mean() + 20
        assert clip["class_labels"].shape == (len(clip["boxes"]), 1, 8)
        assert (clip["class_labels"][..., :3].sum(-1) == 1).all()


def test_draws_depend_on_seed_epoch_and_index_alone(rows):
    transform = ClipTransform(96, 60)

    def draw(seed: int, epoch: int, index: int = 3) -> torch.Tensor:
        clips = KeyframeClips(rows, transform=transform, seed=seed, **SAMPLING)
        clips.set_epoch(epoch)
        return clips[index]["frames"]

    assert torch.equal(draw(0, 0), draw(0, 0))
    assert not torch.equal(draw(0, 0), draw(0, 1))
    assert not torch.equal(draw(0, 0), draw(1, 0))


def test_epoch_reaches_workers_that_live_longer(rows):
    clips = KeyframeClips(rows, transform=ClipTransform(96, 60), **SAMPLING)
    loader = torch.utils.data.DataLoader(clips, batch_size=None, num_workers=1, persistent_workers=True)

    drawn = []
    for epoch in (0, 0, 1):
        clips.set_epoch(epoch)
        drawn.append(next(iter(loader))["frames"])

    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_with_any_number_of_workers(rows, num_workers):
    clips = KeyframeClips(rows, transform=ClipTransform(96, 60), **SAMPLING)
    collator = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 48}))

    loader = torch.utils.data.DataLoader(clips, batch_size=4, collate_fn=collator, num_workers=num_workers)
    batch = next(iter(loader))

    expected = collator([clips[index] for index in range(4)])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert batch["pixel_values"].shape == (4, 8, 3, 48, 64)
    assert [label["clip_id"] for label in batch["labels"]] == rows["clip_id"][:4]
    for label, reference in zip(batch["labels"], expected["labels"], strict=True):
        assert torch.equal(label["boxes"], reference["boxes"])
        assert label["boxes"].shape[1:] == (1, 4)
        assert label["valid"].all()
        assert label["orig_size"] == (96, 128)


def test_labels_travel_from_a_worker_in_one_piece(rows):
    clips = KeyframeClips(rows, **SAMPLING)
    labels = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 48}))([clips[0], clips[1]])["labels"]

    arrived = pickle.loads(ForkingPickler.dumps(labels))

    # Not by a file of shared memory for each tensor.
    assert not any(label["boxes"].is_shared() for label in (*labels, *arrived))
    assert type(arrived) is type(labels)
    for label, reference in zip(arrived, labels, strict=True):
        assert {name: type(value) for name, value in label.items()} == {n: type(v) for n, v in reference.items()}
        assert label["clip_id"] == reference["clip_id"]
        for name in ("boxes", "class_labels", "valid", "frame_mask"):
            torch.testing.assert_close(label[name], reference[name], rtol=0, atol=0)


def test_labels_are_centre_and_size_of_the_boxes(rows):
    clip = KeyframeClips(rows, **SAMPLING)[0]

    (labels,) = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 48}))([clip])["labels"]

    x_min, y_min, x_max, y_max = clip["boxes"].unbind(-1)
    expected = torch.stack(((x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min), dim=-1)
    torch.testing.assert_close(labels["boxes"], expected)


# Tubes


@pytest.mark.parametrize(
    ("num_video_frames", "tiling", "first_frames"),
    [
        (64, "complete", [0, 32]),
        (64, "released", [-16, 16]),
        (70, "complete", [-13, 19, 51]),
        (70, "released", [-13, 19, 51]),
        (32, "complete", [0]),
        (32, "released", [-16]),
        (31, "complete", [0]),
        (20, "complete", [-6]),
        (20, "released", [-6]),
        (1, "complete", [-15]),
    ],
)
def test_tiles_are_those_worked_out_by_hand(num_video_frames, tiling, first_frames):
    """The released tiling of 64 frames is [-15..16] and [17..48], counted from 1."""
    assert tile_starts(num_video_frames, 32, tiling) == first_frames


def test_tiles_of_forty_frames_centre_a_short_video_as_published_for_jhmdb():
    for num_video_frames in range(15, 41):
        assert tile_starts(num_video_frames, 40) == [-((40 - num_video_frames) // 2)]


def test_complete_tiles_hold_each_frame_once_with_balanced_padding():
    for num_frames in (1, 2, 7, 8):
        for num_video_frames in range(1, 40):
            frames = [start + k for start in tile_starts(num_video_frames, num_frames) for k in range(num_frames)]
            before, behind = sum(frame < 0 for frame in frames), sum(frame >= num_video_frames for frame in frames)
            assert [frame for frame in frames if 0 <= frame < num_video_frames] == list(range(num_video_frames))
            assert 0 <= behind - before <= 1
            assert before + behind < num_frames


def test_released_tiles_miss_the_end_of_a_video_of_whole_clips_only():
    for num_video_frames in range(1, 100):
        missed = num_video_frames - (tile_starts(num_video_frames, 32, "released")[-1] + 32)
        assert max(missed, 0) == (16 if num_video_frames % 32 == 0 else 0)


def test_unknown_tiling_is_refused(tube_rows):
    with pytest.raises(ValueError, match="'correct'"):
        TubeClips(tube_rows, tiling="correct", **TUBES)


@pytest.mark.parametrize("tiling", ["complete", "released"])
def test_tube_clips_hold_the_boxes_of_their_frames(tube_rows, tiling):
    """Against a look-up of every frame by itself."""
    clips = TubeClips(tube_rows, tiling=tiling, **TUBES)
    videos = {row["clip_id"]: row for row in tube_rows}
    absent = [None] * TUBES["num_frames"]
    num_boxes = num_gaps = 0

    for index in range(len(clips)):
        clip = clips[index]
        actors = []
        for tube in videos[clip["video"]]["tubes"]:
            box_at = dict(zip(tube["frames"], tube["boxes"], strict=True))
            numbers = zip(clip["frame_numbers"].tolist(), clip["frame_mask"].tolist(), strict=True)
            actors.append(
                (tube["labels"][0], [box_at.get(number) if is_real else None for number, is_real in numbers])
            )
        actors = [(label, boxes) for label, boxes in actors if boxes != absent]

        assert len(clip["boxes"]) == len(actors)
        for actor, (label, boxes) in enumerate(actors):
            for frame, box in enumerate(boxes):
                expected = torch.zeros(TUBES["num_labels"])
                expected[label] = float(box is not None)
                assert clip["valid"][actor, frame] == (box is not None)
                assert torch.equal(clip["class_labels"][actor, frame], expected)
                torch.testing.assert_close(clip["boxes"][actor, frame], torch.tensor(box or [0.0, 0.0, 0.0, 0.0]))
            num_boxes += len(boxes) - boxes.count(None)
            num_gaps += boxes.count(None)
    assert min(num_boxes, num_gaps) > 20


def test_tube_clips_together_are_the_videos(tube_rows):
    clips = TubeClips(tube_rows, **TUBES)

    items = [clips[index] for index in range(len(clips))]

    for row in tube_rows:
        frames = ClipReader().read(row["video"], range(row["num_frames"]))
        own = [item for item in items if item["video"] == row["clip_id"]]
        assert torch.cat([item["frame_numbers"][item["frame_mask"]] for item in own]).tolist() == list(
            range(row["num_frames"])
        )
        seen = torch.cat([item["frames"] for item in own]).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(seen, frames[torch.cat([item["frame_numbers"] for item in own])])
    assert clips.clip_ids == [item["clip_id"] for item in items]
    assert len(set(clips.clip_ids)) == len(clips)
    assert clips.clip_ids[0] == tube_rows[0]["clip_id"] + "_000"


def test_padding_repeats_the_first_and_the_last_frame(tube_rows):
    index = next(i for i, row in enumerate(tube_rows) if row["num_frames"] == 70)
    clips = TubeClips(tube_rows.select([index]), **TUBES)

    first, last = clips[0], clips[len(clips) - 1]

    assert first["frame_numbers"].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert first["frame_mask"].tolist() == [False] + [True] * 7
    assert last["frame_numbers"].tolist() == [63, 64, 65, 66, 67, 68, 69, 69]
    assert last["frame_mask"].tolist() == [True] * 7 + [False]
    assert torch.equal(first["frames"][0], first["frames"][1])
    assert not first["valid"][:, 0].any()


def test_short_video_is_in_the_middle_of_its_clip(tmp_path):
    write_demo_tubes(tmp_path / "data", "jhmdb_21", num_train_videos=6, num_validation_videos=0)
    rows = load_jhmdb_21(tmp_path / "data", "train")

    for index, row in enumerate(rows):
        clip = TubeClips(rows, num_labels=5, num_frames=12)[index]
        before = (12 - row["num_frames"]) // 2
        assert clip["frame_mask"].nonzero().flatten().tolist() == list(range(before, before + row["num_frames"]))
        assert torch.equal(clip["valid"][0], clip["frame_mask"])


def test_folder_of_frames_gives_the_clips_of_the_video(tube_rows, tmp_path):
    row = tube_rows[0]
    for number, frame in enumerate(ClipReader().read(row["video"], range(row["num_frames"])), start=1):
        Image.fromarray(frame).save(tmp_path / f"{number:05d}.png")

    folder = Dataset.from_list([row | {"video": str(tmp_path), "source": "frames"}], features=tube_rows.features)

    from_video, from_folder = TubeClips(tube_rows, **TUBES), TubeClips(folder, **TUBES)
    for index in range(len(from_folder)):
        assert torch.equal(from_folder[index]["frames"], from_video[index]["frames"])
        assert torch.equal(from_folder[index]["boxes"], from_video[index]["boxes"])


def test_boxes_that_vanish_are_invalid_in_their_frames(tube_rows):
    """A transform that loses the first actor altogether and everybody in the last frame."""

    def lose(frames, boxes, generator):
        kept = boxes.any(-1)
        first = kept.any(-1).nonzero()[0]
        kept[first] = kept[:, -1] = False
        return frames, boxes, kept

    index = next(i for i, clip in enumerate(TubeClips(tube_rows, **TUBES)) if len(clip["valid"]) > 1)
    before, after = (TubeClips(tube_rows, transform=t, **TUBES)[index] for t in (None, lose))

    assert len(after["valid"]) == len(before["valid"]) - 1
    assert torch.equal(after["valid"][:, :-1], before["valid"][1:, :-1])
    assert not after["valid"][:, -1].any()
    assert not after["boxes"][:, -1].any()
    assert not after["class_labels"][:, -1].any()


def test_draws_of_tube_clips_depend_on_seed_epoch_and_index_alone(tube_rows):
    def draw(seed: int, epoch: int) -> torch.Tensor:
        clips = TubeClips(tube_rows, transform=ClipTransform(96, 60), seed=seed, **TUBES)
        clips.set_epoch(epoch)
        return clips[3]["frames"]

    assert torch.equal(draw(0, 0), draw(0, 0))
    assert not torch.equal(draw(0, 0), draw(0, 1))
    assert not torch.equal(draw(0, 0), draw(1, 0))


def test_batches_of_tube_clips_are_what_the_loss_takes(tube_rows):
    clips = TubeClips(tube_rows, **TUBES)
    batch = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 48}))([clips[index] for index in range(4)])
    shape = (4, 8, 3)
    predictions = {
        "logits": torch.randn(*shape, len(TUBE_LABELS)),
        "pred_boxes": torch.rand(*shape, 4),
        "actor_logits": torch.randn(*shape, 3),
    }

    loss, _ = action_detection_loss([predictions], batch["labels"], ClassQueryConfig(num_labels=len(TUBE_LABELS)))

    assert loss.isfinite()
    assert batch["pixel_values"].shape == (4, 8, 3, 48, 64)
    assert [label["clip_id"] for label in batch["labels"]] == clips.clip_ids[:4]
    for label, clip in zip(batch["labels"], map(clips.__getitem__, range(4)), strict=True):
        assert (label["video"], label["orig_size"]) == (clip["video"], (96, 128))
        assert torch.equal(label["frame_numbers"], clip["frame_numbers"])
        x_min, y_min, x_max, y_max = clip["boxes"].unbind(-1)
        expected = torch.stack(((x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min), dim=-1)
        torch.testing.assert_close(label["boxes"], expected)
