"""Augmentation of frames and boxes together: what the boxes hold stays in them."""

import colorsys

import pytest
import torch

from classquery import kernels
from classquery.data.transforms import (
    ClipTransform,
    flip_horizontally,
    mirrored_labels,
    random_crop,
    resize_shortest_edge,
    shift_hsv,
    shift_rgb,
)


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


def test_boxes_of_all_frames_move_with_one_crop_and_flip():
    """A bright square that moves, and an actor who is only in the first frame and has zeros elsewhere."""
    frames, boxes = torch.zeros(4, 3, 60, 80, dtype=torch.uint8), torch.zeros(2, 4, 4)
    for index in range(4):
        left = 20 + 6 * index
        frames[index, :, 20:30, left : left + 10] = 255
        boxes[0, index] = torch.tensor([left / 80, 20 / 60, (left + 10) / 80, 30 / 60])
    boxes[1, 0] = boxes[0, 0]

    for seed in range(10):
        transform = ClipTransform(60, 45, flip_probability=0.5)
        moved, corners, kept = transform(frames, boxes, torch.Generator().manual_seed(seed))

        assert kept.tolist() == [[True] * 4, [True, False, False, False]]
        for index in range(4):
            assert_box_holds_the_bright_pixels(moved[index : index + 1], corners[0, index])


def test_short_side_is_drawn_between_the_bounds():
    """The crop keeps its size, so the height of a box in it tells that of the whole frame."""
    transform = ClipTransform(20, 20, flip_probability=0.0, max_resize_shortest_edge=22)
    frames, boxes = torch.zeros(1, 3, 60, 80, dtype=torch.uint8), torch.tensor([[0.4, 0.4, 0.6, 0.6]])

    heights = set()
    for seed in range(50):
        cropped, (box,), _ = transform(frames, boxes, torch.Generator().manual_seed(seed))
        assert cropped.shape == (1, 3, 20, 26)
        heights.add(round(float(box[3] - box[1]) * 20 / 0.2))

    assert heights == {20, 21, 22}


def test_what_is_off_draws_nothing():
    """The draws of crop and flip stay those of a transform without the other fields."""
    frames, boxes = clip_with_a_bright_box()
    colors = {"hue_jitter": 20.0, "saturation_jitter": 0.4, "value_jitter": 0.4, "color_noise": 0.1}

    plain = ClipTransform(60, 40)(frames, boxes, torch.Generator().manual_seed(5))
    colored = ClipTransform(60, 40, **colors)(frames, boxes, torch.Generator().manual_seed(5))

    assert torch.equal(plain[1], colored[1])
    assert not torch.equal(plain[0], colored[0])


