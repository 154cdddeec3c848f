"""Decode the frames of a video with PyAV, by number."""

import itertools
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import VideoReformatter

from classquery.data.video.index import VideoIndex, turned
from classquery.data.video.opening import (
    Source,
    abbreviate,
    decode,
    open_video,
    packets_of,
    translated_errors,
    unreadable,
)


if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

# Up to here, passing over packets takes no longer than a seek.
_MAX_PACKETS_PASSED_OVER = 100
# More than any codec holds back, for reordering.
_MAX_HELD_BACK = 32


class PyavFile:
    """A file opened with PyAV, whose frames come out with their numbers; it stays where the last frame left it."""

    def __init__(self, index: VideoIndex, source: Source) -> None:
        self._source = source
        self.to_rgb = rgb_converter(index.info.height, index.info.width, index.quarter_turns)
        self._index = index
        self._open()

    def close(self) -> None:
        """Close the file."""
        self._container.close()
        # They refer to each other: left to the garbage collector, decoders would pile up.
        self._packets, self._stream, self._put_back = iter(()), None, None
        self._forget()

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """Decode frames `wanted` (int64, increasing): uint8 RGB of shape (len(wanted), height, width, 3)."""
        index = self._index
        frames = np.empty((len(wanted), index.info.height, index.info.width, 3), np.uint8)
        slots = {frame_index: slot for slot, frame_index in enumerate(wanted.tolist())}
        for frame_index, frame in self.frames_of(list(slots)):
            frames[slots.pop(frame_index)] = self.to_rgb(frame)
        damaged = sorted(slots.keys() | set(wanted[self.is_doubtful(wanted)].tolist()))
        if damaged:
            cause = f"{abbreviate(damaged)} cannot be decoded, the data is damaged"
            raise unreadable(index.file.path, cause, "export it again")
        return frames

    def is_doubtful(self, wanted: np.ndarray) -> np.ndarray:
        """Tell which frames come out but are not what they were, because of a damaged packet before them."""
        index = self._index
        if not index.has_exact_times:
            # They are counted, and nobody knows how many are lost.
            return wanted >= (index.info.num_frames if self._first_damage is None else self._first_damage)
        same_group = np.isin(index.groups_of(wanted), index.groups_of(self._damaged))
        return same_group & (index.packets[wanted] > min(index.packets[self._damaged], default=0))

    def frames_of(self, wanted: Sequence[int]) -> Iterator[tuple[int, "VideoFrame"]]:
        """Decode frames `wanted`, a range or increasing, as pairs of number and frame; without those that are lost."""
        is_wanted = wanted if isinstance(wanted, range) else frozenset(wanted)
        feed = self._feed_wanted(wanted, is_wanted) if self._index.has_exact_times else self._feed_all(wanted[0])
        with translated_errors(self._index.file.path):
            for _ in feed:
                while self._came_out:
                    frame_index, frame = self._came_out.popleft()
                    self._pending = {number for number in self._pending if number > frame_index}
                    if frame_index in is_wanted:
                        yield frame_index, frame
                    if frame_index >= wanted[-1]:
                        return

    # Frames that are counted from the first one

    def _feed_all(self, first: int) -> Iterator[None]:
        """Feed packets one by one so that all frames come out, at the latest from number `first` on."""
        if self._next_index - len(self._came_out) > first:
            self._reopen()
        yield
        while (packet := self._next_packet()) is not None:
            frames = decode(packet)
            if frames is None:
                # Of most codecs a packet holds one frame.
                self._first_damage = self._next_index if self._first_damage is None else self._first_damage
                frames = [None]
            numbered = zip(range(self._next_index, self._index.info.num_frames), frames, strict=False)
            self._came_out.extend(pair for pair in numbered if pair[1] is not None)
            self._next_index += len(frames)
            yield

    # Frames that are known by their timestamps

    def _feed_wanted(self, wanted: Sequence[int], is_wanted: Container[int]) -> Iterator[None]:
        """Feed packets one by one so that the frames `wanted` come out; nothing of groups without any."""
        index, numbers = self._index, np.asarray(wanted)
        groups = index.groups_of(numbers)
        bounds = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(numbers)]
        for start, stop in itertools.pairwise(bounds):
            self._go_to(wanted[start], int(groups[start]))
            yield
            last_position = int(index.packets[numbers[start:stop]].max())
            while self._position <= last_position and (packet := self._next_packet()) is not None:
                # Those behind the last one are for the next clip, which may go on here.
                self._feed(packet, lambda frame_index: frame_index in is_wanted or frame_index > wanted[-1])
                yield
            if stop < len(numbers) and index.seek_packets[groups[stop]] > self._position:
                self._drain()
                yield
        # What was fed comes out when more is.
        for _ in range(_MAX_HELD_BACK):
            if self._pending and (packet := self._next_packet()) is not None:
                self._feed(packet)
                yield

    def _go_to(self, frame_index: int, group: int) -> None:
        """See to it that a frame is still to come, and nothing before its group."""
        index = self._index
        if frame_index in self._pending:
            return
        first_position = int(index.seek_packets[group]) if group >= 0 else 0
        is_ahead = index.packets[frame_index] >= self._position
        if is_ahead and first_position <= self._position:
            return
        if is_ahead and first_position - self._position <= _MAX_PACKETS_PASSED_OVER:
            self._pass_over(int(index.seek_points[group]))
        elif group >= 0:
            self._seek(int(index.seek_points[group]))
        else:
            self._reopen()

    def _pass_over(self, seek_point: int) -> None:
        self._stream.codec_context.flush_buffers()
        self._forget()
        while (packet := self._next_packet()) is not None and packet.pts != seek_point:
            pass
        self._put_back = packet

    def _seek(self, seek_point: int) -> None:
        self._container.seek(seek_point, stream=self._stream)
        self._packets = packets_of(self._container, self._stream)
        self._forget()
        self._position, self._put_back = 0, self._next_packet()
        if self._put_back is None or self._put_back.pts is None or self._put_back.pts > seek_point:
            # A container may lead to a later key frame than asked for: then only the way from the first one is safe.
            self._reopen()

    def _feed(self, packet: "Packet", is_wanted: Callable[[int], bool] = lambda frame_index: True) -> None:
        """Decode a packet; where possible, pass over its frame if it is not wanted."""
        frame_index = None if packet.pts is None else self._index.number_at(packet.pts)
        is_kept = frame_index is None or is_wanted(frame_index)
        if self._index.can_skip_frames:
            self._stream.codec_context.skip_frame = "DEFAULT" if is_kept else "NONREF"
        if frame_index is not None:
            self._position = int(self._index.packets[frame_index]) + 1
            if is_kept or not self._index.can_skip_frames:
                self._pending.add(frame_index)
        frames = decode(packet)
        self._number(frames or ())
        if frames is None and frame_index is not None:
            self._damaged.append(frame_index)

    def _drain(self) -> None:
        """Let out what was fed; then decoding goes on at a later group."""
        self._number(self._stream.codec_context.decode(None))
        self._stream.codec_context.flush_buffers()
        self._pending.clear()

    def _number(self, frames: Iterable["VideoFrame"]) -> None:
        for frame in frames:
            frame_index = self._index.number_at(frame.pts)
            if frame_index is not None:
                self._came_out.append((frame_index, frame))

    # Packets

    def _next_packet(self) -> "Packet | None":
        packet, self._put_back = self._put_back, None
        # A packet that the end of the file cuts short would raise an error or give the image of another frame.
        return packet or next((packet for packet in self._packets if not packet.is_corrupt), None)

    def _open(self) -> None:
        self._container, self._stream = open_video(self._source)
        self._packets = packets_of(self._container, self._stream)
        self._put_back: Packet | None = None
        """Goes before `_packets`."""
        self._position = 0
        """No packet before this one of the file is still to come."""
        self._next_index = 0
        """Number of the counted frame that comes out next."""
        self._first_damage: int | None = None
        """Number of the first counted frame that a damaged packet may have shifted."""
        self._damaged: list[int] = []
        """Frames that are known by their timestamps and whose packet is damaged."""
        self._forget()

    def _reopen(self) -> None:
        self.close()
        self._open()

    def _forget(self) -> None:
        self._pending: set[int] = set()
        """Frames that were fed to the decoder and that nobody has taken."""
        self._came_out: deque[tuple[int, VideoFrame]] = deque()
        """Frames that the decoder has let out and nobody has taken."""


def rgb_converter(height: int, width: int, quarter_turns: int = 0) -> Callable[["VideoFrame"], np.ndarray]:
    """Return the function from decoded frames to uint8 RGB images of shape (height, width, 3).

    `quarter_turns` tells how often a frame is turned counter-clockwise by 90 degrees, to that height and width.
    """
    height, width = turned(height, width, quarter_turns)
    # One for all frames: making a new one for each, as VideoFrame.to_ndarray does, takes six times as long.
    reformatter = VideoReformatter()

    def to_rgb(frame: "VideoFrame") -> np.ndarray:
        # The size is given for streams that change theirs: every frame gets the size of the first.
        # Threads of its own cost more than they give at this size, and a forked process could not free them.
        image = reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, quarter_turns))

    return to_rgb
