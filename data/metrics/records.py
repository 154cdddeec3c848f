"""Predictions as an evaluation of this project keeps them, and what the metrics take from them.

A record is one clip, as the evaluation makes it and as a row of `eval_predictions.parquet` holds it:
`clip_id`; `video`; `frame_numbers` (num_frames,), 0-based in the video; `boxes` (num_frames, num_queries, 4) as
(x_min, y_min, x_max, y_max) in [0, 1]; `scores` (num_frames, num_queries, num_labels); `actor_scores` (num_frames,
num_queries); `true_boxes` (num_actors, num_frames, 4); `true_labels` (num_actors, num_frames, num_labels); and
`true_valid` (num_actors, num_frames), whether there is such a box.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from classquery.data.metrics.arrays import names_and_indices


Record = dict[str, Any]
Table = dict[str, np.ndarray]

_FRAMES_PER_VIDEO = 10**9  # At most: frames of all videos are numbered through.
_AXES = {"frame_numbers": 1, "boxes": 3, "scores": 3, "actor_scores": 2}
_AXES |= {"true_boxes": 3, "true_labels": 3, "true_valid": 2}


def frame_tables(records: Sequence[Record]) -> tuple[Table, Table]:
    """Detections and ground truth of all frames, as `frame_map` takes them."""
    starts = np.cumsum([0, *(len(record["boxes"]) for record in records)])
    detections, ground_truth = [], []
    for start, record in zip(starts, records, strict=False):
        num_frames, num_queries = record["actor_scores"].shape
        frames = np.arange(start, start + num_frames)
        boxes, scores = (record[name].reshape(num_frames * num_queries, -1) for name in ("boxes", "scores"))
        detections.append((np.repeat(frames, num_queries), boxes, scores))
        valid = record["true_valid"]
        ground_truth.append((frames[valid.nonzero()[1]], record["true_boxes"][valid], record["true_labels"][valid]))
    return _joined(("frame", "boxes", "scores"), detections), _joined(("frame", "boxes", "labels"), ground_truth)


def video_table(records: Sequence[Record], sizes: Mapping[str, np.ndarray]) -> Table:
    """Detections of all frames as `video_map` takes them: frames count from 1, boxes are in pixels of `sizes`."""
    tables = []
    for record in records:
        num_frames, num_queries = record["actor_scores"].shape
        boxes = record["boxes"].reshape(-1, 4) * sizes[record["video"]]
        frames = np.repeat(record["frame_numbers"] + 1, num_queries)
        scores = record["scores"].reshape(num_frames * num_queries, -1)
        videos = np.full(num_frames * num_queries, record["video"])
        tables.append((videos, frames, boxes, scores, record["actor_scores"].ravel()))
    return _joined(("video", "frame", "boxes", "scores", "actor"), tables)


def frame_sizes(rows: Dataset, shortest_edge: int) -> dict[str, np.ndarray]:
    """(width, height, width, height) in pixels of the frames that a model sees of each video."""
    sizes = {}
    for row in rows.select_columns(["clip_id", "height", "width"]):
        size = np.array([row["width"], row["height"]] * 2)
        sizes[row["clip_id"]] = size * (shortest_edge / size.min())
    return sizes


def true_tubes(rows: Dataset, sizes: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Ground truth as `video_map` takes it, from annotations of whole videos; frames count from 1."""
    return [
        {
            "video": row["clip_id"],
            "label": label,
            "frames": np.array(tube["frames"]) + 1,
            "boxes": np.array(tube["boxes"]) * sizes[row["clip_id"]],
        }
        for row in rows
        for tube in row["tubes"]
        for label in tube["labels"] or ()
    ]


