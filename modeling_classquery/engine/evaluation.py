"""Records of an evaluation, one per clip with detections beside ground truth, and the metrics over all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torchvision.ops import box_convert

from classquery.data.clips import KeyframeClips, TubeClips
from classquery.data.metrics import frame_map, video_map
from classquery.data.whole_files import replacing


Record = dict[str, Any]


def clip_records(processor, outputs, labels: list[dict[str, Any]]) -> list[Record]:
    """Pair the detections in the real frames of a batch with their ground truth.

    Args:
        processor: A `ClassQueryVideoProcessor`.
        outputs: Output of the model.
        labels: Those of `ClipCollator`.

    Returns:
        Per clip `clip_id`; `video`, the name of its video, or its own where clips stand for themselves;
        `frame_numbers` (num_frames,), 0-based in the video; `boxes` (num_frames, num_queries, 4) as (x_min, y_min,
        x_max, y_max) in [0, 1]; `scores` (num_frames, num_queries, num_labels); `actor_scores` (num_frames,
        num_queries); `true_boxes` (num_actors, num_frames, 4); `true_labels` (num_actors, num_frames, num_labels);
        `true_valid` (num_actors, num_frames), whether there is such a box. NumPy, float32 but for numbers and flags.
    """
    records = []
    for label, frames in zip(labels, processor.post_process_action_detection(outputs), strict=True):
        real = label["frame_mask"]
        tensors = {
            "frame_numbers": label.get("frame_numbers", torch.zeros_like(real, dtype=torch.long))[real],
            **{name: torch.stack([frame[name] for frame in frames])[real].float() for name in frames[0]},
            "true_boxes": box_convert(label["boxes"], "cxcywh", "xyxy")[:, real].float(),
            "true_labels": label["class_labels"][:, real].float(),
            "true_valid": label["valid"][:, real],
        }
        names = {"clip_id": label["clip_id"], "video": label.get("video", label["clip_id"])}
        records.append(names | {name: tensor.cpu().numpy() for name, tensor in tensors.items()})
    return records


def once_per_clip(records: Iterable[Record], clip_ids: Sequence[str]) -> list[Record]:
    """Order records as the clips, without repetitions, and make sure that none is missing or foreign."""
    by_id = {record["clip_id"]: record for record in records}
    if by_id.keys() != set(clip_ids):
        missing, foreign = set(clip_ids) - by_id.keys(), by_id.keys() - set(clip_ids)
        raise RuntimeError(
            f"evaluation must see each of the {len(clip_ids)} clips: {len(missing)} were not predicted "
            f"({sorted(missing)[:5]}) and {len(foreign)} are unknown ({sorted(foreign)[:5]})"
        )
    return [by_id[clip_id] for clip_id in clip_ids]


@dataclass(frozen=True)
class FrameScorer:
    """Frame mAP at IoU 0.5 over all real frames, and the AP of each label that has ground truth.

    Args:
        id2label: Names of the labels.
        label_ids: 1-based ids of the labels that count; all by default.
    """

    id2label: dict[int, str]
    label_ids: Sequence[int] | None = None

    def __call__(self, records: Sequence[Record]) -> dict[str, float]:
        """Score: `frame_map_50` and `frame_ap_50/<label>`."""
        detections, ground_truth = frame_tables(records)
        result = frame_map(detections, ground_truth, label_ids=self.label_ids)
        return {"frame_map_50": result["frame_map_50"]} | _per_label(
            "frame_ap_50", result["ap_per_label"], self.id2label
        )


@dataclass(frozen=True)
class TubeScorer:
    """Frame mAP as of `FrameScorer`, and video mAP at IoU 0.2 and 0.5 over the tubes of whole videos.

    Args:
        id2label: Names of the labels.
        rows: The annotations, one row per video with its tubes.
        protocol: How tubes are linked and counted, see `video_map`.
        shortest_edge: Short side in pixels of the frames that the model sees; the published protocols count in these.
    """

    id2label: dict[int, str]
    rows: Dataset
    protocol: str
    shortest_edge: int

    def __call__(self, records: Sequence[Record]) -> dict[str, float]:
        """Score: `frame_map_50`, `video_map_20`, `video_map_50` and the AP of each label."""
        sizes = {row["clip_id"]: self._size(row) for row in self.rows.select_columns(["clip_id", "height", "width"])}
        result = video_map(video_table(records, sizes), self._tubes(sizes), protocol=self.protocol)
        return {
            **FrameScorer(self.id2label)(records),
            **{name: result[name] for name in ("video_map_20", "video_map_50")},
            **_per_label("video_ap_50", result["ap_per_label"][1], self.id2label),
        }

    def _size(self, row: dict[str, Any]) -> np.ndarray:
        """(width, height, width, height) of the frames that the model sees."""
        size = np.array([row["width"], row["height"]] * 2)
        return size * (self.shortest_edge / size.min())

    def _tubes(self, sizes: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        return [
            {
                "video": row["clip_id"],
                "label": label,
                "frames": np.array(tube["frames"]) + 1,
                "boxes": np.array(tube["boxes"]) * sizes[row["clip_id"]],
            }
            for row in self.rows
            for tube in row["tubes"]
            for label in tube["labels"]
        ]


def make_scorer(
    clips: KeyframeClips | TubeClips,
    id2label: dict[int, str],
    *,
    protocol: str,
    shortest_edge: int,
    label_ids: Sequence[int] | None = None,
) -> FrameScorer | TubeScorer:
    """Make the scorer that fits clips: over keyframes, or over whole videos as well; arguments as of the scorers."""
    if isinstance(clips, TubeClips):
        return TubeScorer(id2label, clips.rows, protocol, shortest_edge)
    return FrameScorer(id2label, label_ids)


def frame_tables(records: Sequence[Record]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
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


def video_table(records: Sequence[Record], sizes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
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


def _joined(names: Sequence[str], tables: Sequence[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*tables, strict=True), strict=True)}


def _per_label(name: str, average_precision: np.ndarray, id2label: dict[int, str]) -> dict[str, float]:
    return {f"{name}/{id2label[i]}": float(ap) for i, ap in enumerate(average_precision) if not np.isnan(ap)}


def save_records(records: Sequence[Record], path: Path) -> None:
    """Write records as Parquet, one row per clip, whole or not at all."""
    columns = {name: _column([record[name] for record in records]) for name in records[0]}
    with replacing(path) as partial_path:
        pq.write_table(pa.table(columns), partial_path)


def _column(values: list) -> pa.Array:
    """Texts, or arrays of one number of axes and any sizes: nested lists, without Python numbers in between."""
    if isinstance(values[0], str):
        return pa.array(values)
    column = pa.array(np.concatenate([array.ravel() for array in values]))
    for axes in range(values[0].ndim, 0, -1):
        # Lengths of all lists at this depth, one array after the other.
        lengths = [np.full(int(np.prod(array.shape[: axes - 1])), array.shape[axes - 1]) for array in values]
        offsets = np.cumsum([0, *np.concatenate(lengths)], dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column
