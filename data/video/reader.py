"""Read the frames of a video by number: the exact frames, or an error that says what is wrong with the file.

Frame `i` is the i-th frame a player shows. Three ways lead to it, chosen by the file's header and packets and never by
catching an exception; the tests read painted frame numbers back through all of them.

| way                                | for                                                                            |
|------------------------------------|--------------------------------------------------------------------------------|
| PyAV, seeking by timestamp         | H.264, HEVC, AV1, VP8, VP9, MPEG-2, MJPEG in mp4/mov/mkv/webm whose key frames |
|                                    | are true restarts                                                              |
| PyAV, from the first frame         | the rest: avi, MPEG-4 (XviD), WMV, FLV, MPEG-TS, open-GOP H.264, files without |
|                                    | good times                                                                     |
| decord, seeking, when asked for it | H.264, VP8, VP9, MJPEG of the first way, without rotation and hidden frames    |

PyAV is the default because it is the faster one (`benchmarks/data.py`): files stay open, unneeded H.264 frames that no
other refers to are passed over, and the next clip of a video goes on where the last one ended. decord returns wrong
frames without an error for open-GOP and intra-refresh H.264, HEVC, MPEG-2, MPEG-4 with B-frames, trimmed mp4 (edit
lists), most of avi and all of MPEG-TS (on which it can also hang); here it refuses these. Where both read a file their
pixels are identical; only the colours of interlaced video differ slightly.
"""

import concurrent.futures
import contextlib
import functools
import importlib.util
import itertools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, get_args

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter


if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Backend", "ClipReader", "Frame", "VideoInfo", "VideoReadError", "iterate_frames"]

# FFmpeg's first name of the containers (mp4 is "mov", webm is "matroska") whose index leads a seek to a known frame.
_SEEKABLE_CONTAINERS = ("mov", "matroska")
_DECORD_CODECS = ("h264", "vp8", "vp9", "mjpeg")
# Codecs whose decoded frames carry the timestamp of their packet. Not MPEG-4: XviD packs two frames in a packet.
_CODECS_WITH_EXACT_TIMES = (*_DECORD_CODECS, "hevc", "av1", "mpeg2video")
# The largest distance between decoding and presentation order that H.264 and HEVC allow.
_MAX_REORDERED_FRAMES = 16
# Seeking throws away what is decoded already, for reordering: it must pass over more than that.
_MIN_SKIPPED_FRAMES = 16
# FFmpeg's own guess for a stream that does not state its rate.
_DEFAULT_FRAMES_PER_SECOND = Fraction(25)
_NO_TIMESTAMP = np.iinfo(np.int64).min
# 8 bytes per frame: 235 fifteen-minute AVA movies take 50 MB.
_MAX_INDEXED_FILES = 512
# Headers are off by some frames in good files too.
_TRUNCATION_TOLERANCE_SECONDS = 1.0
_NAL_TYPE_IDR = 5
_VP8_SHOW_FRAME_BIT = 0x10

# Freeing a reader of decord joins its threads. In a forked process, which has no copies of them, that hangs: there all
# inherited readers are kept for good, also those that are garbage already.
_decord_files: "weakref.WeakSet[_DecordFile]" = weakref.WeakSet()
_inherited_decord_files: "list[_DecordFile]" = []
if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=lambda: _inherited_decord_files.extend(_decord_files))

Backend = Literal["auto", "pyav", "decord"]

ResultT = TypeVar("ResultT")


class VideoReadError(RuntimeError):
    """A video, or some of its frames, cannot be read; the message names file, frames, likely cause and remedy.

    It takes the message alone, so that it crosses from a `DataLoader` worker to the main process unchanged.
    """


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
    duration_seconds: float
    """From the first frame to the end of the last one, which is taken to last one mean frame interval."""
    random_access: bool
    """Whether a clip is reached by seeking (about one group of pictures is decoded) or from the first frame on."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a streamed video."""

    index: int
    """Number of the frame, the one that `ClipReader.read` takes."""
    seconds: float
    """Presentation time in seconds after the first frame."""
    to_image: Callable[[], np.ndarray]
    """Makes the image: a third of the work of decoding, which frames that nobody looks at are spared."""

    @property
    def image(self) -> np.ndarray:
        """uint8 RGB of shape (height, width, 3), made anew at each access."""
        return self.to_image()


