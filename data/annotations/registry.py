"""The data sets by name: their annotations, their classes and their clips."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from datasets import Dataset, IterableDataset

from classquery.data.annotations.ava import AVA_LABELS, load_ava, load_ava_labels
from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.parquet import load_parquet, load_parquet_labels
from classquery.data.annotations.schema import to_dataset
from classquery.data.annotations.tubes import (
    load_jhmdb_21,
    load_jhmdb_21_labels,
    load_multisports,
    load_multisports_labels,
    load_ucf101_24,
    load_ucf101_24_labels,
)
from classquery.data.clips import KeyframeClips, TubeClips, keyframes_of_tubes
from classquery.data.demo.movies import actor_crop_baseline, write_demo
from classquery.data.demo.tubes import tube_crop_baseline, write_demo_tubes
from classquery.data.metrics import ava_label_ids
from classquery.data.metrics.video import ProtocolName
from classquery.data.names import DatasetName
from classquery.data.shards.store import ShardStore
from classquery.data.shards.stream import Shards, ShardStream
from classquery.data.streaming import ClipStream


# Too rare in its test videos to be scored; the official script leaves them out of frame and of video mAP.
_UNSCORED_OF_MULTISPORTS = frozenset(
    (
        "aerobic kick jump",
        "aerobic off axis jump",
        "aerobic butterfly jump",
        "aerobic balance turn",
        "basketball save",
        "basketball jump ball",
    )
)


class Counting(NamedTuple):
    """How the published numbers of a data set with tubes are counted."""

    protocol: ProtocolName
    """Of `video_map`."""
    shortest_edge: int
    """Short side in pixels of the frames that the network sees, in which the published protocols count."""


class _Reader(NamedTuple):
    load: Callable[..., Dataset]
    load_labels: Callable[[Path | str], dict[int, str]]
    options: tuple[str, ...] = ()  # Of `load_action_dataset`, that `load` takes.
    write_demo: Callable[[Path], None] | None = None
    crop_baseline: Callable[[Path, str], dict[str, Any]] | None = None
    scored_label_ids: Callable[[Mapping[int, str]], list[int] | None] | None = None
    counting: Counting | None = None
    is_url: bool = False
    """Whether it may lie elsewhere than in a folder."""


def _demo(
    layout: Literal["ucf101_24", "jhmdb_21"], num_train_videos: int, num_validation_videos: int
) -> Callable[[Path], None]:
    return partial(
        write_demo_tubes,
        layout=layout,
        num_train_videos=num_train_videos,
        num_validation_videos=num_validation_videos,
    )


def _scored_of_ava(id2label: Mapping[int, str]) -> list[int] | None:
    """60 of 80; data in the layout of AVA with another number of labels are not AVA's."""
    return ava_label_ids() if len(id2label) == len(AVA_LABELS) else None


def _scored_of_multisports(id2label: Mapping[int, str]) -> list[int] | None:
    """60 of 66."""
    scored = [label + 1 for label, name in sorted(id2label.items()) if name not in _UNSCORED_OF_MULTISPORTS]
    return scored if len(scored) < len(id2label) else None


def _scored_of_shards(id2label: Mapping[int, str]) -> list[int] | None:
    """Those of the data set that has these classes."""
    names = set(id2label.values())
    scored = [_scored_of_ava] if names == set(AVA_LABELS) else []
    scored += [_scored_of_multisports] if names >= _UNSCORED_OF_MULTISPORTS else []
    return scored[0](id2label) if scored else None


_READERS = {
    "ava": _Reader(
        load_ava,
        load_ava_labels,
        options=("movie_start_seconds", "frames_fps", "require_videos"),
        scored_label_ids=_scored_of_ava,
    ),
    "ucf101_24": _Reader(
        load_ucf101_24,
        load_ucf101_24_labels,
        options=("require_videos",),
        counting=Counting("classquery_ucf", 224),
    ),
    "jhmdb_21": _Reader(
        load_jhmdb_21,
        load_jhmdb_21_labels,
        options=("fold", "require_videos"),
        counting=Counting("classquery_jhmdb", 256),
    ),
    "multisports": _Reader(
        load_multisports,
        load_multisports_labels,
        options=("require_videos",),
        scored_label_ids=_scored_of_multisports,
        counting=Counting("standard", 256),
    ),
    "custom": _Reader(
        load_custom,
        load_custom_labels,
        options=(
            *("box_format", "timestamp_offset", "frames_fps", "require_videos"),
            *("validation_fraction", "split_seed"),
        ),
    ),
    "parquet": _Reader(load_parquet, load_parquet_labels, options=("require_videos",)),
    "shards": _Reader(
        lambda url, split: Shards(ShardStore(url), split),
        lambda url: ShardStore(url).read_index()["labels"],
        scored_label_ids=_scored_of_shards,
        is_url=True,
    ),
}
_READERS |= {
    "demo": _READERS["ava"]._replace(write_demo=write_demo, crop_baseline=actor_crop_baseline, scored_label_ids=None),
    "demo_ucf101_24": _READERS["ucf101_24"]._replace(
        write_demo=_demo("ucf101_24", 400, 40), crop_baseline=tube_crop_baseline, counting=None
    ),
    "demo_jhmdb_21": _READERS["jhmdb_21"]._replace(
        write_demo=_demo("jhmdb_21", 2400, 240), crop_baseline=tube_crop_baseline, counting=None
    ),
}
PUBLISHED_COUNTING = {name: reader.counting for name, reader in _READERS.items() if reader.counting}


