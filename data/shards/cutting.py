"""Windows of videos as small videos of their own, whose frames are those of the original by number.

Copied packets give the very pixels of the original, and begin up to a group of pictures before the window. Encoded
anew, a window holds just its frames, and a clip is reached quickly: key frames are near each other.
"""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from classquery.data.preparation.preparing import Encoding
from classquery.data.video.frame_folder import count_frames, read_frame_folder
from classquery.data.video.index import VideoIndex, index_video
from classquery.data.video.opening import VideoBytes, VideoReadError, abbreviate, opened, packets_of
from classquery.data.video.pyav_file import PyavFile


if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# 40 dB and more, measured on real videos, which takes two to three times the bytes of what was compressed hard.
SHARD_ENCODING = Encoding(gop=12, crf=13)
# Codecs whose packets mp4 holds as they are.
_COPIED_CODECS = ("h264", "hevc", "av1", "vp9")
# Without edit lists, which readers understand differently: the first frame of the file is the first of the window.
_MP4_OPTIONS = {"use_editlist": "0"}
# 4:2:0 pictures of even sides, in limited and in full range; anything else is encoded with all of its colours.
_SUBSAMPLED = ("yuv420p", "yuvj420p")
_COLOURS = ("color_range", "color_primaries", "color_trc", "colorspace")


class Cut(NamedTuple):
    """A window as a video of its own."""

    content: bytes
    frames: range
    """Numbers of its frames in the original."""
    is_copied: bool
    """Whether its pixels are the very same."""


def cut_video(path: str, frames: range, encoding: Encoding | None) -> Cut:
    """Cut some frames out of a video file.

    Args:
        path: The video.
        frames: Which, by number.
        encoding: How they are encoded; None copies their packets where that is exact, and else encodes by
            `SHARD_ENCODING`.

    Raises:
        VideoReadError: If a frame cannot be decoded, or the cut does not hold just these frames.
    """
    index = index_video(path)
    if encoding is None and _may_copy(index):
        cut = _copy(index, frames)
    else:
        cut = Cut(_encode_frames(index, frames, encoding or SHARD_ENCODING), frames, False)
    _verify(path, cut)
    return cut


def cut_folder(folder: str, frames: range, frames_per_second: float, encoding: Encoding | None) -> Cut:
    """Encode some frames of a folder of images.

    Raises:
        VideoReadError: If an image cannot be read.
    """
    images = (_from_rgb(read_frame_folder(folder, [number])[0]) for number in frames)
    rate = Fraction(frames_per_second).limit_denominator(1001)
    pictures = ((position, image) for position, image in enumerate(images))
    cut = Cut(_encode(pictures, 1 / rate, encoding or SHARD_ENCODING), frames, False)
    _verify(folder, cut)
    return cut


def frames_of_folder(folder: str) -> int:
    """Count the frames of a folder."""
    return count_frames(folder)


def _verify(path: str, cut: Cut) -> None:
    info = index_video(VideoBytes(f"{abbreviate(cut.frames)} of {path}", cut.content)).info
    if info.num_frames != len(cut.frames) or not info.random_access:
        raise VideoReadError(f"wrote {len(cut.frames)} frames of {path}, but read {info.num_frames} back")


# Copied packets


def _may_copy(index: VideoIndex) -> bool:
    """Whether any run of packets from a seek point on gives the frames that it gives in the whole file."""
    is_whole = index.num_packets == index.info.num_frames
    return (
        index.info.random_access and is_whole and index.quarter_turns == 0 and index.kind.split()[0] in _COPIED_CODECS
    )


def _copy(index: VideoIndex, frames: range) -> Cut:
    packets = _closed_packets(index, frames)
    numbers = np.flatnonzero((index.packets >= packets.start) & (index.packets < packets.stop))
    output = io.BytesIO()
    with opened(index.file.path) as (container, stream), av.open(output, "w", "mp4", options=_MP4_OPTIONS) as target:
        copy = target.add_stream_from_template(stream)
        container.seek(int(index.timestamps[numbers[0]]), stream=stream)
        times = _times_of_copies(index, numbers)
        for packet in packets_of(container, stream):
            if packet.pts in times:
                packet.pts, packet.dts = times.pop(packet.pts)
                packet.stream = copy
                target.mux(packet)
            if not times:
                break
    return Cut(output.getvalue(), range(int(numbers[0]), int(numbers[-1]) + 1), True)


