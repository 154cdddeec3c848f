"""Must bystanders be boxed? What it costs to leave half of the actors without a box, and what it helps to say where.

    python benchmarks/partial_labels.py --work_dir DIR [--seeds 0 1 2] [--max_steps 1100] [--arms ...]

The recipe `demo` is trained on the demo movies, once with all annotations and once with each way to leave half of the
actors out, drawn actor by actor:

* `all boxed`: everybody has a box and labels;
* `half boxed`: the others have no box, as if they were not there;
* `half boxed, regions`: the same, and an ignored region lies where each of the others is;
* `half labelled`: everybody has a box, the others no labels.

All are scored by frame mAP on the validation movies, where everybody is annotated; printed are mean and range over the
seeds. Results are files in DIR: what is there is not run again.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from training_runs import make_model, run_missing, train

from classquery.configuration import load_recipe
from classquery.data.annotations.registry import load_action_dataset, prepare_dataset
from classquery.data.annotations.schema import to_dataset


Row = dict[str, Any]


def all_boxed(row: Row, is_kept: np.ndarray) -> Row:
    """Leave a row as it is."""
    return row


def half_boxed(row: Row, is_kept: np.ndarray) -> Row:
    """Leave actors out."""
    return row | {"tubes": [tube for tube, kept in zip(row["tubes"], is_kept, strict=True) if kept]}


def half_boxed_with_regions(row: Row, is_kept: np.ndarray) -> Row:
    """Leave actors out, and say where."""
    others = [tube for tube, kept in zip(row["tubes"], is_kept, strict=True) if not kept]
    regions = [{"frames": tube["frames"], "boxes": tube["boxes"]} for tube in others]
    return half_boxed(row, is_kept) | {"ignored": regions}


def half_labelled(row: Row, is_kept: np.ndarray) -> Row:
    """Leave labels of actors out."""
    pairs = zip(row["tubes"], is_kept, strict=True)
    return row | {"tubes": [tube if kept else tube | {"labels": None} for tube, kept in pairs]}


ARMS: dict[str, Callable[[Row, np.ndarray], Row]] = {
    "all boxed": all_boxed,
    "half boxed": half_boxed,
    "half boxed, regions": half_boxed_with_regions,
    "half labelled": half_labelled,
}


def main() -> None:
    """Train what is not in the results yet, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=load_recipe("demo").training["max_steps"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    data_dir = prepare_dataset("demo", options.work_dir / "demo")
    runs = {
        f"partial-{arm}-{options.max_steps}-steps-seed-{seed}": partial(
            run_arm, data_dir, arm, seed, options.max_steps
        )
        for arm in options.arms
        for seed in options.seeds
    }
    results = list(run_missing(options.work_dir, runs, options.processes).values())
    print("| annotations | frame mAP, mean | lowest to highest |\n|---|---|---|")
    for index, arm in enumerate(options.arms):
        scores = results[index * len(options.seeds) :][: len(options.seeds)]
        print(f"| {arm} | {np.mean(scores):.3f} | {min(scores):.3f} to {max(scores):.3f} |")


def partly(rows: Dataset, arm: str, seed: int) -> Dataset:
    """Annotations of which every second actor, drawn at random, is left out in one way."""
    generator = np.random.default_rng(seed)
    return to_dataset([ARMS[arm](row, generator.random(len(row["tubes"])) < 0.5) for row in rows])


def run_arm(data_dir: Path, arm: str, seed: int, max_steps: int) -> float:
    """Frame mAP of the recipe `demo` after training on a part of the annotations."""
    rows = partly(load_action_dataset("demo", data_dir, "train"), arm, seed)
    training = {"max_steps": max_steps, "eval_strategy": "no"}
    model = make_model("demo", data_dir, seed)
    trainer, _ = train("demo", model, data_dir, data_dir.parent / "runs", seed, rows=rows, training=training)
    return trainer.evaluate()["eval_frame_map_50"]


if __name__ == "__main__":
    main()
