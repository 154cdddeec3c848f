"""One clock, that of the file: for keyframes, tubes, checking and preparing, whatever the rate and whoever starts."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from painted_frames import HEIGHT, WIDTH, number_on, paint

from classquery.data.annotations.registry import load_action_dataset, make_clips
from classquery.data.clips import KeyframeClips, keyframes_of_tubes
from classquery.data.preparation.checking import check_dataset
from classquery.data.preparation.preparing import prepare_videos


# Of a clip of one frame, the keyframe.
ONE_FRAME = {"num_labels": 1, "num_frames": 1, "frame_stride": 1}
NUM_FRAMES = 50


def write_timed(path: Path, milliseconds: np.ndarray, *, sound: bool = False) -> None:
    """Write painted numbers at some times, and sound from 0 on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("libx264", rate=25, options={"g": "12"})
        pictures.height, pictures.width, pictures.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 1000)
        speech = output.add_stream("aac", rate=16000, layout="mono") if sound else None
        for start in range(0, 64 * 1024 if sound else 0, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            output.mux(speech.encode(frame))
        for number, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            output.mux(pictures.encode(frame))
        output.mux(pictures.encode())
        if sound:
            output.mux(speech.encode())


def write_split(folder: Path, table: str) -> None:
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text(table)


@pytest.fixture
def variable_rate(tmp_path):
    """Tubes of a video of 25 frames at 25 Hz, then 25 at 10 Hz."""
    times = np.concatenate([40 * np.arange(25), 1000 + 100 * np.arange(25)])
    write_timed(tmp_path / "videos" / "a.mp4", times)
    rows = "".join(f"a.mp4,{frame},0.1,0.2,0.5,0.9,walk,0\n" for frame in range(NUM_FRAMES))
    write_split(tmp_path, "video,frame,x1,y1,x2,y2,label,track_id\n" + rows)
    return tmp_path


def test_tubes_of_a_variable_rate_become_keyframes_that_show_their_frame(variable_rate):
    rows = load_action_dataset("custom", variable_rate, "train")

    keyframes = keyframes_of_tubes(rows, 5.0)

    # Every fifth frame of the first second; then every second one.
    assert keyframes["center_frame"][:] == [*range(0, 25, 5), *range(25, 50, 2)]
    np.testing.assert_allclose(keyframes["video_seconds"][:], np.arange(18) / 5, atol=1e-6)
    clips = KeyframeClips(keyframes, **ONE_FRAME)
    shown = [number_on(clips[index]["frames"][0].permute(1, 2, 0).numpy()) for index in range(len(clips))]
    assert shown == keyframes["center_frame"][:]


def test_as_many_keyframes_as_frames_are_all_frames(variable_rate):
    rows = load_action_dataset("custom", variable_rate, "train")

    assert keyframes_of_tubes(rows, 1e9)["center_frame"][:] == list(range(NUM_FRAMES))


def test_gap_of_a_month_makes_no_keyframes_that_are_not_there(tmp_path):
    month = 30 * 24 * 3600 * 1000
    write_timed(tmp_path / "videos" / "a.mkv", np.concatenate([40 * np.arange(25), month + 40 * np.arange(25)]))
    rows = "".join(f"a.mkv,{frame},0.1,0.2,0.5,0.9,walk,0\n" for frame in range(NUM_FRAMES))
    write_split(tmp_path, "video,frame,x1,y1,x2,y2,label,track_id\n" + rows)

    keyframes = keyframes_of_tubes(load_action_dataset("custom", tmp_path, "train"), 2.0)

    assert keyframes["center_frame"][:4] == [0, 12, 24, 25]
    assert len(keyframes) <= 6


@pytest.fixture
def late_pictures(tmp_path):
    """Sound from 0 and 50 pictures from second 2 on, annotated at second 3."""
    source = tmp_path / "late"
    write_timed(source / "videos" / "a.mp4", 2000 + 40 * np.arange(NUM_FRAMES), sound=True)
    write_split(source, "video,timestamp,x1,y1,x2,y2,label\na.mp4,3.0,0.1,0.2,0.5,0.9,walk\n")
    return source


def shown_at(folder: Path, seconds: float) -> int:
    rows = load_action_dataset("custom", folder, "train")
    clips = make_clips(rows, **ONE_FRAME, frames_per_second=25.0)
    assert rows["video_seconds"][0] == seconds
    return number_on(clips[0]["frames"][0].permute(1, 2, 0).numpy())


def test_second_of_pictures_that_start_late_is_that_of_the_file(late_pictures):
    assert shown_at(late_pictures, 3.0) == 25


def test_prepared_video_has_the_same_clock_without_the_sound(late_pictures, tmp_path):
    assert prepare_videos("custom", late_pictures, tmp_path / "ready") == []

    assert shown_at(tmp_path / "ready", 3.0) == 25


def test_pictures_that_start_late_are_told_about(late_pictures):
    report, _ = check_dataset("custom", late_pictures)

    warnings = [finding for finding in report.warnings if "start later than the file" in finding.summary]
    assert [warning.details for warning in warnings] == [["a: by 2.000 s"]] * 2


def test_moment_is_in_the_video_up_to_its_end_on_that_clock(late_pictures):
    table = (late_pictures / "train.csv").read_text()
    (late_pictures / "train.csv").write_text(table.replace("3.0", "3.88"))
    assert shown_at(late_pictures, pytest.approx(3.88)) == 47

    (late_pictures / "train.csv").write_text(table.replace("3.0", "4.1"))
    with pytest.raises(ValueError, match="lasts from 0 to 4.00 s"):
        load_action_dataset("custom", late_pictures, "train")
