"""The pipeline: whatever is a video, in one go or one by one, to detections or tubes."""

import functools
import http.server
import threading

import av
import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub_constants
from PIL import Image
from transformers import VideoMAEConfig, VideoMAEModel, pipeline
from utils import tiny_config

from classquery import (
    ClassQueryForVideoActionDetection,
    ClassQueryVideoProcessor,
    VideoActionDetectionPipeline,
    demo_checkpoint,
)
from classquery.data.demo.movies import write_demo_movie
from classquery.data.video.reader import ClipReader, iterate_frames
from classquery.frames_classquery import open_video


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """Path of a demo movie of 45 frames."""
    return write_demo_movie(tmp_path_factory.mktemp("movies"), "validation", 0, seconds_per_movie=3)


@pytest.fixture(scope="module")
def frames(movie):
    """The frames of the movie, (45, height, width, 3) uint8."""
    return ClipReader().read(movie, range(45))


@pytest.fixture(scope="module")
def detector():
    return pipeline("video-action-detection", model=demo_checkpoint())


@pytest.fixture(scope="module")
def tube_detector():
    """A detector of all frames of clips of four, with random weights."""
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config(output_frames="all", frame_stride=1))
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 36})
    return VideoActionDetectionPipeline(model, video_processor=processor, threshold=0, actor_threshold=0)


def test_arrays_tensors_images_and_files_are_the_same_video(detector, movie, frames):
    images = [Image.fromarray(frame) for frame in frames]

    expected = detector(movie)

    for video in (str(movie), frames, torch.from_numpy(frames), images, list(frames)):
        assert detector(video, frames_per_second=15) == expected
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert detector(channels_first, frames_per_second=15) == expected


def test_several_videos_come_one_by_one(detector, movie, frames):
    expected = detector(movie)
    opened = []

    def videos():
        for video in (movie, movie):
            opened.append(video)
            yield video

    results = detector(videos())
    assert len(opened) <= 1
    assert next(iter(results)) == expected
    assert detector([movie, str(movie)]) == detector((movie, movie)) == [expected, expected]
    assert list(detector(iter([movie]))) == [expected]
    assert detector([]) == []


def test_batch_size_does_not_change_detections(detector, movie):
    one, five = (detector(movie, threshold=0.2, keyframes_per_second=5, batch_size=size) for size in (1, 5))

    assert [found["label"] for found in one] == [found["label"] for found in five]
    for first, second in zip(one, five, strict=True):
        # Batched kernels sum in another order.
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)
        assert list(first["box"].values()) == pytest.approx(list(second["box"].values()), abs=1e-3)


def test_top_k_and_thresholds_select(detector, movie):
    everything = detector(movie, threshold=0, actor_threshold=0)
    best = detector(movie, threshold=0, actor_threshold=0, top_k=1)

    assert len(everything) == 3 * 4 * 8  # Keyframes, candidates, classes.
    assert len(best) == 3 * 4
    for found in best:
        same_actor = [
            one["score"] for one in everything if (one["frame"], one["box"]) == (found["frame"], found["box"])
        ]
        assert found["score"] == max(same_actor)
    certain = detector(movie, threshold=0.8, actor_threshold=0.9)
    assert certain == [one for one in everything if one["score"] >= 0.8 and one["actor_score"] >= 0.9]


