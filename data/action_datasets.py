"""The data sets by name: their annotations, their classes and their clips."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset

from classquery.data.ava import load_ava, load_ava_labels
from classquery.data.clips import KeyframeClips, TubeClips
from classquery.data.demo import write_demo
from classquery.data.demo_tubes import write_demo_tubes
from classquery.data.metrics import ava_label_ids
from classquery.data.tubes import (
    load_jhmdb_21,
    load_jhmdb_21_labels,
    load_multisports,
    load_multisports_labels,
    load_ucf101_24,
    load_ucf101_24_labels,
)


NUM_AVA_LABELS = 80


class _Reader(NamedTuple):
    load: Callable[..., Dataset]
    load_labels: Callable[[Path], dict[int, str]]
    has_tubes: bool
    options: tuple[str, ...] = ()  # Of `load_action_dataset`, that `load` takes.
    write_demo: Callable[[Path], None] | None = None
    scored_label_ids: Callable[[], list[int]] | None = None


def _demo(layout: str, num_train_videos: int, num_validation_videos: int) -> Callable[[Path], None]:
    return partial(
        write_demo_tubes,
        layout=layout,
        num_train_videos=num_train_videos,
        num_validation_videos=num_validation_videos,
    )


_READERS = {
    "ava": _Reader(
        load_ava,
        load_ava_labels,
        has_tubes=False,
        options=("movie_start_seconds", "require_videos"),
        scored_label_ids=ava_label_ids,
    ),
    "ucf101_24": _Reader(load_ucf101_24, load_ucf101_24_labels, has_tubes=True, options=("require_videos",)),
    "jhmdb_21": _Reader(load_jhmdb_21, load_jhmdb_21_labels, has_tubes=True, options=("fold", "require_videos")),
    "multisports": _Reader(load_multisports, load_multisports_labels, has_tubes=True, options=("require_videos",)),
}
_READERS |= {
    "demo": _READERS["ava"]._replace(write_demo=write_demo, scored_label_ids=None),
    "demo_ucf101_24": _READERS["ucf101_24"]._replace(write_demo=_demo("ucf101_24", 400, 40)),
    "demo_jhmdb_21": _READERS["jhmdb_21"]._replace(write_demo=_demo("jhmdb_21", 2400, 240)),
}
# The names above.
DatasetName = Literal["ava", "ucf101_24", "jhmdb_21", "multisports", "demo", "demo_ucf101_24", "demo_jhmdb_21"]


def prepare_dataset(name: DatasetName, data_dir: str | Path) -> Path:
    """Write a demo set to its folder, unless it is there; others have to be there.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something else than the demo set.
    """
    data_dir = Path(data_dir)
    write = _READERS[name].write_demo
    if write is not None:
        write(data_dir)
    return data_dir


def load_action_labels(name: DatasetName, data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes, by 0-based id."""
    return _READERS[name].load_labels(Path(data_dir))


def scored_label_ids(name: DatasetName, num_labels: int) -> list[int] | None:
    """1-based ids of the labels that count in the metrics of a data set: 60 of the 80 of AVA; None where all do.

    Data in the layout of AVA with another number of labels are not AVA's.
    """
    reader = _READERS[name]
    ids = reader.scored_label_ids() if reader.scored_label_ids else None
    return ids if num_labels == NUM_AVA_LABELS else None


def load_action_dataset(
    name: DatasetName,
    data_dir: str | Path,
    split: str,
    *,
    fold: int = 0,
    movie_start_seconds: float = 900.0,
    require_videos: bool = True,
) -> Dataset:
    """Read the annotations of a split, without opening the videos.

    Args:
        name: Which data set, or whose layout the data is in.
        data_dir: Its folder.
        split: "train" or "validation".
        fold: Official split of JHMDB-21: 0, 1 or 2.
        movie_start_seconds: For AVA: what the annotations call the start of the video files.
        require_videos: Whether missing videos are an error; otherwise `video` and `source` are null for them.

    Returns:
        Rows with `ACTION_FEATURES`: one per keyframe (AVA) or per video with its tubes (the others).

    Raises:
        AnnotationError: If the annotations say something that cannot be true; lists all of it.
        FileNotFoundError: If annotations or videos are missing.
    """
    reader = _READERS[name]
    options = {"fold": fold, "movie_start_seconds": movie_start_seconds, "require_videos": require_videos}
    return reader.load(Path(data_dir), split, **{option: options[option] for option in reader.options})


def make_clips(
    name: DatasetName,
    rows: Dataset,
    *,
    num_labels: int,
    num_frames: int,
    frame_stride: int,
    frames_per_second: float,
    tiling: Literal["complete", "released"] = "complete",
    **options: Any,
) -> KeyframeClips | TubeClips:
    """Make clips of the rows of a data set: around keyframes, or tiling whole videos.

    Args:
        name: The data set.
        rows: Its annotations.
        num_labels: Number of classes.
        num_frames: Frames of a clip.
        frame_stride, frames_per_second: Their distance around keyframes; clips of tubes take every frame.
        tiling: How videos with tubes are divided, see `tile_starts`.
        options: `transform`, `seed` and `reader`.

    Raises:
        ValueError: If a stride is asked for where every frame belongs to a clip.
    """
    options |= {"num_labels": num_labels, "num_frames": num_frames}
    if not _READERS[name].has_tubes:
        return KeyframeClips(rows, frame_stride=frame_stride, frames_per_second=frames_per_second, **options)
    if frame_stride != 1:
        raise ValueError(f"clips of tubes take every frame: `frame_stride` must be 1, got {frame_stride}")
    return TubeClips(rows, tiling=tiling, **options)
