"""Drawing: what is seen where, readable labels, and videos that keep their frames and times."""

import itertools
import logging

import numpy as np
import pytest
from PIL import Image
from test_detection import CONSTANT_RATE, VARIABLE_RATE, cut, damage, write_video

from classquery.data.video.reader import ClipReader, VideoReadError, iterate_frames
from classquery.engine.detection import drawing
from classquery.engine.detection.drawing import draw_attention_grid, draw_keyframe, write_annotated_video
from classquery.engine.detection.results import ActorDetection, FrameDetections


FIRST_COLOR = (0x56, 0xB4, 0xE9)
ACTIONS = [("talk to (e.g., self, a person, a group)", 0.93), ("sit", 0.5)]
GREY = Image.new("RGB", (128, 96), (128, 128, 128))


def keyframe_with(*boxes: tuple, seconds: float = 0.0, actions: list = ACTIONS, attention=None) -> FrameDetections:
    return FrameDetections(
        0,
        seconds,
        [ActorDetection(box, 0.9, actions, {} if attention is None else {"sit": attention}) for box in boxes],
    )


def differs(one: Image.Image, other: Image.Image) -> np.ndarray:
    """Where two images of one size differ: (height, width)."""
    return (np.asarray(one) != np.asarray(other)).any(-1)


def attention_at(row: int, column: int) -> np.ndarray:
    attention = np.full((6, 8), 0.1, np.float32)
    attention[row, column] = 1
    return attention / attention.sum()


# Pictures


def test_box_is_drawn_where_it_is_in_the_enlarged_frame():
    picture = draw_keyframe(GREY, keyframe_with((32, 24, 96, 72)))

    assert picture.size == (640, 480)
    inside_of_edges = [(160, 300), (479, 300), (300, 120), (300, 359)]
    assert [picture.getpixel(point) for point in inside_of_edges] == [FIRST_COLOR] * 4
    assert picture.getpixel((320, 240)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("frame_size", "expected"), [((128, 96), (640, 480)), ((33, 71), (480, 1032)), ((1280, 721), (1280, 720))]
)
def test_small_frames_are_enlarged_to_even_sizes(frame_size, expected):
    assert draw_keyframe(Image.new("RGB", frame_size), keyframe_with()).size == expected


def test_frame_without_actors_stays_as_it_is_and_is_not_changed_in_place():
    frame = Image.new("RGB", (640, 480), (10, 20, 30))

    empty = draw_keyframe(frame, keyframe_with())
    draw_keyframe(frame, keyframe_with((10, 10, 50, 50)))

    assert not differs(empty, Image.new("RGB", (640, 480), (10, 20, 30))).any()
    assert not differs(frame, Image.new("RGB", (640, 480), (10, 20, 30))).any()


def test_actors_have_different_colors():
    boxes = [(18 * index, 80, 18 * index + 16, 96) for index in range(7)]

    picture = draw_keyframe(GREY, keyframe_with(*boxes, actions=[("sit", 0.5)]))

    assert len({picture.getpixel((5 * box[0] + 40, 479)) for box in boxes}) == 7


def test_bar_is_as_long_as_the_score():
    def colored_pixels(score: float) -> int:
        overlay = drawing._Overlay((640, 480), [])
        overlay.draw_actions([("sit", score)], drawing._Rectangle(100, 100, 200, 200), "#56B4E9")
        return (np.asarray(overlay.image)[..., :3] == FIRST_COLOR).all(-1).sum()

    stripe, half, whole = colored_pixels(0.0), colored_pixels(0.5), colored_pixels(1.0)

    assert 0 < stripe < half < whole
    assert (half - stripe) / (whole - stripe) == pytest.approx(0.5, abs=0.02)


