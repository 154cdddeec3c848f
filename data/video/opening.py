"""Open a video file with FFmpeg, and say what is wrong with one that cannot be opened."""

import contextlib
import hashlib
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from PIL import Image


if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


# PyAV knows the streams that are there when a file is opened; of another one it gives the wrong place in a list.
_STREAM_TOO_LATE = "a stream begins in the middle of it, or the data is damaged", "export it again"
# 16K video; as RGB a frame takes 400 MB.
MAX_PIXELS = 2**27
# A clip of such frames, resized to a short side of 256 pixels as models want it, takes half a gigabyte.
MAX_ASPECT = 32


class VideoReadError(RuntimeError):
    """A video, or some of its frames, cannot be read; the message names file, frames, likely cause and remedy.

    It takes the message alone, so that it crosses from a `DataLoader` worker to the main process unchanged.
    """


@dataclass(frozen=True, eq=False)
class VideoBytes:
    """A video in memory."""

    name: str
    """What messages call it."""
    content: bytes
    """What its file would hold."""

    @cached_property
    def digest(self) -> str:
        """Tells contents apart."""
        return hashlib.sha256(self.content).hexdigest()

    def open(self) -> io.BytesIO:
        """Open it as a file, without a copy."""
        return io.BytesIO(self.content)


Source = str | VideoBytes
"""A path, or a video in memory."""


def name_of(source: Source) -> str:
    """What messages call a video."""
    return source.name if isinstance(source, VideoBytes) else source


class VideoFile(NamedTuple):
    """One version of a file: after rewriting it is another one. Of a video in memory, its content."""

    path: str
    modified_ns: int
    num_bytes: int
    digest: str = ""


def identify(source: Source) -> VideoFile:
    """Name the version of a file, or say why it cannot be a video."""
    if isinstance(source, VideoBytes):
        if not source.content:
            raise unreadable(source.name, "it holds no bytes", "write the shard again")
        return VideoFile(source.name, 0, len(source.content), source.digest)
    path = source
    if not os.path.exists(path):
        raise unreadable(path, "the file is missing", "check the path and the folder of the videos")
    if not os.path.isfile(path):
        raise unreadable(path, "it is not a regular file", "give the path of a video file")
    status = os.stat(path)
    if status.st_size == 0:
        raise unreadable(path, "the file is empty", "fetch or export it again")
    return VideoFile(path, status.st_mtime_ns, status.st_size)


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Open a file and its video stream; errors of FFmpeg from then on become `VideoReadError`."""
    container, stream = open_video(source)
    with container, translated_errors(name_of(source)):
        yield container, stream


def open_video(source: Source) -> tuple["InputContainer", "VideoStream"]:
    """Open a file and its best video stream, to be decoded by one thread."""
    path = name_of(source)
    try:
        # Titles in avi files are often Latin-1, which strict decoding refuses.
        # Absolute, because FFmpeg takes what is before a colon for a protocol.
        file = source.open() if isinstance(source, VideoBytes) else os.path.abspath(source)
        container = av.open(file, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise unreadable(path, *_why_not_opened(source)) from error
    try:
        stream = container.streams.best("video")
    except IndexError as error:
        container.close()
        raise unreadable(path, *_STREAM_TOO_LATE) from error
    problem = None
    if stream is None or stream.disposition & Disposition.attached_pic:
        problem = "it has no video stream (audio only, or its index is cut off)", "give the whole video"
    elif stream.codec_context is None:
        problem = "FFmpeg knows no decoder for its codec", "convert it to H.264 mp4"
    else:
        problem = _why_size_is_refused(stream.codec_context.height, stream.codec_context.width)
    if problem:
        container.close()
        raise unreadable(path, *problem)
    # Data sets decode in many workers at once.
    stream.codec_context.thread_count = 1
    return container, stream


def check_size(path: str, height: int, width: int) -> None:
    """Refuse frames that would exhaust the memory, here or where they are resized.

    Raises:
        VideoReadError: If there are too many pixels, or one side is much longer than the other.
    """
    problem = _why_size_is_refused(height, width)
    if problem:
        raise unreadable(path, *problem)


def _why_size_is_refused(height: int, width: int) -> tuple[str, str] | None:
    if height * width > MAX_PIXELS:
        return f"its frames have {width}x{height} pixels, more than {MAX_PIXELS:,}", "make them smaller"
    if max(height, width) > MAX_ASPECT * min(height, width) > 0:
        cause = f"its frames have {width}x{height} pixels, where one side may be {MAX_ASPECT} times the other at most"
        return cause, "cut out what matters"
    return None


@contextlib.contextmanager
def translated_errors(path: str) -> Iterator[None]:
    """Turn what FFmpeg raises into `VideoReadError`."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise unreadable(
            path, f"the data is damaged or truncated ({error.strerror})", "fetch or export it again"
        ) from error


def why_not_decoded(path: str) -> tuple[str, str]:
    """Say why a file gives no frame although it could be opened."""
    try:
        # Only its header is read.
        with Image.open(path) as image:
            if problem := _why_size_is_refused(image.height, image.width):
                return problem
            if getattr(image, "is_animated", False):
                cause = f"it is an animated {image.format}, which FFmpeg does not decode"
                return cause, "convert it to mp4 or to a folder of images"
    except Image.DecompressionBombError as error:
        return str(error), "make it smaller"
    except (OSError, SyntaxError, ValueError):
        pass  # No image.
    return "no frame can be decoded", "the file is damaged: fetch or export it again"


def _why_not_opened(source: Source) -> tuple[str, str]:
    try:
        with source.open() if isinstance(source, VideoBytes) else open(source, "rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
    except OSError as error:
        return error.strerror or str(error), "check the rights of the file and of its folder"
    if is_mp4:
        return "it is an mp4 without its index (moov atom), probably truncated", "fetch or export it again"
    return "it is not a video that FFmpeg knows", "check that the file is what its name says"


def packets_of(container: "InputContainer", stream: "VideoStream") -> Iterator["Packet"]:
    """List the packets from the first key frame on: those before it cannot be decoded."""
    try:
        yield from itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
    except IndexError as error:
        raise unreadable(container.name, *_STREAM_TOO_LATE) from error


def decode(packet: "Packet") -> list["VideoFrame"] | None:
    """Decode a packet; None if it is damaged, which players pass over."""
    try:
        return packet.decode()
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return None


def unreadable(path: str, cause: str, remedy: str) -> VideoReadError:
    """Make the error that says what is wrong with a file and what to do."""
    return VideoReadError(f"cannot read {path}: {cause}; {remedy}")


def abbreviate(frame_indices: Sequence[int] | np.ndarray) -> str:
    """Write frame numbers as "frame 7" or "frames 0, 8, 16, 24, ..., 248 (32 in all)"."""
    if len(frame_indices) == 1:
        return f"frame {frame_indices[0]}"
    if len(frame_indices) <= 8:
        return f"frames {', '.join(map(str, frame_indices))}"
    first = ", ".join(map(str, frame_indices[:4]))
    return f"frames {first}, ..., {frame_indices[-1]} ({len(frame_indices)} in all)"
