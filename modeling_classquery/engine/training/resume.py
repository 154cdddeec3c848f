"""What Trainer lacks for a run that is killed and resumed to equal one that is not."""

import json
import logging
import os
import shutil
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput


logger = logging.getLogger(__name__)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Find the checkpoint to resume from, passing over those that a killed run had only begun to write.

    Args:
        output_dir: Folder of a run of `ResumableTrainer`, which writes the state of the run last.

    Returns:
        The folder of the complete checkpoint with most updates; None if there is none.
    """
    complete = {}
    for state in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}"):
        num_updates = state.parent.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if num_updates.isdigit() and is_complete(state):
            complete[int(num_updates)] = str(state.parent)
    return complete[max(complete)] if complete else None


def is_complete(state: Path) -> bool:
    """Whether the state of a run, which is written last, is there and whole."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


class LogBeforeSaving(TrainerCallback):
    """Log whenever a checkpoint is due: the sums of losses since the last log are not in it."""

    def on_step_end(self, args, state, control, **kwargs):
        """Log if the run is to be saved after this update."""
        # Whether a checkpoint is the best is found out after the log.
        may_save = control.should_save or (args.save_strategy == SaveStrategy.BEST and control.should_evaluate)
        control.should_log |= may_save

    # An epoch may be the occasion to save, too.
    on_epoch_end = on_step_end


class TellEpoch(TrainerCallback):
    """Tell both the sampler and the data set which epoch begins.

    Accelerate's data loader tells the sampler alone where it divides batches among processes or skips those of an
    interrupted epoch, or even neither where it does both: every epoch would repeat the augmentation of the first.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        """Tell the epoch."""
        epoch = int(state.epoch or 0)
        train_dataloader.set_epoch(epoch)
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(epoch)


class ResumableTrainer(Trainer):
    """Trainer whose runs can be killed at any time and resumed: on CPU, to the same result bit for bit."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(TellEpoch)
        self.add_callback(LogBeforeSaving)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Train as Trainer does, but True resumes the last checkpoint that is complete.

        Raises:
            ValueError: If there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"no checkpoint in {self.args.output_dir} is complete: there is nothing to resume")
            logger.info("resumed from %s", resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Take the batches of an update; none where a run is resumed at its end, which Trainer would overstep."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        # Without a generator, seeds of workers come from the random state that dropout draws from, and how often
        # depends on evaluations and on whether workers stay: not the same before and after an interruption.
        dataloader = super()._get_dataloader(*args, **kwargs)
        dataloader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return dataloader

    def _save_checkpoint(self, model, trial):
        # With the state of an earlier run in the folder, half a checkpoint would pass for a complete one.
        if self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        # The state of the run, which comes next, says that all processes have written their part.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