@pytest.mark.parametrize("is_hub_offline", [False, True])
def test_video_behind_a_link(is_hub_offline, detector, movie, monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", is_hub_offline)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(movie.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert detector(f"{url}/{movie.name}") == detector(movie)
        with pytest.raises(ValueError, match=r"missing\.mp4 cannot be downloaded: .*404"):
            detector(f"{url}/missing.mp4")
        if is_hub_offline:
            with pytest.raises(ValueError, match="cannot be downloaded: .*offline"):
                detector(f"{hub_constants.ENDPOINT}/datasets/me/videos/resolve/main/video.mp4")
    finally:
        server.shutdown()
        server.server_close()


def test_every_frame_is_detected_once_by_a_model_of_all_frames(tube_detector, movie):
    found = tube_detector(movie, top_k=1, batch_size=4)

    assert not tube_detector.model.training
    assert [one["frame"] for one in found] == [frame for frame in range(45) for _ in range(3)]
    assert found[-1]["time"] == pytest.approx(44 / 15)


def test_tubes_hold_the_detections_of_a_label(tube_detector, frames):
    detections = tube_detector(frames[:10], threshold=0.4)
    tubes = tube_detector(frames[:10], threshold=0.4, return_tubes=True, iou_threshold=0.3, max_gap=1)

    assert len(tubes) > 1
    assert [tube["score"] for tube in tubes] == sorted((tube["score"] for tube in tubes), reverse=True)
    in_tubes = [
        (tube["label"], frame, time, tuple(box.values()), score)
        for tube in tubes
        for frame, time, box, score in zip(*(tube[k] for k in ("frames", "times", "boxes", "scores")), strict=True)
    ]
    alone = [(one["label"], one["frame"], one["time"], tuple(one["box"].values()), one["score"]) for one in detections]
    assert sorted(in_tubes) == sorted(alone)
    for tube in tubes:
        assert tube["score"] == pytest.approx(np.mean(tube["scores"]))
        assert np.diff(tube["frames"]).max(initial=1) <= 2


def test_saved_pipeline_is_complete(detector, movie, tmp_path):
    detector.save_pretrained(tmp_path)

    again = pipeline("video-action-detection", model=tmp_path)

    assert again(movie) == detector(movie)


def test_damaged_end_is_left_out_with_a_warning(detector, movie, tmp_path, caplog):
    path = tmp_path / "short.ts"
    with av.open(str(movie)) as source, av.open(str(path), "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    found = detector(path)

    assert 0 < len({one["frame"] for one in found}) < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 2}, "`threshold` must be between 0 and 1, got 2"),
        ({"top_k": 0}, "`top_k` must be at least 1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"keyframes_per_second": 0}, "`keyframes_per_second` must be more than 0"),
        ({"iou_threshold": 0}, "`iou_threshold` must be more than 0"),
        ({"clip_stride": 4}, "detects in keyframes: give keyframes_per_second"),
    ],
)
def test_options_out_of_range_are_refused(detector, movie, options, message):
    with pytest.raises(ValueError, match=message):
        detector(movie, **options)


def test_unknown_option_is_refused(detector, movie):
    with pytest.raises(TypeError, match="treshold"):
        detector(movie, treshold=0.5)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("nowhere.mp4", r"nowhere\.mp4"),
        (np.zeros((4, 32, 32, 3), np.float32), "uint8 of shape .* got float32"),
        (np.zeros((4, 32, 32, 4), np.uint8), r"got uint8 of shape \(32, 32, 4\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "no frames: give at least one"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 40, 3), np.uint8)], "must have one size"),
        ([{"path": "video.mp4"}], "a video is a path"),
    ],
)
def test_what_is_no_video_is_refused(detector, video, message):
    with pytest.raises(ValueError, match=message):
        detector(video)


def test_models_of_other_types_are_refused():
    config = VideoMAEConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2, num_frames=2, image_size=16)

    with pytest.raises(ValueError, match="of type 'classquery', got 'videomae'"):
        VideoActionDetectionPipeline(VideoMAEModel(config), video_processor=ClassQueryVideoProcessor())


def test_folder_is_for_detect(tmp_path):
    with pytest.raises(ValueError, match="is a folder: the pipeline takes files, classquery.detect"):
        open_video(tmp_path, 30.0)


def test_files_are_decoded_where_clips_look_alone(detector, movie, monkeypatch):
    asked = []

    def spy(path, *, needed=None):
        numbers = None if needed is None else list(needed)
        asked.append(numbers)
        return iterate_frames(path, needed=numbers)

    expected = detector(movie, threshold=0.0, keyframes_per_second=0.5)
    monkeypatch.setattr("classquery.data.video.reader.iterate_frames", spy)

    assert detector(movie, threshold=0.0, keyframes_per_second=0.5) == expected
    looked_at = [numbers for numbers in asked if numbers is not None]
    assert len(looked_at) == 1
    assert 0 < len(looked_at[0]) < ClipReader().info(movie).num_frames
