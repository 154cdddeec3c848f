"""From the downloaded originals to a folder that trains quickly: cut, encoded anew, checked, and resumable.

Videos become H.264 in mp4 that random clips are decoded from quickly (`benchmarks/data.py`): key frames are near each
other and true restarts, three of four frames are referred to by no other, so that the reader passes over those it does
not need, and their bits are packed the simple way (CAVLC).
"""

import glob
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from datasets import Dataset
from tqdm.auto import tqdm

from classquery.data.annotations.parquet import PARQUET_FOLDER, save_action_dataset
from classquery.data.annotations.registry import load_action_dataset, load_action_labels
from classquery.data.annotations.schema import AnnotationError
from classquery.data.names import SPLITS
from classquery.data.preparation.checking import Video, digest_of, map_in_processes, videos_of
from classquery.data.preparation.prepared_folder import RECORD_FILE, VIDEO_FOLDER, PreparedFolder, append_record
from classquery.data.video.frame_folder import count_frames, read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError, iterate_frames
from classquery.data.whole_files import replacing


# What the annotations of AVA call the first and the last second of a movie that is needed: the keyframes are from 902
# to 1798, and a clip reaches little more than a second around one.
AVA_SECONDS = (900.0, 1801.0)
_CUT_DATASETS = ("ava", "demo")
# 90 kHz, usual for video, holds the times of any frame rate to some microseconds.
_TIME_BASE = Fraction(1, 90_000)
# Times closer than this are the same when they are written.
_TIME_TOLERANCE_SECONDS = float(_TIME_BASE) / 2
# Measured on noisy pictures at crf 18: others take less.
_BYTES_PER_PIXEL = 0.04
_FRAMES_PER_SECOND_OF_FOLDERS = 25.0
_ANNOTATION_SUFFIXES = (".csv", ".json", ".jsonl", ".mat", ".pbtxt", ".pkl", ".tsv", ".txt", ".xml", ".yaml", ".yml")


