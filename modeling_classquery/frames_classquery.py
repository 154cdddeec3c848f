"""The frames of whatever a user calls a video: a file, a link, an array or a list of images.

With the package, files are read by its clip reader. Code that runs from the Hub reads them with PyAV alone, by the
same rules: frame `i` is the i-th that a player shows, rotated as the file asks for, at its time on the clock of the
file. Other decoders are not used: they skip edit lists, guess the times of a variable rate or return other frames, and
do not tell.
"""

import contextlib
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx
from transformers.utils import is_av_available, logging


logger = logging.get_logger(__name__)

_READER_NAME = f"{__package__}.data.video.reader"
_HAS_READER = importlib.util.find_spec(f"{__package__}.data") is not None
# Codecs whose decoded frames carry the timestamp of their packet. Not MPEG-4: XviD packs two frames in a packet.
_CODECS_WITH_EXACT_TIMES = ("av1", "h264", "hevc", "mjpeg", "mpeg2video", "vp8", "vp9")
# The largest distance between decoding and presentation order that H.264 and HEVC allow.
_MAX_REORDERED_FRAMES = 16
# FFmpeg's own guess for a stream that does not state its rate.
_DEFAULT_FRAMES_PER_SECOND = 25
_VP8_SHOW_FRAME_BIT = 0x10
# FFmpeg states the start of a file in whole microseconds.
_CONTAINER_TIME_BASE = Fraction(1, 1_000_000)


class DecodedFrame(NamedTuple):
    """One frame of a video."""

    index: int
    """Its number, from 0, as a player shows them."""
    seconds: float
    """Its time on the clock of the file; where pictures start later than sound, the first one has a time above 0."""
    image: np.ndarray
    """uint8 RGB of shape (height, width, 3)."""


@dataclass(frozen=True)
class VideoFrames:
    """A video to go through once."""

    num_frames: int
    size: tuple[int, int]
    """Height and width in pixels."""
    frames: Iterable[Any]
    """All frames in order, as `DecodedFrame`; those that are damaged are missing, with a warning."""
    frame_seconds: np.ndarray | None = None
    """Times of all frames, (num_frames,), where they are known beforehand."""
    frames_with: Callable[[Iterator[int]], Iterable[Any]] | None = None
    """With the times, gives `frames` of which only those numbers will be looked at: less has to be decoded."""


@contextlib.contextmanager
def local_video(video: Any) -> Iterator[Any]:
    """Replace a link by a file that is deleted afterwards; anything else stays as it is.

    Raises:
        ValueError: If the link cannot be downloaded.
    """
    if not (isinstance(video, str) and urlparse(video).scheme in ("http", "https")):
        yield video
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(urlparse(video).path).name or "video")
        _download(video, path)
        yield path