def test_people_keep_their_colors_and_have_numbers():
    box = (32, 40, 96, 72)
    numbered = [ActorDetection(box, 0.9, [("sit", 0.5)], person_id=number) for number in (None, 1, 2, 8)]

    plain, first, second, eighth = (draw_keyframe(GREY, FrameDetections(0, 0.0, [actor])) for actor in numbered)

    assert plain.getpixel((200, 359)) == first.getpixel((200, 359)) == eighth.getpixel((200, 359)) == FIRST_COLOR
    assert second.getpixel((200, 359)) != FIRST_COLOR
    assert differs(plain, first).any()
    assert differs(first, eighth).any()


def panels_of(boxes: list[tuple], actions: list) -> list:
    rectangles = [drawing._Rectangle(*box) for box in boxes]
    overlay = drawing._Overlay((640, 480), rectangles)
    for box in rectangles:
        overlay.draw_actions(actions, box, "#56B4E9")
    return overlay.panels


EDGES = [(x, y, x + 80, y + 80) for x in (0, 280, 560) for y in (0, 200, 400) if (x, y) != (280, 200)]
CROWD = [(100 + 40 * index, 150, 220 + 40 * index, 400) for index in range(7)]


@pytest.mark.parametrize("boxes", [EDGES, CROWD, [(0, 0, 640, 480)]], ids=["edges", "crowd", "whole frame"])
def test_labels_lie_within_the_frame_and_beside_each_other(boxes):
    panels = panels_of(boxes, actions=[("hand wave", 0.9), ("sit", 0.5)])

    for panel in panels:
        assert 0 <= panel.left < panel.right <= 640
        assert 0 <= panel.top < panel.bottom <= 480
    for one, other in itertools.combinations(panels, 2):
        assert drawing._overlaps(np.array([one]), [other]) == 0


@pytest.mark.parametrize(
    ("box", "expected"),
    [((200, 200, 300, 300), "above"), ((200, 0, 300, 100), "below"), ((200, 0, 300, 480), "beside")],
)
def test_label_covers_its_actor_only_if_it_must(box, expected):
    (panel,) = panels_of([box], actions=[("sit", 0.5)])

    places = {"above": panel.bottom == box[1], "below": panel.top == box[3], "beside": panel.left == box[2]}
    assert places[expected]
    assert drawing._overlaps(np.array([panel]), [drawing._Rectangle(*box)]) == 0


def test_long_labels_and_lists_of_actions_are_shortened():
    (panel,) = panels_of([(0, 0, 640, 480)], actions=[("very " * 100, 0.9)] * 80)

    assert panel.right - panel.left <= 640
    assert panel.bottom - panel.top < 240


def test_actor_without_actions_has_a_box_alone():
    picture = draw_keyframe(GREY, keyframe_with((32, 24, 96, 72), actions=[]))

    rows, columns = np.nonzero(differs(picture, GREY.resize((640, 480))))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (160, 120, 479, 359)


def test_tiny_picture_is_drawn_too():
    assert draw_keyframe(GREY, keyframe_with((1, 1, 20, 20)), min_short_side=16).size == (128, 96)


# Attention


def test_heat_map_is_drawn_where_a_class_looks():
    keyframe = keyframe_with((100, 0, 110, 10), attention=attention_at(4, 2))

    plain = draw_keyframe(GREY, keyframe)
    picture = draw_keyframe(GREY, keyframe, attention_label="sit")

    brightness = np.asarray(picture.convert("L")).astype(int)
    peak, elsewhere = brightness[4 * 80 + 40, 2 * 80 + 40], brightness[4 * 80 + 40, 6 * 80]
    assert peak > 128 > elsewhere > 64
    assert differs(plain, picture).mean() > 0.9


def test_attentions_of_actors_count_the_same():
    strong, weak = attention_at(1, 1), attention_at(4, 6)
    actors = [ActorDetection((0, 0, 1, 1), 0.9, [], {"sit": attention}) for attention in (strong, 0.01 * weak)]
    overlay = drawing._Overlay((640, 480), [])

    overlay.draw_heat([actor.attentions["sit"] for actor in actors])

    assert overlay.image.getpixel((120, 120)) == overlay.image.getpixel((520, 360))


