"""Reader of anyone's own videos, with annotations in any format of which there is a reader.

    data_dir/train.csv, validation.csv          or .jsonl or .xml; or folders train/, validation/ of such files;
                                                or annotations.csv or metadata.jsonl for all splits, with a `split`
    data_dir/classes.txt                        names of the classes in the order of their ids; not needed
    data_dir/videos/<video>                     or in `data_dir/<split>/` or `data_dir` itself

Boxes are annotated at moments, as in AVA, or in frames, as tubes. The format is found by content: a csv
(`plain_csv.py`), JSON lines (`json_lines.py`), CVAT (`cvat.py`), or one of the others in `formats.py`.

The classes are those of `classes.txt`, or all names in the annotations of both splits in alphabetical order: the same
for training and validation.
"""

import math
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from classquery.data.annotations.boxes import concatenate, table_of, without_ignored_names
from classquery.data.annotations.columns import Unit, checked_boxes, rows_of
from classquery.data.annotations.doubts import ask_about_names, ask_about_shapes
from classquery.data.annotations.entries import IGNORED, NOBODY, BoxTable, Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.formats import read_annotations
from classquery.data.annotations.schema import (
    VIDEO_SUFFIXES,
    AnnotationError,
    AnnotationWarning,
    ProblemCollector,
    columns_to_dataset,
    parsing,
    quote,
    shorten,
)
from classquery.data.annotations.splitting import (
    boxes_per_class,
    describe_split,
    keep_split,
    read_split,
    split_videos,
)
from classquery.data.annotations.values import SPLITS
from classquery.data.annotations.videos import VideoFinder, look_into
from classquery.data.hints import closest


CLASSES_FILE = "classes.txt"
_ALL_SPLITS = ("annotations", "metadata")
# Files that are no annotations, whatever is in them.
_OTHER_SUFFIXES = (*VIDEO_SUFFIXES, ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".zip", ".gz", ".tar", ".part")
_MAX_CLASSES = 2**15 - 1  # Rows number them with 16 bits.


def load_custom(
    data_dir: str | Path,
    split: str,
    *,
    box_format: str = "normalized",
    timestamp_offset: float = 0.0,
    frames_fps: float = 30.0,
    require_videos: bool = True,
    validation_fraction: float = 0.0,
    split_seed: int = 0,
) -> Dataset:
    """Read the annotations of one split, and look into every video once, to compare them with it.

    Args:
        data_dir: Folder with the annotations and the videos, see above.
        split: "train" or "validation" ("val" means the same).
        box_format: What the numbers of a box mean, if the format of the files does not say it: "normalized", fractions
            of width and height; "pixel"; or "3840x2160", pixels of frames of this size, where the videos have another.
        timestamp_offset: What the annotations call the start of the videos, in seconds.
        frames_fps: Frames per second of videos that are folders of numbered images.
        require_videos: Whether missing videos are an error; otherwise everything that they would tell is null.
        validation_fraction: Where there is no validation file: part of the boxes of each class, in [0, 1), whose
            videos are the validation split, see `split_videos`. They are kept in `validation_split.json`.
        split_seed: Of the choice of these videos.

    Returns:
        Rows with `ACTION_FEATURES`, in the order of the annotations: for `timestamp` one per keyframe, which are told
        apart to the millisecond, for `frames` one per video with its tubes. `clip_id` is the name of the video,
        without its suffix unless that tells it from another, and at keyframes the timestamp. Boxes up to a thousandth
        of the frame, or a pixel, outside of it are cut off at its edge.

    Raises:
        AnnotationError: With all problems, by row.
        FileNotFoundError: If there are no annotations, or videos are missing; names them and the folders searched.
        ValueError: If there is no such split, box format or fraction, or a validation file beside a fraction.
    """
    drawn_in = _drawn_in(box_format)
    _check_options(split, box_format, drawn_in, validation_fraction, split_seed)
    _check_clock(timestamp_offset, frames_fps)
    data_dir = Path(data_dir)
    find_files = _undivided_files if validation_fraction else _annotation_files
    files, hold_all_splits = find_files(data_dir, split)
    problems = ProblemCollector(files[0] if len(files) == 1 else data_dir)
    find_video = VideoFinder(_video_folders(data_dir, "train" if validation_fraction else split))
    splits = SPLITS[split] if hold_all_splits else None
    context = Context(problems, _read_classes(data_dir), splits, find_video, find_video.list_videos)
    fmt, content = read_annotations(_sources(files, data_dir), context)
    table, claims = _resolve(_table(content, context), content, find_video, problems)
    all_labels = _labels(table, content)
    if validation_fraction:
        table, claims = _divide(data_dir, split, table, claims, content, validation_fraction, split_seed)
    paths = {name: find_video(name) for name in claims}
    videos = look_into(paths, claims, frames_fps, problems)
    label_ids = {name: label for label, name in enumerate(_class_names(data_dir, {*files}, all_labels))}
    _refuse_unknown_classes(claims, label_ids, problems)
    num_ignored = int((table.label == IGNORED).sum())
    content.notes += [f"boxes of regions in which nobody looked: {num_ignored}"] if num_ignored else []
    content.warnings += [*ask_about_names(label_ids), *ask_about_shapes(drawn_in, videos)]
    unit = Unit((content.box_format or box_format) != "normalized", drawn_in, claims, videos, timestamp_offset)
    table = checked_boxes(table, label_ids, unit, problems)
    rows, columns = rows_of(table, label_ids, unit, problems)
    problems.raise_if_any()
    _refuse_too_many(label_ids)
    if require_videos:
        _require_videos(paths, find_video.folders)
    for warning in content.warnings:
        warnings.warn(warning, AnnotationWarning, stacklevel=2)
    return columns_to_dataset(columns, rows, _describe(files, fmt, content))


