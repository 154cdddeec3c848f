"""Train a tiny detector on a demo data set, in a process of its own that can be killed."""

import os
import signal
from pathlib import Path

import torch
from transformers import TrainingArguments
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration.arguments import OptimizationArguments
from classquery.data.annotations.ava import load_ava, load_ava_labels
from classquery.data.clips import ClipCollator, KeyframeClips
from classquery.data.transforms import ClipTransform
from classquery.engine.training.trainer import ActionDetectionTrainer


def tiny_trainer(
    data_dir: Path | str,
    output_dir: Path | str,
    *,
    augment: bool = False,
    drop_path_rate: float = 0.0,
    model: dict | None = None,
    optimization: dict | None = None,
    **arguments,
) -> ActionDetectionTrainer:
    """A trainer for batches of two of the demo's clips; `arguments` are those of TrainingArguments."""
    torch.manual_seed(0)
    config = tiny_config(num_labels=8, id2label=load_ava_labels(Path(data_dir)), **(model or {}))
    config.backbone_config.drop_path_rate = drop_path_rate
    sampling = {"num_labels": 8, "num_frames": config.num_frames, "frame_stride": 2}
    transform = ClipTransform(36, 32, 0.5) if augment else None
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 32})
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return ActionDetectionTrainer(
        ClassQueryForVideoActionDetection(config),
        TrainingArguments(output_dir=str(output_dir), **(defaults | arguments)),
        optimization=OptimizationArguments(**(optimization or {})),
        train_dataset=KeyframeClips(load_ava(Path(data_dir), "train"), transform=transform, **sampling),
        eval_dataset=KeyframeClips(load_ava(Path(data_dir), "validation"), **sampling),
        data_collator=ClipCollator(processor),
        processing_class=processor,
    )


def kill_while_saving(trainer: ActionDetectionTrainer, num_updates: int) -> None:
    """Let a trainer die when half of a checkpoint is written."""
    save = trainer._save_scaler

    def save_or_die(output_dir: str) -> None:
        save(output_dir)
        if trainer.state.global_step == num_updates:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer._save_scaler = save_or_die


def train_and_save(*, die_at: int | None = None, resume: bool | None = None, **arguments) -> None:
    """Train, and save the model and the log, unless this process is killed while it saves a checkpoint."""
    trainer = tiny_trainer(**arguments)
    if die_at:
        kill_while_saving(trainer, die_at)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
