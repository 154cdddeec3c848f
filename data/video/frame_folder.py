"""Videos stored as a folder of numbered images, as UCF101-24 and JHMDB-21 are distributed and AVA often is."""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from classquery.data.video.opening import VideoReadError, check_size


_IMAGE_NAME = re.compile(r"(?P<prefix>(?:[^.].*?)?)(?<!\d)(?P<number>\d+)(?P<suffix>\.(?:jpe?g|png))", re.IGNORECASE)
# A few hundred bytes each; UCF101-24 has 3,207 folders.
_MAX_INDEXED_FOLDERS = 4096


class _FrameFiles(NamedTuple):
    """Names of the images of a folder."""

    prefix: str
    num_digits: int
    suffix: str
    first: int
    num_frames: int

    def name(self, index: int) -> str:
        return f"{self.prefix}{self.first + index:0{self.num_digits}d}{self.suffix}"


def read_frame_folder(folder: str | os.PathLike[str], frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Decode frames of a video that is a folder of images; the twin of `ClipReader.read`.

    Args:
        folder: Holds one .jpg or .png image per frame, alike in name but for a number that counts from 0 or 1 without
            gaps, padded with zeros or not: `00001.jpg`, `img_00001.jpg`, `VIDEO_1.png`. Other files are passed over.
        frame_indices: Frame numbers from 0, whatever the first file is called, in any order, repeats allowed.

    Returns:
        uint8 RGB of shape (len(frame_indices), height, width, 3), in the order asked.

    Raises:
        VideoReadError: If the folder is missing, empty or has gaps, an index is out of range, an image is damaged, or
            the images differ in size.
    """
    files = _index(os.fspath(folder))
    # Each frame is decoded once.
    wanted, positions = np.unique(np.asarray(frame_indices), return_inverse=True)
    outside = [int(index) for index in wanted if not 0 <= index < files.num_frames]
    if outside:
        raise VideoReadError(
            f"cannot read {folder}: frames {outside} out of range, it has {files.num_frames} from number 0 on; "
            "extract the frames of the video again"
        )
    images = [_read_image(Path(folder) / files.name(int(index))) for index in wanted]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise VideoReadError(f"cannot read {folder}: its images differ in (height, width): {sorted(sizes)}")
    return np.stack(images)[positions]


def is_frame_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds numbered images."""
    return any(_IMAGE_NAME.fullmatch(name) for name in os.listdir(folder))


def frame_indices_at(
    folder: str | os.PathLike[str], seconds: Sequence[float] | np.ndarray, frames_per_second: float
) -> np.ndarray:
    """Find the frames nearest to some times; the twin of `ClipReader.frame_indices_at`.

    Args:
        folder: As for `read_frame_folder`.
        seconds: Times after the first frame, in seconds, of any shape. Times before the first or after the last frame
            give that frame.
        frames_per_second: The rate at which the frames were taken from the video, which the folder does not tell.

    Returns:
        int64 frame indices of the shape of `seconds`; the earlier frame where two are equally near.

    Raises:
        VideoReadError: If the folder is missing, empty or has gaps.
    """
    return nearest_frames(seconds, frames_per_second).clip(0, count_frames(folder) - 1)


def nearest_frames(seconds: Sequence[float] | np.ndarray, frames_per_second: float) -> np.ndarray:
    """Return the numbers of the frames nearest to some times, in a video without end at either side."""
    # Times are quotients: a millionth of a frame more is no nearer to the later one.
    return np.ceil(np.asarray(seconds, dtype=np.float64) * frames_per_second - 0.5 - 1e-6).astype(np.int64)


def count_frames(folder: str | os.PathLike[str]) -> int:
    """Count the frames of a folder, as for `read_frame_folder`, without opening them."""
    return _index(os.fspath(folder)).num_frames


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            check_size(os.fspath(path), image.height, image.width)
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise VideoReadError(f"cannot read {path}: {error}; make its images smaller") from error
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG.
        raise VideoReadError(f"cannot read {path}: {error}; extract the frames of the video again") from error


def _index(folder: str) -> _FrameFiles:
    try:
        modified_ns = os.stat(folder).st_mtime_ns
    except OSError as error:
        raise VideoReadError(f"cannot read {folder}: {error.strerror}; check the path") from error
    return _index_version(folder, modified_ns)


@lru_cache(maxsize=_MAX_INDEXED_FOLDERS)
def _index_version(folder: str, modified_ns: int) -> _FrameFiles:
    """List the folder, once for each version of it: it may hold tens of thousands of files."""
    matches = [match for name in os.listdir(folder) if (match := _IMAGE_NAME.fullmatch(name))]
    if not matches:
        raise VideoReadError(f"cannot read {folder}: it holds no numbered .jpg or .png images")
    first = min(matches, key=lambda match: int(match["number"]))
    files = _FrameFiles(
        prefix=first["prefix"],
        num_digits=len(first["number"]),
        suffix=first["suffix"],
        first=min(int(first["number"]), 1),
        num_frames=len(matches),
    )
    missing = {files.name(index) for index in range(files.num_frames)} - {match[0] for match in matches}
    if missing:
        raise VideoReadError(
            f"cannot read {folder}: its {len(matches)} images must be alike in name and numbered from 0 or 1 without "
            f"gaps, but {min(missing)} is missing; extract the frames of the video again"
        )
    return files
