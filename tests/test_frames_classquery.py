"""Files read without the package's clip reader, by what else is installed, against the clip reader."""

import numpy as np
import pytest

from classquery import frames_classquery
from classquery.data.demo.movies import write_demo_movie
from classquery.frames_classquery import nearest_indices, open_video


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    return write_demo_movie(tmp_path_factory.mktemp("movies"), "validation", 0, seconds_per_movie=2)


@pytest.fixture
def without_clip_reader(monkeypatch):
    monkeypatch.setattr(frames_classquery, "_HAS_CLIP_READER", False)


def only(monkeypatch, installed: str | None) -> None:
    for name in ("av", "torchcodec", "decord", "cv2"):
        monkeypatch.setattr(frames_classquery, f"is_{name}_available", lambda name=name: name == installed)


@pytest.mark.parametrize("decoder", ["av", "decord"])
def test_decoders_give_the_frames_of_the_clip_reader(movie, monkeypatch, decoder):
    expected = open_video(movie, 30)
    only(monkeypatch, decoder)
    monkeypatch.setattr(frames_classquery, "_HAS_CLIP_READER", False)

    video = open_video(str(movie), 30)

    assert (video.num_frames, video.size) == (expected.num_frames, expected.size)
    assert video.last_seconds == pytest.approx(expected.last_seconds)
    wanted = np.array([[-1.0, 0.1], [0.9, 7.0]])
    assert video.indices_at(wanted).tolist() == expected.indices_at(wanted).tolist()
    for frame, reference in zip(video.stream(), expected.stream(), strict=True):
        assert frame.index == reference.index
        assert frame.seconds == pytest.approx(reference.seconds)
        assert np.array_equal(frame.image, reference.image)


@pytest.mark.usefixtures("without_clip_reader")
def test_damaged_end_is_left_out(movie, tmp_path):
    path = tmp_path / "damaged.mp4"
    content = bytearray(movie.read_bytes())
    start = content.find(b"mdat")
    content[start + len(content) // 3 : start + len(content) // 3 * 2] = bytes(len(content) // 3)
    path.write_bytes(content)

    video = open_video(path, 30)

    assert len(list(video.stream())) <= video.num_frames


@pytest.mark.usefixtures("without_clip_reader")
def test_what_is_no_video_is_refused(tmp_path):
    path = tmp_path / "file.mp4"
    path.write_text("no video")

    with pytest.raises(ValueError, match="damaged or no video"):
        open_video(path, 30)


@pytest.mark.usefixtures("without_clip_reader")
def test_missing_decoder_is_named(movie, monkeypatch):
    only(monkeypatch, None)

    with pytest.raises(ImportError, match="pip install av"):
        open_video(movie, 30)


def test_earlier_of_two_frames_as_near_is_taken():
    assert nearest_indices(np.array([0.0, 1.0, 2.0]), np.array([-1, 0.5, 0.6, 1.5, 9])).tolist() == [0, 0, 1, 1, 2]
