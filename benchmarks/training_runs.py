"""What benchmarks of training share: a recipe trained in memory on one thread, and many such runs that are kept."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments, set_seed

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import load_recipe
from classquery.configuration.arguments import DataArguments, OptimizationArguments
from classquery.data.annotations.registry import load_action_dataset, load_action_labels, make_clips
from classquery.data.clips import ClipCollator, draw_frames
from classquery.data.transforms import ClipTransform
from classquery.data.video.reader import ClipReader
from classquery.data.whole_files import write_json
from classquery.engine.training.evaluation import make_scorer
from classquery.engine.training.trainer import ActionDetectionTrainer


ON_ONE_THREAD = {
    "eval_on_start": False,
    "save_strategy": "no",
    "logging_steps": 10**6,
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "use_cpu": True,
    "remove_unused_columns": False,
}


def run_missing(work_dir: Path, runs: Mapping[str, Callable[[], Any]], processes: int) -> dict[str, Any]:
    """Results of all runs by name: files in the folder, which those that have none yet write.

    Runs share so many processes with one thread each. A call is made of a function of a module and what can be sent to
    a process.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    paths = {name: work_dir / f"{name.replace(' ', '_')}.json" for name in runs}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        missing = [name for name, path in paths.items() if not path.exists()]
        for future in [pool.submit(_run, paths[name], runs[name]) for name in missing]:
            print(future.result(), flush=True)
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def _run(path: Path, call: Callable[[], Any]) -> str:
    torch.set_num_threads(1)
    result = call()
    write_json(path, result, indent=1)
    return f"{path.stem}: {result[-1] if isinstance(result, list) else result}"


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


class RememberingReader(ClipReader):
    """A reader that decodes the frames of a clip once in a process, for small videos."""

    def __init__(self):
        super().__init__()
        self._remembered = {}

    def read(self, path, frame_indices):
        """Read frames, or look them up."""
        key = str(path), tuple(frame_indices)
        if key not in self._remembered:
            self._remembered[key] = super().read(path, frame_indices)
        return self._remembered[key]


_READER = RememberingReader()


class ClipsInMemory(torch.utils.data.Dataset):
    """Clips of a data set, read once; for recipes that augment nothing but draw frames."""

    def __init__(self, clips: torch.utils.data.Dataset, supervised_frames: int | None = None):
        self.clip_ids = clips.clip_ids
        self._clips = [clips[index] for index in range(len(clips))]
        self._supervised_frames = supervised_frames

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self._clips[index]
        return draw_frames(clip, self._supervised_frames) if self._supervised_frames else dict(clip)


class Curve(TrainerCallback):
    """Note some scores of every evaluation with the CPU seconds of the updates before it."""

    def __init__(self, scores: tuple[str, ...]):
        self.points: list[dict[str, float]] = []
        self._scores = scores
        self._seconds, self._start = 0.0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self._start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop the clock."""
        self._seconds += time.process_time() - self._start

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Note a point of the curve."""
        scores = {name: metrics[f"eval_{name}"] for name in self._scores if f"eval_{name}" in metrics}
        self.points.append({"step": state.global_step, "cpu_seconds": self._seconds} | scores)


def make_model(recipe_name: str, data_dir: Path, seed: int, **changes: Any) -> ClassQueryForVideoActionDetection:
    """Model of a recipe with some other values, new from a seed."""
    recipe = load_recipe(recipe_name)
    labels = load_action_labels(recipe.data["dataset"], data_dir)
    set_seed(seed)
    return ClassQueryForVideoActionDetection(ClassQueryConfig(**{"id2label": labels} | recipe.model | changes))


def train(
    recipe_name: str,
    model: ClassQueryForVideoActionDetection,
    data_dir: Path,
    output_dir: Path,
    seed: int,
    *,
    rows: Dataset | None = None,
    validation_rows: Dataset | None = None,
    processor: ClassQueryVideoProcessor | None = None,
    data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    optimization: Mapping[str, Any] | None = None,
    scores: tuple[str, ...] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[ActionDetectionTrainer, list[dict[str, float]]]:
    """Train a model as a recipe says, on one thread.

    Args:
        recipe_name: A recipe that augments nothing.
        model: What is trained.
        data_dir: Data of the recipe.
        output_dir: Of the trainer.
        seed: Of the order of clips and of the noise.
        rows, validation_rows, processor: In place of those of the recipe.
        data, training, optimization: Values in place of those of the recipe.
        scores: Names of the scores that are noted at every evaluation.
        callbacks: Others for the trainer.

    Returns:
        The trainer when it has trained, and the scores with steps and CPU seconds of all updates before.
    """
    recipe = load_recipe(recipe_name)
    dataset, data = recipe.data["dataset"], DataArguments(**recipe.data | dict(data or {}))
    processor = processor or ClassQueryVideoProcessor(**recipe.processor)
    edge = processor.size["shortest_edge"]
    if rows is None:
        rows = load_action_dataset(dataset, data_dir, "train")
    if validation_rows is None:
        validation_rows = load_action_dataset(dataset, data_dir, "validation")
    transform = ClipTransform(data.resize_shortest_edge or edge, edge, data.flip_probability)
    validation, curve = make_clips(validation_rows, model.config, reader=_READER), Curve(scores)
    values = recipe.training | ON_ONE_THREAD | {"seed": seed} | dict(training or {})
    trainer = ActionDetectionTrainer(
        model,
        TrainingArguments(str(output_dir), **values),
        optimization=OptimizationArguments(**recipe.optimization | dict(optimization or {})),
        train_dataset=ClipsInMemory(
            make_clips(rows, model.config, transform=transform, reader=_READER), data.supervised_frames
        ),
        eval_dataset=ClipsInMemory(validation),
        data_collator=ClipCollator(processor),
        processing_class=processor,
        scorer=make_scorer(validation, model.config.id2label, protocol=data.video_map_protocol, shortest_edge=edge),
        callbacks=[curve, *callbacks],
    )
    trainer.train()
    return trainer, curve.points
