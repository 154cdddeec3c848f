"""Measure CPU time and peak memory of `frame_map` on synthetic detections, as many as the AVA validation set has.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --frames 5700 --baseline 200

`--baseline` also times the plain loop over single detections that the tests compare with (pytest must be installed).
"""

import argparse
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from classquery.data.metrics import frame_map


NUM_QUERIES, NUM_ACTORS, NUM_LABELS = 15, 3, 80  # on each frame
TESTS = Path(__file__).parents[1] / "tests" / "test_metrics.py"

Table = dict[str, np.ndarray]


def synthetic_load(num_frames: int, seed: int = 0) -> tuple[Table, Table]:
    """Return detections and ground truth: on each frame the first queries find the actors, the rest is background."""
    rng = np.random.default_rng(seed)
    frame = np.array([f"video_{index // 897:06d}_{902 + index % 897:04d}" for index in range(num_frames)])
    corners = rng.uniform(0, 200, (num_frames, NUM_QUERIES, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(40, 140, corners.shape)], axis=-1)
    true_boxes = boxes[:, :NUM_ACTORS] + rng.uniform(-15, 15, (num_frames, NUM_ACTORS, 4))

    # As in AVA, a box has few labels, and some labels are a hundred times more frequent than others.
    frequency = 0.7 / np.arange(1, NUM_LABELS + 1) ** 1.2
    labels = rng.random((num_frames, NUM_ACTORS, NUM_LABELS), dtype=np.float32) < frequency
    scores = rng.standard_normal((num_frames, NUM_QUERIES, NUM_LABELS), dtype=np.float32)
    scores[:, :NUM_ACTORS] += 3 * labels
    scores = sigmoid_in_place(np.subtract(scores, 4, out=scores))
    return (
        {
            "frame": frame.repeat(NUM_QUERIES),
            "boxes": boxes.reshape(-1, 4),
            "scores": scores.reshape(-1, NUM_LABELS),
        },
        {
            "frame": frame.repeat(NUM_ACTORS),
            "boxes": true_boxes.reshape(-1, 4),
            "labels": labels.reshape(-1, NUM_LABELS),
        },
    )


def sigmoid_in_place(logits: np.ndarray) -> np.ndarray:
    """In place because the inputs should not set the peak of memory."""
    np.exp(np.negative(logits, out=logits), out=logits)
    return np.reciprocal(np.add(logits, 1, out=logits), out=logits)


def timed(evaluate: Callable, detections: Table, ground_truth: Table) -> tuple[dict, float]:
    """Return the result and the CPU seconds."""
    start = time.process_time()
    result = evaluate(detections, ground_truth)
    return result, time.process_time() - start


def peak_memory_gb() -> float:
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 1e9


def compare_with_plain_loop(detections: Table, ground_truth: Table, num_frames: int) -> tuple[float, float]:
    """Evaluate the first frames with both, check that they agree and return the CPU seconds of both."""
    plain_loop = runpy.run_path(str(TESTS))["brute_force_frame_map"]
    detections = {key: value[: num_frames * NUM_QUERIES] for key, value in detections.items()}
    ground_truth = {key: value[: num_frames * NUM_ACTORS] for key, value in ground_truth.items()}
    result, seconds = timed(frame_map, detections, ground_truth)
    expected, plain_seconds = timed(plain_loop, detections, ground_truth)
    np.testing.assert_allclose(result["ap_per_label"], expected["ap_per_label"], rtol=0, atol=1e-9)
    return seconds, plain_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=57_000, help="default: %(default)s")
    parser.add_argument("--baseline", type=int, metavar="FRAMES", help="time the plain loop on the first FRAMES, too")
    arguments = parser.parse_args()

    detections, ground_truth = synthetic_load(arguments.frames)
    inputs_gb = peak_memory_gb()
    _, seconds = timed(frame_map, detections, ground_truth)
    print(f"{arguments.frames} frames x {NUM_QUERIES} detections x {NUM_LABELS} labels: {seconds:.2f} CPU s, ", end="")
    print(f"peak memory {peak_memory_gb():.2f} GB ({inputs_gb:.2f} GB with the inputs alone)")

    if arguments.baseline:
        num_frames = min(arguments.baseline, arguments.frames)
        seconds, plain_seconds = compare_with_plain_loop(detections, ground_truth, num_frames)
        print(f"{num_frames} frames: {seconds:.3f} CPU s, plain loop {plain_seconds:.2f} CPU s, ", end="")
        print(f"{plain_seconds / seconds:.0f} times as long, with equal AP on all labels")


if __name__ == "__main__":
    main()
