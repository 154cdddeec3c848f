"""Decode the frames of a video with PyAV, by number."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import VideoReformatter

from classquery.data.video.index import VideoIndex, turned
from classquery.data.video.opening import abbreviate, open_video, packets_of, translated_errors, unreadable


if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

# Seeking throws away what is decoded already, for reordering: it must pass over more than that.
_MIN_SKIPPED_FRAMES = 16


class PyavFile:
    """A file opened with PyAV, whose frames come out with their numbers; it stays where the last frame left it."""

    def __init__(self, index: VideoIndex) -> None:
        self.to_rgb = rgb_converter(index.info.height, index.info.width, index.quarter_turns)
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
                cause = f"{abbreviate(list(slots))} cannot be decoded, the data is damaged"
                raise unreadable(index.file.path, cause, "export it again")
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
        self._container, self._stream = open_video(self._index.file.path)
        self._start_decoding()

    def _seek(self, seek_point: int) -> None:
        with translated_errors(self._index.file.path):
            self._container.seek(seek_point, stream=self._stream)
        self._start_decoding()

    def _start_decoding(self) -> None:
        # Frames from this number on are still to come; of those before it, some may have been passed over.
        self._next_index = 0
        self._frames = self._decode()

    def _decode(self) -> Iterator[tuple[int, "VideoFrame"]]:
        index = self._index
        with translated_errors(index.file.path):
            # A packet that the end of the file cuts short would raise an error or give the image of another frame.
            packets = (packet for packet in packets_of(self._container, self._stream) if not packet.is_corrupt)
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