def test_class_is_named_also_where_nobody_does_anything():
    picture = draw_keyframe(GREY, keyframe_with(), attention_label="sit")

    changed = differs(picture, GREY.resize((640, 480)))
    rows, columns = np.nonzero(changed)
    assert rows.min() > 440
    assert columns.max() < 200


def test_attention_of_one_person_is_drawn_alone():
    people = [
        ActorDetection((0, 0, 1, 1), 0.9, [], {"sit": attention_at(1, 1)}, person_id=1),
        ActorDetection((0, 0, 1, 1), 0.9, [], {"sit": attention_at(4, 6)}, person_id=2),
    ]

    picture = draw_keyframe(GREY, FrameDetections(0, 0.0, people), attention_label="sit", attention_person=2)

    brightness = np.asarray(picture.convert("L")).astype(int)
    assert brightness[4 * 80 + 40, 6 * 80 + 40] > 128 > brightness[80 + 40, 80 + 40]


def test_grid_shows_where_each_class_looks():
    places = {f"class {number}": attention_at(number, number) for number in range(6)}
    actor = ActorDetection((32, 24, 96, 72), 0.9, [("class 1", 0.7)], places)

    grid = draw_attention_grid(GREY, actor, list(places), min_short_side=96)

    assert grid.size == (4 * 128, 2 * 96)
    brightness = np.asarray(grid.convert("L")).astype(int)
    for number in range(6):
        row, column = divmod(number, 4)
        cell = brightness[row * 96 : (row + 1) * 96, column * 128 : (column + 1) * 128]
        other = (number + 3) % 6
        assert cell[16 * number + 8, 16 * number + 8] > cell[16 * other + 8, 16 * other + 8]


def test_grid_of_a_class_without_attention_raises():
    with pytest.raises(ValueError, match=r"attention=.*'sit'"):
        draw_attention_grid(GREY, ActorDetection((0, 0, 1, 1), 0.9, []), ["sit"])


# Videos


def test_boxes_of_people_move_between_keyframes(tmp_path):
    source = write_video(tmp_path / "source.mp4", np.arange(41) / 20)
    keyframes = [
        FrameDetections(0, second, [ActorDetection((left, 8.0, left + 20, 40.0), 0.9, [], person_id=1)])
        for second, left in ((0.0, 0.0), (2.0, 40.0))
    ]

    write_annotated_video(source, tmp_path / "drawn.mp4", keyframes, min_short_side=240)

    for index, left in ((0, 0), (10, 10), (20, 20), (30, 30), (40, 40)):
        (image,) = ClipReader().read(tmp_path / "drawn.mp4", [index])
        columns = np.abs(image[130:150].astype(int) - FIRST_COLOR).sum(-1).mean(0)
        assert np.abs(columns[: 5 * left + 60].argmin() - 5 * left) <= 3, index


def test_gif_has_ten_frames_per_second(tmp_path):
    source = write_video(tmp_path / "source.mp4", CONSTANT_RATE)

    write_annotated_video(source, tmp_path / "drawn.gif", [keyframe_with((5, 5, 30, 40))])

    with Image.open(tmp_path / "drawn.gif") as picture:
        assert picture.n_frames == len(CONSTANT_RATE) / 2
        assert picture.info["duration"] == 100
        assert max(picture.size) == 480


def test_large_frames_are_reduced():
    assert draw_keyframe(Image.new("RGB", (3840, 2160)), keyframe_with((10, 10, 90, 90))).size == (1920, 1080)


