"""Records of an evaluation: one per clip, detections beside ground truth, and the metrics over all of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torchvision.ops import box_convert

from classquery.data.metrics import frame_map


def clip_records(processor, outputs, labels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pair the detections in the keyframes of a batch with their ground truth.

    Args:
        processor: A `ClassQueryVideoProcessor`.
        outputs: Output of the detector.
        labels: Labels of the batch, as `ClipCollator` makes them.

    Returns:
        One dict per clip: `clip_id`; `boxes` (num_queries, 4), (x_min, y_min, x_max, y_max) in [0, 1]; `scores`
        (num_queries, num_labels); `actor_scores` (num_queries,); `true_boxes` (num_actors, 4) and `true_labels`
        (num_actors, num_labels). NumPy, float32.
    """
    records = []
    for label, (detections,) in zip(labels, processor.post_process_action_detection(outputs), strict=True):
        true_boxes = box_convert(label["boxes"][:, 0], "cxcywh", "xyxy")
        tensors = {**detections, "true_boxes": true_boxes, "true_labels": label["class_labels"][:, 0]}
        records.append({"clip_id": label["clip_id"]} | {k: t.float().cpu().numpy() for k, t in tensors.items()})
    return records


def once_per_clip(records: Iterable[dict[str, Any]], clip_ids: list[str]) -> list[dict[str, Any]]:
    """Order records as the clips, without repetitions, and make sure that none is missing or foreign."""
    by_id = {record["clip_id"]: record for record in records}
    if by_id.keys() != set(clip_ids):
        missing, foreign = set(clip_ids) - by_id.keys(), by_id.keys() - set(clip_ids)
        raise RuntimeError(
            f"evaluation must see each of the {len(clip_ids)} clips: {len(missing)} were not predicted "
            f"({sorted(missing)[:5]}) and {len(foreign)} are unknown ({sorted(foreign)[:5]})"
        )
    return [by_id[clip_id] for clip_id in clip_ids]


def score_records(
    records: list[dict[str, Any]], id2label: dict[int, str], label_ids: Sequence[int] | None = None
) -> dict[str, float]:
    """Frame mAP at IoU 0.5 over the labels with the given 1-based ids, and the AP of each that has ground truth."""
    frames = [record["clip_id"] for record in records]
    detections = {
        "frame": np.repeat(frames, [len(record["boxes"]) for record in records]),
        "boxes": np.concatenate([record["boxes"] for record in records]),
        "scores": np.concatenate([record["scores"] for record in records]),
    }
    ground_truth = {
        "frame": np.repeat(frames, [len(record["true_boxes"]) for record in records]),
        "boxes": np.concatenate([record["true_boxes"] for record in records]),
        "labels": np.concatenate([record["true_labels"] for record in records]),
    }
    result = frame_map(detections, ground_truth, label_ids=label_ids)
    per_label = {f"frame_ap_50/{id2label[i]}": float(ap) for i, ap in enumerate(result["ap_per_label"]) if ap == ap}
    return {"frame_map_50": result["frame_map_50"], **per_label}


def save_records(records: list[dict[str, Any]], path: Path) -> None:
    """Write records as Parquet, one row per clip, whole or not at all."""
    rows = [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in r.items()}
        for r in records
    ]
    unfinished = path.with_suffix(".unfinished")
    Dataset.from_list(rows).to_parquet(unfinished)
    unfinished.replace(path)
