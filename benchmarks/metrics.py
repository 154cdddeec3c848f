"""Measure CPU time and peak memory of the metrics on synthetic detections, as many as the data sets have.

    python benchmarks/metrics.py
    python benchmarks/metrics.py ucf101_24 jhmdb_21 --share 0.05
    python benchmarks/metrics.py ava --baseline 200
    python benchmarks/metrics.py analysis csv

AVA: frame mAP of its validation set. UCF101-24 and JHMDB-21: frame mAP and video mAP of a test split, as published and
as standard, at eleven thresholds at once. Each data set has a process of its own, which shows its peak of memory.
`--baseline` also times the plain loop over single detections that the tests compare with (pytest must be installed).
`analysis` is the analysis of errors on the AVA load, `csv` the command on a csv file of it with the 50 rows of highest
score of each frame.
"""

import argparse
import multiprocessing
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from classquery.data.metrics import analyze, ava_label_ids, frame_map, video_map
from classquery.data.metrics.__main__ import parse_arguments
from classquery.data.metrics.commands import score_ava


NUM_QUERIES = 15
AVA_FRAMES, AVA_ACTORS, AVA_LABELS = 57_000, 3, 80
MAX_ROWS = 50  # In a csv file, of each frame.
IOU_THRESHOLDS = [0.2, *np.arange(50, 100, 5) / 100]
VIDEO_DATA = {  # Videos, frames of each, actors at most, labels, protocol.
    "ucf101_24": (914, 150, 3, 24, "classquery_ucf"),
    "jhmdb_21": (268, 35, 1, 21, "classquery_jhmdb"),
}
TESTS = Path(__file__).parents[1] / "tests" / "test_metrics_frame.py"

Table = dict[str, np.ndarray]


def ava_load(num_frames: int, seed: int = 0) -> tuple[Table, Table]:
    """Return detections and ground truth: on each frame the first queries find the actors, the rest is background."""
    rng = np.random.default_rng(seed)
    frame = np.array([f"video_{index // 897:06d}_{902 + index % 897:04d}" for index in range(num_frames)])
    corners = rng.uniform(0, 200, (num_frames, NUM_QUERIES, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(40, 140, corners.shape)], axis=-1)
    true_boxes = boxes[:, :AVA_ACTORS] + rng.uniform(-15, 15, (num_frames, AVA_ACTORS, 4))

    # As in AVA, a box has few labels, and some labels are a hundred times more frequent than others.
    frequency = 0.7 / np.arange(1, AVA_LABELS + 1) ** 1.2
    labels = rng.random((num_frames, AVA_ACTORS, AVA_LABELS), dtype=np.float32) < frequency
    scores = rng.standard_normal((num_frames, NUM_QUERIES, AVA_LABELS), dtype=np.float32)
    scores[:, :AVA_ACTORS] += 3 * labels
    scores = sigmoid_in_place(np.subtract(scores, 4, out=scores))
    return (
        {
            "frame": frame.repeat(NUM_QUERIES),
            "boxes": boxes.reshape(-1, 4),
            "scores": scores.reshape(-1, AVA_LABELS),
        },
        {
            "frame": frame.repeat(AVA_ACTORS),
            "boxes": true_boxes.reshape(-1, 4),
            "labels": labels.reshape(-1, AVA_LABELS),
        },
    )