def tube_frame_tables(
    detections: Mapping[str, np.ndarray], rows: Dataset, sizes: Mapping[str, np.ndarray], num_labels: int
) -> tuple[Table, Table]:
    """Detections and ground truth of all frames as `frame_map` takes them, from those of whole videos.

    Args:
        detections: As `video_map` takes them, frames counting from 1.
        rows: Annotations of whole videos; videos without detections count as well.
        sizes: See `frame_sizes`.
        num_labels: Number of labels.
    """
    first_frame = {name: index * _FRAMES_PER_VIDEO for index, name in enumerate(rows["clip_id"])}
    names, video = names_and_indices(np.asarray(detections["video"]))
    starts = np.array([first_frame[name] for name in names], dtype=np.int64)
    ground_truth = [(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros((0, num_labels), bool))]
    for row in rows:
        for tube in row["tubes"]:
            labels = np.zeros((len(tube["frames"]), num_labels), dtype=bool)
            labels[:, tube["labels"] or []] = True
            frames = first_frame[row["clip_id"]] + np.array(tube["frames"])
            ground_truth.append((frames, np.array(tube["boxes"]) * sizes[row["clip_id"]], labels))
    frames = starts[video] + np.asarray(detections["frame"]) - 1
    found = {"frame": frames, "boxes": detections["boxes"], "scores": detections["scores"]}
    return found, _joined(("frame", "boxes", "labels"), ground_truth)


def _joined(names: Sequence[str], tables: Sequence[tuple[np.ndarray, ...]]) -> Table:
    return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*tables, strict=True), strict=True)}


# Parquet: nested lists, without Python numbers in between.


def record_table(records: Sequence[Record]) -> pa.Table:
    """Records as a table with one row per clip."""
    return pa.table({name: _column([record[name] for record in records]) for name in records[0]})


def _column(values: list) -> pa.Array:
    """Texts, or arrays of one number of axes and any sizes."""
    if isinstance(values[0], str):
        return pa.array(values)
    column = pa.array(np.concatenate([array.ravel() for array in values]))
    for axes in range(values[0].ndim, 0, -1):
        # Lengths of all lists at this depth, one array after the other.
        lengths = [np.full(int(np.prod(array.shape[: axes - 1])), array.shape[axes - 1]) for array in values]
        offsets = np.cumsum([0, *np.concatenate(lengths)], dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def read_records(path: str | Path) -> list[Record]:
    """Read the predictions of an evaluation.

    Raises:
        ValueError: If the file is no Parquet, or lacks columns.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file, or not a whole one: {error}") from error
    names = ["clip_id", "video", *_AXES]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {missing}: expected the eval_predictions.parquet of run_action_detection.py, "
            f"got {table.column_names}"
        )
    columns = [table[name].to_pylist() for name in ("clip_id", "video")]
    columns += [_flat_values(table[name], axes) for name, axes in _AXES.items()]
    num_actors = table["true_valid"].combine_chunks().value_lengths().to_pylist()
    records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    num_scores = sum(record["actor_scores"].size for record in records)
    num_labels = sum(record["scores"].size for record in records) // max(num_scores, 1)
    return [_shaped(record, of_clip, num_labels) for record, of_clip in zip(records, num_actors, strict=True)]


def _flat_values(column: pa.ChunkedArray, axes: int) -> list[np.ndarray]:
    """All numbers of each row, from nested lists."""
    values, offsets = column.combine_chunks(), np.arange(len(column) + 1)
    for _ in range(axes):
        offsets, values = values.offsets.to_numpy()[offsets], values.values
    return np.split(values.to_numpy(zero_copy_only=False), offsets[1:-1])


def _shaped(record: Record, num_actors: int, num_labels: int) -> Record:
    """Give the arrays their axes: lists in lists do not tell the size of the inner ones where there are none."""
    num_frames = len(record["frame_numbers"])
    shapes = {
        "boxes": (num_frames, -1, 4),
        "scores": (num_frames, record["actor_scores"].size // max(num_frames, 1), num_labels),
        "actor_scores": (num_frames, record["actor_scores"].size // max(num_frames, 1)),
        "true_boxes": (num_actors, num_frames, 4),
        "true_labels": (num_actors, num_frames, num_labels),
        "true_valid": (num_actors, num_frames),
    }
    return record | {name: record[name].reshape(shape) for name, shape in shapes.items()}
