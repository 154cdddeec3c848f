"""Clips: the right frames at any frame rate, and batches the model takes."""

import av
import numpy as np
import pytest
import torch

from classquery import ClassQueryVideoProcessor
from classquery.data.ava import load_ava
from classquery.data.clip_reader import ClipReader
from classquery.data.clips import ClipCollator, KeyframeClips, clip_seconds
from classquery.data.transforms import ClipTransform


SAMPLING = {"num_labels": 8, "num_frames": 8, "frame_stride": 2}


@pytest.fixture(scope="module")
def rows(demo_dir):
    return load_ava(demo_dir, "train")


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
        for box in clip["boxes"]:
            x_min, y_min, x_max, y_max = (box * box.new_tensor([width, height, width, height])).round().int().tolist()
            # The people are drawn in a light colour on a dim background.
            assert keyframe[y_min:y_max, x_min:x_max].mean() > keyframe.mean() + 20
        assert clip["class_labels"].shape == (len(clip["boxes"]), 8)
        assert (clip["class_labels"][:, :3].sum(-1) == 1).all()


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


def test_labels_are_centre_and_size_of_the_boxes(rows):
    clip = KeyframeClips(rows, **SAMPLING)[0]

    (labels,) = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 48}))([clip])["labels"]

    x_min, y_min, x_max, y_max = clip["boxes"].unbind(-1)
    expected = torch.stack(((x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min), dim=-1)
    torch.testing.assert_close(labels["boxes"][:, 0], expected)
