"""The frames of a video and the way to reach them, by what its header and its packets say."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from classquery.data.video.opening import (
    Source,
    VideoFile,
    decode,
    identify,
    name_of,
    opened,
    packets_of,
    unreadable,
    why_not_decoded,
)


if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg's first name of the containers (mp4 is "mov", webm is "matroska") whose index leads a seek to a known frame.
_SEEKABLE_CONTAINERS = ("mov", "matroska")
_DECORD_CODECS = ("h264", "vp8", "vp9", "mjpeg")
# Codecs whose decoded frames carry the timestamp of their packet. Not MPEG-4: XviD packs two frames in a packet.
_CODECS_WITH_EXACT_TIMES = (*_DECORD_CODECS, "hevc", "av1", "mpeg2video")
# The largest distance between decoding and presentation order that H.264 and HEVC allow.
_MAX_REORDERED_FRAMES = 16
# FFmpeg's own guess for a stream that does not state its rate.
_DEFAULT_FRAMES_PER_SECOND = Fraction(25)
_NO_TIMESTAMP = np.iinfo(np.int64).min
# Of 12 bytes each, and some 2 kB per file: 235 fifteen-minute AVA movies take 76 MB, the 3,207 files of UCF101-24 13.
_MAX_INDEXED_FRAMES = 8_000_000
_FRAMES_PER_FILE = 200
# FFmpeg states the start of a file in whole microseconds.
_CONTAINER_TIME_BASE = Fraction(1, 1_000_000)
# Headers are off by some frames in good files too.
_TRUNCATION_TOLERANCE_SECONDS = 1.0
_NAL_TYPE_IDR = 5
_VP8_SHOW_FRAME_BIT = 0x10


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video before any clip is decoded."""

    path: str
    """The file, as it was asked for."""
    num_frames: int
    """Number of readable frames; those that an edit list hides or that a truncated file lost do not count."""
    height: int
    """Height in pixels after the rotation that the file asks for."""
    width: int
    """Width in pixels after the rotation that the file asks for."""
    frames_per_second: float
    """Mean frame rate; use `ClipReader.frame_indices_at` for times, the rate may vary."""
    start_seconds: float
    """Time of the first frame on the clock of the file, which starts with its first stream, be that sound."""
    duration_seconds: float
    """From the start of that clock to the end of the last frame, which is taken to last as long as most frames."""
    random_access: bool
    """Whether a clip is reached by seeking (about one group of pictures is decoded) or from the first frame on."""


class _Scan(NamedTuple):
    """A video stream before interpretation; arrays are of shape (num_packets,), in decoding order."""

    container: str
    codec: str
    frame_rate: Fraction
    time_base: Fraction
    delay_seconds: float
    """How much later than the file its pictures start."""
    start: int | None
    """First presentation time of the stream."""
    first_frame: "VideoFrame"
    missing_seconds: float
    pts: np.ndarray
    dts: np.ndarray
    is_shown: np.ndarray
    is_keyframe: np.ndarray
    is_restart: np.ndarray
    """Whether decoding may start at a packet and all frames from its timestamp on come out right."""


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video and the way to reach them."""

    file: VideoFile
    info: VideoInfo
    timestamps: np.ndarray
    """int64 (num_frames,), increasing, in units of `time_base`."""
    time_base: Fraction
    """Seconds per unit of `timestamps`."""
    packets: np.ndarray
    """int32 (num_frames,): place of the packet of each frame in the file, where decoding starts."""
    has_exact_times: bool
    """Whether a decoded frame is recognised by its timestamp; otherwise frames are counted from the first one."""
    seek_points: np.ndarray
    """int64, increasing: timestamps at which decoding may start; empty if the file cannot be sought."""
    seek_packets: np.ndarray
    """int32: places in the file of the packets with these timestamps."""
    is_exact_with_decord: bool
    num_packets: int
    """Number of frames that decord should find."""
    kind: str
    """Codec and container in FFmpeg's words, for messages."""
    can_skip_frames: bool
    """Whether frames that no other refers to may be left out when they are not wanted."""
    quarter_turns: int
    """How often to turn a decoded frame counter-clockwise by 90 degrees."""
    missing_seconds: float
    """How much the header promises beyond the last packet, in seconds; 0 if the file is not known to be truncated."""

    @property
    def frame_seconds(self) -> np.ndarray:
        """float64 (num_frames,): seconds on the clock of the file."""
        return self.info.start_seconds + (self.timestamps - self.timestamps[0]) * float(self.time_base)

    def groups_of(self, frame_indices: Sequence[int]) -> np.ndarray:
        """Return for each frame the number of the seek point from which it is decoded, or -1 for the start."""
        # Not a later one: the frames shown before an open key frame need the group before it.
        return np.searchsorted(self.seek_points, self.timestamps[frame_indices], side="right") - 1

    def number_at(self, timestamp: int) -> int | None:
        """Return the number of the frame with a timestamp, or None if there is none."""
        number = int(self.timestamps.searchsorted(timestamp))
        return number if number < len(self.timestamps) and self.timestamps[number] == timestamp else None


