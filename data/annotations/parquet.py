"""Annotations of any data set in Parquet, which load at once and move with their folder.

    data_dir/parquet/train.parquet, validation.parquet      rows with `ACTION_FEATURES`, or directly in `data_dir`
    data_dir/parquet/classes.txt                            names of the classes in the order of their ids

Paths of videos are relative to `data_dir` where they lie inside of it.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from classquery.data.annotations.custom import CLASSES_FILE
from classquery.data.annotations.schema import (
    ACTION_FEATURES,
    PARTIAL_COLUMNS,
    AnnotationError,
    columns_to_dataset,
    parsing,
    shorten,
)
from classquery.data.whole_files import replacing


PARQUET_FOLDER = "parquet"


def save_action_dataset(rows: Dataset, id2label: dict[int, str], data_dir: str | Path, split: str) -> Path:
    """Write the annotations of a split and the names of the classes, for `load_action_dataset("parquet", ...)`.

    Args:
        rows: Annotations with `ACTION_FEATURES`, of any data set.
        id2label: Names of the classes, by 0-based id.
        data_dir: Folder of the videos.
        split: "train" or "validation".

    Returns:
        The Parquet file.
    """
    folder = Path(data_dir) / PARQUET_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.parquet"
    table = rows.with_format("arrow")[:]
    columns = {name: table[name].combine_chunks() for name in ACTION_FEATURES}
    columns["video"] = [_relative(video, Path(data_dir)) for video in table["video"].to_pylist()]
    with replacing(path) as unfinished:
        columns_to_dataset(columns, len(rows)).to_parquet(unfinished, write_page_checksum=True)
    with replacing(folder / CLASSES_FILE) as unfinished:
        Path(unfinished).write_text(
            "".join(f"{id2label[label]}\n" for label in range(len(id2label))), encoding="utf-8"
        )
    return path


def load_parquet(data_dir: str | Path, split: str, *, require_videos: bool = True) -> Dataset:
    """Read the annotations of a split that `save_action_dataset` wrote, without opening the videos.

    Args:
        data_dir: Folder of the videos.
        split: "train" or "validation".
        require_videos: Whether missing videos are an error.

    Raises:
        AnnotationError: If the file holds no such rows, or classes that have no name.
        FileNotFoundError: If the annotations or videos are missing.
    """
    data_dir = Path(data_dir)
    path = _find(data_dir, f"{split}.parquet")
    rows = _read(path)
    labels = rows.data.table["tubes"].combine_chunks().flatten().field("labels").flatten()
    num_labels = len(load_parquet_labels(data_dir))
    numbers = labels.to_numpy(zero_copy_only=False)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < num_labels:
        raise AnnotationError(f"{path} has classes {numbers.min()} to {numbers.max()}, and {num_labels} have names")
    videos = {video: str(data_dir / video) for video in set(rows["video"]) if video is not None}
    missing = sorted(video for video, absolute in videos.items() if not Path(absolute).exists())
    if missing and require_videos:
        raise FileNotFoundError(f"{len(missing)} of {len(videos)} videos are not in {data_dir}: {shorten(missing)}")
    table = rows.data.table
    columns = {name: table[name].combine_chunks() for name in ACTION_FEATURES}
    return columns_to_dataset(columns | {"video": [videos.get(video) for video in rows["video"]]}, len(rows))


def load_parquet_labels(data_dir: str | Path) -> dict[int, str]:
    """Read the names of the classes, 0-based."""
    path = _find(Path(data_dir), CLASSES_FILE)
    with parsing(path, "it cannot be read as text"):
        lines = path.read_text(encoding="utf-8").splitlines()
    return dict(enumerate(line for line in lines if line))


def _relative(video: str | None, data_dir: Path) -> str | None:
    if video is None:
        return None
    path, folder = Path(video).absolute(), data_dir.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _find(data_dir: Path, name: str) -> Path:
    folders = data_dir / PARQUET_FOLDER, data_dir
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"No {name} in {folders[0]} or {folders[1]}: `save_action_dataset` writes it.")
    return path


def _read(path: Path) -> Dataset:
    content = pa.py_buffer(path.read_bytes())
    with parsing(path, "it holds no rows as `save_action_dataset` writes them, or is damaged: write it again"):
        try:
            table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        except OSError as error:  # The file itself has been read.
            raise ValueError(error) from error
        # Files of earlier versions know nothing of what is partly annotated.
        present = ACTION_FEATURES.keys() - (PARTIAL_COLUMNS - set(table.column_names))
        columns = {name: table[name].combine_chunks() for name in present}
        columns = {
            name: column.cast(ACTION_FEATURES.arrow_schema.field(name).type) for name, column in columns.items()
        }
    return columns_to_dataset(columns, len(table))