def all_kinds_of_colors() -> torch.Tensor:
    """A frame (1, 3, 20, 250), uint8: random colours, all greys, pure hues, and colours that are nearly grey."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.randint(256, (3, 5000), generator=generator)
    colors[:, :256] = torch.arange(256)
    colors[:, 256:264] = torch.tensor([[int(bit) * 255 for bit in f"{code:03b}"] for code in range(8)]).T
    colors[:, 264:1000] = colors[:1, 264:1000] + torch.randint(-1, 2, (3, 736), generator=generator)
    return colors.clamp(0, 255).to(torch.uint8).reshape(1, 3, 20, 250)


each_form = pytest.mark.parametrize(
    "form",
    [
        "torch",
        pytest.param(
            "auto", marks=pytest.mark.skipif(kernels.pixels.unavailable() is not None, reason="no C++ compiler")
        ),
    ],
)


@pytest.mark.parametrize(
    ("hue", "saturation", "value"),
    [
        (20, 0, 0),
        (-20, 0, 0),
        (180, 0, 0),
        (-180, 0, 0),
        (0, 0.4, 0),
        (0, -1, 0),
        (0, 0, 0.5),
        (0, 0, -0.5),
        (13.7, -0.23, 0.19),
        (-101.3, 0.31, -0.17),
    ],
)
@each_form
def test_hsv_shift_is_that_of_colorsys(form, hue, saturation, value):
    frames = all_kinds_of_colors()

    with kernels.use_implementation(form):
        shifted = shift_hsv(frames, hue, saturation, value)

    expected = []
    for color in frames[0].flatten(1).T.tolist():
        h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
        s = min(max(s + saturation, 0), 1) if s else 0  # Grey has no hue.
        expected.append(colorsys.hsv_to_rgb((h + hue / 360) % 1, s, min(max(v + value, 0), 1)))
    expected = 255 * torch.tensor(expected).T.reshape(3, 20, 250)
    # Half a level of rounding, and float32 against float64.
    assert (shifted[0] - expected).abs().max() < 0.5 + 1e-3
    assert shifted.dtype == torch.uint8


@each_form
def test_hsv_shift_by_nothing_changes_nothing(form):
    frames = all_kinds_of_colors()

    with kernels.use_implementation(form):
        assert torch.equal(shift_hsv(frames, 0.0, 0.0, 0.0), frames)
        several = shift_hsv(frames.expand(3, -1, -1, -1), 0.0, 0.0, 0.0)

    assert torch.equal(several, frames.expand(3, -1, -1, -1))


@pytest.mark.skipif(kernels.pixels.unavailable() is not None, reason="no C++ compiler")
def test_compiled_hsv_shift_is_that_of_plain_pytorch_in_any_layout():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 40, 1100, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    layouts = [
        frames,
        frames.contiguous(),
        frames[..., 3:35, 7:],
        frames.contiguous()[1:, :, ::2, ::5],
        frames[..., :0],
    ]

    for layout in layouts:
        for shifts in ((13.7, -0.23, 0.19), (180.0, 1.0, 1.0), (-180.0, -1.0, -1.0), (-20.0, 0.4, -0.4)):
            with kernels.use_implementation("torch"):
                expected = shift_hsv(layout, *shifts)
            shifted = shift_hsv(layout, *shifts)
            assert shifted.is_contiguous()
            difference = (shifted.int() - expected.int()).abs()
            # Two ways to round a half, where a channel is in the middle between two levels.
            assert not difference.numel() or (difference.max() <= 1 and difference.float().mean() < 2e-3)


def test_rgb_shift_is_clipped_instead_of_wrapped():
    frames = all_kinds_of_colors()

    shifted = shift_rgb(frames, torch.tensor([0.1, -0.3, 0.002]))

    expected = (frames / 255 + torch.tensor([0.1, -0.3, 0.002])[:, None, None]).clamp(0, 1)
    assert (shifted - 255 * expected).abs().max() <= 0.5 + 1e-3  # Rounding.
    assert shifted.max() == 255
    assert shifted[:, 1].min() == 0


def test_colors_are_drawn_once_per_clip_within_the_limits():
    """Value: the same change in all frames, of a pixel that is neither clipped nor coloured."""
    frames = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    transform = ClipTransform(8, 8, flip_probability=0.0, value_jitter=0.2)

    changes = []
    for seed in range(200):
        moved, _, _ = transform(frames, torch.zeros(0, 4), torch.Generator().manual_seed(seed))
        assert (moved == moved[0, 0, 0, 0]).all()
        changes.append(int(moved[0, 0, 0, 0]) - 100)

    assert -51 <= min(changes) < -40
    assert 40 < max(changes) <= 51


def test_color_noise_has_the_published_size():
    """The axes are orthonormal, so the shifts have the standard deviation 0.1 * 0.226 in every channel."""
    frames = torch.full((1, 3, 1, 1), 128, dtype=torch.uint8)
    transform = ClipTransform(1, 1, flip_probability=0.0, color_noise=0.1)

    shifts = [
        (transform(frames, torch.zeros(0, 4), torch.Generator().manual_seed(seed))[0].int() - 128).flatten()
        for seed in range(2000)
    ]

    # 2000 draws: the standard deviation is off by 1.6 % (one sigma); rounding to levels adds half a percent.
    torch.testing.assert_close(torch.stack(shifts).float().std(0) / 255, torch.full((3,), 0.0226), rtol=0.08, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip_probability", 1.5),
        ("max_resize_shortest_edge", 50),
        ("hue_jitter", 200),
        ("saturation_jitter", -0.1),
        ("value_jitter", 1.1),
        ("color_noise", -1),
        ("color_noise", float("nan")),
    ],
)
def test_field_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be .* got {value}"):
        ClipTransform(60, 40, **{field: value})


LABELS = {0: "left", 1: "right", 2: "walk", 3: "a:b", 4: "c"}


def test_pairs_of_classes_change_places_in_a_mirror():
    assert mirrored_labels([], LABELS) == ()
    assert mirrored_labels(["left:right"], LABELS) == (1, 0, 2, 3, 4)
    assert mirrored_labels(["right:left", "a:b:c"], LABELS) == (1, 0, 2, 4, 3)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["left:rigth"], "'left:rigth', did you mean 'right'"),
        (["left"], "with a colon between them"),
        (["left:left"], "two classes"),
        (["left:right", "walk:left"], "in two pairs, see 'walk:left'"),
    ],
)
def test_wrong_pairs_of_classes_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        mirrored_labels(pairs, LABELS)