def video_load(
    num_videos: int, num_frames: int, max_actors: int, num_labels: int, first_frame: int, seed: int = 0
) -> tuple[Table, list[dict[str, Any]]]:
    """Return detections and tubes: the first queries follow the actors of a video, the others jump about.

    A video has one label and one actor at least; with several, each acts in a part of the video only. Every tenth
    frame of an actor has a low score, and so does background; one in fifty of the latter passes for an actor.
    """
    rng = np.random.default_rng(seed)
    shape = (num_videos, num_frames, NUM_QUERIES)
    label = rng.integers(num_labels, size=num_videos)
    is_actor = np.arange(max_actors) < rng.integers(1, max_actors + 1, size=num_videos)[:, None]
    begin = rng.integers(num_frames // 2, size=is_actor.shape) * (max_actors > 1)
    end = np.where(max_actors > 1, rng.integers(num_frames // 2, num_frames, size=is_actor.shape), num_frames)
    frame = np.arange(num_frames)[:, None]
    acts = is_actor[:, None] & (begin[:, None] <= frame) & (frame < end[:, None])  # (videos, frames, actors)

    centers = rng.uniform(60, 240, (*shape, 2)).astype(np.float32)
    walk = rng.normal(0, 2, (num_videos, num_frames, max_actors, 2)).cumsum(axis=1)
    centers[:, :, :max_actors] = rng.uniform(60, 240, (num_videos, 1, max_actors, 2)) + walk
    boxes = np.concatenate([centers - 40, centers + 40], axis=-1)
    true_boxes = boxes[:, :, :max_actors] + rng.normal(0, 4, (num_videos, num_frames, max_actors, 4))

    actor = rng.uniform(0, 0.714, shape).astype(np.float32)
    scores = rng.standard_normal((*shape, num_labels), dtype=np.float32)
    scores = sigmoid_in_place(np.subtract(scores, 4, out=scores))
    video, frame, query = np.nonzero(acts & (rng.random(acts.shape) < 0.9))
    actor[video, frame, query] = 0.95
    scores[video, frame, query, label[video]] = rng.uniform(0.3, 1, len(video))
    scores *= actor[..., None]
    detections = {
        "video": np.repeat([f"class_v_class_g{i:05d}" for i in range(num_videos)], num_frames * NUM_QUERIES),
        "frame": np.tile(np.repeat(first_frame + np.arange(num_frames), NUM_QUERIES), num_videos),
        "boxes": boxes.reshape(-1, 4),
        "scores": scores.reshape(-1, num_labels),
        "actor": actor.reshape(-1),
    }
    tubes = [
        {
            "video": f"class_v_class_g{video:05d}",
            "label": label[video],
            "frames": 1 + np.arange(begin[video, i], end[video, i]),
            "boxes": true_boxes[video, begin[video, i] : end[video, i], i],
        }
        for video, i in zip(*np.nonzero(is_actor), strict=True)
    ]
    return detections, tubes


def frame_tables(detections: Table, tubes: list[dict[str, Any]], first_frame: int) -> tuple[Table, Table]:
    """Arguments of `frame_map`, with a whole number for each frame of a video."""
    number = {name: 1000 * i for i, name in enumerate(dict.fromkeys(detections["video"].tolist()))}
    videos = np.array([number[name] for name in detections["video"].tolist()])
    frames = [number[tube["video"]] + tube["frames"] - 1 + first_frame for tube in tubes]
    labels = np.repeat([tube["label"] for tube in tubes], [len(tube["frames"]) for tube in tubes])
    return (
        {"frame": videos + detections["frame"], "boxes": detections["boxes"], "scores": detections["scores"]},
        {
            "frame": np.concatenate(frames),
            "boxes": np.concatenate([tube["boxes"] for tube in tubes]),
            "labels": labels[:, None] == np.arange(detections["scores"].shape[1]),
        },
    )


def sigmoid_in_place(logits: np.ndarray) -> np.ndarray:
    """In place because the inputs should not set the peak of memory."""
    np.exp(np.negative(logits, out=logits), out=logits)
    return np.reciprocal(np.add(logits, 1, out=logits), out=logits)


def timed(evaluate: Callable, *arguments: Any, **options: Any) -> tuple[dict, float]:
    """Return the result and the CPU seconds."""
    start = time.process_time()
    result = evaluate(*arguments, **options)
    return result, time.process_time() - start


def peak_memory_gb() -> float:
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 1e9


def measure_ava(share: float, baseline: int | None) -> None:
    num_frames = round(AVA_FRAMES * share)
    detections, ground_truth = ava_load(num_frames)
    inputs_gb = peak_memory_gb()
    _, seconds = timed(frame_map, detections, ground_truth, label_ids=ava_label_ids())
    print(f"ava: {num_frames} frames x {NUM_QUERIES} detections x {AVA_LABELS} labels")
    print(f"  frame mAP: {seconds:.2f} CPU s")
    print(f"  peak memory: {peak_memory_gb():.2f} GB ({inputs_gb:.2f} GB with the inputs alone)")
    if baseline:
        baseline = min(baseline, num_frames)
        seconds, plain_seconds = compare_with_plain_loop(detections, ground_truth, baseline)
        print(f"  {baseline} frames: {seconds:.3f} CPU s, plain loop {plain_seconds:.2f} CPU s, ", end="")
        print(f"{plain_seconds / seconds:.0f} times as long, with equal AP on all labels")


def measure_analysis(share: float) -> None:
    detections, ground_truth = ava_load(round(AVA_FRAMES * share))
    inputs_gb = peak_memory_gb()
    _, map_seconds = timed(frame_map, detections, ground_truth, label_ids=ava_label_ids())
    _, seconds = timed(analyze, detections, ground_truth, label_ids=ava_label_ids())
    print(f"analysis: {seconds:.2f} CPU s, {seconds / map_seconds:.1f} times as long as frame mAP")
    print(f"  peak memory: {peak_memory_gb():.2f} GB ({inputs_gb:.2f} GB with the inputs alone)")


def measure_csv(share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found, truth = Path(folder) / "detections.csv", Path(folder) / "ground_truth.csv"
        run_alone(write_csv_files, round(AVA_FRAMES * share), found, truth)
        print(f"csv: {MAX_ROWS * round(AVA_FRAMES * share):,} rows, {found.stat().st_size / 1e6:.0f} MB")
        inputs_gb = peak_memory_gb()
        options = ["--dataset", "ava", "--ground_truth", str(truth), "--detections", str(found)]
        _, seconds = timed(score_ava, parse_arguments(options))
        _, capped_seconds = timed(score_ava, parse_arguments([*options, "--official_cap"]))
    print(f"  read and scored: {seconds:.2f} CPU s, with --official_cap {capped_seconds:.2f} CPU s")
    print(f"  peak memory: {peak_memory_gb():.2f} GB ({inputs_gb:.2f} GB with the inputs alone)")


def write_csv_files(num_frames: int, found_path: Path, true_path: Path) -> None:
    """Write the AVA load as the official script reads it."""
    detections, ground_truth = ava_load(num_frames)
    scores = detections["scores"].reshape(num_frames, -1)
    best = np.argsort(-scores, axis=1)[:, :MAX_ROWS]
    boxes = best // AVA_LABELS + NUM_QUERIES * np.arange(num_frames)[:, None]
    columns = detections["frame"][boxes.ravel()], detections["boxes"][boxes.ravel()], best.ravel() % AVA_LABELS
    write_csv(found_path, *columns, np.take_along_axis(scores, best, axis=1).ravel())
    row, label = ground_truth["labels"].nonzero()
    write_csv(true_path, ground_truth["frame"][row], np.sort(ground_truth["boxes"][row].reshape(-1, 2, 2), 1), label)


def write_csv(path: Path, frames: np.ndarray, boxes: np.ndarray, labels: np.ndarray, *values: np.ndarray) -> None:
    keys = np.char.rpartition(frames, "_")
    columns = [keys[:, 0], keys[:, 2], *np.round(boxes.reshape(-1, 4).T / 400, 6), labels + 1, *values]
    pa_csv.write_csv(
        pa.table({str(index): column for index, column in enumerate(columns)}),
        path,
        pa_csv.WriteOptions(include_header=False, quoting_style="none"),
    )


def compare_with_plain_loop(detections: Table, ground_truth: Table, num_frames: int) -> tuple[float, float]:
    """Evaluate the first frames with both, check that they agree and return the CPU seconds of both."""
    plain_loop = runpy.run_path(str(TESTS))["brute_force_frame_map"]
    detections = {key: value[: num_frames * NUM_QUERIES] for key, value in detections.items()}
    ground_truth = {key: value[: num_frames * AVA_ACTORS] for key, value in ground_truth.items()}
    result, seconds = timed(frame_map, detections, ground_truth)
    expected, plain_seconds = timed(plain_loop, detections, ground_truth)
    np.testing.assert_allclose(result["ap_per_label"], expected["ap_per_label"], rtol=0, atol=1e-9)
    return seconds, plain_seconds


def measure_videos(name: str, share: float) -> None:
    num_videos, num_frames, max_actors, num_labels, protocol = VIDEO_DATA[name]
    num_videos, first_frame = round(num_videos * share), 0 if protocol == "classquery_jhmdb" else 1
    detections, tubes = video_load(num_videos, num_frames, max_actors, num_labels, first_frame)
    tables = frame_tables(detections, tubes, first_frame)
    inputs_gb = peak_memory_gb()
    print(f"{name}: {num_videos} videos x {num_frames} frames x {NUM_QUERIES} detections x {num_labels} labels")
    _, frame_seconds = timed(frame_map, *tables, iou_threshold=IOU_THRESHOLDS)
    result, video_seconds = timed(video_map, detections, tubes, protocol=protocol, iou_thresholds=IOU_THRESHOLDS)
    print(f"  frame mAP: {frame_seconds:.2f} CPU s, video mAP: {video_seconds:.2f} CPU s", end="")
    print(f" ({len(result['tubes'])} tubes), together {frame_seconds + video_seconds:.2f} CPU s")
    print(f"  peak memory: {peak_memory_gb():.2f} GB ({inputs_gb:.2f} GB with the inputs alone)")
    result, seconds = timed(video_map, detections, tubes, protocol="standard", iou_thresholds=IOU_THRESHOLDS)
    print(f'  video mAP, protocol "standard": {seconds:.2f} CPU s ({len(result["tubes"])} tubes)')


OTHER_LOADS = {"analysis": measure_analysis, "csv": measure_csv}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["ava", *VIDEO_DATA, *OTHER_LOADS]
    parser.add_argument("data", nargs="*", default=names, help=f"some of {', '.join(names)}; default: all")
    parser.add_argument("--share", type=float, default=1.0, help="of the full size; default: %(default)s")
    parser.add_argument("--baseline", type=int, metavar="FRAMES", help="time the plain loop on FRAMES of AVA, too")
    arguments = parser.parse_args()
    unknown = set(arguments.data) - set(names)
    if unknown:
        parser.error(f"no such data: {', '.join(sorted(unknown))}")
    for name in arguments.data:
        if name == "ava":
            run_alone(measure_ava, arguments.share, arguments.baseline)
        elif name in OTHER_LOADS:
            run_alone(OTHER_LOADS[name], arguments.share)
        else:
            run_alone(measure_videos, name, arguments.share)


def run_alone(measure: Callable, *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
