"""What the command `python -m classquery.data.metrics` does."""

import argparse
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classquery.data.annotations.ava import AVA_LABELS, parse_label_map
from classquery.data.annotations.registry import (
    PUBLISHED_COUNTING,
    load_action_dataset,
    load_action_labels,
    scored_label_ids,
)
from classquery.data.metrics import analyze, ava_label_ids, frame_map, tube_map, video_map
from classquery.data.metrics.files import (
    BoxRows,
    FrameNames,
    cap_per_frame,
    dense_scores,
    multi_hot,
    read_detections,
    read_frames,
    read_ground_truth,
)
from classquery.data.metrics.multisports import (
    FRAMES_FILE,
    TUBES_FILE,
    read_frame_detections,
    read_tube_detections,
)
from classquery.data.metrics.records import (
    Record,
    frame_sizes,
    read_records,
    true_tubes,
    tube_frame_tables,
    unknown_table,
    video_table,
)
from classquery.data.metrics.report import write_report
from classquery.data.whole_files import write_json


logger = logging.getLogger(__name__)


# Of the thresholds that are counted when none are asked for.
SHOWN = ("frame_map_50", "video_map_20", "video_map_50", "video_map_75", "video_map_50_95")


class Scored(NamedTuple):
    """What came out, and the tables that `analyze` looks into."""

    metrics: dict[str, float]
    per_label: dict[str, np.ndarray]  # AP by 0-based label, NaN without ground truth.
    id2label: Mapping[int, str]
    detections: Mapping[str, np.ndarray]
    ground_truth: Mapping[str, np.ndarray]
    label_ids: list[int] | None = None
    unknown: Mapping[str, np.ndarray] | None = None  # What partial annotations leave open.


def score(options: argparse.Namespace) -> None:
    """Score what the command line asks for, print it, and write what is wanted."""
    if options.detections.is_dir():
        options.tubes = options.tubes or options.detections / TUBES_FILE
        options.detections = options.detections / FRAMES_FILE
    logging.basicConfig(format="%(message)s")
    logging.getLogger("classquery").setLevel(logging.INFO)
    scored = score_ava(options) if options.dataset == "ava" else score_tubes(options)
    print(table(scored))
    if options.json:
        write_json(options.json, as_json(scored), indent=2)
    if options.report:
        analysis = analyze(
            scored.detections,
            scored.ground_truth,
            unknown=scored.unknown,
            label_ids=scored.label_ids,
            id2label=scored.id2label,
        )
        print(f"see {write_report(options.report, analysis, metrics=scored.metrics)}")


# AVA


def score_ava(options: argparse.Namespace) -> Scored:
    """Frame mAP as the official script counts it."""
    id2label = _label_names(options.label_map)
    label_ids, names = [label + 1 for label in id2label], FrameNames()
    is_complete = options.label_map is not None
    truth = read_ground_truth(options.ground_truth, names)
    excluded = read_frames(options.exclude, names) if options.exclude else np.zeros(0, np.int64)
    annotated = np.concatenate([truth.frame, truth.empty_frames])
    truth = _counted(options.ground_truth, truth, excluded, label_ids, is_complete=is_complete)
    first, labels = multi_hot(truth, max(label_ids))
    ground_truth = {"frame": truth.frame[first], "boxes": truth.boxes[first], "labels": labels}

    unknown = None
    if options.detections.suffix == ".parquet":
        if options.official_cap:
            raise ValueError("--official_cap goes by the order of rows in a csv file: write the detections as one")
        found, unknown = _tables_of_records(read_records(options.detections), names, labels.shape[1])
    else:
        rows = read_detections(options.detections, names)
        rows = _counted(options.detections, rows, excluded, label_ids, is_complete=is_complete)
        rows = cap_per_frame(rows) if options.official_cap else rows
        found = {"frame": rows.frame, "boxes": rows.boxes, "scores": rows.values[:, 0], "label": rows.label_id - 1}
    kept = ~np.isin(found["frame"], excluded)
    if options.annotated_only:
        kept &= np.isin(found["frame"], annotated)
    found = {name: column[kept] for name, column in found.items()}
    _check_frames(found["frame"], ground_truth["frame"], names)
    thresholds = options.iou_thresholds or [0.5]
    result = frame_map(found, ground_truth, iou_threshold=thresholds, label_ids=label_ids, unknown=unknown)
    return Scored(*_split(result), id2label, found, ground_truth, label_ids, unknown)


