"""Must bystanders be boxed? What it costs to leave half of the actors without a box, and what it helps to say where.

    python benchmarks/partial_labels.py --work_dir DIR [--seeds 0 1 2] [--max_steps 1400] [--arms ...]

The recipe `demo` is trained on the demo movies, once with all annotations and once with each way to leave half of the
actors out, drawn actor by actor:

* `all boxed`: everybody has a box and labels;
* `half boxed`: the others have no box, as if they were not there;
* `half boxed, regions`: the same, and an ignored region lies where each of the others is;
* `half labelled`: everybody has a box, the others no labels.

All are scored by frame mAP on the validation movies, where everybody is annotated. Results are added to
`DIR/results.json`, so that an interrupted run goes on where it was; printed are mean and range over the seeds.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainingArguments, set_seed

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import load_recipe
from classquery.configuration.arguments import DataArguments, OptimizationArguments
from classquery.data.annotations.registry import (
    load_action_dataset,
    load_action_labels,
    make_clips,
    prepare_dataset,
)
from classquery.data.annotations.schema import to_dataset
from classquery.data.clips import ClipCollator
from classquery.data.transforms import ClipTransform
from classquery.data.whole_files import write_json
from classquery.engine.training.trainer import ActionDetectionTrainer


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
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    path = options.work_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in options.seeds:
        for arm in options.arms:
            name = f"{arm}, {options.max_steps} steps, seed {seed}"
            if name not in results:
                results[name] = train_and_score(options.work_dir, arm, seed, options.max_steps)
                write_json(path, results, indent=2)
                print(f"{name}: {results[name]:.3f}", flush=True)
    print("| annotations | frame mAP, mean | lowest to highest |\n|---|---|---|")
    for arm in options.arms:
        scores = [results[f"{arm}, {options.max_steps} steps, seed {seed}"] for seed in options.seeds]
        print(f"| {arm} | {np.mean(scores):.3f} | {min(scores):.3f} to {max(scores):.3f} |")


def partly(rows: Dataset, arm: str, seed: int) -> Dataset:
    """Annotations of which every second actor, drawn at random, is left out in one way."""
    generator = np.random.default_rng(seed)
    return to_dataset([ARMS[arm](row, generator.random(len(row["tubes"])) < 0.5) for row in rows])


def train_and_score(work_dir: Path, arm: str, seed: int, max_steps: int) -> float:
    """Frame mAP of the recipe `demo` after training on a part of the annotations."""
    recipe, data_dir = load_recipe("demo"), prepare_dataset("demo", work_dir / "data")
    set_seed(seed)
    config = ClassQueryConfig(**recipe.model | {"id2label": load_action_labels("demo", data_dir)})
    model, processor = ClassQueryForVideoActionDetection(config), ClassQueryVideoProcessor(**recipe.processor)
    data = DataArguments(**recipe.data)
    clips_of = partial(
        make_clips,
        num_labels=config.num_labels,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
        frames_per_second=config.frames_per_second,
    )
    transform = ClipTransform(data.resize_shortest_edge, processor.size["shortest_edge"], data.flip_probability)
    training = recipe.training | {"max_steps": max_steps, "seed": seed, "eval_strategy": "no", "eval_on_start": False}
    training |= {"logging_strategy": "no", "dataloader_pin_memory": torch.cuda.is_available()}
    trainer = ActionDetectionTrainer(
        model,
        TrainingArguments(str(work_dir / "run"), remove_unused_columns=False, disable_tqdm=True, **training),
        optimization=OptimizationArguments(**recipe.optimization),
        train_dataset=clips_of(
            partly(load_action_dataset("demo", data_dir, "train"), arm, seed), transform=transform, seed=seed
        ),
        eval_dataset=clips_of(load_action_dataset("demo", data_dir, "validation")),
        data_collator=ClipCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    return trainer.predict(trainer.eval_dataset).metrics["test_frame_map_50"]


if __name__ == "__main__":
    main()
