"""Evaluate a tiny detector, in processes of their own that can be killed."""

import os
import signal
from pathlib import Path

from accelerate import PartialState
from tiny_training import tiny_trainer
from transformers import TrainerCallback

from classquery.engine.training.evaluation import save_records
from classquery.engine.training.trainer import ActionDetectionTrainer


class Die(TrainerCallback):
    """Kill this process behind a number of batches."""

    def __init__(self, num_batches: int, kind: signal.Signals):
        self.num_left, self.kind = num_batches, kind

    def on_prediction_step(self, *arguments, **kwargs):
        """Count down."""
        self.num_left -= 1
        if not self.num_left:
            os.kill(os.getpid(), self.kind)


def evaluate(trainer: ActionDetectionTrainer) -> None:
    """Evaluate the training clips, of which there are more, and write what the run script does."""
    records, _, metrics = trainer.predict(trainer.train_dataset, metric_key_prefix="eval")
    if trainer.is_world_process_zero():
        save_records(records, Path(trainer.args.output_dir) / "eval_predictions.parquet")
    trainer.save_metrics("eval", metrics)


def evaluate_and_save(*, die: dict | None = None, **arguments) -> None:
    """Evaluate what `tiny_trainer` makes, unless this process is killed behind a number of batches."""
    trainer = tiny_trainer(**arguments)
    if die:
        trainer.add_callback(Die(**die))
    evaluate(trainer)
    PartialState().destroy_process_group()
