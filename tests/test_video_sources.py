"""Sources of video: every kind gives the same frames, streams that stop end, and errors say what to do."""

import http.server
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_detection import CONSTANT_RATE, make_model, write_video

from classquery import ClassQueryVideoProcessor, detect
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.engine.detection import video_sources
from classquery.engine.detection.video_sources import list_sources, open_source


NUM_FRAMES = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("videos") / "video.mp4", CONSTANT_RATE[:NUM_FRAMES])


@pytest.fixture(scope="module")
def images(path) -> np.ndarray:
    return ClipReader().read(path, range(NUM_FRAMES))


@pytest.fixture(scope="module")
def frame_folder(images, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("frames")
    for index, image in enumerate(images, 1):
        Image.fromarray(image).save(folder / f"{index:05d}.png")
    return str(folder)


def images_of(source) -> np.ndarray:
    return np.stack([frame.image for frame in source.frames])


# What there is


def test_folders_and_patterns_are_listed_by_name(path, frame_folder, tmp_path):
    for name in ("b.mp4", "a.MKV", "deep/c.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    assert list_sources(tmp_path) == [str(tmp_path / "a.MKV"), str(tmp_path / "b.mp4")]
    assert list_sources(f"{tmp_path}/**/*.mp4") == [str(tmp_path / "b.mp4"), str(tmp_path / "deep/c.mp4")]
    assert list_sources([path, tmp_path, 0]) == [path, str(tmp_path / "a.MKV"), str(tmp_path / "b.mp4"), 0]
    assert list_sources(frame_folder) == [frame_folder]
    assert list_sources("rtsp://camera/1?x=[a]*") == ["rtsp://camera/1?x=[a]*"]


def test_folder_without_videos_raises_and_explains_patterns(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither videos.*\*\*"):
        list_sources(tmp_path)


def test_pattern_without_a_match_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        list_sources(f"{tmp_path}/*.mp4")


def test_other_objects_raise():
    with pytest.raises(TypeError, match="no source of video: got NoneType"):
        list_sources(None)


# The same frames from everywhere


@pytest.mark.parametrize(
    "to_source",
    [
        lambda images: images,
        lambda images: torch.from_numpy(images).permute(0, 3, 1, 2),
        lambda images: [Image.fromarray(image) for image in images],
        list,
        lambda images: (image for image in images),
    ],
    ids=["array", "tensor with channels first", "pillow", "list", "generator"],
)
def test_frames_in_memory(to_source, images):
    (single,) = list_sources(to_source(images))

    source = open_source(single, frames_per_second=20)

    assert (source.height, source.width, source.frames_per_second) == (48, 64, 20)
    frames = list(source.frames)
    np.testing.assert_array_equal([frame.image for frame in frames], images)
    assert [frame.seconds for frame in frames] == pytest.approx(CONSTANT_RATE[:NUM_FRAMES])


def test_frame_folder(frame_folder, images):
    source = open_source(frame_folder, frames_per_second=20)

    assert source.num_frames == NUM_FRAMES
    np.testing.assert_array_equal(images_of(source), images)


def test_images_of_several_sizes_raise(images, tmp_path):
    for index, image in enumerate((images[0], images[0][:-2])):
        Image.fromarray(image).save(tmp_path / f"{index}.png")

    with pytest.raises(VideoReadError, match="differ in size"):
        images_of(open_source(str(tmp_path)))
    with pytest.raises(ValueError, match="one size"):
        images_of(open_source([images[0], images[0][:-2]]))


@pytest.mark.parametrize(
    ("frames", "message"),
    [([], "no frames"), (np.zeros((2, 4, 4, 3)), "float64"), (np.zeros((2, 4, 4), np.uint8), r"\(4, 4\)")],
)
def test_wrong_arrays_raise(frames, message):
    with pytest.raises(ValueError, match=message):
        open_source(frames)


def test_detections_do_not_depend_on_the_kind_of_source(path, images, frame_folder):
    model, processor = make_model(), ClassQueryVideoProcessor(size={"shortest_edge": 32})
    options = {"keyframes_per_second": 4, "threshold": 0.0, "actor_threshold": 0.0}

    expected = [result.to_dict() for result in detect(path, model, processor, **options)]

    for source in (images, frame_folder, iter(images)):
        results = detect(source, model, processor, frames_per_second=20, **options)
        assert [result.to_dict() for result in results] == expected


def test_of_several_videos_a_broken_one_is_passed_over(path, tmp_path, caplog):
    (tmp_path / "broken.mp4").write_bytes(b"no video")

    processor = ClassQueryVideoProcessor(size={"shortest_edge": 32})

    results = list(detect([path, tmp_path / "broken.mp4", path], make_model(), processor))

    assert [result.video for result in results] == [path, path]
    assert "broken.mp4" in caplog.text


# Cameras and streams


class _Server:
    """An HTTP server on this machine whose answer to everything is what a function writes."""

    def __init__(self, write: Callable[[http.server.BaseHTTPRequestHandler], None]):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                write(self)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


def encode(path: Path, seconds: np.ndarray) -> bytes:
    """Remux a video to MPEG-TS, which can be cut anywhere."""
    source = write_video(path.with_suffix(".mp4"), seconds)
    with av.open(source) as container, av.open(str(path), "w", format="mpegts") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return path.read_bytes()


def test_file_on_a_web_server_is_read_like_a_file(path, images):
    content = Path(path).read_bytes()

    def write(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    with _Server(write) as url:
        source = open_source(f"{url}/video.mp4")

        assert not source.is_live
        np.testing.assert_array_equal(images_of(source), images)


def test_live_stream_that_stops_ends_with_a_warning_and_keeps_its_results(tmp_path, caplog):
    content = encode(tmp_path / "video.ts", np.arange(90) / 20)
    may_end = threading.Event()

    def write(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(content)
        may_end.wait(20)

    with _Server(write) as url:
        results = list(
            detect(
                url, make_model(), ClassQueryVideoProcessor(size={"shortest_edge": 32}), live=False, timeout_seconds=1
            )
        )
        may_end.set()

    assert [round(result.seconds, 2) for result in results][:4] == [0, 1, 2, 3]
    assert "nothing came for 1 s" in caplog.text


def test_frames_over_tcp_are_live(tmp_path):
    content = encode(tmp_path / "video.ts", np.arange(60) / 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(content)

        threading.Thread(target=send, daemon=True).start()
        source = open_source(f"tcp://127.0.0.1:{listener.getsockname()[1]}")

        assert source.is_live
        assert source.num_frames is None
        assert [round(frame.seconds, 3) for frame in source.frames] == pytest.approx(np.arange(60) / 20)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/video.mp4", "rtsp://127.0.0.1:9/live"])
def test_nobody_at_an_address_raises(address):
    with pytest.raises(VideoReadError, match=r"127\.0\.0\.1:9.*check address"):
        open_source(address, timeout_seconds=2)


def test_sender_that_says_nothing_raises_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(VideoReadError, match="nothing came for 1 s"):
            open_source(f"http://127.0.0.1:{listener.getsockname()[1]}/live", timeout_seconds=1)
        assert time.monotonic() - started < 20


def test_camera_is_opened_by_its_number(monkeypatch):
    """FFmpeg's test picture stands in for the camera: the way is the same from the device on."""
    monkeypatch.setattr(video_sources.sys, "platform", "test")
    monkeypatch.setitem(video_sources._CAMERAS, "test", ("lavfi", "testsrc=size=64x48:rate=25:duration={}"))

    for number in (1, "1"):
        source = open_source(number)
        assert (source.name, source.is_live, source.width) == ("camera 1", True, 64)
        assert sum(1 for _ in source.frames) == 25


def test_missing_camera_raises():
    with pytest.raises(VideoReadError, match="camera 97"):
        open_source(97)


def test_clock_that_starts_anew_goes_on():
    class Picture:
        def __init__(self, time: float | None):
            self.time = time

    pictures = [Picture(time) for time in (7.0, 7.5, 8.0, 0.0, 0.5, 900.0, 900.5)]

    frames = video_sources._time_frames(pictures, lambda picture: None, 2.0, "camera", 10.0)

    assert [frame.seconds for frame in frames] == [0, 0.5, 1, 1.5, 2, 2.5, 3]


def test_live_source_drops_the_oldest_clips_and_says_how_many(caplog):
    def camera() -> Iterator[np.ndarray]:
        for index in range(200):
            yield np.full((48, 64, 3), index, np.uint8)
            time.sleep(0.002)

    model = make_model()
    model.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    results = list(
        detect(
            camera(),
            model,
            ClassQueryVideoProcessor(size={"shortest_edge": 32}),
            live=True,
            frames_per_second=20,
            keyframes_per_second=20,
            batch_size=2,
        )
    )

    num_dropped = sum(result.num_dropped for result in results)
    assert num_dropped > 0
    assert len(results) + num_dropped == 200
    assert results[-1].frame_index == 199
    assert [result.frame_index for result in results] == sorted(result.frame_index for result in results)
    assert f"{num_dropped} keyframes were dropped" in caplog.text
    for previous, result in itertools.pairwise(results):
        assert result.frame_index - previous.frame_index == 1 + result.num_dropped


def test_the_last_frame_lasts_as_long_as_most_whatever_the_gaps(tmp_path):
    month = 30 * 86_400
    path = write_video(tmp_path / "gap.mkv", [*(np.arange(30) / 20), *(month + np.arange(30) / 20)])

    assert open_source(path).duration_seconds == pytest.approx(month + 1.5, abs=1e-3)