def _download(url: str, path: Path) -> None:
    # The session of the Hub signs in there, and refuses when HF_HUB_OFFLINE=1: other servers are no business of it.
    is_hub = urlparse(url).netloc == urlparse(constants.ENDPOINT).netloc
    try:
        with (
            contextlib.nullcontext(get_session()) if is_hub else httpx.Client() as client,
            client.stream("GET", url, follow_redirects=True) as response,
            path.open("wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
    except (OfflineModeIsEnabled, httpx.HTTPError) as error:
        raise ValueError(f"the video {url} cannot be downloaded: {error}") from error


def is_one_video(video: Any) -> bool:
    """Whether something is one video, and not several: a list of images is one."""
    if not isinstance(video, list | tuple):
        return isinstance(video, str | os.PathLike | np.ndarray | torch.Tensor)
    return bool(video) and is_image(video[0])


def is_image(image: Any) -> bool:
    """Whether something is a PIL image or an array of one."""
    return hasattr(image, "convert") or (isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 3)


def open_video(video: Any, frames_per_second: float) -> VideoFrames:
    """Look at a video without going through it.

    Args:
        video: Path of a file; array or tensor of shape (num_frames, height, width, 3) or (num_frames, 3, height,
            width), uint8; or a list of PIL images or arrays.
        frames_per_second: Frame rate of what is no file.

    Raises:
        ValueError: If it is none of these, or cannot be read.
        ImportError: If it is a file and PyAV is not installed.
    """
    if not is_one_video(video):
        raise ValueError(f"a video is a path or link of a file, an array or a list of images, got {type(video)}")
    if not isinstance(video, str | os.PathLike):
        return _of_images(video, frames_per_second)
    if os.path.isdir(video):
        raise ValueError(
            f"{os.fspath(video)!r} is a folder: the pipeline takes files, classquery.detect folders of videos or of "
            "frames as well"
        )
    if _HAS_READER:
        return _of_reader(os.fspath(video))
    if not os.path.isfile(video):
        raise ValueError(f"there is no video file {os.fspath(video)!r}")
    if not is_av_available():
        raise ImportError("video files are read with PyAV: pip install av; or pass the frames as an array")
    return _of_pyav(os.fspath(video))


def _of_reader(path: str) -> VideoFrames:
    reader = importlib.import_module(_READER_NAME)
    clips = reader.ClipReader()

    def frames_with(needed: Iterator[int] | None) -> DecodableFrames:
        frames = reader.iterate_frames(path, needed=needed)
        return DecodableFrames(frames, path, info.num_frames, reader.VideoReadError)

    try:
        info = clips.info(path)
        seconds = clips.seconds_of(path, range(info.num_frames))
        return VideoFrames(info.num_frames, (info.height, info.width), frames_with(None), seconds, frames_with)
    except reader.VideoReadError as error:
        raise ValueError(str(error)) from error


# PyAV, as the clip reader of the package uses it


def _of_pyav(path: str) -> VideoFrames:
    av = importlib.import_module("av")
    try:
        with av.open(path, metadata_errors="replace") as container:
            shown = _list_shown(container)
        height, width, _ = next(_decode(path, shown)).image.shape
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} is damaged or no video: {error}") from error
    frames = DecodableFrames(_decode(path, shown), path, len(shown.seconds), av.FFmpegError)
    return VideoFrames(len(shown.seconds), (height, width), frames)


class _Shown(NamedTuple):
    """The frames that a player shows, as packets tell."""

    stream_index: int
    seconds: np.ndarray
    """Their times, (num_frames,), ascending."""
    number_of: dict[int, int] | None
    """From timestamps to numbers of frames; None where decoded frames have to be counted."""


def _list_shown(container: Any) -> _Shown:
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise ValueError(f"{container.name} has no pictures that can be decoded")
    codec = stream.codec_context.codec.canonical_name
    rows = [
        (packet.pts, packet.dts, _is_shown(packet, codec)) for packet in _packets_of(container, stream) if packet.size
    ]
    pts, dts, is_shown = (list(column) for column in zip(*rows, strict=True))
    # avi stores no presentation times: FFmpeg makes them up, wrong for B-frames.
    unit = stream.time_base
    has_pts = container.format.name != "avi" and _are_sound(pts)
    if has_pts:
        clock = np.array(pts)
    elif _are_sound(dts):
        clock = np.array(dts)
    else:
        rate = stream.average_rate or stream.guessed_rate or _DEFAULT_FRAMES_PER_SECOND
        clock, unit = np.arange(len(rows)), 1 / Fraction(rate)
    is_exact = has_pts and codec in _CODECS_WITH_EXACT_TIMES
    # Frames shown before the first key frame need a group of pictures that was cut off.
    times = np.sort(clock[np.array(is_shown) & (not is_exact or clock >= clock[0])])
    start_seconds = _delay_seconds(container, stream)
    if has_pts and stream.start_time is not None:
        # The first frame is not the first of the stream where that one cannot be decoded.
        start_seconds = max(0.0, start_seconds + float((int(times[0]) - stream.start_time) * unit))
    return _Shown(
        stream.index,
        start_seconds + (times - times[0]) * float(unit),
        {time: number for number, time in enumerate(times.tolist())} if is_exact else None,
    )


def _delay_seconds(container: Any, stream: Any) -> float:
    """How much later than the file, be that its sound, its pictures start."""
    if container.start_time is None or stream.start_time is None:
        return 0.0
    delay = stream.start_time * stream.time_base - container.start_time * _CONTAINER_TIME_BASE
    return float(delay) if delay > _CONTAINER_TIME_BASE else 0.0


def _packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """List the packets from the first key frame on: those before it cannot be decoded."""
    return itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))


def _is_shown(packet: Any, codec: str) -> bool:
    """Whether a packet gives a frame: no cut one, none that an edit list leaves out, no hidden VP8 reference."""
    is_hidden = codec == "vp8" and not bytes(packet)[0] & _VP8_SHOW_FRAME_BIT
    return not (packet.is_discard or packet.is_corrupt or is_hidden)


def _are_sound(times: list[int | None]) -> bool:
    """Whether times are present, distinct and in an order that reordering for B-frames can explain."""
    if None in times or len(set(times)) < len(times):
        return False
    return bool(np.abs(np.argsort(times) - np.arange(len(times))).max() <= _MAX_REORDERED_FRAMES)


