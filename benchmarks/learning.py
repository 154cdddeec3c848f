"""How quickly a recipe learns: scores against steps and CPU seconds of training, over several seeds.

    python benchmarks/learning.py --work_dir DIR [--recipes demo demo_ucf101_24 demo_jhmdb_21] [--seeds 0 1 2]
        [--arms NAME ...] [--processes 2] [--eval_steps 100] [--plot curves.png]

Arms are the recipe and what differs from it: what it was before (commit aaa7d40), or without one of its aids. Runs
have one thread each, and their results are files in DIR: what is there is not run again, so that an interrupted
measurement goes on where it was. CPU seconds are those of the updates alone, without reading and scoring clips: the
demo recipes augment nothing, so that clips are read once and kept.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_runs import make_model, run_missing, spread, train

from classquery.configuration import load_recipe
from classquery.configuration_classquery import CORRECTED
from classquery.data.annotations.registry import prepare_dataset


RECIPES = ("demo", "demo_ucf101_24", "demo_jhmdb_21")
SAME = {"matrix_optimizer": "same", "matrix_learning_rate": None}
NO_AIDS = {"sine_frequencies": "paired", "initial_boxes": "random", "denoising_groups": 0}
WHOLE = {"supervised_frames": None}
_TUBES_BEFORE = {"max_steps": 1200, "warmup_steps": 100, "per_device_train_batch_size": 8}
TRAINING_BEFORE = {
    "demo": {"max_steps": 1400, "warmup_steps": 100},
    "demo_ucf101_24": _TUBES_BEFORE,
    "demo_jhmdb_21": _TUBES_BEFORE,
}
# Values of `corrected()` that the recipe has, undone, and those that it has not. No clip of it is padded.
OTHER = {name: "released" if name in load_recipe("demo").model else CORRECTED[name] for name in CORRECTED}
OTHER.pop("padding")
# By section of the recipe, what each arm changes.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "recipe": {},
    "before": {"model": NO_AIDS, "optimization": SAME, "data": WHOLE},
    "without octaves": {"model": {"sine_frequencies": "paired"}},
    "without grid": {"model": {"initial_boxes": "random"}},
    "without denoising": {"model": {"denoising_groups": 0}},
    "without Muon": {"optimization": SAME},
    "without drawing frames": {"data": WHOLE},
    **{f"{value} {name}": {"model": {name: value}} for name, value in OTHER.items()},
}
SCORES = ("frame_map_50", "video_map_20", "video_map_50")
MILESTONES = (0.5, 0.7, 0.8, 0.9)


def main() -> None:
    """Run what is not there yet, and print a table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["before", "recipe"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    parser.add_argument("--eval_steps", type=int, default=100)
    parser.add_argument("--max_steps", type=int, help="instead of those of the recipe, of all arms")
    parser.add_argument("--plot", type=Path, help="picture of the curves, of one recipe")
    options = parser.parse_args()
    for recipe in options.recipes:
        data_dir = prepare_dataset(recipe, options.work_dir / recipe)
        runs = {
            run_name(options, recipe, arm, seed): partial(
                run_arm, recipe, arm, seed, data_dir, options.eval_steps, options.max_steps
            )
            for seed in options.seeds
            for arm in options.arms
        }
        results = run_missing(options.work_dir, runs, options.processes)
        curves = {
            arm: [results[run_name(options, recipe, arm, seed)] for seed in options.seeds] for arm in options.arms
        }
        print(f"\n{recipe}, seeds {', '.join(map(str, options.seeds))}\n\n{table(curves)}")
        if options.plot:
            draw(curves, options.plot)


def run_name(options: argparse.Namespace, recipe: str, arm: str, seed: int) -> str:
    """What the curve of a run is kept as."""
    return f"{recipe}-{arm}{f'-{options.max_steps}-steps' if options.max_steps else ''}-seed-{seed}"


def run_arm(
    recipe: str, arm: str, seed: int, data_dir: Path, eval_steps: int, max_steps: int | None
) -> list[dict[str, float]]:
    """Train once, and return the curve."""
    changes = dict(ARMS[arm])
    model = make_model(recipe, data_dir, seed, **changes.pop("model", {}))
    training = {"eval_steps": eval_steps} | (TRAINING_BEFORE[recipe] if arm == "before" else {})
    if max_steps:
        training["max_steps"] = max_steps
    return train(recipe, model, data_dir, data_dir.parent / "runs", seed, training=training, scores=SCORES, **changes)[
        1
    ]


def table(curves: dict[str, list[list[dict[str, float]]]]) -> str:
    """Lay out the arms: last scores, and what it took to reach some, as mean and range over the seeds."""
    names = [name for name in SCORES if name in next(iter(curves.values()))[0][0]]
    head = ["arm", "steps", "CPU s", *names]
    head += [f"{what} to {milestone}" for milestone in MILESTONES for what in ("steps", "CPU s")]
    rows = [head, ["---"] * len(head)]
    for arm, runs in curves.items():
        last = [run[-1] for run in runs]
        row = [arm, f"{last[0]['step']:.0f}", f"{np.mean([point['cpu_seconds'] for point in last]):.0f}"]
        row += [spread([point[name] for point in last]) for name in names]
        for milestone in MILESTONES:
            for name in ("step", "cpu_seconds"):
                reached = [crossing(run, milestone, name) for run in runs]
                row.append("never" if None in reached else f"{np.mean(reached):.0f}")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def crossing(run: Sequence[dict[str, float]], milestone: float, name: str) -> float | None:
    """Where a curve of frame mAP first reaches a value, between evaluations by a straight line; None if nowhere."""
    before = {"step": 0, "cpu_seconds": 0.0, "frame_map_50": 0.0}
    for point in run:
        if point["frame_map_50"] >= milestone:
            part = (milestone - before["frame_map_50"]) / (point["frame_map_50"] - before["frame_map_50"])
            return before[name] + part * (point[name] - before[name])
        before = point
    return None


def draw(curves: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Plot frame mAP over steps and CPU seconds, a line for every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    colors = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    panels = (("step", "training step"), ("cpu_seconds", "CPU seconds of training"))
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for index, (arm, runs) in enumerate(curves.items()):
            for number, run in enumerate(runs):
                points = [(0, 0), *((point[name], point["frame_map_50"]) for point in run)]
                label = arm if number == 0 else None
                axes.plot(*zip(*points, strict=True), color=colors[index % len(colors)], linewidth=1.5, label=label)
        axes.set_xlabel(title)
        axes.set_ylim(0, 1)
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_title("frame mAP at IoU 0.5", loc="left", fontsize=12)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
