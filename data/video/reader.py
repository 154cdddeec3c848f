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

Times are those of the file's clock, which starts with its first stream, be that sound, as players and `ffmpeg` show
them: pictures that come two seconds late start at second 2. They are the timestamps, also where the rate varies.

PyAV keeps files open, passes over groups of pictures without a wanted frame and unneeded H.264 frames that no other
refers to, and goes on where the last clip of a video ended. So it is what "auto" takes, by this rule:

| H.264 mp4                            | PyAV | decord here | decord alone | torchcodec alone | "auto" |
|--------------------------------------|------|-------------|--------------|------------------|--------|
| 320x240, opened for one read of all: |      |             |              |                  |        |
| 40 frames, key frames every 12       | 1    | 1.25        | 1.09         | 0.89             | PyAV   |
| 40 frames, one key frame             | 1    | 1.28        | 1.05         | 0.86             | PyAV   |
| 160 frames, key frames every 12      | 1    | 1.32        | 1.31         | 1.11             | PyAV   |
| 160 frames, one key frame            | 1    | 1.16        | 1.44         | 0.86             | PyAV   |
| 640x360, random clips, file is open: |      |             |              |                  |        |
| key frames every 12                  | 1    | 1.69        | 1.67         | 1.18             | PyAV   |
| key frames every 250                 | 1    | 1.53        | 1.55         | 1.34             | PyAV   |

