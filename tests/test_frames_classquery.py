"""Files read without the package's clip reader, by what else is installed, against the clip reader."""

import numpy as np
import pytest

from classquery import frames_classquery
from classquery.data.demo.movies import write_demo_movie
from classquery.frames_classquery import open_video


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    return write_demo_movie(tmp_path_factory.mktemp("movies"), "validation", 0, seconds_per_movie=2)


@pytest.fixture
def without_clip_reader(monkeypatch):
    monkeypatch.setattr(frames_classquery, "_HAS_READER", False)


def test_pyav_gives_the_frames_of_the_clip_reader(movie, monkeypatch):
    expected = open_video(movie, 30)
    monkeypatch.setattr(frames_classquery, "_HAS_READER", False)

    video = open_video(str(movie), 30)

    assert (video.num_frames, video.size) == (30, expected.size)
    for frame, reference in zip(video.frames, expected.frames, strict=True):
        assert (frame.index, frame.seconds) == (reference.index, reference.seconds)
        assert np.array_equal(frame.image, reference.image)


@pytest.mark.usefixtures("without_clip_reader")
def test_damaged_end_is_left_out(movie, tmp_path):
    path = tmp_path / "damaged.mp4"
    content = bytearray(movie.read_bytes())
    start = content.find(b"mdat")
    content[start + len(content) // 3 : start + len(content) // 3 * 2] = bytes(len(content) // 3)
    path.write_bytes(content)

    video = open_video(path, 30)

    assert len(list(video.frames)) <= video.num_frames


@pytest.mark.usefixtures("without_clip_reader")
def test_what_is_no_video_is_refused(tmp_path):
    path = tmp_path / "file.mp4"
    path.write_text("no video")

    with pytest.raises(ValueError, match="damaged or no video"):
        open_video(path, 30)


@pytest.mark.usefixtures("without_clip_reader")
def test_other_decoders_than_pyav_are_not_trusted(movie, monkeypatch):
    monkeypatch.setattr(frames_classquery, "is_av_available", lambda: False)

    with pytest.raises(ImportError, match="pip install av"):
        open_video(movie, 30)
