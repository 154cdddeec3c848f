"""Training in some of the frames that a model of tubes detects in."""

import copy

import pytest
import torch
from utils import tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration.arguments import DataArguments
from classquery.data.annotations.registry import load_action_dataset, make_clips
from classquery.data.clips import ClipCollator, draw_frames
from classquery.engine.training.collation import BatchLabels


NUM_FRAMES = 8


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    from classquery.data.demo.tubes import write_demo_tubes

    data_dir = tmp_path_factory.mktemp("data") / "demo_jhmdb_21"
    write_demo_tubes(data_dir, "jhmdb_21", num_train_videos=4, num_validation_videos=2)
    return load_action_dataset("demo_jhmdb_21", data_dir, "train")


def clips_of(rows, **options):
    return make_clips(
        rows, num_labels=5, num_frames=NUM_FRAMES, frame_stride=1, frames_per_second=15, output_frames="all", **options
    )


def test_clips_keep_their_frames_and_the_annotations_of_those_drawn(rows):
    whole, some = clips_of(rows), clips_of(rows, supervised_frames=3)
    for index in range(len(whole)):
        clip, expected = some[index], whole[index]
        drawn = clip["supervised_frames"]
        assert len(drawn) == 3
        assert (drawn.diff() > 0).all()
        assert torch.equal(clip["frames"], expected["frames"])
        assert clip["frame_mask"].all(), "padding is drawn last"
        for name in ("boxes", "class_labels", "valid"):
            assert torch.equal(clip[name], expected[name][:, drawn])


def test_draw_depends_on_seed_epoch_and_clip_alone(rows):
    def drawn(seed, epoch):
        clips = clips_of(rows, supervised_frames=2, seed=seed)
        clips.set_epoch(epoch)
        return torch.stack([clips[index]["supervised_frames"] for index in range(len(clips))])

    assert torch.equal(drawn(0, 0), drawn(0, 0))
    assert not torch.equal(drawn(0, 0), drawn(0, 1))
    assert not torch.equal(drawn(0, 0), drawn(1, 0))


def test_padding_is_drawn_where_there_is_nothing_else():
    clip = {"frame_mask": torch.tensor([False, True, True, False]), "boxes": torch.rand(1, 4, 4)}
    drawn = draw_frames(clip, 3)["supervised_frames"].tolist()
    assert {1, 2} < set(drawn)


@pytest.mark.parametrize("denoising_groups", [0, 2])
def test_loss_is_that_of_the_same_frames_of_a_whole_clip(rows, denoising_groups):
    """Predictions in a frame do not depend on what else is decoded."""
    torch.manual_seed(0)
    nothing_random = {"dropout": 0.0, "classifier_dropout": 0.0, "denoising_noise": 0.0}
    config = tiny_config(
        num_frames=NUM_FRAMES, output_frames="all", num_labels=5, denoising_groups=denoising_groups, **nothing_random
    )
    model = ClassQueryForVideoActionDetection(config).train()
    model.model.backbone.eval()
    clips = clips_of(rows, supervised_frames=3)
    batch = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 32}))([clips[0], clips[1]])
    whole = ClipCollator(ClassQueryVideoProcessor(size={"shortest_edge": 32}))([clips_of(rows)[i] for i in (0, 1)])
    for label, some in zip(whole["labels"], batch["labels"], strict=True):
        # Frames that are no frames to the loss.
        label["frame_mask"] = torch.zeros(NUM_FRAMES, dtype=torch.bool)
        label["frame_mask"][some["supervised_frames"]] = True

    outputs = model(batch["pixel_values"], labels=BatchLabels(batch["labels"]))
    expected = model(whole["pixel_values"], labels=whole["labels"])

    assert outputs.pred_boxes.shape[:2] == (2, 3)
    frames = torch.stack([label["supervised_frames"] for label in batch["labels"]])
    for name in ("actor_logits", "pred_boxes"):
        for index in (0, 1):
            torch.testing.assert_close(outputs[name][index], expected[name][index, frames[index]], rtol=0, atol=1e-5)
    # Sums of float32 in another order.
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_drawn_is_refused(rows):
    with pytest.raises(ValueError, match="supervised_frames must be from 1 to the 8 frames of a clip, got 9"):
        clips_of(rows, supervised_frames=9)
    with pytest.raises(ValueError, match="--supervised_frames must be at least 1, got 0"):
        DataArguments(supervised_frames=0)
    with pytest.raises(ValueError, match="models that detect in all frames"):
        make_clips(
            rows,
            num_labels=5,
            num_frames=8,
            frame_stride=1,
            frames_per_second=15,
            output_frames="keyframe",
            supervised_frames=2,
        )
    labels = [copy.copy(ClipCollator(ClassQueryVideoProcessor())([clips_of(rows)[0]])["labels"][0]) for _ in range(2)]
    labels[0]["supervised_frames"] = torch.arange(NUM_FRAMES)
    with pytest.raises(ValueError, match="all clips of a batch must have `supervised_frames`, or none"):
        BatchLabels(labels)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[0, 4], [0, 1]], "must be from 0 to 3, the output frames of a clip, got 0 to 4"),
        ([[-1, 0], [0, 1]], "must be from 0 to 3, the output frames of a clip, got -1 to 1"),
        ([[0.0, 1.0], [0.0, 1.0]], "must be numbers of frames, whole ones, got torch.float32"),
        ([[True, False], [True, False]], "must be numbers of frames, whole ones, got torch.bool"),
        ([[0, 1], [0]], "all clips of a batch must have as many `supervised_frames`"),
    ],
)
def test_frames_that_no_clip_has_are_refused(frames, message):
    """Beyond the end of a clip there is the next one."""
    model = ClassQueryForVideoActionDetection(tiny_config(output_frames="all"))
    batch = tiny_batch(model.config)
    for label, of_clip in zip(batch["labels"], frames, strict=True):
        label |= {name: label[name][:, : len(of_clip)] for name in ("boxes", "class_labels", "valid")}
        label |= {"frame_mask": torch.ones(len(of_clip)), "supervised_frames": torch.tensor(of_clip)}

    with pytest.raises(ValueError, match=message):
        model(**batch)
