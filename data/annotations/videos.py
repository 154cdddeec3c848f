"""The videos that annotations name: where they are, and what they are in fact."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from classquery.data.annotations.entries import VideoClaim
from classquery.data.annotations.schema import VIDEO_SUFFIXES, AnnotationError, ProblemCollector, as_ranges, quote
from classquery.data.video.frame_folder import count_frames, read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError


# A change of size, as by re-encoding, may round a side by a pixel or two.
ASPECT_TOLERANCE = 0.02
_RATE_TOLERANCE = 0.01


class Video(NamedTuple):
    """What a video is in fact."""

    path: Path
    source: Literal["video", "frames"]
    num_frames: int
    """Up to the last frame that anybody annotated, if the annotations say so."""
    height: int
    width: int
    fps: float
    start_seconds: float = 0.0
    """Time of the first frame."""
    annotated_frames: list[tuple[int, int, int]] | None = None
    """Ranges of frames in which everybody was looked for; None for all."""


class VideoFinder:
    """Finds videos and folders of frames by the names that annotations give them.

    Args:
        folders: Where to look, the likeliest first; in folders within them for what is in none of them, but for those
            within the last one, which holds everything.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders

    @cached_property
    def _nested(self) -> dict[str, list[Path]]:
        """Videos in folders within the folders, by the name of the file."""
        nested = defaultdict(list)
        for folder in self.folders[:-1]:
            for place, _, files in os.walk(folder, followlinks=True):
                for file in files:
                    if Path(file).suffix.lower() in VIDEO_SUFFIXES:
                        nested[file].append(Path(place, file))
        return nested

    def __call__(self, name: str) -> Path | None:
        """Find a video, with or without its suffix or, as `prepare` leaves it, another, or a folder of frames."""
        for stem in dict.fromkeys((name, video_id(name))):
            for folder in self.folders:
                for suffix in ("", *VIDEO_SUFFIXES):
                    path = folder / f"{stem}{suffix}"
                    # `os.path` says of what can be no path, such as a name of 5,000 characters, that it is not there.
                    if os.path.isfile(path) or (os.path.isdir(path) and path not in self.folders):
                        return path
        return self._find_nested(name)

    def _find_nested(self, name: str) -> Path | None:
        """Find the only file whose path ends so: results name as many folders as tell their videos apart."""
        end = Path(name).parts
        paths = [path for path in self._nested.get(end[-1] if end else "", ()) if path.parts[-len(end) :] == end]
        return paths[0] if len(paths) == 1 else None

    def list_videos(self) -> list[Path]:
        """List whatever lies in the folders."""
        return [path for folder in self.folders if folder.is_dir() for path in sorted(folder.iterdir())]

    def resolve(self, name: str, claim: VideoClaim) -> str:
        """Return the name of a video under which it is found, or its first one if it is not found.

        Raises:
            AnnotationError: If the annotations name no video, and which one they mean is open.
        """
        names = [candidate for candidate in (*claim.names, name) if candidate]
        # Tools name the path on their server.
        names += [candidate for candidate in map(_last_part, names) if candidate not in names]
        found = next((candidate for candidate in names if self(candidate)), None)
        return found or (names[0] if claim.is_named else self._only_video(names))

    def _only_video(self, names: Sequence[str]) -> str:
        videos = {path.name for path in self.list_videos() if path.suffix.lower() in VIDEO_SUFFIXES}
        if len(videos) != 1:
            raise AnnotationError(
                f"names no video, and there are {len(videos)} in {', '.join(map(str, self.folders))}: give the file "
                f"the name of its video{f', not {quote(names[0])}' if names else ''}"
            )
        return videos.pop()


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def look_into(
    paths: Mapping[str, Path | None],
    claims: Mapping[str, VideoClaim],
    frames_fps: float,
    problems: ProblemCollector,
) -> dict[str, Video | None]:
    """Describe the videos that are there and can be read, and compare them with what the annotations say of them."""
    videos, names = {}, {}
    reader = ClipReader()
    for name, path in paths.items():
        with problems.at(name):
            other = names.setdefault(path or name, name)
            if other != name:
                raise AnnotationError(f"is the same file as {other}, {path}: give it one name")
            videos[name] = path and _compare(_look_at(path, frames_fps, reader), claims[name])
    return videos


def _look_at(path: Path, frames_fps: float, reader: ClipReader) -> Video:
    try:
        if path.is_dir():
            height, width = read_frame_folder(path, [0]).shape[1:3]
            return Video(path, "frames", count_frames(path), height, width, frames_fps)
        info = reader.info(path)
    except VideoReadError as error:
        raise AnnotationError(str(error)) from error
    size = info.height, info.width
    return Video(path, "video", info.num_frames, *size, info.frames_per_second, info.start_seconds)


def _compare(video: Video, claim: VideoClaim) -> Video:
    """Refuse a video that cannot be the one that was annotated, and cut it to what was annotated."""
    if claim.size:
        width, height = claim.size
        if abs(width * video.height / (height * video.width) - 1) > ASPECT_TOLERANCE:
            raise AnnotationError(
                f"was annotated in frames of {width}x{height}, and has {video.width}x{video.height}: "
                "give the video that was annotated"
            )
    is_as_long = claim.num_frames is not None and abs(claim.num_frames - video.num_frames) <= 1
    differs = claim.fps and abs(claim.fps / video.fps - 1) > _RATE_TOLERANCE
    if video.source == "video" and differs and not is_as_long:
        raise AnnotationError(
            f"has {video.fps:.3f} frames per second and {video.num_frames} frames, and the annotations say "
            f"{claim.fps:.3f}{f' and {claim.num_frames}' if claim.num_frames else ''}: give the video that was "
            "annotated, or correct the rate in the file if the numbers of its frames are right"
        )
    if claim.annotated_frames is None or not len(claim.annotated_frames):
        return video
    num_frames = min(video.num_frames, int(claim.annotated_frames[-1]) + 1)
    is_whole = len(claim.annotated_frames) >= num_frames
    return video._replace(
        num_frames=num_frames, annotated_frames=None if is_whole else as_ranges(claim.annotated_frames)
    )


def video_ids(names: Iterable[str]) -> dict[str, str]:
    """Return what clips of videos are called: their names without the suffix, where no other is called so."""
    stems = {name: video_id(name) for name in names}
    counts = Counter(stems.values())
    return {
        name: stem if counts[stem] == 1 and (stem == name or stem not in stems) else Path(name).as_posix()
        for name, stem in stems.items()
    }


def video_id(name: str) -> str:
    """Return the name of a video without the suffix."""
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in VIDEO_SUFFIXES else path.as_posix()
