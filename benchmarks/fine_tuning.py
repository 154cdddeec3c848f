"""How well a trained detector learns new actions from few clips, and at what price.

    python benchmarks/fine_tuning.py --work_dir DIR [--seeds 0 1 2] [--clips 25 50 100 200] [--arms ...]

The detector in the package goes on with the recipe `finetune` on movies of the demo that it has never seen, where
other things are asked: who carries a ball, who carries a kite (on whichever side), who walks to the left, and who is
alone. Arms are what `--classes`, `--freeze` and `--lora_rank` of `classquery train` do, and other rates. Nobody looked
for the old classes where they stay. Reported are frame mAP of the four actions on held-out movies, mean over seeds,
which also draw the clips, and the CPU seconds of all updates.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from training_runs import run_missing, spread, train
from transformers import TrainerCallback, set_seed

from classquery import ClassQueryForVideoActionDetection, load_detector
from classquery.data.annotations.registry import load_action_dataset
from classquery.data.annotations.schema import to_dataset
from classquery.data.demo.movies import FRAMES_PER_SECOND, MOVIE_START_SECONDS, Actor, Shot, make_movie, write_demo
from classquery.engine.training.fine_tuning import TrainLowRankUpdates, TrainNewClassesOnly, change_classes


MOVIES = {"num_train_movies": 8, "num_validation_movies": 6}
SEED = 7  # Of the movies; those of the detector have 0.
ACTIONS = ("carry a ball", "carry a kite", "walk to the left", "be alone")
# What happens to the classes, what is done to the model before training, and values of the recipe.
ARMS: dict[str, dict[str, Any]] = {
    "replace": {},
    "replace, one rate": {"optimization": {"class_learning_rate_factor": 1.0}},
    "replace, one rate, that of a wide network": {
        "optimization": {"class_learning_rate_factor": 1.0, "learning_rate_width": None}
    },
    "replace, backbone frozen": {"freeze": "backbone"},
    "replace, LoRA of rank 8": {"freeze": "lora"},
    "add": {"classes": "add"},
    "add, old classes frozen": {"classes": "add", "freeze": "old classes"},
}


def main() -> None:
    """Train what is not there yet, and print a table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    data_dir = options.work_dir / "fine_tuning_movies"
    write_demo(data_dir, **MOVIES, seed=SEED)
    runs = {
        f"fine_tuning-{arm}-{clips}-clips-seed-{seed}": partial(run_arm, data_dir, arm, clips, seed)
        for arm in options.arms
        for clips in options.clips
        for seed in options.seeds
    }
    results = iter(run_missing(options.work_dir, runs, options.processes).values())
    print(f"| arm | {' | '.join(f'{clips} clips' for clips in options.clips)} |\n|{'---|' * (len(options.clips) + 1)}")
    for arm in options.arms:
        cells = ([next(results) for _ in options.seeds] for _ in options.clips)
        print(f"| {arm} | {' | '.join(map(_cell, cells))} |")


def _cell(found: list[dict[str, float]]) -> str:
    scores = [one["frame_map_50"] for one in found]
    seconds = np.mean([one["cpu_seconds"] for one in found])
    return f"{spread(scores)}, {seconds:.0f} s"


def run_arm(data_dir: Path, arm: str, num_clips: int, seed: int) -> dict[str, float]:
    """Fine-tune once."""
    values = ARMS[arm]
    model, processor = load_detector("demo")
    known = list(model.config.id2label.values())
    how = values.get("classes", "replace")
    labels = [*known, *ACTIONS] if how == "add" else list(ACTIONS)
    set_seed(seed)
    model = change_classes(model, labels, how)
    rows = relabelled(load_action_dataset("demo", data_dir, "train"), "train", labels)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:num_clips]
    trainer, points = train(
        "finetune",
        model,
        data_dir,
        data_dir.parent / "runs",
        seed,
        rows=rows.select(drawn),
        validation_rows=relabelled(load_action_dataset("demo", data_dir, "validation"), "validation", labels),
        processor=processor,
        training={"eval_strategy": "no"} | values.get("training", {}),
        optimization=values.get("optimization"),
        callbacks=frozen(model, values.get("freeze"), len(known)),
    )
    metrics = trainer.evaluate()
    score = np.mean([metrics[f"eval_frame_ap_50/{action}"] for action in ACTIONS])
    return {"frame_map_50": float(score), "cpu_seconds": points[-1]["cpu_seconds"]}


def frozen(model: ClassQueryForVideoActionDetection, what: str | None, num_known: int) -> list[TrainerCallback]:
    """Freeze a part of the model."""
    if what == "backbone":
        model.model.backbone.requires_grad_(False)
    if what == "old classes":
        return [TrainNewClassesOnly(model, num_known)]
    return [TrainLowRankUpdates(model, 8)] if what == "lora" else []


def relabelled(rows: Dataset, split: str, labels: list[str]) -> Dataset:
    """Annotations of the movies with the new actions."""
    return to_dataset([_relabelled(row, split, labels) for row in rows])


def _relabelled(row: dict[str, Any], split: str, labels: list[str]) -> dict[str, Any]:
    movie = make_movie(split, int(row["clip_id"].split("_")[-2]), seed=SEED)
    seconds = row["timestamp"] - MOVIE_START_SECONDS
    shot = movie.shot_at(seconds)
    by_person = {actor.person_id: actor for actor in shot.actors}
    tubes = [
        tube | {"labels": [labels.index(action) for action in actions_of(by_person[tube["track_id"]], shot, seconds)]}
        for tube in row["tubes"]
    ]
    return row | {"tubes": tubes, "annotated_labels": [labels.index(action) for action in ACTIONS]}


def actions_of(actor: Actor, shot: Shot, seconds: float) -> Iterator[str]:
    """What an actor does of the new actions."""
    if actor.symbol_kind is not None:
        yield f"carry a {actor.symbol_kind}"
    if actor.offset(seconds + 0.5 / FRAMES_PER_SECOND)[0] < actor.offset(seconds - 0.5 / FRAMES_PER_SECOND)[0]:
        yield "walk to the left"
    if len(shot.actors) == 1:
        yield "be alone"


if __name__ == "__main__":
    main()
