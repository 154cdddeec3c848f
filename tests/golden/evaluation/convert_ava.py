"""Make the small copies of the AVA evaluation cases in this folder from the full ones.

    python tests/golden/evaluation/convert_ava.py FOLDER_OF_THE_FULL_CASES

The expected values come from the reference evaluator, run on the full cases. Everything that decides them is kept:
boxes, labels and the excluded frames are copied, scores become levels (see `score_levels`).
"""

import json
import sys
from pathlib import Path

import numpy as np


COPIED = ("frame_keys", "det_frame", "det_boxes", "gt_frame", "gt_boxes", "gt_labels", "excluded")
MIN_IOU = 0.45  # below the thresholds of the expected values, 0.5 and 0.75


def score_levels(case: dict[str, np.ndarray], min_iou: float = MIN_IOU) -> np.ndarray:
    """Replace scores by small integers in the same order, (K, D): the random digits of scores do not compress.

    A detection that overlaps no ground truth of a label with IoU >= `min_iou` is a false positive for it. The order
    among such detections cannot change the AP: all of them between two overlapping ones share one (even) level.
    """
    overlaps = has_overlap(case, min_iou)
    levels = np.zeros(overlaps.T.shape, dtype=np.uint16)
    for label, scores in enumerate(case["det_scores"].T):
        deciding = np.unique(scores[overlaps[:, label]])
        levels[label] = 2 * np.searchsorted(deciding, scores) + np.isin(scores, deciding)
    return levels


def has_overlap(case: dict[str, np.ndarray], min_iou: float = MIN_IOU) -> np.ndarray:
    """Whether a detection overlaps a ground truth of its frame with the label: (D, K), boolean."""
    overlaps = np.zeros(case["det_scores"].shape, dtype=bool)
    for row, (frame, box) in enumerate(zip(case["det_frame"], case["det_boxes"], strict=True)):
        near = (case["gt_frame"] == frame) & (iou(box, case["gt_boxes"]) >= min_iou)
        overlaps[row] = case["gt_labels"][near].any(axis=0)
    return overlaps


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = np.maximum(sides, 0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return intersection / ((box[2:] - box[:2]).prod() + areas - intersection)


def main(source: Path, target: Path) -> None:
    for path in sorted(source.glob("ava_*.npz")):
        case = dict(np.load(path))
        np.savez_compressed(target / path.name, det_levels=score_levels(case), **{key: case[key] for key in COPIED})
        expected = json.loads(path.with_name(f"{path.stem}_expected.json").read_text())
        kept = {key: expected[key] for key in ("case", "note", "reference")}
        (target / f"{path.stem}_expected.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