def _drawn_in(box_format: str) -> tuple[int, int] | None:
    """Width and height of the frames that boxes were drawn in, if a box format says so."""
    size = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", box_format)
    return (int(size[1]), int(size[2])) if size else None


def _check_options(
    split: str, box_format: str, drawn_in: tuple[int, int] | None, validation_fraction: float, split_seed: int
) -> None:
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    if split_seed < 0:
        raise ValueError(f"split_seed must be at least 0, got {split_seed}")
    if split not in SPLITS or (box_format not in ("normalized", "pixel") and drawn_in is None):
        raise ValueError(
            f'split must be one of {list(SPLITS)} and box_format "normalized", "pixel" or a size as "3840x2160", got '
            f"{split!r} and {box_format!r}"
        )


def _check_clock(timestamp_offset: float, frames_fps: float) -> None:
    if not (math.isfinite(timestamp_offset) and 0 < frames_fps < math.inf):
        raise ValueError(
            f"timestamp_offset must be finite and frames_fps more than 0, got {timestamp_offset} and {frames_fps}"
        )


def _require_videos(paths: Mapping[str, Path | None], folders: Sequence[Path]) -> None:
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} videos are not in {', '.join(map(str, folders))} "
            f"(as {', '.join(VIDEO_SUFFIXES)}, or as folders of frames), or in several folders there: "
            f"{shorten(missing)}"
        )


def _describe(files: Sequence[Path], fmt: Format, content: Content) -> str:
    """Say how the files were understood; the first line names the format."""
    where = files[0] if len(files) == 1 else f"{_shared_folder(files)} ({len(files)} files)"
    ignored = [f"ignored: {count} x {what}" for what, count in content.ignored.most_common()]
    return "\n".join([f"{where}: {fmt.title}", *content.notes, *ignored])


