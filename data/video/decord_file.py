"""Decode the frames of a video with decord, where it is exact."""

import contextlib
import os
import weakref
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from classquery.data.video.index import VideoIndex
from classquery.data.video.opening import Source, VideoBytes, VideoReadError, unreadable


# Freeing a reader of decord joins its threads. In a forked process, which has no copies of them, that hangs: there all
# inherited readers are kept for good, also those that are garbage already.
_open_files: "weakref.WeakSet[DecordFile]" = weakref.WeakSet()
_inherited_files: "list[DecordFile]" = []
if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=lambda: _inherited_files.extend(_open_files))


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
    except UnicodeEncodeError as error:
        raise unreadable(
            path, "decord takes no names that are not UTF-8", 'rename it or use backend="auto"'
        ) from error
    except (RuntimeError, decord.DECORDError) as error:
        raise unreadable(path, "decord cannot decode it, the data is damaged", "fetch or export it again") from error


class DecordFile:
    """A file opened with decord."""

    def __init__(self, index: VideoIndex, source: Source) -> None:
        self._path = index.file.path
        if not index.is_exact_with_decord:
            raise self._refusal(f"decord returns wrong frames of some files of its kind ({index.kind})")
        with _using_decord(self._path) as decord:
            # Absolute, because FFmpeg takes what is before a colon for a protocol.
            file = source.open() if isinstance(source, VideoBytes) else os.path.abspath(source)
            self._reader = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1)
        _open_files.add(self)
        # Both libraries list all packets; where they disagree on the number, the frame numbers of decord mean others.
        if len(self._reader) != index.num_packets:
            raise self._refusal(f"decord finds {len(self._reader)} frames where {index.num_packets} are")

    def _refusal(self, cause: str) -> VideoReadError:
        return unreadable(self._path, cause, 'use backend="auto", which is exact for it')

    def close(self) -> None:
        """decord has none: the file closes when nothing refers to it."""

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """Decode frames `wanted` (int64, increasing): uint8 RGB of shape (len(wanted), height, width, 3)."""
        with _using_decord(self._path):
            frames = self._reader.get_batch(wanted).asnumpy()
            # Otherwise it decodes on in the background: 1.8 GB after ten seconds.
            self._reader.seek(0)
        return frames
