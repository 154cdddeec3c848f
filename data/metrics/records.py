"""Predictions as an evaluation of this project keeps them, and what the metrics take from them.

A record is one clip, as the evaluation makes it and as a row of `eval_predictions.parquet` holds it:
`clip_id`; `video`; `frame_numbers` (num_frames,), 0-based in the video; `boxes` (num_frames, num_queries, 4) as
(x_min, y_min, x_max, y_max) in [0, 1]; `scores` (num_frames, num_queries, num_labels); `actor_scores` (num_frames,
num_queries); `true_boxes` (num_actors, num_frames, 4); `true_labels` (num_actors, num_frames, num_labels); and
`true_valid` (num_actors, num_frames), whether there is such a box. Of partial annotations, also what is unknown:
`unknown_boxes` (num_unknown, num_frames, 4), without area where there is none; `unknown_labels` (num_unknown,
num_frames, num_labels), which labels may be true there; and `unknown_is_region` (num_unknown,), of regions.
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
_UNKNOWN_AXES = {"unknown_boxes": 3, "unknown_labels": 3, "unknown_is_region": 1}


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


def unknown_table(records: Sequence[Record]) -> Table | None:
    """What is unknown in all frames, as `frame_map` takes it beside `frame_tables`; None if all is known."""
    starts = np.cumsum([0, *(len(record["boxes"]) for record in records)])
    tables = []
    for start, record in zip(starts, records, strict=False):
        if "unknown_boxes" in record:
            boxes, labels, is_region = (record[name] for name in _UNKNOWN_AXES)
            places, frames = (boxes[..., 2:] > boxes[..., :2]).all(-1).nonzero()
            tables.append((start + frames, boxes[places, frames], labels[places, frames], is_region[places]))
    return _joined(("frame", "boxes", "labels", "is_region"), tables) if tables else None


def unknown_of_clip(label: Mapping[str, np.ndarray], boxes: np.ndarray) -> Table:
    """What the labels of a clip leave open, as a record holds it.

    Args:
        label: `labelled`, `annotated_labels` and `ignored_boxes`, (x_min, y_min, x_max, y_max), as far as there are;
            `true_labels` and `true_valid` as of a record.
        boxes: True boxes, (num_actors, num_frames, 4).
    """
    _, num_frames, num_labels = label["true_labels"].shape
    every = np.ones((1, num_frames, num_labels), dtype=bool)
    found = []
    if "labelled" in label:
        is_open = label["true_valid"].astype(bool) & ~label["labelled"].astype(bool)
        found.append((boxes * is_open[..., None], every & is_open[..., None], np.zeros(len(boxes), dtype=bool)))
    if "ignored_boxes" in label:
        regions = label["ignored_boxes"]
        found.append((regions, every.repeat(len(regions), axis=0), np.ones(len(regions), dtype=bool)))
    if "annotated_labels" in label:
        whole = np.broadcast_to(np.float32([0, 0, 1, 1]), (1, num_frames, 4))
        found.append((whole, every & ~label["annotated_labels"].astype(bool), np.ones(1, dtype=bool)))
    return _joined(tuple(_UNKNOWN_AXES), found) if found else {}


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


def unknown_tubes(rows: Dataset, sizes: Mapping[str, np.ndarray], num_labels: int) -> list[dict[str, Any]]:
    """What annotations of whole videos leave open, as `video_map` takes it; frames count from 1."""
    found = []
    for row in rows:
        size, every = sizes[row["clip_id"]], list(range(num_labels))
        unlabelled = [tube for tube in row["tubes"] if tube["labels"] is None]
        for tubes, is_region in ((unlabelled, False), (row.get("ignored") or [], True)):
            for tube in tubes:
                place = {"frames": np.array(tube["frames"]) + 1, "boxes": np.array(tube["boxes"]) * size}
                found.append({"video": row["clip_id"], "labels": every, "is_region": is_region} | place)
        if row.get("annotated_labels") is not None:
            frames = np.arange(1, row["num_frames"] + 1)
            whole = {"frames": frames, "boxes": np.tile([0, 0, *size[:2]], (len(frames), 1)), "is_region": True}
            labels = sorted(set(every) - set(row["annotated_labels"]))
            found.append({"video": row["clip_id"], "labels": labels} | whole)
    return found


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
    if any("unknown_boxes" in record for record in records):
        records = [_without_unknown(record) | record for record in records]
    return pa.table({name: _column([record[name] for record in records]) for name in records[0]})


def _without_unknown(record: Record) -> Record:
    _, num_frames, num_labels = record["true_labels"].shape
    nothing = np.zeros((0, num_frames, 4), np.float32), np.zeros((0, num_frames, num_labels), bool), np.zeros(0, bool)
    return dict(zip(_UNKNOWN_AXES, nothing, strict=True))


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
    is_partial = set(_UNKNOWN_AXES) <= set(table.column_names)
    axes_of = _AXES | (_UNKNOWN_AXES if is_partial else {})
    names = ["clip_id", "video", *axes_of]
    columns += [_flat_values(table[name], axes) for name, axes in axes_of.items()]
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
    if "unknown_boxes" in record:
        num_unknown = len(record["unknown_is_region"])
        shapes["unknown_boxes"] = (num_unknown, num_frames, 4)
        shapes["unknown_labels"] = (num_unknown, num_frames, num_labels)
    return record | {name: record[name].reshape(shape) for name, shape in shapes.items()}