class ClipReader:
    """Random access to clips of video files, for data sets and their `DataLoader` workers.

    Files are opened when first read, separately in every process, so that a reader may be forked or pickled at any
    time. Several threads may share one.

    Args:
        backend: What decodes. "auto" is the faster one of those that are exact, which is PyAV for every file so far;
            "pyav" and "decord" ask for one, with the same frames. decord refuses the files that it gets wrong.
        max_open_files: Largest number of files to keep open in a process; the least recently used closes.
        timeout_seconds: Longest wait for one call, in seconds; then `VideoReadError` is raised and the decoder is left
            behind. A file without random access must be decoded up to the wanted frame within this time.

    Raises:
        ImportError: If decord is asked for and not installed.
        ValueError: If there is no such backend, or a number is not positive.

    Example:

    ```python
    >>> reader = ClipReader()
    >>> reader.read("arm_wrestling.mp4", reader.frame_indices_at("arm_wrestling.mp4", [4.0, 4.5, 5.0])).shape
    (3, 256, 340, 3)
    ```
    """

    def __init__(self, *, backend: Backend = "auto", max_open_files: int = 4, timeout_seconds: float = 60.0) -> None:
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
        if backend == "decord" and importlib.util.find_spec("decord") is None:
            # Two distributions install the one module.
            raise ImportError(
                'backend="decord" needs decord: pip install decord (x86-64 Linux, Windows) or decord2 (elsewhere); '
                'backend="auto" works without it'
            )
        if max_open_files < 1 or not timeout_seconds > 0:
            raise ValueError(f"both numbers must be positive, got {max_open_files = } and {timeout_seconds = }")
        self.backend = backend
        self.max_open_files = max_open_files
        self.timeout_seconds = timeout_seconds
        self._open_files: OrderedDict[_File, _PyavFile | _DecordFile] = OrderedDict()
        self._process_id = os.getpid()

    def __getstate__(self) -> dict[str, str | int | float]:
        return {name: getattr(self, name) for name in ("backend", "max_open_files", "timeout_seconds")}

    def __setstate__(self, state: dict[str, str | int | float]) -> None:
        self.__init__(**state)

    def info(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Describe a video: its packets are listed and its first frame is decoded, once per file.

        Raises:
            VideoReadError: If the file is missing, empty, no video, or none of its frames can be decoded.
        """
        return self._index(os.fspath(path)).info

    def frame_indices_at(self, path: str | os.PathLike[str], seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """Find the frames nearest to some times, by their timestamps: exact for variable frame rate.

        Args:
            path: The video file.
            seconds: Times after the first frame, in seconds, of any shape. Times before the first or after the last
                frame give that frame.

        Returns:
            int64 frame indices of the shape of `seconds`; the earlier frame where two are equally near.

        Raises:
            VideoReadError: As `info`.
            ValueError: If a time is not finite.
        """
        wanted_seconds = np.asarray(seconds, dtype=np.float64)
        if not np.isfinite(wanted_seconds).all():
            raise ValueError(f"seconds must be finite, got {seconds}")
        frame_seconds = self._index(os.fspath(path)).frame_seconds
        later = np.searchsorted(frame_seconds, wanted_seconds).clip(max=len(frame_seconds) - 1)
        earlier = (later - 1).clip(min=0)
        is_earlier_nearer = wanted_seconds - frame_seconds[earlier] <= frame_seconds[later] - wanted_seconds
        return np.where(is_earlier_nearer, earlier, later)

    def read(self, path: str | os.PathLike[str], frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode the frames of a clip.

        Args:
            path: The video file.
            frame_indices: Frame numbers from 0, in any order, repeats allowed.

        Returns:
            uint8 RGB of shape (len(frame_indices), height, width, 3), in the order asked.

        Raises:
            VideoReadError: As `info`; if an index is out of range, if the frames are damaged, or after
                `timeout_seconds`.
            ValueError: If `frame_indices` is not a non-empty list of integers.
        """
        path, wanted = os.fspath(path), np.asarray(frame_indices)
        if wanted.ndim != 1 or wanted.size == 0 or not np.issubdtype(wanted.dtype, np.integer):
            raise ValueError(f"frame_indices must be a non-empty list of integers, got {frame_indices}")
        try:
            return self._finish_in_time(path, lambda: self._read(path, wanted))
        except VideoReadError as error:
            raise VideoReadError(f"{_abbreviate(wanted)}: {error}") from error

    def _index(self, path: str) -> "_VideoIndex":
        return self._finish_in_time(path, lambda: _index_video(_identify(path)))

    def _read(self, path: str, frame_indices: np.ndarray) -> np.ndarray:
        index = _index_video(_identify(path))
        _check_range(index, frame_indices)
        # Each frame is decoded once, in the order of the video.
        wanted, positions = np.unique(frame_indices, return_inverse=True)
        return self._decode(index, wanted)[positions]

    def _decode(self, index: "_VideoIndex", wanted: np.ndarray) -> np.ndarray:
        open_files = self._open_files_of_this_process()
        # A file is out of the cache while it is read: one that fails or hangs is not used again, and no thread meets
        # the file of another.
        file = open_files.pop(index.file, None)
        while len(open_files) >= self.max_open_files:
            open_files.popitem(last=False)[1].close()
        file = file or (_DecordFile(index) if self.backend == "decord" else _PyavFile(index))
        with contextlib.ExitStack() as on_error:
            on_error.callback(file.close)
            frames = file.read(wanted)
            on_error.pop_all()
        open_files[index.file] = file
        return frames

    def _open_files_of_this_process(self) -> "OrderedDict[_File, _PyavFile | _DecordFile]":
        if self._process_id != os.getpid():
            # Their positions in the files are shared with the parent process.
            self._open_files = OrderedDict()
            self._process_id = os.getpid()
        return self._open_files

    def _finish_in_time(self, path: str, work: Callable[[], ResultT]) -> ResultT:
        """Run `work` in a thread and wait for it, because a native decoder that hangs cannot be interrupted."""
        outcome: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
        # Not an executor: the interpreter waits for its threads when it exits, also for one that hangs.
        threading.Thread(target=_run, args=(work, outcome), name="ClipReader", daemon=True).start()
        try:
            return outcome.result(self.timeout_seconds)
        except concurrent.futures.TimeoutError as error:
            raise _unreadable(
                path,
                f"timed out after {self.timeout_seconds:g} s",
                "raise timeout_seconds if the file is long and has no random access, or convert it: "
                "python -m classquery.data prepare",
            ) from error
        finally:
            # An error refers to its frames: with one back to it, both would live on with all that they refer to.
            del outcome


def _run(work: Callable[[], ResultT], outcome: "concurrent.futures.Future[ResultT]") -> None:
    try:
        outcome.set_result(work())
    except (VideoReadError, ImportError, MemoryError) as error:
        outcome.set_exception(error)
    finally:
        # Without effect on an outcome; after any other error, the caller does not wait in vain.
        outcome.cancel()
        del outcome


def iterate_frames(path: str | os.PathLike[str], *, start_seconds: float = 0.0) -> Iterator[Frame]:
    """Stream a whole video in order with constant memory; exact for every codec, rotated as the file asks for.

    Mirroring, which a few phones store with the rotation, is not applied. Blocks that the decoder conceals are not
    reported: the frame looks as in a player.

    Args:
        path: The video file.
        start_seconds: Time of the first frame to yield, in seconds after the first frame of the video. Frames before
            it are passed over by seeking where the file has random access.

    Yields:
        Frames with the same numbers, times and pixels as those of `ClipReader`.

    Raises:
        VideoReadError: At the call, if the file cannot be read at all; while iterating, after the last frame that
            could be decoded, if the rest is damaged or missing. Matroska and MPEG-TS do not state how many frames
            they hold: when truncated, they just end early.
    """
    index = _index_video(_identify(os.fspath(path)))
    # Times are quotients: half a microsecond of tolerance lets 0.04 mean the frame at 1/25 s.
    start = int(np.searchsorted(index.frame_seconds, start_seconds - 5e-7))
    return _stream_frames(index, start)


def _stream_frames(index: "_VideoIndex", start: int) -> Iterator[Frame]:
    if start == index.info.num_frames:
        return
    frame_seconds = index.frame_seconds
    with contextlib.closing(_PyavFile(index)) as file:
        for frame_index, frame in file.frames_from(start):
            if frame_index >= start:
                yield Frame(frame_index, float(frame_seconds[frame_index]), functools.partial(file.to_rgb, frame))
    if index.missing_seconds:
        raise _unreadable(index.file.path, _describe_truncation(index), "fetch or export it again")


# Indexing: what the header and the packets say


class _File(NamedTuple):
    """One version of a file: after rewriting it is another one."""

    path: str
    modified_ns: int
    num_bytes: int


class _Scan(NamedTuple):
    """A video stream before interpretation; arrays are of shape (num_packets,), in decoding order."""

    container: str
    codec: str
    frame_rate: Fraction
    time_base: Fraction
    first_frame: "VideoFrame"
    missing_seconds: float
    pts: np.ndarray
    dts: np.ndarray
    is_shown: np.ndarray
    is_keyframe: np.ndarray
    is_restart: np.ndarray
    """Whether decoding may start at a packet and all frames from its timestamp on come out right."""


@dataclass(frozen=True)
class _VideoIndex:
    """The frames of a video and the way to reach them."""

    file: _File
    info: VideoInfo
    timestamps: np.ndarray
    """int64 (num_frames,), increasing, in units of `time_base`."""
    time_base: Fraction
    """Seconds per unit of `timestamps`."""
    has_exact_times: bool
    """Whether a decoded frame is recognised by its timestamp; otherwise frames are counted from the first one."""
    seek_points: np.ndarray
    """int64, increasing: timestamps at which decoding may start; empty if the file cannot be sought."""
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
        """float64 (num_frames,): seconds after the first frame."""
        return (self.timestamps - self.timestamps[0]) * float(self.time_base)

    def seek_point_of(self, frame_index: int) -> int | None:
        """Return the timestamp to seek to for a frame, or None where decoding starts with the file."""
        # Not a later one: the frames shown before an open key frame need the group before it.
        position = np.searchsorted(self.seek_points, self.timestamps[frame_index], side="right") - 1
        return int(self.seek_points[position]) if position >= 0 else None

    def number_at(self, timestamp: int) -> int | None:
        """Return the number of the frame with a timestamp, or None if there is none."""
        number = int(np.searchsorted(self.timestamps, timestamp))
        return number if number < len(self.timestamps) and self.timestamps[number] == timestamp else None


def _identify(path: str) -> _File:
    if not os.path.exists(path):
        raise _unreadable(path, "the file is missing", "check the path and the folder of the videos")
    if not os.path.isfile(path):
        raise _unreadable(path, "it is not a regular file", "give the path of a video file")
    status = os.stat(path)
    if status.st_size == 0:
        raise _unreadable(path, "the file is empty", "fetch or export it again")
    return _File(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=_MAX_INDEXED_FILES)
def _index_video(file: _File) -> _VideoIndex:
    scan = _scan(file.path)
    clock, time_base, has_pts = _choose_clock(scan)
    has_exact_times = has_pts and scan.codec in _CODECS_WITH_EXACT_TIMES
    order = np.argsort(clock)
    is_shown = scan.is_shown[order]
    if has_exact_times:
        # Frames shown before the first key frame need a group of pictures that was cut off.
        is_shown &= clock[order] >= clock[0]
    timestamps = clock[order[is_shown]]
    can_seek = has_exact_times and scan.container in _SEEKABLE_CONTAINERS
    random_access = can_seek and bool(scan.is_restart[scan.is_keyframe].all())
    num_turns = quarter_turns(scan.first_frame)
    return _VideoIndex(
        file=file,
        info=_describe(file.path, scan, timestamps, time_base, random_access),
        timestamps=timestamps,
        time_base=time_base,
        has_exact_times=has_exact_times,
        seek_points=np.sort(clock[scan.is_restart & can_seek]),
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


def _scan(path: str) -> _Scan:
    """List the packets of a video, without decoding more than its first frame."""
    with _opened(path) as (container, stream):
        codec_name = stream.codec_context.codec.canonical_name
        may_restart = _restart_test(codec_name, stream.codec_context.extradata)
        first_frame = None
        rows = []
        for packet in _packets(container, stream):
            if first_frame is None and not packet.is_corrupt:
                first_frame = next(iter(packet.decode()), None)
            if packet.size > 0:  # the packet that ends the stream is empty
                rows.append((*_times(packet), _is_shown(packet, codec_name), packet.is_keyframe, may_restart(packet)))
        if first_frame is None:
            raise _unreadable(path, "no frame can be decoded", "the file is damaged: fetch or export it again")
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


def _describe(path: str, scan: _Scan, timestamps: np.ndarray, time_base: Fraction, random_access: bool) -> VideoInfo:
    intervals = len(timestamps) - 1
    frame_rate = intervals / (int(timestamps[-1] - timestamps[0]) * time_base) if intervals else scan.frame_rate
    height, width = _turn(scan.first_frame.height, scan.first_frame.width, quarter_turns(scan.first_frame))
    return VideoInfo(
        path=path,
        num_frames=len(timestamps),
        height=height,
        width=width,
        frames_per_second=float(frame_rate),
        duration_seconds=float(len(timestamps) / frame_rate),
        random_access=random_access,
    )


def quarter_turns(frame: "VideoFrame") -> int:
    """How often to turn a frame counter-clockwise by 90 degrees, as the file asks for."""
    return round(frame.rotation / 90) % 4


def _turn(height: int, width: int, quarter_turns: int) -> tuple[int, int]:
    return (width, height) if quarter_turns % 2 else (height, width)


# Decoding with PyAV


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Open a file and its video stream; errors of FFmpeg from then on become `VideoReadError`."""
    container, stream = _open(path)
    with container, _translated_errors(path):
        yield container, stream


def _open(path: str) -> tuple["InputContainer", "VideoStream"]:
    try:
        # Titles in avi files are often Latin-1, which strict decoding refuses.
        container = av.open(path, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise _unreadable(path, *_why_not_opened(path)) from error
    stream = container.streams.best("video")
    problem = None
    if stream is None or stream.disposition & Disposition.attached_pic:
        problem = "it has no video stream (audio only, or its index is cut off)", "give the whole video"
    elif stream.codec_context is None:
        problem = "FFmpeg knows no decoder for its codec", "convert it to H.264 mp4"
    if problem:
        container.close()
        raise _unreadable(path, *problem)
    # Data sets decode in many workers at once.
    stream.codec_context.thread_count = 1
    return container, stream


@contextlib.contextmanager
def _translated_errors(path: str) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise _unreadable(
            path, f"the data is damaged or truncated ({error.strerror})", "fetch or export it again"
        ) from error


def _why_not_opened(path: str) -> tuple[str, str]:
    with open(path, "rb") as file:
        is_mp4 = file.read(8)[4:] == b"ftyp"
    if is_mp4:
        return "it is an mp4 without its index (moov atom), probably truncated", "fetch or export it again"
    return "it is not a video that FFmpeg knows", "check that the file is what its name says"


def _packets(container: "InputContainer", stream: "VideoStream") -> Iterator["Packet"]:
    """List the packets from the first key frame on: those before it cannot be decoded."""
    return itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))


class _PyavFile:
    """A file opened with PyAV, whose frames come out with their numbers; it stays where the last frame left it."""

    def __init__(self, index: _VideoIndex) -> None:
        self.to_rgb = _rgb_converter(index)
        self._index = index
        self._wanted: set[int] | None = None
        """Timestamps of the frames that must come out, if others need not."""
        self._open()

    def close(self) -> None:
        self._container.close()
        # The generator refers to this object: left to the garbage collector, decoders would pile up.
        self._frames, self._stream = iter(()), None

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """Decode frames `wanted` (int64, increasing): uint8 RGB of shape (len(wanted), height, width, 3)."""
        index = self._index
        frames = np.empty((len(wanted), index.info.height, index.info.width, 3), np.uint8)
        slots = {int(frame_index): slot for slot, frame_index in enumerate(wanted)}
        self._wanted = set(index.timestamps[wanted].tolist()) if index.can_skip_frames else None
        while slots:
            # Frames far from each other are sought one by one.
            next_wanted = next(iter(slots))
            for frame_index, frame in self.frames_from(next_wanted):
                if frame_index in slots:
                    frames[slots.pop(frame_index)] = self.to_rgb(frame)
                if next_wanted not in slots:
                    break
            else:
                cause = f"{_abbreviate(list(slots))} cannot be decoded, the data is damaged"
                raise _unreadable(index.file.path, cause, "export it again")
        return frames

    def frames_from(self, start: int) -> Iterator[tuple[int, "VideoFrame"]]:
        """Decode all frames from number `start` on, and perhaps some before it, as pairs of number and frame."""
        seek_point = self._index.seek_point_of(start)
        if self._next_index <= start and not self._gains_by_seeking(seek_point):
            return self._frames
        if seek_point is not None:
            self._seek(seek_point)
            first = next(self._frames, None)
            # A container may lead to a later key frame than asked for: then only the way from the first frame is safe.
            if first is not None and first[0] <= start:
                return itertools.chain([first], self._frames)
        self.close()
        self._open()
        return self._frames

    def _gains_by_seeking(self, seek_point: int | None) -> bool:
        timestamps = self._index.timestamps
        worthwhile = min(self._next_index + _MIN_SKIPPED_FRAMES, len(timestamps) - 1)
        return seek_point is not None and seek_point > timestamps[worthwhile]

    def _open(self) -> None:
        self._container, self._stream = _open(self._index.file.path)
        self._start_decoding()

    def _seek(self, seek_point: int) -> None:
        with _translated_errors(self._index.file.path):
            self._container.seek(seek_point, stream=self._stream)
        self._start_decoding()

    def _start_decoding(self) -> None:
        # Frames from this number on are still to come; of those before it, some may have been passed over.
        self._next_index = 0
        self._frames = self._decode()

    def _decode(self) -> Iterator[tuple[int, "VideoFrame"]]:
        index = self._index
        with _translated_errors(index.file.path):
            # A packet that the end of the file cuts short would raise an error or give the image of another frame.
            packets = (packet for packet in _packets(self._container, self._stream) if not packet.is_corrupt)
            frames = (frame for packet in packets for frame in self._decode_packet(packet))
            if index.has_exact_times:
                numbered_frames = ((index.number_at(frame.pts), frame) for frame in frames)
            else:
                numbered_frames = zip(range(index.info.num_frames), frames, strict=False)
            for number, frame in numbered_frames:
                if number is not None:
                    self._next_index = max(self._next_index, number + 1)
                    yield number, frame

    def _decode_packet(self, packet: "Packet") -> list["VideoFrame"]:
        if self._index.can_skip_frames:
            is_wanted = self._wanted is None or packet.pts is None or packet.pts in self._wanted
            self._stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            number = None if is_wanted else self._index.number_at(packet.pts)
            if number is not None:
                self._next_index = max(self._next_index, number + 1)
        return packet.decode()


def _rgb_converter(index: _VideoIndex) -> Callable[["VideoFrame"], np.ndarray]:
    return rgb_converter(index.info.height, index.info.width, index.quarter_turns)


def rgb_converter(height: int, width: int, quarter_turns: int = 0) -> Callable[["VideoFrame"], np.ndarray]:
    """Return the function from decoded frames to uint8 RGB images of shape (height, width, 3).

    `quarter_turns` tells how often a frame is turned counter-clockwise by 90 degrees, to that height and width.
    """
    height, width = _turn(height, width, quarter_turns)
    # One for all frames: making a new one for each, as VideoFrame.to_ndarray does, takes six times as long.
    reformatter = VideoReformatter()

    def to_rgb(frame: "VideoFrame") -> np.ndarray:
        # The size is given for streams that change theirs: every frame gets the size of the first.
        # Threads of its own cost more than they give at this size, and a forked process could not free them.
        image = reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, quarter_turns))

    return to_rgb


# Decoding with decord


@contextlib.contextmanager
def _using_decord(path: str) -> Iterator[ModuleType]:
    """Import decord, only now to keep the package quick to load, and turn its errors into `VideoReadError`."""
    # torch first: with some versions the other order crashes.
    import torch  # noqa: F401

    # isort: split
    import decord

    # Of this thread only: elsewhere the program may have asked decord for torch tensors.
    decord.bridge.set_bridge("native")
    try:
        yield decord
    except (RuntimeError, decord.DECORDError) as error:
        raise _unreadable(path, "decord cannot decode it, the data is damaged", "fetch or export it again") from error


class _DecordFile:
    """A file opened with decord."""

    def __init__(self, index: _VideoIndex) -> None:
        self._path = index.file.path
        if not index.is_exact_with_decord:
            raise self._refusal(f"decord returns wrong frames of some files of its kind ({index.kind})")
        with _using_decord(self._path) as decord:
            self._reader = decord.VideoReader(self._path, ctx=decord.cpu(0), num_threads=1)
        _decord_files.add(self)
        # Both libraries list all packets; where they disagree on the number, the frame numbers of decord mean others.
        if len(self._reader) != index.num_packets:
            raise self._refusal(f"decord finds {len(self._reader)} frames where {index.num_packets} are")

    def _refusal(self, cause: str) -> VideoReadError:
        return _unreadable(self._path, cause, 'use backend="auto", which is exact for it')

    def close(self) -> None:
        """decord has none: the file closes when nothing refers to it."""

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """Decode frames `wanted` (int64, increasing): uint8 RGB of shape (len(wanted), height, width, 3)."""
        with _using_decord(self._path):
            frames = self._reader.get_batch(wanted).asnumpy()
            # Otherwise it decodes on in the background: 1.8 GB after ten seconds.
            self._reader.seek(0)
        return frames


# Messages


def _unreadable(path: str, cause: str, remedy: str) -> VideoReadError:
    return VideoReadError(f"cannot read {path}: {cause}; {remedy}")


def _abbreviate(frame_indices: Sequence[int] | np.ndarray) -> str:
    """Write frame numbers as "frame 7" or "frames 0, 8, 16, 24, ..., 248 (32 in all)"."""
    if len(frame_indices) == 1:
        return f"frame {frame_indices[0]}"
    if len(frame_indices) <= 8:
        return f"frames {', '.join(map(str, frame_indices))}"
    first = ", ".join(map(str, frame_indices[:4]))
    return f"frames {first}, ..., {frame_indices[-1]} ({len(frame_indices)} in all)"


def _check_range(index: _VideoIndex, frame_indices: np.ndarray) -> None:
    outside = frame_indices[(frame_indices < 0) | (frame_indices >= index.info.num_frames)]
    if outside.size == 0:
        return
    cause = f"{_abbreviate(outside)} out of range, the video has {index.info.num_frames} frames from number 0 on"
    remedy = "check the frame rate of the annotations"
    if index.missing_seconds:
        cause, remedy = f"{cause}: {_describe_truncation(index)}", "fetch or export it again"
    raise _unreadable(index.file.path, cause, remedy)


def _describe_truncation(index: _VideoIndex) -> str:
    return f"the file is truncated, its header promises {index.missing_seconds:.1f} s more"