def _decode(path: str, shown: _Shown) -> Iterator[DecodedFrame]:
    av = importlib.import_module("av")
    num_counted = 0
    with av.open(path, metadata_errors="replace") as container:
        stream = container.streams[shown.stream_index]
        for packet in _packets_of(container, stream):
            frames = _decode_packet(packet, av.error.InvalidDataError)
            for frame in frames or ():
                number = num_counted if shown.number_of is None else shown.number_of.get(frame.pts)
                num_counted += 1
                if number is not None and number < len(shown.seconds):
                    yield DecodedFrame(number, float(shown.seconds[number]), _upright(frame))
            # Of most codecs a packet holds one frame.
            num_counted += frames is None


def _decode_packet(packet: Any, damage: type[Exception]) -> list[Any] | None:
    """Decode a packet; None if it is damaged: as in a player, the next ones go on."""
    with contextlib.suppress(damage):
        return [] if packet.is_corrupt else packet.decode()
    return None


def _upright(frame: Any) -> np.ndarray:
    """RGB pixels of a frame of PyAV, rotated as the file asks for."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


# What is missing


class MissingFrames(NamedTuple):
    """Frames that cannot be decoded because the video is damaged there."""

    after_seconds: float
    """Time of the frame before them."""
    before_seconds: float | None
    """Time of the frame behind them; None if none comes."""
    num_frames: int
    """How many; 0 if that is not known."""

    def __str__(self) -> str:
        end = "on" if self.before_seconds is None else f"to {self.before_seconds:.1f} s"
        return f"{self.after_seconds:.1f} s {end}"


class DecodableFrames:
    """The frames of a video that can be decoded; the others are noted, and told about in the end.

    Args:
        frames: The frames in order. Behind damage, some may come late: these are left out, too, as players do.
        name: Path or URL of the video.
        num_frames: Their number, where it is known for certain.
        damage: What `frames` raises after the last one if some cannot be decoded.
        missing: Where to note them.
    """

    def __init__(
        self,
        frames: Iterable[Any],
        name: str,
        num_frames: int | None,
        damage: type[Exception],
        missing: list[MissingFrames] | None = None,
    ):
        self.missing = [] if missing is None else missing
        self._frames, self._name, self._num_frames, self._damage = frames, name, num_frames, damage

    def __iter__(self) -> Iterator[Any]:
        index, seconds, error = -1, 0.0, None
        try:
            for frame in self._frames:
                if frame.index <= index:
                    continue
                self._note(frame.index - index - 1, seconds, frame.seconds)
                index, seconds = frame.index, frame.seconds
                yield frame
        except self._damage as damage:
            error = damage
        self._note((self._num_frames or 0) - index - 1, seconds, None)
        if error is not None and not self.missing:
            self.missing.append(MissingFrames(seconds, None, 0))
        self._tell(error)

    def _note(self, num_frames: int, after_seconds: float, before_seconds: float | None) -> None:
        if num_frames > 0:
            self.missing.append(MissingFrames(after_seconds, before_seconds, num_frames))

    def _tell(self, error: Exception | None) -> None:
        if self.missing:
            where = ", ".join(map(str, self.missing[:3])) + (", ..." if len(self.missing) > 3 else "")
            reason = error or "frames cannot be decoded, the data is damaged"
            logger.warning("%s: nothing is detected from %s: %s", self._name, where, reason)


# Images


def _of_images(images: Sequence[Any], frames_per_second: float) -> VideoFrames:
    if len(images) == 0:
        raise ValueError("a video of no frames: give at least one")
    size = to_rgb(images[0]).shape[:2]
    frames = (
        DecodedFrame(index, index / frames_per_second, to_rgb(image, size)) for index, image in enumerate(images)
    )
    return VideoFrames(len(images), size, frames)


def to_rgb(image: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """Bring an image into the shape (height, width, 3), uint8.

    Raises:
        ValueError: If it is none, or not of the (height, width) `size`.
    """
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(
            "frames must be uint8 of shape (height, width, 3) or (3, height, width), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if size is not None and array.shape[:2] != size:
        raise ValueError(f"all frames of a video must have one size, got {size} and {array.shape[:2]}")
    return array


__all__ = [
    "DecodableFrames",
    "DecodedFrame",
    "MissingFrames",
    "VideoFrames",
    "is_image",
    "is_one_video",
    "local_video",
    "open_video",
    "to_rgb",
]
