"""The video processor: sizes, padding, and boxes back in the original frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoVideoProcessor

from classquery import ClassQueryVideoProcessor
from classquery.modeling_classquery import ClassQueryDetectionOutput


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "shortest", "expected"),
    [
        (360, 640, 256, (256, 455)),
        (240, 320, 224, (224, 298)),
        (240, 320, 256, (256, 341)),
        (272, 640, 256, (256, 602)),
        (640, 360, 256, (455, 256)),
        (96, 128, 48, (48, 64)),
    ],
)
def test_long_side_is_truncated(height, width, shortest, expected):
    inputs = ClassQueryVideoProcessor(size={"shortest_edge": shortest})(noise(2, height, width, 3))

    assert tuple(inputs["pixel_values"].shape) == (1, 2, 3, *expected)


def test_resizing_is_that_of_pil():
    frames = noise(2, 120, 160, 3)

    inputs = ClassQueryVideoProcessor(size={"shortest_edge": 60}, do_normalize=False)(frames)

    reference = np.stack([np.asarray(Image.fromarray(frame).resize((80, 60), Image.BICUBIC)) for frame in frames])
    difference = inputs["pixel_values"][0].permute(0, 2, 3, 1) * 255 - torch.from_numpy(reference.copy())
    # The two round 8-bit intermediate results differently.
    assert difference.abs().mean() < 0.05
    assert difference.abs().max() <= 2


def test_batch_is_padded_at_the_bottom_and_right_with_zeros_after_normalisation():
    clips = [noise(3, 40, 60, 3), noise(3, 40, 50, 3), noise(3, 60, 40, 3)]

    inputs = ClassQueryVideoProcessor(size={"shortest_edge": 40})(clips)

    assert inputs["pixel_values"].shape == (3, 3, 3, 60, 60)
    assert inputs["pixel_mask"].sum((1, 2)).tolist() == [40 * 60, 40 * 50, 60 * 40]
    padding = inputs["pixel_mask"][:, None, None].expand_as(inputs["pixel_values"]) == 0
    assert (inputs["pixel_values"][padding] == 0).all()


def test_normalisation_is_that_of_imagenet():
    inputs = ClassQueryVideoProcessor(do_resize=False)(np.full((1, 32, 32, 3), 255, np.uint8))

    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(inputs["pixel_values"][0, 0, :, 0, 0], expected, rtol=1e-5, atol=1e-5)


def test_pil_frames_and_tensors_give_the_same_inputs():
    frames = noise(2, 32, 48, 3)
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 32})

    from_array = processor(frames)["pixel_values"]
    from_images = processor([[Image.fromarray(frame) for frame in frames]])["pixel_values"]
    from_tensor = processor(torch.from_numpy(frames).permute(0, 3, 1, 2))["pixel_values"]

    torch.testing.assert_close(from_images, from_array)
    torch.testing.assert_close(from_tensor, from_array)


def test_clips_of_different_lengths_raise():
    with pytest.raises(ValueError, match=r"same number of frames, got \[2, 3\]"):
        ClassQueryVideoProcessor(size={"shortest_edge": 32})([noise(2, 32, 32, 3), noise(3, 32, 32, 3)])


def random_outputs(batch_size: int, num_frames: int) -> ClassQueryDetectionOutput:
    generator = torch.Generator().manual_seed(0)
    shape = batch_size, num_frames, 5
    return ClassQueryDetectionOutput(
        logits=torch.randn(*shape, 4, generator=generator),
        pred_boxes=torch.rand(*shape, 4, generator=generator),
        actor_logits=torch.randn(*shape, 3, generator=generator),
    )


def test_boxes_come_back_in_pixels_of_each_original_frame():
    outputs = random_outputs(2, 3)

    results = ClassQueryVideoProcessor().post_process_action_detection(outputs, target_sizes=[(100, 200), (50, 40)])

    assert [len(clip) for clip in results] == [3, 3]
    center_x, center_y, width, height = outputs.pred_boxes[1, 2, 4]
    corners = [(center_x - width / 2) * 40, (center_y - height / 2) * 50]
    corners += [(center_x + width / 2) * 40, (center_y + height / 2) * 50]
    torch.testing.assert_close(results[1][2]["boxes"][4], torch.stack(corners))
    torch.testing.assert_close(results[1][2]["scores"], outputs.logits[1, 2].sigmoid())
    torch.testing.assert_close(results[1][2]["actor_scores"], outputs.actor_logits[1, 2].softmax(-1)[:, 1])


def test_threshold_leaves_out_candidates_whose_best_score_is_lower():
    outputs = random_outputs(1, 1)

    ((kept,),) = ClassQueryVideoProcessor().post_process_action_detection(outputs, threshold=0.7)

    assert 0 < len(kept["scores"]) < 5
    assert (kept["scores"].amax(-1) >= 0.7).all()


def test_wrong_number_of_target_sizes_raises():
    with pytest.raises(ValueError, match="got 1 for 2"):
        ClassQueryVideoProcessor().post_process_action_detection(random_outputs(2, 1), target_sizes=[(10, 10)])


def test_saved_processor_is_found_by_the_auto_classes(tmp_path):
    ClassQueryVideoProcessor(size={"shortest_edge": 48}).save_pretrained(tmp_path)

    for auto in (AutoVideoProcessor, AutoProcessor):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, ClassQueryVideoProcessor)
        assert loaded.size["shortest_edge"] == 48


@pytest.mark.parametrize("size", [(36, 64), (64, 36), (40, 40)])
def test_frame_alone_is_resized_like_a_clip_in_any_layout(size):
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 24})
    clip = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    options = {"do_rescale": False, "do_normalize": False}

    expected = processor(torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous(), **options)["pixel_values"][0]

    assert torch.equal(processor(clip, **options)["pixel_values"][0], expected)
    clip.flags.writeable = False
    assert torch.equal(torch.stack([processor.resize_frame(image) for image in clip]), expected)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_object_detections_are_one_for_each_action_of_an_actor(num_frames):
    outputs, processor = random_outputs(2, num_frames), ClassQueryVideoProcessor()
    sizes = [(100, 200), (50, 40)]

    clips = processor.post_process_object_detection(outputs, threshold=0.6, target_sizes=sizes)

    for clip, frames in zip(clips, processor.post_process_action_detection(outputs, sizes), strict=True):
        expected = [
            (score.item(), label, number, tuple(box.tolist()))
            for number, frame in enumerate(frames)
            for box, scores in zip(frame["boxes"], frame["scores"], strict=True)
            for label, score in enumerate(scores)
            if score >= 0.6
        ]
        numbers = clip.get("frames", torch.zeros_like(clip["labels"]))
        found = [
            clip["scores"].tolist(),
            clip["labels"].tolist(),
            numbers.tolist(),
            map(tuple, clip["boxes"].tolist()),
        ]
        assert expected
        assert sorted(zip(*found, strict=True)) == sorted(expected)
        assert clip["scores"].tolist() == sorted(clip["scores"].tolist(), reverse=True)
        assert ("frames" in clip) == (num_frames > 1)


def test_object_detections_go_by_the_saved_thresholds():
    outputs = random_outputs(1, 1)
    (everything,) = ClassQueryVideoProcessor().post_process_object_detection(outputs, threshold=0.0)
    (sure,) = ClassQueryVideoProcessor(score_threshold=0.7, actor_threshold=0.5).post_process_object_detection(outputs)

    assert len(sure["scores"]) < len(everything["scores"])
    assert sure["scores"].min() >= 0.7


def test_every_class_has_its_threshold_saved_or_given():
    outputs = random_outputs(2, 1)
    num_labels = outputs.logits.shape[-1]
    id2label = {label_id: f"class {label_id}" for label_id in range(num_labels)}
    processor = ClassQueryVideoProcessor(score_threshold=0.6, class_thresholds={"class 1": 0.9, "gone": 0.1})
    of_classes = [0.6] * num_labels
    of_classes[1] = 0.9

    saved = processor.post_process_object_detection(outputs, id2label=id2label)
    given = processor.post_process_object_detection(outputs, of_classes)
    by_name = processor.post_process_object_detection(outputs, {"class 1": 0.9}, id2label=id2label)
    everything = processor.post_process_object_detection(outputs, 0.0)

    for found, named, of_clip, all_of_clip in zip(saved, by_name, given, everything, strict=True):
        kept = all_of_clip["scores"] >= torch.tensor(of_classes)[all_of_clip["labels"]]
        for name, expected in all_of_clip.items():
            assert torch.equal(of_clip[name], expected[kept])
            assert torch.equal(named[name], expected[kept])
        # What is saved is for actors that the model is sure of.
        assert set(found["scores"].tolist()) <= set(of_clip["scores"].tolist())


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ([0.5], "one threshold or"),
        (1.5, r"in \[0, 1\], got 1.5"),
        ({"wave": 0.5}, "id2label=model.config.id2label"),
        (None, "id2label=model.config.id2label"),
    ],
)
def test_thresholds_that_say_nothing_are_refused(threshold, message):
    processor = ClassQueryVideoProcessor(class_thresholds={"wave": 0.5})

    with pytest.raises(ValueError, match=message):
        processor.post_process_object_detection(random_outputs(1, 1), threshold)


@pytest.mark.parametrize("video", ["video.mp4", ["a.mp4", "b.mp4"], Path("video.mp4")])
def test_paths_are_no_clips(video):
    with pytest.raises(ValueError, match="takes the frames of clips.*classquery.detect"):
        ClassQueryVideoProcessor()(video)
