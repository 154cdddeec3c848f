"""Anything that frames can come from, opened as one kind of thing: files, folders, arrays, cameras and streams."""

import contextlib
import functools
import glob
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import av
import numpy as np
import torch
from PIL import Image

from classquery.data.annotations.schema import VIDEO_SUFFIXES
from classquery.data.video.frame_folder import count_frames, is_frame_folder, read_frame_folder
from classquery.data.video.index import quarter_turns
from classquery.data.video.opening import check_size
from classquery.data.video.pyav_file import rgb_converter
from classquery.data.video.reader import ClipReader, Frame, VideoReadError, iterate_frames
from classquery.frames_classquery import MissingFrames, is_image, to_rgb


if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# What a folder is searched for: those of data sets, and what cameras and archives hold besides.
_FILE_SUFFIXES = (
    *VIDEO_SUFFIXES,
    *(".3gp", ".flv", ".m2ts", ".m4v", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".wmv"),
)
_NETWORK_SCHEMES = ("http", "https", "rtmp", "rtmps", "rtsp", "rtsps", "srt", "tcp", "udp")
# Whoever connects late has missed what was sent; a file on a web server waits.
_LIVE_SCHEMES = ("rtmp", "rtmps", "rtsp", "rtsps", "srt", "tcp", "udp")
# How FFmpeg calls the cameras of a system, and the first of them.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}

Source: TypeAlias = (
    str | os.PathLike[str] | int | np.ndarray | torch.Tensor | Iterable[np.ndarray | Image.Image] | Sequence[Any]
)


@dataclass(frozen=True)
class VideoSource:
    """A video that can be streamed once, from the first frame to the last."""

    name: str
    """Path or URL, `camera 0`, or `array` where there is no name."""
    height: int
    """Height in pixels of all frames."""
    width: int
    """Width in pixels of all frames."""
    frames_per_second: float
    """Mean or stated frame rate."""
    num_frames: int | None
    """Number of readable frames, where it is known before the last one."""
    is_live: bool
    """Whether frames go on coming while nobody takes them."""
    frames: Iterator[Frame]
    """The frames in order; `VideoReadError` after the last one that could be decoded, if the rest is damaged."""
    start_seconds: float = 0.0
    """Time of the first frame; more than 0 where a file starts with sound alone."""
    end_seconds: float | None = None
    """Time of the end of the last frame of a file; None where it follows from number and rate, or is not known."""
    missing: list[MissingFrames] = field(default_factory=list)
    """Which frames could not be decoded, so far as `detect_in` has come."""
    frame_seconds: np.ndarray | None = None
    """Times of all frames, (num_frames,), of a file; None where they are not known beforehand."""

    def __post_init__(self) -> None:
        check_size(self.name, self.height, self.width)

    def frames_with(self, needed: Iterator[int]) -> Iterator[Frame]:
        """Give the frames of a file, of which only those numbers will be looked at: less has to be decoded."""
        return iterate_frames(self.name, needed=needed)

    @property
    def duration_seconds(self) -> float | None:
        """From the start of the clock to the end of the last frame, where it is known."""
        if self.end_seconds is not None or self.num_frames is None:
            return self.end_seconds
        return self.num_frames / self.frames_per_second


def list_sources(source: Source) -> list[Source]:
    """Divide a source into single videos.

    Args:
        source: A video file, a folder of video files, a folder of numbered images (one video), a pattern such as
            `videos/**/*.mp4`, the number of a camera, the URL of a stream or of a file, frames (an array or tensor
            (num_frames, height, width, 3) or (num_frames, 3, height, width), uint8, or any iterable of images), or a
            list of these.

    Returns:
        What `open_source` takes, in the order given; files of a folder or pattern by name.

    Raises:
        FileNotFoundError: If a folder or pattern holds no video.
        TypeError: If it is nothing of the kind.
    """
    if isinstance(source, int | np.ndarray | torch.Tensor):
        return [source]
    if isinstance(source, str | os.PathLike):
        return _list_path(os.fspath(source))
    if isinstance(source, Sequence):
        is_one_video = len(source) > 0 and all(is_image(item) for item in source)
        return [source] if is_one_video else [video for item in source for video in list_sources(item)]
    if isinstance(source, Iterable):
        return [source]
    raise TypeError(
        f"no source of video: got {type(source).__name__}, expected a path, a pattern, a URL, the number of a camera, "
        "frames, or a list of these"
    )