def load_custom_labels(data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes, 0-based; from `classes.txt`, or from the annotations of all splits.

    Raises:
        AnnotationError: If there are none, or one is listed twice.
        FileNotFoundError: If there are no annotations.
    """
    names = _class_names(Path(data_dir))
    if not names or len(set(names)) < len(names):
        repeated = shorten(sorted({name for name in names if names.count(name) > 1}))
        raise AnnotationError(f"{data_dir} must name every class once, got {repeated or 'none'}")
    _refuse_too_many(names)
    return dict(enumerate(names))


def _refuse_unknown_classes(
    claims: Mapping[str, VideoClaim], label_ids: Mapping[str, int], problems: ProblemCollector
) -> None:
    for video, claim in claims.items():
        with problems.at(quote(video)):
            unknown = sorted((claim.annotated_labels or frozenset()) - label_ids.keys())
            if unknown:
                raise AnnotationError(
                    f"annotated for the unknown class {quote(unknown[0])}{closest(unknown[0], label_ids)}"
                )


def _refuse_too_many(names: Collection[str]) -> None:
    if len(names) > _MAX_CLASSES:
        raise AnnotationError(
            f"there are {len(names):,} classes, and there may be {_MAX_CLASSES:,}: is it the column of labels? It "
            f"starts with {quote(next(iter(names)))}"
        )


def _class_names(data_dir: Path, read: Collection[Path] = (), labels: Collection[str] = ()) -> list[str]:
    """Return the names in `classes.txt`, or those in the annotations of all splits.

    Args:
        data_dir: The folder.
        read: Files that have been read.
        labels: The names in these.
    """
    names = _read_classes(data_dir)
    if names is not None:
        return names
    by_split = [_find_files(data_dir, SPLITS[split]) for split in ("train", "validation")]
    by_split = [files for files in by_split if files] or [_annotation_files(data_dir, "train")[0]]
    found = set(labels)
    for files in by_split:
        if not set(files) <= set(read):
            # What is wrong is said when these annotations themselves are loaded.
            problems = ProblemCollector(data_dir)
            find_video = VideoFinder(_video_folders(data_dir, "train"))
            context = Context(problems, find_video=find_video, list_videos=find_video.list_videos)
            content = read_annotations(_sources(files, data_dir), context)[1]
            found |= _labels(_table(content, context), content)
    return sorted(found)


def _read_classes(data_dir: Path) -> list[str] | None:
    path = data_dir / CLASSES_FILE
    if not path.is_file():
        return None
    with parsing(path, "save it as text in UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]


# Files


def _annotation_files(data_dir: Path, split: str) -> tuple[list[Path], bool]:
    """Return the files of a split, and whether they hold all splits, told apart by a column."""
    files = _find_files(data_dir, SPLITS[split])
    if files:
        return files, False
    files = [path for path in _find_files(data_dir, _ALL_SPLITS) if path.parent == data_dir and path.suffix != ".xml"]
    if not files:
        name = SPLITS[split][0]
        hint = "" if name == "train" else "; or divide the training data with --validation_fraction 0.2"
        raise FileNotFoundError(
            f"No annotations of the split {split!r} in {data_dir}: give {name}.csv, {name}.jsonl or {name}.xml, a "
            f"folder {name}/ with such files, or annotations.csv with a column `split`{hint}."
        )
    return files, True


def _undivided_files(data_dir: Path, split: str) -> tuple[list[Path], bool]:
    """Return the files that are to be divided."""
    files = _find_files(data_dir, SPLITS["validation"])
    if files:
        raise ValueError(f"validation_fraction divides data without a validation file, and there is {files[0]}")
    files = _find_files(data_dir, SPLITS["train"])
    if files:
        return files, False
    files = [path for path in _find_files(data_dir, _ALL_SPLITS) if path.parent == data_dir]
    if not files:
        raise FileNotFoundError(f"No annotations in {data_dir}: give train.csv, or a folder train/ with files.")
    if any("split" in source.head.partition("\n")[0] for source in _sources(files, data_dir)):
        raise ValueError(f"validation_fraction divides data without splits, and {files[0]} has a column `split`")
    return files, False


def _divide(
    data_dir: Path,
    split: str,
    table: BoxTable,
    claims: dict[str, VideoClaim],
    content: Content,
    fraction: float,
    seed: int,
) -> tuple[BoxTable, dict[str, VideoClaim]]:
    """Leave the videos of one split, as they were divided before or are now."""
    counts = boxes_per_class(table.videos, table.labels, table.video, table.label)
    groups = {name: claim.group for name, claim in claims.items() if claim.group}
    kept = read_split(data_dir)
    is_validation = split_videos(counts, groups, fraction, seed=seed, kept=kept)
    keep_split(data_dir, is_validation, {"validation_fraction": fraction, "split_seed": seed})
    content.notes += describe_split(is_validation, counts, kept)
    names = [name for name in table.videos if is_validation[name] == (split != "train")]
    number = {name: code for code, name in enumerate(names)}
    codes = np.array([number.get(name, NOBODY) for name in table.videos], np.int32)
    table = table.take(codes[table.video] != NOBODY)
    return table._replace(videos=names, video=codes[table.video]), {name: claims[name] for name in names}


def _find_files(data_dir: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of these names, and all those in folders of these names, that may be annotations."""
    paths = [path for name in names for path in (*data_dir.glob(f"{name}.*"), *data_dir.glob(f"{name}/**/*"))]
    return sorted(
        path
        for path in paths
        if path.suffix.lower() not in _OTHER_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _sources(files: Sequence[Path], data_dir: Path) -> list[Source]:
    """Name the files by what is left of their paths without what they share."""
    folder = _shared_folder(files)
    return [Source(path, path.relative_to(folder).as_posix() if len(files) > 1 else "") for path in files]


def _shared_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))


# Columns


def _table(content: Content, context: Context) -> BoxTable:
    table = concatenate([*content.tables, table_of(content.entries, context.problems)])
    return without_ignored_names(table, context.classes)


def _labels(table: BoxTable, content: Content) -> set[str]:
    """Return the classes: those that somebody does, and those that were looked for."""
    return set(table.labels).union(*(claim.annotated_labels or () for claim in content.videos.values()))


def _resolve(
    table: BoxTable, content: Content, find_video: VideoFinder, problems: ProblemCollector
) -> tuple[BoxTable, dict[str, VideoClaim]]:
    """Name the videos as they are found; files of one video say one thing of it."""
    names: dict[str, str] = {}
    claims: dict[str, VideoClaim] = {}
    by_last_part: dict[str, str] = {}
    for video, claim in content.videos.items():
        names[video] = video
        with problems.at(quote(video)):
            names[video] = find_video.resolve(video, claim)
            if names[video] not in (video, *claim.names):
                other = by_last_part.setdefault(names[video], video)
                if other != video:
                    raise AnnotationError(
                        f"and {quote(other)} would both be {names[video]}: put them into folders of these names"
                    )
        claims[names[video]] = claim.joined(claims.get(names[video]))
    videos = list(claims)
    number = {name: code for code, name in enumerate(videos)}
    codes = np.array([number[names[video]] for video in table.videos], np.int32)
    table = table._replace(videos=videos, video=codes[table.video])
    return table, claims


def _video_folders(data_dir: Path, split: str) -> list[Path]:
    return [data_dir / "videos", *(data_dir / name for name in SPLITS[split]), data_dir]
