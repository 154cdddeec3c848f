"""Folders of numbered images: the right image for each number, and an error where one is missing or broken."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classquery.data.video.frame_folder import count_frames, frame_indices_at, read_frame_folder
from classquery.data.video.reader import VideoReadError


def write_frames(folder: Path, names: list[str]) -> Path:
    """Write an image for each name, all of the colour of its place in the list."""
    for index, name in enumerate(names):
        Image.new("RGB", (12, 8), (index, 2 * index, 3 * index)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"{number:05d}.png" for number in range(1, 12)],
        [f"{number}.png" for number in range(12)],
        [f"{number}.png" for number in range(1, 12)],
        [f"img_{number:05d}.png" for number in range(1, 12)],
        [f"-5KQ66BBWC4_{number:06d}.png" for number in range(1, 12)],
        [f"take 2_{number:02d}.PNG" for number in range(1, 103)],
    ],
)
def test_frames_are_found_by_their_number(tmp_path, names):
    write_frames(tmp_path, names)
    for other in ("Thumbs.db", ".hidden_00099.png", "notes.txt"):
        (tmp_path / other).touch()

    frames = read_frame_folder(tmp_path, [9, 0, 9, 2])

    assert frames.shape == (4, 8, 12, 3)
    assert frames.dtype == np.uint8
    assert frames[:, 5, 5].tolist() == [[9, 18, 27], [0, 0, 0], [9, 18, 27], [2, 4, 6]]


def test_frames_are_found_by_time(tmp_path):
    write_frames(tmp_path, [f"{number}.png" for number in range(1, 11)])

    indices = frame_indices_at(tmp_path, [[-1.0, 0.0, 0.1], [0.13, 0.28, 99.0], [0.06, 0.1, 0.14]], 25.0)

    assert indices.tolist() == [[0, 0, 2], [3, 7, 9], [1, 2, 3]]
    assert count_frames(tmp_path) == 10


def test_jpeg_and_grey_images_are_rgb(tmp_path):
    Image.new("L", (12, 8), 100).save(tmp_path / "1.jpg")

    assert np.abs(read_frame_folder(tmp_path, [0])[0].astype(int) - 100).max() <= 1  # JPEG is lossy.


def test_folder_that_changes_is_listed_again(tmp_path):
    read_frame_folder(write_frames(tmp_path, ["1.png", "2.png"]), [1])
    write_frames(tmp_path, ["1.png", "2.png", "3.png"])

    assert read_frame_folder(tmp_path, [2])[0, 0, 0].tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no numbered"),
        (["cover.png"], "no numbered"),
        (["1.png", "3.png"], "2.png is missing"),
        (["2.png", "3.png"], "1.png is missing"),
        (["1.png", "2.png", "b3.png"], "3.png is missing"),
        (["001.png", "2.png"], "002.png is missing"),
    ],
)
def test_gap_is_an_error(tmp_path, names, message):
    with pytest.raises(VideoReadError, match=message):
        read_frame_folder(write_frames(tmp_path, names), [0])


@pytest.mark.parametrize("index", [-1, 2])
def test_frame_out_of_range_is_an_error(tmp_path, index):
    with pytest.raises(VideoReadError, match=rf"frames \[{index}\] out of range, it has 2"):
        read_frame_folder(write_frames(tmp_path, ["1.png", "2.png"]), [0, index])


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(VideoReadError, match="No such file"):
        read_frame_folder(tmp_path / "nowhere", [0])


@pytest.mark.parametrize("name", ["1.png", "1.jpg"])
def test_broken_image_is_an_error(tmp_path, name):
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:500])

    with pytest.raises(VideoReadError, match=name):
        read_frame_folder(tmp_path, [0])


def test_images_of_different_size_are_an_error(tmp_path):
    write_frames(tmp_path, ["1.png"])
    Image.new("RGB", (20, 8)).save(tmp_path / "2.png")

    with pytest.raises(VideoReadError, match=r"\(8, 12\), \(8, 20\)"):
        read_frame_folder(tmp_path, [0, 1])