def _place(name: DatasetName, data_dir: str | Path) -> Path | str:
    return str(data_dir) if _READERS[name].is_url else Path(data_dir)


def prepare_dataset(name: DatasetName, data_dir: str | Path) -> Path | str:
    """Write a demo set to its folder, unless it is there; others have to be there.

    Returns:
        The folder, or the URL of shards.

    Raises:
        FileExistsError: If the folder holds something else than the demo set.
    """
    data_dir = _place(name, data_dir)
    write = _READERS[name].write_demo
    if write is not None:
        write(Path(data_dir))
    return data_dir


def crop_baseline(name: DatasetName, data_dir: str | Path, split: str) -> float | None:
    """Frame mAP that crops of the actors allow at most; known of the demo sets only, None for the others."""
    baseline = _READERS[name].crop_baseline
    return float(baseline(Path(data_dir), split)["frame_map_50"]) if baseline else None


def load_action_labels(name: DatasetName, data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes, by 0-based id."""
    return _READERS[name].load_labels(_place(name, data_dir))


def scored_label_ids(name: DatasetName, id2label: Mapping[int, str]) -> list[int] | None:
    """1-based ids of the labels that count in the metrics of a data set: 60 of the 80 of AVA and of the 66 of
    MultiSports; None where all do.
    """
    select = _READERS[name].scored_label_ids
    return select(id2label) if select else None


def load_action_dataset(
    name: DatasetName,
    data_dir: str | Path,
    split: str,
    *,
    fold: int = 0,
    movie_start_seconds: float = 900.0,
    require_videos: bool = True,
    frames_fps: float = 30.0,
    box_format: str = "normalized",
    timestamp_offset: float = 0.0,
    validation_fraction: float = 0.0,
    split_seed: int = 0,
    streaming: bool = False,
    num_shards: int = 64,
) -> Dataset | IterableDataset | Shards:
    """Read the annotations of a split; of the videos, only those of custom data are opened.

    Args:
        name: Which data set, or whose layout the data is in.
        data_dir: Its folder; of shards also a URL (`hf://datasets/USER/NAME`, `https://...`, `s3://...`).
        split: "train" or "validation".
        fold: Official split of JHMDB-21: 0, 1 or 2.
        movie_start_seconds: For AVA: what the annotations call the start of the video files.
        require_videos: Whether missing videos are an error; otherwise `video` and `source` are null for them.
        frames_fps: For AVA and custom data: frames per second of videos that are folders of frames.
        box_format: For custom data: "normalized", "pixel", or the size of the frames that pixels are of, "3840x2160".
        timestamp_offset: For custom data: what the annotations call the start of the videos, in seconds.
        validation_fraction: For custom data without a validation file: part of each class that is validation.
        split_seed: Of the choice of its videos.
        streaming: Whether to return an `IterableDataset`. Shards always stream, with their videos.
        num_shards: Its shards, at most one per row; as many as processes times workers of each, or a multiple.

    Returns:
        Rows with `ACTION_FEATURES`: one per keyframe (AVA) or per video with its tubes (the others; custom data may be
        either). Of shards, `Shards` for `make_clips`.

    Raises:
        AnnotationError: If the annotations say something that cannot be true; lists all of it.
        FileNotFoundError: If annotations or videos are missing.
    """
    reader = _READERS[name]
    options = {
        "fold": fold,
        "movie_start_seconds": movie_start_seconds,
        "frames_fps": frames_fps,
        "box_format": box_format,
        "timestamp_offset": timestamp_offset,
        "validation_fraction": validation_fraction,
        "split_seed": split_seed,
        "require_videos": require_videos,
    }
    chosen = {option: options[option] for option in reader.options}
    rows = reader.load(_place(name, data_dir), split, **chosen)
    if isinstance(rows, Shards) or not streaming:
        return rows
    stream = rows.to_iterable_dataset(max(1, min(num_shards, len(rows))))
    stream.info.description = rows.info.description
    return stream


class ClipConfig(Protocol):
    """What the configuration of a model says about its clips."""

    num_labels: int
    num_frames: int
    frame_stride: int
    frames_per_second: float
    output_frames: Literal["keyframe", "all"]


def make_clips(
    rows: Dataset | IterableDataset | Shards,
    config: ClipConfig | None = None,
    *,
    num_labels: int | None = None,
    num_frames: int | None = None,
    frame_stride: int | None = None,
    frames_per_second: float | None = None,
    tiling: Literal["complete", "released"] = "complete",
    output_frames: Literal["keyframe", "all"] | None = None,
    keyframes_per_second: float = 1.0,
    shuffle: bool = False,
    supervised_frames: int | None = None,
    **options: Any,
) -> KeyframeClips | TubeClips | ClipStream | ShardStream:
    """Make clips of annotations: around keyframes, or tiling whole videos.

    Args:
        rows: The annotations.
        config: That of the model, from which what follows is taken unless it is given.
        num_labels: Number of classes.
        num_frames: Frames of a clip.
        frame_stride, frames_per_second: Their distance around keyframes; clips of tubes take every frame.
        tiling: How videos with tubes are divided, see `tile_starts`.
        output_frames: What the model detects in; tubes become keyframes for "keyframe". By default as annotated.
        keyframes_per_second: How many keyframes tubes become.
        shuffle: Whether clips that are streamed are shuffled; others are by the data loader.
        supervised_frames: For training on tubes: how many frames of a clip are detected in, drawn anew in each epoch.
        options: `transform`, `seed`, `reader` and `on_error`.

    Raises:
        TypeError: If there is neither a configuration nor a value.
        ValueError: If a stride is asked for where every frame belongs to a clip, if there are no tubes for a model of
            all frames, if tubes that are streamed would have to become keyframes, or if `supervised_frames` are asked
            for of keyframes.
    """
    output_frames = output_frames or (config.output_frames if config else None)
    sampling = _sampling(
        config,
        num_labels=num_labels,
        num_frames=num_frames,
        frame_stride=frame_stride,
        frames_per_second=frames_per_second,
    )
    frame_stride, frames_per_second = sampling.pop("frame_stride"), sampling.pop("frames_per_second")
    have_tubes = _have_tubes(rows)
    is_stream = not isinstance(rows, Dataset)
    if output_frames == "all" and not have_tubes:
        raise ValueError('the model detects in all frames ("output_frames"), but only keyframes are annotated')
    if output_frames == "keyframe" and have_tubes:
        if is_stream:
            raise ValueError("tubes that are streamed cannot become keyframes: leave streaming out")
        rows, have_tubes = keyframes_of_tubes(rows, keyframes_per_second, reader=options.get("reader")), False
    own_rows = to_dataset([]) if is_stream else rows
    options |= sampling
    if supervised_frames is not None and not have_tubes:
        raise ValueError(
            "--supervised_frames is for models that detect in all frames, and this one does in keyframes: leave it out"
        )
    clips: KeyframeClips | TubeClips
    if not have_tubes:
        clips = KeyframeClips(own_rows, frame_stride=frame_stride, frames_per_second=frames_per_second, **options)
    elif frame_stride != 1:
        raise ValueError(f"clips of tubes take every frame: `frame_stride` must be 1, got {frame_stride}")
    else:
        clips = TubeClips(own_rows, tiling=tiling, supervised_frames=supervised_frames, **options)
    if not is_stream:
        return clips
    return (ShardStream if isinstance(rows, Shards) else ClipStream)(rows, clips, shuffle=shuffle)


def _have_tubes(rows: Dataset | IterableDataset | Shards) -> bool:
    if isinstance(rows, Shards):
        return rows.has_tubes
    first = next(iter(rows), None)
    return first is not None and first["video_seconds"] is None


def _sampling(config: ClipConfig | None, **given: Any) -> dict[str, Any]:
    """The values that are given, and those of the configuration for the others."""
    values = {name: getattr(config, name, None) if value is None else value for name, value in given.items()}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise TypeError(f"make_clips needs {', '.join(missing)}: give make_clips(rows, model.config), or these")
    return values
