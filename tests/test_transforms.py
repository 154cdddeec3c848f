"""Augmentation of frames and boxes together: what the boxes hold stays in them."""

import pytest
import torch

from classquery.data.transforms import ClipTransform, flip_horizontally, random_crop, resize_shortest_edge


def clip_with_a_bright_box() -> tuple[torch.Tensor, torch.Tensor]:
    frames = torch.zeros(2, 3, 60, 80, dtype=torch.uint8)
    frames[..., 20:40, 10:30] = 255
    return frames, torch.tensor([[10 / 80, 20 / 60, 30 / 80, 40 / 60]])


def assert_box_holds_the_bright_pixels(frames: torch.Tensor, box: torch.Tensor) -> None:
    height, width = frames.shape[-2:]
    x_min, y_min, x_max, y_max = (box * box.new_tensor([width, height, width, height])).round().int().tolist()
    inside = frames[..., y_min:y_max, x_min:x_max].float()
    assert inside.mean() > 250
    torch.testing.assert_close(inside.sum(), frames.float().sum(), rtol=0.05, atol=0)


def test_flip_moves_the_box_with_the_pixels():
    frames, boxes = flip_horizontally(*clip_with_a_bright_box())

    assert_box_holds_the_bright_pixels(frames, boxes[0])
    torch.testing.assert_close(boxes[0, 0], torch.tensor(50 / 80))


@pytest.mark.parametrize("seed", range(5))
def test_crop_moves_the_box_with_the_pixels_and_keeps_the_aspect(seed):
    generator = torch.Generator().manual_seed(seed)

    frames, boxes = random_crop(*clip_with_a_bright_box(), 45, generator)

    assert frames.shape[-2:] == (45, 60)
    assert_box_holds_the_bright_pixels(frames, boxes[0])


def test_resizing_keeps_the_relative_box():
    frames, boxes = clip_with_a_bright_box()

    frames = resize_shortest_edge(frames, 30)

    assert frames.shape == (2, 3, 30, 40)
    assert_box_holds_the_bright_pixels((frames > 127) * 255, boxes[0])


def test_box_outside_of_the_crop_is_marked():
    frames = torch.zeros(1, 3, 60, 80, dtype=torch.uint8)
    corners = torch.tensor([[0, 0, 0.01, 0.01], [0.99, 0.99, 1, 1], [0.4, 0.4, 0.6, 0.6]])
    transform = ClipTransform(60, 30, flip_probability=0.0)

    _, boxes, kept = transform(frames, corners, torch.Generator().manual_seed(0))

    assert kept[2]
    assert not kept[:2].all()
    assert ((boxes >= 0) & (boxes <= 1)).all()


def test_the_generator_decides_the_draws_and_the_global_state_is_left_alone():
    transform, clip = ClipTransform(60, 40, flip_probability=0.5), clip_with_a_bright_box()
    state = torch.get_rng_state()

    runs = [transform(*clip, torch.Generator().manual_seed(seed))[1] for seed in (1, 1, 2, 3)]

    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2]) or not torch.equal(runs[0], runs[3])
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_larger_than_the_frame_raises():
    with pytest.raises(ValueError, match="at most `resize_shortest_edge`, got 70 and 60"):
        ClipTransform(60, 70)
