"""How quickly a recipe learns: scores against steps and CPU seconds of training, over several seeds.

    python benchmarks/learning.py --work_dir DIR [--recipes demo demo_ucf101_24 demo_jhmdb_21] [--seeds 0 1 2]
        [--arms NAME ...] [--processes 2] [--eval_steps 100] [--plot curves.png]

Arms are the recipe and what differs from it: what it was before (commit aaa7d40), or without one of its aids. Each run
is a process with one thread, and its result a file in DIR: what is there is not run again, so that an interrupted
measurement goes on where it was. CPU seconds are those of the updates alone, without reading and scoring clips: the
demo recipes augment nothing, so that clips are read once and kept.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import load_recipe
from classquery.configuration.arguments import DataArguments, OptimizationArguments
from classquery.configuration_classquery import CORRECTED
from classquery.data.annotations.registry import load_action_dataset, load_action_labels, make_clips, prepare_dataset
from classquery.data.clips import ClipCollator
from classquery.data.transforms import ClipTransform
from classquery.data.whole_files import write_json
from classquery.engine.training.evaluation import make_scorer
from classquery.engine.training.trainer import ActionDetectionTrainer


RECIPES = ("demo", "demo_ucf101_24", "demo_jhmdb_21")
SAME = {"matrix_optimizer": "same", "matrix_learning_rate": None}
NO_AIDS = {"sine_frequencies": "paired", "initial_boxes": "random", "denoising_groups": 0}
STEPS_BEFORE = {"demo": 1400, "demo_ucf101_24": 1200, "demo_jhmdb_21": 1200}
# By section of the recipe, what each arm changes.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "recipe": {},
    "before": {"model": NO_AIDS, "optimization": SAME},
    "without octaves": {"model": {"sine_frequencies": "paired"}},
    "without grid": {"model": {"initial_boxes": "random"}},
    "without denoising": {"model": {"denoising_groups": 0}},
    "without Muon": {"optimization": SAME},
    **{
        f"released {name}": {"model": {name: "released"}}
        for name in CORRECTED
        if name not in ("sine_frequencies", "padding")
    },
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
    runs = [(recipe, arm, seed) for recipe in options.recipes for seed in options.seeds for arm in options.arms]
    missing = [run for run in runs if not result_path(options, *run).exists()]
    for recipe in {recipe for recipe, _, _ in missing}:
        prepare_dataset(recipe, options.work_dir / recipe)
    # A process for each run, so that none begins with the memory of another.
    with ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in [pool.submit(run_arm, options, *run) for run in missing]:
            print(future.result(), flush=True)
    for recipe in options.recipes:
        curves = {
            arm: [json.loads(result_path(options, recipe, arm, seed).read_text()) for seed in options.seeds]
            for arm in options.arms
        }
        print(f"\n{recipe}, seeds {', '.join(map(str, options.seeds))}\n\n{table(curves)}")
        if options.plot:
            draw(curves, options.plot)


def result_path(options: argparse.Namespace, recipe: str, arm: str, seed: int) -> Path:
    """Where the curve of a run is kept."""
    steps = f"-{options.max_steps}-steps" if options.max_steps else ""
    return options.work_dir / f"{recipe}-{arm.replace(' ', '_')}{steps}-seed-{seed}.json"


class ClipsInMemory(torch.utils.data.Dataset):
    """Clips of a data set, read once."""

    def __init__(self, clips: torch.utils.data.Dataset):
        self.clip_ids = clips.clip_ids
        self._clips = [clips[index] for index in range(len(clips))]

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._clips[index])


class Curve(TrainerCallback):
    """Note every evaluation with the CPU seconds of the updates before it."""

    def __init__(self):
        self.points: list[dict[str, float]] = []
        self._seconds, self._start = 0.0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self._start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop the clock."""
        self._seconds += time.process_time() - self._start

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Note a point of the curve."""
        scores = {name: metrics[f"eval_{name}"] for name in SCORES if f"eval_{name}" in metrics}
        self.points.append({"step": state.global_step, "cpu_seconds": self._seconds} | scores)


def run_arm(options: argparse.Namespace, recipe_name: str, arm: str, seed: int) -> str:
    """Train once, keep the curve, and say how it ended."""
    torch.set_num_threads(1)
    recipe, changes = load_recipe(recipe_name), ARMS[arm]
    model_values = recipe.model | changes.get("model", {})
    optimization = recipe.optimization | changes.get("optimization", {})
    steps = options.max_steps or (STEPS_BEFORE[recipe_name] if arm == "before" else recipe.training["max_steps"])
    data_dir = options.work_dir / recipe_name
    set_seed(seed)
    config = ClassQueryConfig(**model_values | {"id2label": load_action_labels(recipe_name, data_dir)})
    model, processor = ClassQueryForVideoActionDetection(config), ClassQueryVideoProcessor(**recipe.processor)
    data, curve = DataArguments(**recipe.data), Curve()
    edge = processor.size["shortest_edge"]
    validation = load_clips(recipe_name, data_dir, "validation", config)
    training = recipe.training | {
        "max_steps": steps,
        "seed": seed,
        "eval_steps": options.eval_steps,
        "eval_on_start": False,
        "logging_steps": 10**6,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    transform = ClipTransform(data.resize_shortest_edge, edge, data.flip_probability)
    trainer = ActionDetectionTrainer(
        model,
        TrainingArguments(str(options.work_dir / f"run-{recipe_name}-{arm}-{seed}"), **training),
        optimization=OptimizationArguments(**optimization),
        train_dataset=ClipsInMemory(load_clips(recipe_name, data_dir, "train", config, transform)),
        eval_dataset=ClipsInMemory(validation),
        data_collator=ClipCollator(processor),
        processing_class=processor,
        scorer=make_scorer(validation, config.id2label, protocol=data.video_map_protocol, shortest_edge=edge),
        callbacks=[curve],
    )
    trainer.train()
    write_json(result_path(options, recipe_name, arm, seed), curve.points, indent=1)
    return f"{recipe_name}, {arm}, seed {seed}: {curve.points[-1]}"


def load_clips(recipe_name: str, data_dir: Path, split: str, config: ClassQueryConfig, transform=None):
    """Clips of a split as the model takes them."""
    return make_clips(
        load_action_dataset(recipe_name, data_dir, split),
        num_labels=config.num_labels,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
        frames_per_second=config.frames_per_second,
        output_frames=config.output_frames,
        transform=transform,
    )


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


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


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