@pytest.mark.parametrize(
    ("seconds", "size"),
    [(CONSTANT_RATE, (64, 48)), (VARIABLE_RATE, (75, 49)), (CONSTANT_RATE[:1], (64, 48)), (CONSTANT_RATE, (33, 71))],
    ids=["constant rate", "variable rate and odd size", "one frame", "portrait"],
)
def test_annotated_video_has_the_frames_and_times_of_its_source(seconds, size, tmp_path):
    source = write_video(tmp_path / "source.mp4", seconds, size)

    write_annotated_video(source, tmp_path / "drawn.mp4", [keyframe_with((5, 5, 30, 40))], min_short_side=96)

    info, expected = ClipReader().info(tmp_path / "drawn.mp4"), ClipReader().info(source)
    times = [frame.seconds for frame in iterate_frames(tmp_path / "drawn.mp4")]
    assert times == pytest.approx([frame.seconds for frame in iterate_frames(source)], abs=1e-4)
    assert info.frames_per_second == pytest.approx(expected.frames_per_second, rel=1e-3)
    assert min(info.width, info.height) == 96
    assert info.width / info.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_of_more_frames_than_screens_show_some_are_left_out(tmp_path):
    times = np.arange(2000) / 100_000
    source = write_video(tmp_path / "source.mp4", times, (16, 16), ticks_per_second=100_000)

    write_annotated_video(source, tmp_path / "drawn.mp4", [], min_short_side=16)

    seconds = [frame.seconds for frame in iterate_frames(tmp_path / "drawn.mp4")]
    np.testing.assert_allclose(seconds, np.arange(6) * 0.9 / 240, atol=2e-5)


def test_frames_show_the_source_and_the_nearest_keyframe(tmp_path):
    source = write_video(tmp_path / "source.mp4", CONSTANT_RATE)
    # The second starts at (0 + 1.5) / 2 s; they come in any order.
    keyframes = [keyframe_with((40, 8, 60, 40), seconds=1.5), keyframe_with((4, 8, 24, 40), seconds=0.0)]

    write_annotated_video(source, tmp_path / "drawn.mp4", keyframes, min_short_side=240)

    for frame, original in zip(iterate_frames(tmp_path / "drawn.mp4"), iterate_frames(source), strict=True):
        expected = draw_keyframe(Image.fromarray(original.image), keyframes[frame.seconds <= 0.75], min_short_side=240)
        # H.264 at crf 20 with colours at half the resolution.
        error = np.abs(frame.image.astype(int) - np.asarray(expected)).mean()
        assert error < 12


def test_video_without_keyframes_is_copied(tmp_path):
    source = write_video(tmp_path / "source.mp4", CONSTANT_RATE)

    write_annotated_video(source, tmp_path / "drawn.mp4", [])

    assert ClipReader().info(tmp_path / "drawn.mp4").num_frames == len(CONSTANT_RATE)


@pytest.mark.parametrize("spoil", [cut, damage])
def test_annotated_video_ends_with_one_warning_where_the_source_is_damaged(spoil, tmp_path, caplog):
    source = spoil(write_video(tmp_path / "source.mp4", CONSTANT_RATE))

    write_annotated_video(source, tmp_path / "drawn.mp4", [keyframe_with((5, 5, 30, 40))], min_short_side=96)

    assert 10 <= ClipReader().info(tmp_path / "drawn.mp4").num_frames < len(CONSTANT_RATE)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_failure_keeps_the_video_that_was_there(tmp_path):
    source = write_video(tmp_path / "source.mp4", CONSTANT_RATE)
    output = tmp_path / "drawn.mp4"
    output.write_text("good")
    broken = FrameDetections(40, 2.0, [ActorDetection(None, 0.9, ACTIONS)])

    with pytest.raises(VideoReadError):
        write_annotated_video(tmp_path / "missing.mp4", output, [])
    with pytest.raises(TypeError):
        write_annotated_video(source, output, [keyframe_with(), broken])

    assert output.read_text() == "good"
    assert {file.name for file in tmp_path.iterdir()} == {"source.mp4", "drawn.mp4"}