def local_path(source: Source) -> str | None:
    """The path of a file or folder; None for cameras, streams and frames in memory."""
    if not isinstance(source, str | os.PathLike):
        return None
    path = os.fspath(source)
    return None if _is_url(path) or (path.isdecimal() and not os.path.exists(path)) else path


def open_source(
    source: Source, *, frames_per_second: float = 30.0, live: bool | None = None, timeout_seconds: float = 10.0
) -> VideoSource:
    """Open a single video.

    Args:
        source: One of those that `list_sources` returns.
        frames_per_second: Frame rate of images and arrays, which do not tell.
        live: Whether frames go on coming while nobody takes them; by default true of cameras, of protocols for live
            video and of HTTP streams without an end.
        timeout_seconds: How long to wait for a camera or stream, also between frames, before it counts as ended.

    Raises:
        VideoReadError: If it cannot be read at all, or its frames are too large or too long and narrow.
        ValueError: If an array has no frames or another shape, or a number is not positive.
    """
    for name, number in (("frames_per_second", frames_per_second), ("timeout_seconds", timeout_seconds)):
        if not number > 0:
            raise ValueError(f"{name} must be more than 0, got {number}")
    if isinstance(source, str | os.PathLike):
        source = os.fspath(source)
        if _is_url(source):
            return _open_stream(source, source, None, live, timeout_seconds)
        if source.isdecimal() and not os.path.exists(source):
            source = int(source)
    if isinstance(source, int):
        return _open_camera(source, live, timeout_seconds)
    if isinstance(source, str):
        return _open_frame_folder(source, frames_per_second) if os.path.isdir(source) else _open_file(source)
    return _open_images(source, frames_per_second, bool(live))


def _list_path(path: str) -> list[str]:
    if _is_url(path) or os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        videos = sorted(str(file) for file in Path(path).iterdir() if file.suffix.lower() in _FILE_SUFFIXES)
        if not videos and not is_frame_folder(path):
            raise FileNotFoundError(
                f"{path} holds neither videos ({', '.join(_FILE_SUFFIXES)}) nor numbered .jpg or .png images; "
                f"for folders within it, give a pattern: '{os.path.join(path, '**', '*.mp4')}'"
            )
        return videos or [path]
    if glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise FileNotFoundError(f"no file matches {path!r}; check the pattern")
        return matches
    # A camera, or a file that is missing: opening it says so.
    return [path]


def _is_url(path: str) -> bool:
    return path.partition("://")[0].lower() in _NETWORK_SCHEMES and "://" in path


# Files and folders


def _open_file(path: str) -> VideoSource:
    frames, reader = iterate_frames(path), ClipReader()
    info = reader.info(path)
    return VideoSource(
        path,
        info.height,
        info.width,
        info.frames_per_second,
        info.num_frames,
        False,
        frames,
        start_seconds=info.start_seconds,
        end_seconds=info.duration_seconds,
        frame_seconds=reader.seconds_of(path, range(info.num_frames)),
    )


def _open_frame_folder(folder: str, frames_per_second: float) -> VideoSource:
    num_frames = count_frames(folder)
    height, width = read_frame_folder(folder, [0]).shape[1:3]
    frames = (
        Frame(index, index / frames_per_second, functools.partial(_read_image, folder, index, (height, width)))
        for index in range(num_frames)
    )
    return VideoSource(folder, height, width, frames_per_second, num_frames, False, frames)