@dataclass(frozen=True)
class Encoding:
    """How videos are written.

    Args:
        gop: Largest distance of key frames: a clip costs half of that more than its own frames. 0 copies the files.
        short_side: Short side in pixels after resizing, if that makes the frames smaller; 0 keeps their size. Either
            way sides are even numbers.
        crf: Quality, from 0 (without loss) to 51; 18 looks like the original.
    """

    gop: int = 30
    short_side: int = 0
    crf: int = 18

    def __post_init__(self) -> None:
        if self.gop < 0 or self.short_side < 0 or not 0 <= self.crf <= 51:
            raise ValueError(
                f"gop and short_side must be 0 or more and crf in [0, 51], got {self.gop}, {self.short_side} and "
                f"{self.crf}"
            )

    @property
    def x264_options(self) -> dict[str, str]:
        """Options of FFmpeg for the encoder."""
        structure = f"keyint={self.gop}:scenecut=0:open-gop=0:bframes=3:b-adapt=0:b-pyramid=none:weightp=0:cabac=0"
        # One thread makes the bytes reproducible; several files are encoded at once instead.
        return {"preset": "veryfast", "crf": str(self.crf), "threads": "1", "x264-params": structure}

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the frames that are written."""
        shortest = min(width, height)
        scale = self.short_side / shortest if 0 < self.short_side < shortest else 1
        return tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))


class _Job(NamedTuple):
    """One video to write."""

    video: Video
    data_dir: Path
    seconds: tuple[float, float] | None
    """What is cut out, in seconds after the first frame; None for all of it."""
    encoding: Encoding

    @property
    def is_copied(self) -> bool:
        return self.encoding.gop == 0 and self.video.source == "video"

    @property
    def name(self) -> str:
        """The name in the annotations, which may begin with a folder for the class, and the suffix."""
        return self.video.name + (Path(self.video.path).suffix if self.is_copied else ".mp4")

    @property
    def target(self) -> Path:
        return self.data_dir / VIDEO_FOLDER / self.name


def prepare_videos(
    name: str,
    source_dir: str | Path,
    data_dir: str | Path,
    *,
    splits: Sequence[str] = SPLITS,
    encoding: Encoding = Encoding(),
    movie_start_seconds: float = 0.0,
    num_workers: int = 0,
    **options: Any,
) -> list[str]:
    """Write the videos of a data set anew, those that are not finished yet, and copy its annotations.

    A call that was interrupted is continued by the next one: a file appears under its name when it is complete, and
    `prepared.jsonl` records what it was made of and how.

    Args:
        name: A name of `load_action_dataset`.
        source_dir: Folder with the originals, in the layout of the data set.
        data_dir: Folder to write, in the same layout; another one.
        splits: Whose videos to write.
        encoding: How.
        movie_start_seconds: For AVA: what the annotations call the start of the originals; 0 for whole movies.
        num_workers: Processes that encode; 0 for this one.
        options: Of `load_action_dataset`.

    Returns:
        What went wrong, one text for each video or split; the others are finished.

    Raises:
        OSError: If the disk has not enough room.
        ValueError: If both folders are the same, if something would be written outside of `data_dir`, onto an original
            or over a file that is not of this function, if AVA's movies are to be copied instead of cut, or begin
            after the part that is cut out, or if frames would shrink that boxes are measured in.
    """
    source_dir, data_dir = Path(source_dir), Path(data_dir)
    _check_options(name, source_dir, data_dir, encoding, movie_start_seconds, options)
    seconds = None
    if name in _CUT_DATASETS:
        options["movie_start_seconds"] = movie_start_seconds
        seconds = (AVA_SECONDS[0] - movie_start_seconds, AVA_SECONDS[1] - movie_start_seconds)
    errors: list[str] = []
    rows = _load_splits(name, source_dir, splits, options, errors)
    jobs = [_Job(video, data_dir, seconds, encoding) for video in _find_videos(rows, source_dir, errors)]
    annotations = _annotations_in(source_dir)
    folder = PreparedFolder(data_dir)
    open_jobs = _claim(folder, jobs, annotations, splits)
    for path in annotations:
        _copy_annotations(source_dir / path, folder, path)
    num_finished = len(jobs) - len(open_jobs)
    with tqdm(total=len(jobs), initial=num_finished, desc="Preparing videos", unit="video") as progress:
        for error in map_in_processes(_prepare_video, open_jobs, num_workers):
            if error is not None:
                errors.append(error)
            progress.update()
    if name == "parquet":
        _save_rows(rows, jobs, source_dir, data_dir)
    return errors


def _check_options(
    name: str,
    source_dir: Path,
    data_dir: Path,
    encoding: Encoding,
    movie_start_seconds: float,
    options: dict[str, Any],
) -> None:
    if source_dir.resolve() == data_dir.resolve():
        raise ValueError(f"data_dir must be another folder than source_dir, got {data_dir} for both")
    if name in _CUT_DATASETS and encoding.gop == 0:
        raise ValueError("cutting encodes anew: gop must be positive for AVA, got 0")
    if name in _CUT_DATASETS and movie_start_seconds > AVA_SECONDS[0]:
        raise ValueError(f"movie_start_seconds must be at most {AVA_SECONDS[0]:g}, got {movie_start_seconds:g}")
    if name == "custom" and options.get("box_format") == "pixel" and encoding.short_side:
        raise ValueError(
            "short_side must be 0 where boxes are in pixels, which are those of the originals: leave it out, or give "
            "the boxes as fractions of the frame"
        )


def _claim(folder: PreparedFolder, jobs: list[_Job], annotations: list[str], splits: Sequence[str]) -> list[_Job]:
    """Make sure that all can be written, note that it will be, and return the jobs that are not finished yet."""
    tables = [f"{PARQUET_FOLDER}/{file}" for file in (*(f"{split}.parquet" for split in splits), "classes.txt")]
    names = [job.name for job in jobs]
    folder.require_free(names, [*annotations, *tables], [Path(job.video.path) for job in jobs])
    open_jobs = [job for job in jobs if not _is_finished(job, folder.videos)]
    _check_disk_space(folder.path, open_jobs)
    folder.claim(names, [*annotations, *tables])
    return open_jobs


# Annotations


def _annotations_in(source_dir: Path) -> list[str]:
    """Files of annotations that lie in a folder, its `annotations/` or the folders of splits."""
    patterns = ("*", "annotations/*", "train/**/*", "validation/**/*", "val/**/*")
    paths = {path for pattern in patterns for path in source_dir.glob(pattern) if path.is_file()}
    return sorted(
        path.relative_to(source_dir).as_posix()
        for path in paths
        if path.suffix.lower() in _ANNOTATION_SUFFIXES and path.name != RECORD_FILE
    )


def _copy_annotations(source: Path, folder: PreparedFolder, path: str) -> None:
    target = folder.path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial_path:
        shutil.copyfile(source, partial_path)
    folder.note_file(path)


def _save_rows(rows: dict[str, Dataset], jobs: list[_Job], source_dir: Path, data_dir: Path) -> None:
    """Write tables of annotations, which name their videos, with the names of those that were written."""
    targets = {job.video.path: str(job.target) for job in jobs}
    labels = load_action_labels("parquet", source_dir)
    for split, split_rows in rows.items():
        columns = split_rows.with_format("arrow")[:].to_pydict()
        columns["video"] = [targets.get(video) for video in columns["video"]]
        columns["source"] = [video and "video" for video in columns["video"]]
        save_action_dataset(Dataset.from_dict(columns, features=split_rows.features), labels, data_dir, split)


# What is to be done


def _load_splits(
    name: str, source_dir: Path, splits: Sequence[str], options: dict[str, Any], errors: list[str]
) -> dict[str, Dataset]:
    rows = {}
    for split in splits:
        try:
            rows[split] = load_action_dataset(name, source_dir, split, require_videos=False, **options)
        except (AnnotationError, FileNotFoundError) as error:
            errors.append(f"{split}: {error}")
    return rows


def _find_videos(rows: dict[str, Dataset], source_dir: Path, errors: list[str]) -> list[Video]:
    """Videos of all splits, each once."""
    videos: dict[str, Video] = {}
    for video in itertools.chain.from_iterable(map(videos_of, rows.values())):
        other = videos.setdefault(video.name, video)
        if other.path != video.path and not _are_one_file(other.path, video.path):
            raise ValueError(
                f"two videos would have one name, {video.name}: {other.path or 'one that is missing'} and "
                f"{video.path or 'one that is missing'}; rename one of them, in the annotations, too"
            )
    errors += [f"{video.name}: no video in {source_dir}" for video in videos.values() if video.path is None]
    return [video for video in videos.values() if video.path is not None]


def _are_one_file(path: str | None, other: str | None) -> bool:
    """Whether two paths lead to one file, as through a link."""
    return path is not None and other is not None and os.path.samefile(path, other)


def _is_finished(job: _Job, records: dict[str, dict[str, Any]]) -> bool:
    """Whether the file is there, unchanged since it was made of the same source in the same way."""
    return job.name in records and job.target.is_file() and records[job.name] == _record(job)


def _record(job: _Job) -> dict[str, Any]:
    source = Path(job.video.path).stat()
    return {
        "name": job.name,
        "source": [source.st_size, source.st_mtime_ns],
        "seconds": job.seconds and list(job.seconds),
        "encoding": asdict(job.encoding),
        "digest": digest_of(job.target),
    }


def _check_disk_space(data_dir: Path, jobs: list[_Job]) -> None:
    existing = next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.is_dir())
    needed, free = sum(map(_estimate_bytes, jobs)), shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"the disk of {data_dir} has {free / 1e9:.1f} GB of room, the videos need about {needed / 1e9:.1f} GB: "
            "choose another disk, a smaller --short_side or a larger --crf"
        )


def _estimate_bytes(job: _Job) -> float:
    """Estimate the size of a file from the header of the source; 0 if it cannot be read."""
    if job.encoding.gop == 0 or job.video.source == "frames":
        paths = Path(job.video.path).rglob("*") if job.video.source == "frames" else [Path(job.video.path)]
        return float(sum(path.stat().st_size for path in paths))
    try:
        with av.open(job.video.path, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or not container.duration or not stream.average_rate:
                return 0.0
            seconds = container.duration / av.time_base
            width, height = job.encoding.size_of(stream.width, stream.height)
            rate = float(stream.average_rate)
    except av.error.FFmpegError:
        return 0.0
    if job.seconds is not None:
        seconds = max(0.0, min(seconds, job.seconds[1]) - max(0.0, job.seconds[0]))
    return seconds * rate * width * height * _BYTES_PER_PIXEL


# One video


def _prepare_video(job: _Job) -> str | None:
    """Write one video, verified, and record it; or return what is wrong with it. Called in the processes."""
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        # Left behind by a run that was killed.
        leftover = f".{glob.escape(job.target.stem)}-{'[0-9a-f]' * 8}{job.target.suffix}"
        for path in job.target.parent.glob(leftover):
            path.unlink()
        with replacing(job.target) as partial_path:
            write = _copy_verified if job.is_copied else _encode_verified
            write(job, partial_path)
    except (VideoReadError, OSError) as error:
        return f"{job.video.name}: {error}"
    append_record(job.data_dir, _record(job))
    return None


def _copy_verified(job: _Job, path: Path) -> None:
    shutil.copyfile(job.video.path, path)
    ClipReader().info(path)


def _encode_verified(job: _Job, path: Path) -> None:
    video = job.video
    if video.source == "frames":
        rate = video.fps or _FRAMES_PER_SECOND_OF_FOLDERS
        frames = _frames_of_folder(video.path, rate)
    else:
        rate = ClipReader().info(video.path).frames_per_second
        frames = _cut(video.path, job.seconds)
    num_frames = encode(path, frames, rate, job.encoding)
    if num_frames == 0:
        raise VideoReadError(f"{video.path} has no frames from {job.seconds[0]:g} to {job.seconds[1]:g} s")
    info = ClipReader().info(path)
    if info.num_frames != num_frames or not info.random_access:
        raise VideoReadError(f"wrote {num_frames} frames of {video.path}, but read {info.num_frames} back")


class TimedImage(NamedTuple):
    """A frame on the clock of the file that is written."""

    seconds: float
    image: np.ndarray


def _cut(path: str, seconds: tuple[float, float] | None) -> Iterator[TimedImage]:
    """Yield the frames of a part of a video, from its start at 0 s on.

    The first one is what is on screen at the start, be it that its own time is a little earlier, or later where sound
    comes before the pictures: a file without sound starts with its pictures. So the times of all others, and with them
    the frame of every keyframe, are those of the whole video.
    """
    start, end = seconds or (0.0, float("inf"))
    on_screen, is_first = None, True
    # A second before it: the frame on screen at the start may have been there for a while.
    for frame in iterate_frames(path, start_seconds=max(0.0, start - 1)):
        if frame.seconds <= start + _TIME_TOLERANCE_SECONDS:
            on_screen = frame
            continue
        if frame.seconds >= end - _TIME_TOLERANCE_SECONDS:
            break
        if on_screen is not None:
            yield TimedImage(0.0, on_screen.image)
            on_screen, is_first = None, False
        yield TimedImage(0.0 if is_first else frame.seconds - start, frame.image)
        is_first = False
    if on_screen is not None:
        yield TimedImage(0.0, on_screen.image)


def _frames_of_folder(folder: str, frames_per_second: float) -> Iterator[TimedImage]:
    for index in range(count_frames(folder)):
        yield TimedImage(index / frames_per_second, read_frame_folder(folder, [index])[0])


def encode(path: Path, frames: Iterable[TimedImage], frames_per_second: float, encoding: Encoding) -> int:
    """Write frames as H.264 in mp4, at their times, and return how many there were; no file if there are none."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return 0
    height, width = first.image.shape[:2]
    width, height = encoding.size_of(width, height)
    reformatter = VideoReformatter()
    num_frames = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        # The rate is a hint for the encoder: times are exact, also where the rate varies.
        rate = Fraction(frames_per_second).limit_denominator(1001)
        stream = output.add_stream("libx264", rate=rate, options=encoding.x264_options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = _TIME_BASE
        for timed in itertools.chain([first], frames):
            image = av.VideoFrame.from_ndarray(timed.image, format="rgb24")
            frame = reformatter.reformat(image, width, height, "yuv420p", interpolation="BICUBIC", threads=1)
            frame.pts, frame.time_base = round(timed.seconds / _TIME_BASE), _TIME_BASE
            output.mux(stream.encode(frame))
            num_frames += 1
        output.mux(stream.encode(None))
    return num_frames
