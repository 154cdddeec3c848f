"""The frames of whatever a user calls a video: a file, a link, an array or a list of images.

With the package, files are read by its clip reader, whose frames are exact for every codec. Code that runs from the
Hub has what is installed: PyAV, whose frames are numbered as a player shows them, or else one of the decoders that
transformers knows, which hold a whole video in memory.
"""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
from huggingface_hub.utils import get_session, httpx
from transformers.utils import is_av_available, is_cv2_available, is_decord_available, is_torchcodec_available, logging
from transformers.video_utils import load_video


logger = logging.get_logger(__name__)

_CLIP_READER_NAME = f"{__package__}.data.video.reader"
_HAS_CLIP_READER = importlib.util.find_spec(f"{__package__}.data") is not None


class DecodedFrame(NamedTuple):
    """One frame of a video."""

    index: int
    """Its number, from 0."""
    seconds: float
    """Its time after the first frame."""
    image: np.ndarray
    """uint8 RGB of shape (height, width, 3)."""


@dataclass(frozen=True)
class VideoFrames:
    """A video to go through once."""

    num_frames: int
    size: tuple[int, int]
    """Height and width in pixels."""
    last_seconds: float
    """Time of the last frame after the first."""
    indices_at: Callable[[np.ndarray], np.ndarray]
    """Finds the frames nearest to times in seconds, of any shape; beyond the ends, the first or the last frame."""
    stream: Callable[[], Iterator[DecodedFrame]]
    """Decodes all frames in order; frames at a damaged end are missing, with a warning."""


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
    try:
        with get_session().stream("GET", url, follow_redirects=True) as response, path.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
    except httpx.HTTPError as error:
        raise ValueError(f"the video {url} cannot be downloaded: {error}") from error


def is_one_video(video: Any) -> bool:
    """Whether something is one video, and not several: a list of images is one."""
    if not isinstance(video, list | tuple):
        return isinstance(video, str | os.PathLike | np.ndarray | torch.Tensor)
    return bool(video) and _is_image(video[0])


def _is_image(image: Any) -> bool:
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
        ImportError: If no library that reads files is installed.
    """
    if not is_one_video(video):
        raise ValueError(f"a video is a path or link of a file, an array or a list of images, got {type(video)}")
    if not isinstance(video, str | os.PathLike):
        return _of_images(_to_images(video), frames_per_second)
    if _HAS_CLIP_READER:
        return _of_clip_reader(video)
    if not os.path.isfile(video):
        raise ValueError(f"there is no video file {os.fspath(video)!r}")
    return _of_pyav(os.fspath(video)) if is_av_available() else _of_transformers(os.fspath(video))


def _of_clip_reader(path: str | os.PathLike) -> VideoFrames:
    clip_reader = importlib.import_module(_CLIP_READER_NAME)
    reader = clip_reader.ClipReader()
    try:
        info = reader.info(path)
    except clip_reader.VideoReadError as error:
        raise ValueError(str(error)) from error
    return VideoFrames(
        num_frames=info.num_frames,
        size=(info.height, info.width),
        last_seconds=(info.num_frames - 1) / info.frames_per_second,
        indices_at=lambda seconds: reader.frame_indices_at(path, seconds),
        stream=lambda: _up_to_damage(clip_reader.iterate_frames(path), clip_reader.VideoReadError),
    )


def _of_pyav(path: str) -> VideoFrames:
    av = importlib.import_module("av")
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            seconds = (np.array(times) - times[0]) * float(stream.time_base)
            container.seek(0)
            height, width, _ = _to_rgb(next(container.decode(stream))).shape
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} is damaged or no video: {error}") from error
    return VideoFrames(
        num_frames=len(seconds),
        size=(height, width),
        last_seconds=float(seconds[-1]),
        indices_at=lambda wanted: nearest_indices(seconds, wanted),
        stream=lambda: _up_to_damage(_decode_with_pyav(path, seconds), av.FFmpegError),
    )


def _decode_with_pyav(path: str, seconds: np.ndarray) -> Iterator[DecodedFrame]:
    with importlib.import_module("av").open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, (time, frame) in enumerate(zip(seconds.tolist(), container.decode(video=0), strict=False)):
            yield DecodedFrame(index, time, _to_rgb(frame))


def _to_rgb(frame: Any) -> np.ndarray:
    """Pixels of a frame of PyAV, rotated as the file asks for."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _up_to_damage(frames: Iterator[DecodedFrame], damage: type[Exception]) -> Iterator[DecodedFrame]:
    try:
        yield from frames
    except damage as error:
        logger.warning("the video ends early: %s", error)


def _of_transformers(path: str) -> VideoFrames:
    available = {
        "torchcodec": is_torchcodec_available(),
        "decord": is_decord_available(),
        "opencv": is_cv2_available(),
    }
    backend = next((name for name, is_available in available.items() if is_available), None)
    if backend is None:
        raise ImportError("to read video files, install PyAV: pip install av; or pass the frames as an array")
    images, metadata = load_video(path, backend=backend)
    return _of_images(_to_images(images), metadata.fps)


def _to_images(video: Any) -> Sequence[np.ndarray]:
    """Check frames and bring them to (height, width, 3), uint8."""
    images = [np.array(image.convert("RGB")) if hasattr(image, "convert") else np.asarray(image) for image in video]
    sizes = {image.shape for image in images}
    if len(sizes) != 1 or images[0].ndim != 3 or images[0].dtype != np.uint8:
        found = f"{len(images)} frames of shapes {sorted(sizes)}"
        raise ValueError(f"a video as an array must hold one or more RGB images of one size, uint8; got {found}")
    channels_first = images[0].shape[0] == 3 and images[0].shape[-1] != 3
    images = [image.transpose(1, 2, 0) if channels_first else image for image in images]
    if images[0].shape[-1] != 3:
        raise ValueError(f"the frames of a video must have 3 channels, got shape {images[0].shape}")
    return images


def _of_images(images: Sequence[np.ndarray], frames_per_second: float) -> VideoFrames:
    seconds = np.arange(len(images)) / frames_per_second
    return VideoFrames(
        num_frames=len(images),
        size=images[0].shape[:2],
        last_seconds=float(seconds[-1]),
        indices_at=lambda wanted: nearest_indices(seconds, wanted),
        stream=lambda: map(DecodedFrame, range(len(images)), seconds.tolist(), images),
    )


def nearest_indices(seconds: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Find the frame nearest to each time, the earlier one where two are equally near.

    Args:
        seconds: Times of the frames, ascending, of shape (num_frames,).
        wanted: Times of any shape.

    Returns:
        Indices of the shape of `wanted`.
    """
    later = np.searchsorted(seconds, wanted).clip(max=len(seconds) - 1)
    earlier = (later - 1).clip(min=0)
    return np.where(wanted - seconds[earlier] <= seconds[later] - wanted, earlier, later)


__all__ = ["DecodedFrame", "VideoFrames", "is_one_video", "local_video", "nearest_indices", "open_video"]