These are ratios of CPU time (`benchmarks/data.py --decoders`, 28 November 2026, one thread, PyAV 18.1, decord 0.6,
torchcodec 0.17 with FFmpeg 5.1; "here" is with the index and the checks of this module). decord is nowhere ahead, and
returns wrong frames without an error for open-GOP and intra-refresh H.264, HEVC, MPEG-2, MPEG-4 with B-frames, trimmed
mp4 (edit lists), most of avi and all of MPEG-TS (on which it can also hang); here it refuses these. Where both read a
file their pixels are identical; only the colours of interlaced video differ slightly. torchcodec is no way here: it is
ahead by 14 % at most and behind on random clips, needs FFmpeg from the system, and is silently wrong on avi (59 of 128
frames of a real XviD file, 117 of 128 of one with B-frames).
"""

import concurrent.futures
import contextlib
import functools
import importlib.util
import itertools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np

from classquery.data.names import Backend
from classquery.data.video.decord_file import DecordFile
from classquery.data.video.index import VideoIndex, VideoInfo, index_video
from classquery.data.video.opening import (
    Source,
    VideoBytes,
    VideoFile,
    VideoReadError,
    abbreviate,
    name_of,
    unreadable,
)
from classquery.data.video.pyav_file import PyavFile


__all__ = ["Backend", "ClipReader", "Frame", "VideoBytes", "VideoInfo", "VideoReadError", "iterate_frames"]

Video = str | os.PathLike[str] | VideoBytes

ResultT = TypeVar("ResultT")

# So many frames are decoded from one request to the next; around the seams some are decoded that need not be.
_NUM_FRAMES_AHEAD = 256


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a streamed video."""

    index: int
    """Number of the frame, the one that `ClipReader.read` takes."""
    seconds: float
    """Presentation time in seconds on the clock of the file."""
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
        backend: What decodes. "auto" is the faster one of those that are exact: by the table above, PyAV; "pyav" and
            "decord" ask for one, with the same frames. decord refuses the files that it gets wrong.
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
        self._open_files: OrderedDict[VideoFile, PyavFile | DecordFile] = OrderedDict()
        self._process_id = os.getpid()

    def __getstate__(self) -> dict[str, str | int | float]:
        return {name: getattr(self, name) for name in ("backend", "max_open_files", "timeout_seconds")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)

    def info(self, path: Video) -> VideoInfo:
        """Describe a video: its packets are listed and its first frame is decoded, once per file.

        Raises:
            VideoReadError: If the file is missing, empty, no video, or none of its frames can be decoded.
        """
        return self._index(path).info

    def frame_indices_at(self, path: Video, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """Find the frames nearest to some times, by their timestamps: exact for variable frame rate.

        Args:
            path: The video file, or a video in memory (`VideoBytes`).
            seconds: Times on the clock of the file, in seconds, of any shape. Times before the first or after the
                last frame give that frame.

        Returns:
            int64 frame indices of the shape of `seconds`; the earlier frame where two are equally near.

        Raises:
            VideoReadError: As `info`.
            ValueError: If a time is not finite.
        """
        wanted_seconds = np.asarray(seconds, dtype=np.float64)
        if not np.isfinite(wanted_seconds).all():
            raise ValueError(f"seconds must be finite, got {seconds}")
        frame_seconds = self._index(path).frame_seconds
        later = np.searchsorted(frame_seconds, wanted_seconds).clip(max=len(frame_seconds) - 1)
        earlier = (later - 1).clip(min=0)
        is_earlier_nearer = wanted_seconds - frame_seconds[earlier] <= frame_seconds[later] - wanted_seconds
        return np.where(is_earlier_nearer, earlier, later)

    def seconds_of(self, path: Video, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tell the times of some frames: the timestamps of the file, as float64 seconds on its clock.

        Raises:
            VideoReadError: As `info`, or if a frame is out of range.
        """
        index = self._index(path)
        _check_range(index, np.asarray(frame_indices))
        return index.frame_seconds[np.asarray(frame_indices)]

    def read(self, path: Video, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode the frames of a clip.

        Args:
            path: The video file, or a video in memory (`VideoBytes`).
            frame_indices: Frame numbers from 0, in any order, repeats allowed.

        Returns:
            uint8 RGB of shape (len(frame_indices), height, width, 3), in the order asked.

        Raises:
            VideoReadError: As `info`; if an index is out of range, if the frames are damaged, or after
                `timeout_seconds`.
            ValueError: If `frame_indices` is not a non-empty list of integers.
        """
        source, wanted = _source(path), np.asarray(frame_indices)
        if wanted.ndim != 1 or wanted.size == 0 or not np.issubdtype(wanted.dtype, np.integer):
            raise ValueError(f"frame_indices must be a non-empty list of integers, got {frame_indices}")
        try:
            return self._finish_in_time(name_of(source), lambda: self._read(source, wanted))
        except VideoReadError as error:
            raise VideoReadError(f"{abbreviate(wanted)}: {error}") from error

    def _index(self, path: Video) -> "VideoIndex":
        source = _source(path)
        return self._finish_in_time(name_of(source), lambda: index_video(source))

    def _read(self, source: Source, frame_indices: np.ndarray) -> np.ndarray:
        index = index_video(source)
        _check_range(index, frame_indices)
        # Each frame is decoded once, in the order of the video.
        wanted, positions = np.unique(frame_indices, return_inverse=True)
        frames = self._decode(index, source, wanted)
        return frames if np.array_equal(wanted, frame_indices) else frames[positions]

    def _decode(self, index: "VideoIndex", source: Source, wanted: np.ndarray) -> np.ndarray:
        open_files = self._open_files_of_this_process()
        # A file is out of the cache while it is read: one that fails or hangs is not used again, and no thread meets
        # the file of another.
        file = open_files.pop(index.file, None)
        while len(open_files) >= self.max_open_files:
            open_files.popitem(last=False)[1].close()
        file = file or (DecordFile if self.backend == "decord" else PyavFile)(index, source)
        with contextlib.ExitStack() as on_error:
            on_error.callback(file.close)
            frames = file.read(wanted)
            on_error.pop_all()
        open_files[index.file] = file
        return frames

    def _open_files_of_this_process(self) -> "OrderedDict[VideoFile, PyavFile | DecordFile]":
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
            raise unreadable(
                path,
                f"timed out after {self.timeout_seconds:g} s",
                "raise timeout_seconds if the file is long and has no random access, or convert it: "
                "python -m classquery.data prepare",
            ) from error
        finally:
            # An error refers to its frames: with one back to it, both would live on with all that they refer to.
            del outcome


def _source(path: Video) -> Source:
    return path if isinstance(path, VideoBytes) else os.fspath(path)


def _run(work: Callable[[], ResultT], outcome: "concurrent.futures.Future[ResultT]") -> None:
    try:
        outcome.set_result(work())
    except (VideoReadError, ImportError, MemoryError) as error:
        outcome.set_exception(error)
    finally:
        # Without effect on an outcome; after any other error, the caller does not wait in vain.
        outcome.cancel()
        del outcome


def iterate_frames(
    path: str | os.PathLike[str], *, start_seconds: float = 0.0, needed: Iterable[int] | None = None
) -> Iterator[Frame]:
    """Stream a whole video in order with constant memory; exact for every codec, rotated as the file asks for.

    Mirroring, which a few phones store with the rotation, is not applied. Blocks that the decoder conceals are not
    reported: the frame looks as in a player.

    Args:
        path: The video file.
        start_seconds: Time of the first frame to yield, in seconds on the clock of the file. Frames before it are
            passed over by seeking where the file has random access.
        needed: Numbers of the frames whose image will be looked at, increasing; by default all. All frames come, but
            the others are not decoded until their image is asked for, which then takes a seek.

    Yields:
        Frames with the same numbers, times and pixels as those of `ClipReader`.

    Raises:
        VideoReadError: At the call, if the file cannot be read at all; while iterating, after the last frame, if some
            cannot be decoded or are missing, saying which. Like players it goes on behind damage; pictures that are
            predicted from what is damaged may look wrong there, and a clip of them is refused by `ClipReader.read`.
            Matroska and MPEG-TS do not state how many frames they hold: when truncated, they just end early.
    """
    index = index_video(os.fspath(path))
    # Times are quotients: half a microsecond of tolerance lets 0.04 mean the frame at 1/25 s.
    start = int(np.searchsorted(index.frame_seconds, start_seconds - 5e-7))
    return _stream_frames(index, range(start, index.info.num_frames), needed)


def _stream_frames(index: VideoIndex, frames: range, needed: Iterable[int] | None) -> Iterator[Frame]:
    lost: list[int] = []
    if needed is None:
        yield from _decode_all(index, frames, lost)
    else:
        yield from _decode_needed(index, frames, (number for number in needed if number >= frames.start), lost)
    problems = [_describe_truncation(index)] if index.missing_seconds else []
    if lost:
        uncertain = "" if index.has_exact_times else ", and the frames behind them may be a few off"
        problems.insert(0, f"{abbreviate(lost)} cannot be decoded, the data is damaged{uncertain}")
    if problems:
        raise unreadable(index.file.path, "; ".join(problems), "fetch or export it again")


def _decode_all(index: VideoIndex, frames: range, lost: list[int]) -> Iterator[Frame]:
    """Decode all frames of a range, and note those that are lost."""
    if not frames:
        return
    frame_seconds, expected = index.frame_seconds, frames.start
    with contextlib.closing(PyavFile(index, index.file.path)) as file:
        for frame_index, frame in file.frames_of(frames):
            if frame_index < expected:
                continue  # Behind damage, frames may come late; players drop them, too.
            lost.extend(range(expected, frame_index))
            expected = frame_index + 1
            yield Frame(frame_index, float(frame_seconds[frame_index]), functools.partial(file.to_rgb, frame))
    lost.extend(range(expected, frames.stop))


def _decode_needed(index: VideoIndex, frames: range, needed: Iterator[int], lost: list[int]) -> Iterator[Frame]:
    """Give all frames of a range, decoding some; around those that are lost, all, as others may take their place."""
    frame_seconds, next_index = index.frame_seconds, frames.start
    with contextlib.closing(PyavFile(index, index.file.path)) as file:
        while chunk := list(itertools.islice(needed, _NUM_FRAMES_AHEAD)):
            open_numbers = deque(chunk)
            for frame_index, frame in file.frames_of(chunk):
                if frame_index < next_index:
                    continue
                between, is_whole = range(next_index, frame_index), open_numbers[0] == frame_index
                yield from _undecoded(index, frame_seconds, between) if is_whole else _decode_all(index, between, lost)
                while open_numbers and open_numbers[0] <= frame_index:
                    open_numbers.popleft()
                next_index = frame_index + 1
                yield Frame(frame_index, float(frame_seconds[frame_index]), functools.partial(file.to_rgb, frame))
            if open_numbers:
                behind = range(next_index, open_numbers[-1] + 1)
                next_index = behind.stop
                yield from _decode_all(index, behind, lost)
    yield from _undecoded(index, frame_seconds, range(next_index, frames.stop))


def _undecoded(index: VideoIndex, frame_seconds: np.ndarray, frames: range) -> Iterator[Frame]:
    for number in frames:
        yield Frame(number, float(frame_seconds[number]), functools.partial(_read_alone, index.file.path, number))


def _read_alone(path: str, frame_index: int) -> np.ndarray:
    return ClipReader().read(path, [frame_index])[0]


def _check_range(index: VideoIndex, frame_indices: np.ndarray) -> None:
    outside = frame_indices[(frame_indices < 0) | (frame_indices >= index.info.num_frames)]
    if outside.size == 0:
        return
    cause = f"{abbreviate(outside)} out of range, the video has {index.info.num_frames} frames from number 0 on"
    remedy = "check the frame rate of the annotations"
    if index.missing_seconds:
        cause, remedy = f"{cause}: {_describe_truncation(index)}", "fetch or export it again"
    raise unreadable(index.file.path, cause, remedy)


def _describe_truncation(index: VideoIndex) -> str:
    return f"the file is truncated, its header promises {index.missing_seconds:.1f} s more"