def _read_image(folder: str, index: int, size: tuple[int, int]) -> np.ndarray:
    image = read_frame_folder(folder, [index])[0]
    if image.shape[:2] != size:
        raise VideoReadError(
            f"frame {index}: cannot read {folder}: its images differ in size: {size} and {image.shape[:2]}"
        )
    return image


# Frames in memory, or made by the program


def _open_images(images: Iterable, frames_per_second: float, live: bool) -> VideoSource:
    num_frames = len(images) if isinstance(images, Sequence | np.ndarray | torch.Tensor) else None
    images = iter(images)
    first = next(images, None)
    if first is None:
        raise ValueError("a video of no frames: give at least one")
    height, width = to_rgb(first).shape[:2]
    frames = (
        Frame(index, index / frames_per_second, functools.partial(to_rgb, image, (height, width)))
        for index, image in enumerate(itertools.chain([first], images))
    )
    return VideoSource("array", height, width, frames_per_second, num_frames, live, frames)


# Cameras and streams


def _open_camera(number: int, live: bool | None, timeout_seconds: float) -> VideoSource:
    camera_format, pattern = _CAMERAS.get(sys.platform, (None, None))
    if camera_format is None:
        raise VideoReadError(f"cannot open camera {number}: no cameras on {sys.platform}; give a file or a URL")
    address = pattern.format(number)
    return _open_stream(f"camera {number}", address, camera_format, live, timeout_seconds)


def _open_stream(
    name: str, address: str, container_format: str | None, live: bool | None, timeout_seconds: float
) -> VideoSource:
    """Open what cannot be listed beforehand."""
    options = {"rtsp_transport": "tcp"} if address.startswith("rtsp") else {}
    with _stream_errors(name, timeout_seconds):
        container = av.open(
            address, format=container_format, options=options, timeout=timeout_seconds, metadata_errors="replace"
        )
        stream = container.streams.best("video")
        if stream is None:
            raise VideoReadError(f"cannot read {name}: it has no video; give a stream with pictures")
        decoded = _decode_stream(container, stream)
        first = next(decoded, None)
    if first is None:
        raise VideoReadError(f"cannot read {name}: it ended before its first frame; check the sender")
    if live is None:
        scheme = address.partition("://")[0].lower()
        live = container_format is not None or scheme in _LIVE_SCHEMES or container.duration is None
    turns = quarter_turns(first)
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    frames_per_second = float(stream.average_rate or stream.guessed_rate or 30)
    frames = _time_frames(
        itertools.chain([first], decoded),
        rgb_converter(height, width, turns),
        frames_per_second,
        name,
        timeout_seconds,
    )
    return VideoSource(name, height, width, frames_per_second, stream.frames or None, live, frames)


def _decode_stream(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame"]:
    """Decode what arrives; packets that were damaged on their way are passed over."""
    with container:
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError):
                yield from packet.decode()


def _time_frames(
    decoded: Iterable["VideoFrame"],
    to_rgb: Callable[["VideoFrame"], np.ndarray],
    frames_per_second: float,
    name: str,
    timeout_seconds: float,
) -> Iterator[Frame]:
    """Number frames and give them times that only grow, also where a sender starts its clock anew."""
    shift = previous = None
    with _stream_errors(name, timeout_seconds):
        for index, frame in enumerate(decoded):
            seconds = index / frames_per_second if frame.time is None else frame.time
            if shift is None:
                shift = -seconds
            elif not 0 < seconds + shift - previous <= timeout_seconds:
                shift = previous + 1 / frames_per_second - seconds
            previous = seconds + shift
            yield Frame(index, previous, functools.partial(to_rgb, frame))


@contextlib.contextmanager
def _stream_errors(name: str, timeout_seconds: float) -> Iterator[None]:
    try:
        yield
    except av.error.ExitError as error:
        raise VideoReadError(
            f"cannot read {name}: nothing came for {timeout_seconds:g} s; check the sender"
        ) from error
    except av.error.FFmpegError as error:
        raise VideoReadError(f"cannot read {name}: {error.strerror}; check address, rights and sender") from error