def _times_of_copies(index: VideoIndex, numbers: np.ndarray) -> dict[int, tuple[int, int]]:
    """Return presentation and decoding times of copied frames by their timestamps; Matroska has none of the latter."""
    presented = index.timestamps[numbers[np.argsort(index.packets[numbers])]]
    decoded = np.sort(presented)
    delay = int((decoded - presented).max())
    pairs = zip((presented - decoded[0] + delay).tolist(), (decoded - decoded[0]).tolist(), strict=True)
    return dict(zip(presented.tolist(), pairs, strict=True))


def _closed_packets(index: VideoIndex, frames: range) -> range:
    """Return the places of the packets from the seek point before some frames on, of frames without a gap."""
    group = int(index.groups_of([frames[0]])[0])
    start = int(index.seek_packets[group])
    number_of = np.empty(len(index.packets), np.int64)
    number_of[index.packets] = np.arange(len(index.packets))
    last = int(index.packets[frames.start : frames.stop].max())
    numbers = number_of[start:]
    # Frames that are shown later may come earlier in the file: the run ends where all before the latest are there.
    is_closed = np.maximum.accumulate(numbers) - numbers[0] == np.arange(len(numbers))
    stop = last - start + int(np.argmax(is_closed[last - start :]))
    return range(start, start + stop + 1)


# Encoded frames


def _encode_frames(index: VideoIndex, frames: range, encoding: Encoding) -> bytes:
    file = PyavFile(index, index.file.path)
    try:
        content = _encode(_pictures_of(file, index, frames), index.time_base, encoding)
        doubtful = np.asarray(frames)[file.is_doubtful(np.asarray(frames))]
    finally:
        file.close()
    if len(doubtful):
        raise _damaged(index, doubtful)
    return content


def _pictures_of(file: PyavFile, index: VideoIndex, frames: range) -> Iterator[tuple[int, "VideoFrame"]]:
    """Yield the time of each frame after the first, and the frame as it is encoded."""
    is_subsampled = index.quarter_turns == 0 and index.info.height % 2 == index.info.width % 2 == 0
    expected = iter(frames)
    for number, frame in file.frames_of(frames):
        if number != next(expected):
            raise _damaged(index, np.arange(number - 1, number))
        keeps_format = is_subsampled and frame.format.name in _SUBSAMPLED
        same_size = (frame.height, frame.width) == (index.info.height, index.info.width)
        picture = frame if keeps_format and same_size else _from_rgb(file.to_rgb(frame))
        yield int(index.timestamps[number] - index.timestamps[frames.start]), picture
    lost = np.array(list(expected))
    if len(lost):
        raise _damaged(index, lost)


def _damaged(index: VideoIndex, frames: np.ndarray) -> VideoReadError:
    return VideoReadError(
        f"cannot read {index.file.path}: {abbreviate(frames)} cannot be decoded, the data is damaged; fetch or export "
        "it again"
    )


def _from_rgb(image: np.ndarray) -> "VideoFrame":
    return VideoReformatter().reformat(av.VideoFrame.from_ndarray(image, format="rgb24"), format="yuv444p", threads=1)


def _encode(pictures: Iterable[tuple[int, "VideoFrame"]], time_base: Fraction, encoding: Encoding) -> bytes:
    """Write pictures at their times, in units of `time_base`."""
    output = io.BytesIO()
    with av.open(output, "w", "mp4", options=_MP4_OPTIONS) as container:
        stream = None
        for time, picture in pictures:
            stream = stream or _add_stream(container, picture, time_base, encoding)
            picture.pts, picture.time_base, picture.pict_type = time, time_base, 0
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return output.getvalue()


def _add_stream(
    container: "OutputContainer", picture: "VideoFrame", time_base: Fraction, encoding: Encoding
) -> "VideoStream":
    """Add a stream of the size, the format and the colours of its first picture."""
    stream = container.add_stream("libx264", options=encoding.x264_options)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.format.name
    stream.codec_context.time_base = time_base
    for name in _COLOURS:
        setattr(stream.codec_context, name, getattr(picture, name))
    return stream