def _label_names(label_map: Path | None) -> dict[int, str]:
    """Names of the labels that count, by 0-based label."""
    if label_map is None:
        return {label_id - 1: AVA_LABELS[label_id - 1] for label_id in ava_label_ids()}
    return {label_id - 1: name for label_id, name in sorted(parse_label_map(label_map).items())}


def _counted(path: Path, rows: BoxRows, excluded: np.ndarray, label_ids: list[int], *, is_complete: bool) -> BoxRows:
    """Leave out excluded keyframes and labels that do not count, as the official script does."""
    unknown = np.unique(rows.label_id[rows.label_id > len(AVA_LABELS)])
    if len(unknown) and not is_complete:
        raise ValueError(
            f"{path} has the label ids {unknown.tolist()[:5]}, but AVA has {len(AVA_LABELS)}: "
            "give the --label_map of the data"
        )
    counts = np.isin(rows.label_id, label_ids)
    if not counts.all():
        logger.info(f"{path}: {(~counts).sum():,} of {len(counts):,} rows have labels that do not count")
    return rows.take(np.flatnonzero(counts & ~np.isin(rows.frame, excluded)))


def _tables_of_records(
    records: list[Record], names: FrameNames, num_labels: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Detections at keyframes, whose clips are named VIDEO_SECONDS, and what is unknown there."""
    keys = [record["clip_id"].rpartition("_") for record in records]
    wrong = [record["clip_id"] for record, (video, _, time) in zip(records, keys, strict=True) if not time.isdigit()]
    if wrong:
        raise ValueError(f"clips must be named VIDEO_SECONDS to be found in the ground truth, got {wrong[0]!r}")
    frames = names.codes(names.video_codes([key[0] for key in keys]), np.array([float(key[2]) for key in keys]))
    scores = np.concatenate([record["scores"][0] for record in records])
    if scores.shape[1] < num_labels:
        raise ValueError(f"the predictions have {scores.shape[1]} labels, but the label map goes up to {num_labels}")
    boxes = [record["boxes"][0] for record in records]
    found = {
        "frame": np.repeat(frames, [len(of_frame) for of_frame in boxes]),
        "boxes": np.concatenate(boxes),
        "scores": scores[:, :num_labels],
    }
    unknown = unknown_table(records)
    if unknown is not None:
        # A record is one frame.
        unknown |= {"frame": frames[unknown["frame"]], "labels": unknown["labels"][:, :num_labels]}
    return found, unknown


def _check_frames(frame: np.ndarray, true_frame: np.ndarray, names: FrameNames) -> None:
    """Say so if no keyframe of the detections is in the ground truth; numbers alone would tell nothing."""
    if len(frame) and len(true_frame) and not np.isin(frame, true_frame).any():
        logger.warning(
            f"no keyframe of the detections has ground truth: compare {names.name(frame[0])} with "
            f"{names.name(true_frame[0])}"
        )


# UCF101-24, JHMDB-21, MultiSports


def score_tubes(options: argparse.Namespace) -> Scored:
    """Frame mAP and video mAP over the test videos of an annotation pickle."""
    source = options.dataset, options.ground_truth
    rows = load_action_dataset(*source, "validation", fold=options.fold, require_videos=False)
    id2label = load_action_labels(*source)
    label_ids = scored_label_ids(options.dataset, id2label)
    sizes = frame_sizes(rows, options.shortest_edge or PUBLISHED_COUNTING[options.dataset].shortest_edge)
    originals = {row["clip_id"]: np.array([row["width"], row["height"]] * 2) for row in rows}
    detections = _read_video_table(options.detections, rows["clip_id"][:], originals, sizes, len(id2label))
    tables = tube_frame_tables(detections, rows, sizes, len(id2label))
    frames = frame_map(*tables, iou_threshold=options.iou_thresholds or [0.5], label_ids=label_ids)
    counted = {
        "protocol": options.protocol or PUBLISHED_COUNTING[options.dataset].protocol,
        "iou_thresholds": options.iou_thresholds or [0.2, *np.arange(50, 100, 5) / 100],
        "label_ids": label_ids,
    }
    if options.tubes:
        scales = {name: sizes[name] / original for name, original in originals.items()}
        linked = read_tube_detections(options.tubes, scales, len(id2label))
        videos = tube_map(linked, true_tubes(rows, sizes), num_labels=len(id2label), **counted) | {"tubes": linked}
    else:
        videos = video_map(detections, true_tubes(rows, sizes), **counted)
    if label_ids is not None:
        logger.info(f"{len(label_ids)} of {len(id2label)} labels count, as in the official script")
    logger.info(f"video mAP is counted by the protocol {counted['protocol']!r}: {len(videos['tubes']):,} tubes")
    (metrics, per_label), (of_videos, ap_of_videos) = _split(frames), _split(videos)
    metrics, per_label = metrics | of_videos, per_label | ap_of_videos
    if not options.iou_thresholds:
        metrics = {name: metrics[name] for name in SHOWN}
    per_label = {name: ap for name, ap in per_label.items() if name.replace("ap", "map") in metrics}
    return Scored(metrics, per_label, id2label, *tables, label_ids)


def _read_video_table(
    path: Path,
    videos: list[str],
    originals: Mapping[str, np.ndarray],
    sizes: Mapping[str, np.ndarray],
    num_labels: int,
) -> dict[str, np.ndarray]:
    """Detections of any file in pixels of the frames that count.

    Args:
        path: Parquet, the pickle of MultiSports, or csv.
        videos: Names of the test videos, in the order of their numbers in such a pickle.
        originals, sizes: Width, height, width and height in pixels of the frames of each video: those of the
            annotations, and those that count.
        num_labels: Number of labels.
    """
    if path.suffix == ".parquet":
        return _video_table_of_records(path, sizes, num_labels)
    names = FrameNames()
    if path.suffix == ".pkl":
        found = read_frame_detections(path, names, videos, originals)
    else:
        found = read_detections(path, names, of_tubes=True)
    return _video_table_of_rows(path, found, names, sizes, num_labels)


def _video_table_of_records(path: Path, sizes: Mapping[str, np.ndarray], num_labels: int) -> dict[str, np.ndarray]:
    records = read_records(path)
    _check_videos({record["video"] for record in records}, sizes, path)
    table = video_table(records, sizes)
    if table["scores"].shape[1] != num_labels:
        raise ValueError(f"{path} has {table['scores'].shape[1]} labels, but the data has {num_labels}")
    return table


def _check_videos(names: set[str], sizes: Mapping[str, np.ndarray], path: Path) -> None:
    unknown = sorted(names - sizes.keys())
    if unknown:
        raise ValueError(
            f"{path} has {len(unknown)} videos that are not in the test split, as {unknown[0]!r}; "
            f"the annotations write them like {next(iter(sizes))!r}"
        )


def _video_table_of_rows(
    path: Path, rows: BoxRows, names: FrameNames, sizes: Mapping[str, np.ndarray], num_labels: int
) -> dict[str, np.ndarray]:
    _check_videos(set(names.videos), sizes, path)
    if rows.label_id.max(initial=0) > num_labels:
        raise ValueError(f"{path} has the label id {rows.label_id.max()}, but the data has {num_labels} labels")
    first, scores = dense_scores(rows, num_labels)
    video = rows.video[first]
    table = {
        "video": np.array(names.videos)[video],
        "frame": rows.time[first].astype(np.int64),
        "boxes": rows.boxes[first] * np.array([sizes[name] for name in names.videos]).reshape(-1, 4)[video],
        "scores": scores,
    }
    return table | ({"actor": rows.values[first, 1]} if rows.values.shape[1] > 1 else {})


# Output


def _split(result: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The means of a result, and the AP of all labels at each threshold."""
    means = {name: value for name, value in result.items() if isinstance(value, float)}
    names = [name.replace("map", "ap") for name in means if name != "video_map_50_95"]
    return means, dict(zip(names, result["ap_per_label"], strict=True))


def table(scored: Scored) -> str:
    """The metrics, and the AP of each label that has ground truth, best first."""
    counts = scored.ground_truth["labels"].sum(axis=0)
    main = next(iter(scored.per_label))
    width = max((len(name) for name in scored.id2label.values()), default=0)
    lines = [f"{'label':{width}}  ground truth  " + "  ".join(scored.per_label)]
    with_truth = [label for label in scored.id2label if not math.isnan(scored.per_label[main][label])]
    for label in sorted(with_truth, key=lambda label: -scored.per_label[main][label]):
        values = "  ".join(f"{ap[label]:{len(name)}.4f}" for name, ap in scored.per_label.items())
        lines.append(f"{scored.id2label[label]:{width}}  {counts[label]:12,}  {values}")
    return "\n".join([*lines, "", *(f"{name} {value:.4f}" for name, value in scored.metrics.items())])


def as_json(scored: Scored) -> dict[str, Any]:
    """Metrics and AP by the name of the label, None for NaN."""
    per_label = {
        name: {label: _number(ap[index]) for index, label in scored.id2label.items()}
        for name, ap in scored.per_label.items()
    }
    return {name: _number(value) for name, value in scored.metrics.items()} | per_label


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