class _Cache:
    """The indices of the files read last, of so many frames that they fit in memory."""

    def __init__(self) -> None:
        self._indices: OrderedDict[VideoFile, VideoIndex] = OrderedDict()
        self._num_frames = 0
        self._lock = threading.Lock()
        # A process may be forked while another thread holds the lock.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def get(self, file: VideoFile) -> VideoIndex | None:
        """Look an index up."""
        with self._lock:
            if file in self._indices:
                self._indices.move_to_end(file)
            return self._indices.get(file)

    def add(self, index: VideoIndex) -> None:
        """Keep an index, in place of those that were not used for longest."""
        with self._lock:
            if index.file in self._indices:
                return
            self._indices[index.file] = index
            self._num_frames += _size_of(index)
            while self._num_frames > _MAX_INDEXED_FRAMES and len(self._indices) > 1:
                self._num_frames -= _size_of(self._indices.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._indices.clear()
            self._num_frames = 0


def _size_of(index: VideoIndex) -> int:
    return index.info.num_frames + _FRAMES_PER_FILE


cache = _Cache()


def index_video(source: Source) -> VideoIndex:
    """List the frames of a version of a file, or of a video in memory, once."""
    file = identify(source)
    index = cache.get(file)
    if index is None:
        index = _index(file, source)
        cache.add(index)
    return index


def _index(file: VideoFile, source: Source) -> VideoIndex:
    scan = _scan(source)
    clock, time_base, has_pts = _choose_clock(scan)
    has_exact_times = has_pts and scan.codec in _CODECS_WITH_EXACT_TIMES
    order = np.argsort(clock)
    is_shown = scan.is_shown[order]
    if has_exact_times:
        # Frames shown before the first key frame need a group of pictures that was cut off.
        is_shown &= clock[order] >= clock[0]
    packets = order[is_shown]
    timestamps = clock[packets]
    can_seek = has_exact_times and scan.container in _SEEKABLE_CONTAINERS
    random_access = can_seek and bool(scan.is_restart[scan.is_keyframe].all())
    restarts = order[(scan.is_restart & can_seek)[order]]
    start_seconds = _start_seconds(scan, int(timestamps[0]) if has_pts else None)
    num_turns = quarter_turns(scan.first_frame)
    return VideoIndex(
        file=file,
        info=_describe(file.path, scan, timestamps, time_base, start_seconds, random_access),
        timestamps=timestamps,
        time_base=time_base,
        packets=packets.astype(np.int32),
        has_exact_times=has_exact_times,
        seek_points=clock[restarts],
        seek_packets=restarts.astype(np.int32),
        # decord numbers the frames around one that is not shown differently from one read to the next.
        is_exact_with_decord=random_access
        and scan.codec in _DECORD_CODECS
        and num_turns == 0
        and bool(is_shown.all()),
        num_packets=len(clock),
        kind=f"{scan.codec} in {scan.container}",
        # Others of these codecs have such frames, too, but only H.264 says so in every packet without exceptions.
        can_skip_frames=random_access and scan.codec == "h264",
        quarter_turns=num_turns,
        missing_seconds=scan.missing_seconds,
    )


def _scan(source: Source) -> _Scan:
    """List the packets of a video, without decoding more than its first frame."""
    path = name_of(source)
    with opened(source) as (container, stream):
        codec_name = stream.codec_context.codec.canonical_name
        may_restart = _restart_test(codec_name, stream.codec_context.extradata)
        first_frame = None
        rows = []
        for packet in packets_of(container, stream):
            if first_frame is None and not packet.is_corrupt:
                first_frame = next(iter(decode(packet) or ()), None)
            if packet.size > 0:  # the packet that ends the stream is empty
                rows.append((*_times(packet), _is_shown(packet, codec_name), packet.is_keyframe, may_restart(packet)))
        if first_frame is None:
            raise unreadable(path, *why_not_decoded(path))
        pts, dts, ends, is_shown, is_keyframe, is_restart = (np.array(column) for column in zip(*rows, strict=True))
        container_name = container.format.name.split(",")[0]
        # How long the stream should be: avi counts frames, mp4 states a duration, the others say nothing of use.
        promised_end = {"avi": stream.frames, "mov": stream.duration}.get(container_name)
        missing_seconds = float((promised_end - int(ends.max())) * stream.time_base) if promised_end else 0.0
        return _Scan(
            container=container_name,
            codec=codec_name,
            frame_rate=stream.average_rate or stream.guessed_rate or _DEFAULT_FRAMES_PER_SECOND,
            time_base=stream.time_base,
            delay_seconds=_delay_seconds(container, stream),
            start=stream.start_time,
            first_frame=first_frame,
            missing_seconds=missing_seconds if missing_seconds > _TRUNCATION_TOLERANCE_SECONDS else 0.0,
            pts=pts,
            dts=dts,
            is_shown=is_shown,
            is_keyframe=is_keyframe,
            is_restart=is_restart,
        )


def _times(packet: "Packet") -> tuple[int, int, int]:
    """Presentation and decoding time and the end of the presentation, with `_NO_TIMESTAMP` for None."""
    pts = _NO_TIMESTAMP if packet.pts is None else packet.pts
    dts = _NO_TIMESTAMP if packet.dts is None else packet.dts
    return pts, dts, max(pts, dts) + (packet.duration or 0)


def _is_shown(packet: "Packet", codec_name: str) -> bool:
    """Whether a packet gives a frame: no cut one, none that an edit list leaves out, no hidden VP8 reference."""
    is_hidden = codec_name == "vp8" and not bytes(packet)[0] & _VP8_SHOW_FRAME_BIT
    return not (packet.is_discard or packet.is_corrupt or is_hidden)


def _restart_test(codec_name: str, extradata: bytes | None) -> Callable[["Packet"], bool]:
    """Return the function that tells whether decoding may start at a packet, for the frames from its timestamp on.

    That holds for every packet marked as key frame, but for H.264: there an encoder that refreshes row by row
    ("intra refresh", "recovery point") marks packets from which the image is only complete many frames later.
    """
    if codec_name != "h264":
        return lambda packet: packet.is_keyframe
    # In mp4 and mkv each NAL unit follows its length; the header (ISO 14496-15, avcC) says in how many bytes.
    length_size = (extradata[4] & 3) + 1 if extradata and extradata[0] == 1 else 0
    return lambda packet: packet.is_keyframe and length_size > 0 and _has_idr(bytes(packet), length_size)


def _has_idr(packet: bytes, length_size: int) -> bool:
    """Whether an H.264 packet holds an instantaneous decoder refresh, a key frame that nothing reaches across."""
    offset = 0
    while offset + length_size < len(packet):
        start = offset + length_size
        if packet[start] & 0x1F == _NAL_TYPE_IDR:
            return True
        offset = start + int.from_bytes(packet[offset:start], "big")
    return False


def _choose_clock(scan: _Scan) -> tuple[np.ndarray, Fraction, bool]:
    """Choose the times of the packets: int64 in decoding order, seconds per unit, whether they are presentation times.

    Where the container has no good ones, the i-th frame gets the i-th decoding time (avi: leaves room for dropped
    frames) or, without good ones either, a constant frame rate.
    """
    # avi stores no presentation times: FFmpeg makes them up, wrong for B-frames.
    if scan.container != "avi" and _are_sound_times(scan.pts):
        return scan.pts, scan.time_base, True
    if _are_sound_times(scan.dts):
        return scan.dts, scan.time_base, False
    return np.arange(len(scan.pts)), 1 / scan.frame_rate, False


def _are_sound_times(times: np.ndarray) -> bool:
    """Whether times are present, distinct and in an order that reordering for B-frames can explain."""
    order = np.argsort(times)
    displacement = np.abs(order - np.arange(len(times))).max()
    is_increasing = bool((np.diff(times[order]) > 0).all())
    return times[order[0]] != _NO_TIMESTAMP and is_increasing and displacement <= _MAX_REORDERED_FRAMES


def _delay_seconds(container: "InputContainer", stream: "VideoStream") -> float:
    """Return how much later than the file its pictures start, on the clock that players and `ffmpeg` show."""
    if container.start_time is None or stream.start_time is None:
        return 0.0
    delay = stream.start_time * stream.time_base - container.start_time * _CONTAINER_TIME_BASE
    return float(delay) if delay > _CONTAINER_TIME_BASE else 0.0


def _start_seconds(scan: _Scan, first_timestamp: int | None) -> float:
    """Return the time of the first frame, which is not the first of the stream where that one cannot be decoded."""
    if first_timestamp is None or scan.start is None:
        return scan.delay_seconds
    return max(0.0, scan.delay_seconds + float((first_timestamp - scan.start) * scan.time_base))


def _describe(
    path: str,
    scan: _Scan,
    timestamps: np.ndarray,
    time_base: Fraction,
    start_seconds: float,
    random_access: bool,
) -> VideoInfo:
    intervals, last_interval = np.diff(timestamps), 1 / scan.frame_rate
    seconds = int(timestamps[-1] - timestamps[0]) * time_base
    if len(intervals):
        # Not the mean one: in a recording with a gap of days, that is hours.
        last_interval = int(np.median(intervals)) * time_base
    height, width = turned(scan.first_frame.height, scan.first_frame.width, quarter_turns(scan.first_frame))
    return VideoInfo(
        path=path,
        num_frames=len(timestamps),
        height=height,
        width=width,
        frames_per_second=float(len(intervals) / seconds if len(intervals) else scan.frame_rate),
        start_seconds=start_seconds,
        duration_seconds=start_seconds + float(seconds + last_interval),
        random_access=random_access,
    )


def quarter_turns(frame: "VideoFrame") -> int:
    """How often to turn a frame counter-clockwise by 90 degrees, as the file asks for."""
    return round(frame.rotation / 90) % 4


def turned(height: int, width: int, quarter_turns: int) -> tuple[int, int]:
    """Return the height and width after some quarter turns."""
    return (width, height) if quarter_turns % 2 else (height, width)
