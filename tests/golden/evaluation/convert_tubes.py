"""Make the small copies of the UCF101-24 and JHMDB-21 evaluation cases in this folder from the full ones.

    python tests/golden/evaluation/convert_tubes.py FOLDER_OF_UCF_CASES FOLDER_OF_JHMDB_CASES

The expected values come from the reference evaluator, run on the full cases. Everything that decides them is kept:

* Of UCF101-24, frame mAP needs the order of scores (`det_levels`, see `sorted_levels`) and the boxes that overlap the
  ground truth; video mAP needs the detections with an actor score of 0.7 at least, and of these only the label with
  the highest score (`det_label`, `det_score`). Other boxes are outside the frame,
  other scores are 0.
* Of JHMDB-21, video mAP looks at everything, so all is kept.
* Of the linked tubes, label, video, mean score and frames are kept: another box would have another score.
"""

import json
import sys
from pathlib import Path

import numpy as np
from convert_ava import has_overlap, score_levels


COPIED = ("video_names", "class_names", "det_video", "det_frame", "gt_tube_video", "gt_tube_class", "gt_tube_len")
MIN_IOU = 0.15  # below the smallest threshold of the expected values, 0.2
MIN_ACTOR_SCORE = 0.7
BOX_OUTSIDE = np.array([-2, -2, -1, -1], dtype=np.float32)


def frame_case(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The detections and the ground truth of single frames, as convert_ava.py names them."""
    video, label = (np.repeat(case[key], case["gt_tube_len"]) for key in ("gt_tube_video", "gt_tube_class"))
    number, boxes = case["gt_tube_rows"][:, 0].astype(int), case["gt_tube_rows"][:, 1:]
    return {
        "det_frame": case["det_video"] * 10_000 + case["det_frame"],
        "det_boxes": case["det_boxes"],
        "det_scores": case["det_scores"],
        "gt_frame": video * 10_000 + number,
        "gt_boxes": boxes,
        "gt_labels": label[:, None] == np.arange(len(case["class_names"])),
    }


def convert_ucf(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    frames = frame_case(case)
    is_candidate = case["det_actor"] >= MIN_ACTOR_SCORE
    is_needed = is_candidate | has_overlap(frames, MIN_IOU).any(axis=1)
    return {
        "det_boxes": np.where(is_needed[:, None], case["det_boxes"], BOX_OUTSIDE),
        "det_levels": sorted_levels(frames),
        "det_is_candidate": is_candidate,
        "det_label": case["det_scores"].argmax(axis=1).astype(np.uint8) * is_candidate,
        "det_score": case["det_scores"].max(axis=1) * is_candidate,
    }


def sorted_levels(frames: dict[str, np.ndarray]) -> np.ndarray:
    """Levels of the scores (see convert_ava.py), (K, D), those that compress badly in ascending order.

    That are the even ones: their detections are false positives without ties, so it does not matter which has which.
    """
    levels = score_levels(frames, MIN_IOU)
    for of_label in levels:
        is_even = of_label % 2 == 0
        of_label[is_even] = np.sort(of_label[is_even])
    return levels


def convert_jhmdb(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: case[key] for key in ("det_boxes", "det_scores")}


def convert_linked(linked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first = np.cumsum(linked["tube_len"]) - linked["tube_len"]
    rows = np.concatenate([linked["tube_rows"][:, 0], [0]])  # A tube may be empty and the last.
    return {
        "linked_class": linked["tube_class"].astype(np.uint8),
        "linked_video": linked["tube_video"].astype(np.uint8),
        "linked_score": linked["tube_score"].astype(np.float32),
        "linked_len": linked["tube_len"].astype(np.uint16),
        "linked_first_frame": rows[first].astype(np.uint16),
    }


def main(*sources: Path) -> None:
    target = Path(__file__).parent
    for source, convert in zip(sources, (convert_ucf, convert_jhmdb), strict=True):
        for expected_path in sorted(source.glob("*_expected.json")):
            expected = json.loads(expected_path.read_text())
            name = expected["case"]
            case, linked = (dict(np.load(source / f"{name}{suffix}.npz")) for suffix in ("", "_linked"))
            copied = {key: case[key] for key in COPIED} | {"gt_tube_rows": case["gt_tube_rows"].astype(np.int16)}
            np.savez_compressed(target / f"{name}.npz", **copied, **convert(case), **convert_linked(linked))
            standard = source / f"{name}_standard_tubeAP.json"
            kept = {key: expected[key] for key in ("case", "note", "reference", "frame_AP@0.5_tie_interval")}
            if standard.exists():
                kept["standard"] = json.loads(standard.read_text())
            (target / f"{name}_expected.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
