"""Records of an evaluation, one per clip with detections beside ground truth, and the metrics over all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, IterableDataset
from torchvision.ops import box_convert

from classquery.data.clips import KeyframeClips, TubeClips
from classquery.data.metrics import analyze, frame_map, video_map
from classquery.data.metrics.records import (
    Record,
    frame_sizes,
    frame_tables,
    record_table,
    true_tubes,
    unknown_of_clip,
    unknown_table,
    unknown_tubes,
    video_table,
)
from classquery.data.metrics.report import write_report
from classquery.data.novel_classes import base_and_novel_means
from classquery.data.shards.stream import ShardStream
from classquery.data.streaming import ClipStream
from classquery.data.whole_files import replacing
from classquery.loss_classquery import read_together


def read_outputs(outputs) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Bring what is scored to the CPU, with one read of the device.

    Args:
        outputs: Output of the model.

    Returns:
        Outputs for `clip_records`, and the predictions of all decoder layers for `action_detection_loss`.
    """
    names = ("logits", "pred_boxes", "actor_logits")
    layers = [*outputs["auxiliary_outputs"], {name: outputs[name] for name in names}]
    tensors = iter(read_together([outputs["scores"], *(layer[name] for layer in layers for name in names)]))
    scores = next(tensors)
    layers = [{name: next(tensors) for name in names} for _ in layers]
    return layers[-1] | {"scores": scores}, layers


def clip_records(processor, outputs, labels: list[dict[str, Any]]) -> list[Record]:
    """Pair the detections in the real frames of a batch with their ground truth.

    Args:
        processor: A `ClassQueryVideoProcessor`.
        outputs: Output of the model.
        labels: Those of `ClipCollator`.

    Returns:
        One record per clip, see `classquery.data.metrics.records`, where `video` is that of the clip, or its own id
        where clips stand for themselves. NumPy, float32 but for numbers and flags.
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
        record = names | {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        records.append(record | _unknown(label, real, record))
    return records


def _unknown(label: dict[str, Any], real: torch.Tensor, record: Record) -> Record:
    """What partial annotations leave open in the real frames of a clip."""
    partial = {}
    if "labelled" in label:
        partial["labelled"] = label["labelled"][:, real]
    if "ignored_boxes" in label:
        partial["ignored_boxes"] = box_convert(label["ignored_boxes"], "cxcywh", "xyxy")[:, real].float()
    if "annotated_labels" in label:
        partial["annotated_labels"] = label["annotated_labels"]
    partial = {name: tensor.cpu().numpy() for name, tensor in partial.items()}
    true = {name: record[name] for name in ("true_labels", "true_valid")}
    return unknown_of_clip(partial | true, record["true_boxes"])


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
        novel: Names of labels that training does not see, whose mean is scored by itself.
    """

    id2label: dict[int, str]
    label_ids: Sequence[int] | None = None
    novel: Sequence[str] = ()

    def __call__(self, records: Sequence[Record]) -> dict[str, float]:
        """Score: `frame_map_50` and `frame_ap_50/<label>`."""
        detections, ground_truth = frame_tables(records)
        result = frame_map(detections, ground_truth, label_ids=self.label_ids, unknown=unknown_table(records))
        ap = {"frame_map_50": _per_label(result["ap_per_label"], self.id2label)}
        means = base_and_novel_means(ap, self.novel) if self.novel else {}
        return {"frame_map_50": result["frame_map_50"], **_listed("frame_ap_50", ap["frame_map_50"]), **means}


@dataclass(frozen=True)
class TubeScorer:
    """Frame mAP as of `FrameScorer`, and video mAP at IoU 0.2 and 0.5 over the tubes of whole videos.

    Args:
        id2label: Names of the labels.
        rows: The annotations, one row per video with its tubes.
        protocol: How tubes are linked and counted, see `video_map`.
        shortest_edge: Short side in pixels of the frames that the model sees; the published protocols count in these.
        label_ids: 1-based ids of the labels that count; all by default.
        novel: Names of labels that training does not see, whose mean is scored by itself.
    """

    id2label: dict[int, str]
    rows: Dataset | IterableDataset
    protocol: str
    shortest_edge: int
    label_ids: Sequence[int] | None = None
    novel: Sequence[str] = ()

    def __call__(self, records: Sequence[Record]) -> dict[str, float]:
        """Score: `frame_map_50`, `video_map_20`, `video_map_50` and the AP of each label."""
        sizes = frame_sizes(self.rows, self.shortest_edge)
        result = video_map(
            video_table(records, sizes),
            true_tubes(self.rows, sizes),
            protocol=self.protocol,
            label_ids=self.label_ids,
            unknown=unknown_tubes(self.rows, sizes, len(self.id2label)),
        )
        names = ("video_map_20", "video_map_50")
        of_labels = [_per_label(ap, self.id2label) for ap in result["ap_per_label"]]
        ap = dict(zip(names, of_labels, strict=True))
        return {
            **FrameScorer(self.id2label, self.label_ids, self.novel)(records),
            **{name: result[name] for name in names},
            **_listed("video_ap_50", ap["video_map_50"]),
            **(base_and_novel_means(ap, self.novel) if self.novel else {}),
        }


def make_scorer(
    clips: KeyframeClips | TubeClips | ClipStream | ShardStream,
    id2label: dict[int, str],
    *,
    protocol: str,
    shortest_edge: int,
    label_ids: Sequence[int] | None = None,
    novel: Sequence[str] = (),
) -> FrameScorer | TubeScorer:
    """Make the scorer that fits clips: over keyframes, or over whole videos as well; arguments as of the scorers."""
    if clips.has_tubes:
        return TubeScorer(id2label, clips.rows, protocol, shortest_edge, label_ids, novel)
    return FrameScorer(id2label, label_ids, novel)


def _per_label(average_precision: np.ndarray, id2label: dict[int, str]) -> dict[str, float]:
    return {id2label[i]: float(ap) for i, ap in enumerate(average_precision) if not np.isnan(ap)}


def _listed(name: str, ap: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{label}": value for label, value in ap.items()}


def save_records(records: Sequence[Record], path: Path) -> None:
    """Write records as Parquet, one row per clip, whole or not at all."""
    with replacing(path) as partial_path:
        pq.write_table(record_table(records), partial_path)


def report_errors(
    records: Sequence[Record], metrics: dict[str, float], folder: Path, scorer: FrameScorer | TubeScorer
) -> Path:
    """Analyze what costs frame mAP, and write a page about it; see `classquery.data.metrics.report`."""
    names = {"label_ids": scorer.label_ids, "id2label": scorer.id2label}
    analysis = analyze(*frame_tables(records), unknown=unknown_table(records), **names)
    return write_report(folder, analysis, metrics=metrics)
