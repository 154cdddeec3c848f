"""Checkpoints and models that are written whole or not at all, on a disk that may be full."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from classquery.engine.training.resume import is_complete, last_complete_checkpoint


# What is in the errors of PyTorch's writer of files, which have no type of their own.
_TORCH_WRITER = ("PytorchStreamWriter", "enforce fail at inline_container")
_GB = 1e9


class CheckpointWriteError(OSError):
    """Raised when a checkpoint or a model cannot be written; says where, what it needs, and what there still is."""


class SavingTrainer(Trainer):
    """Trainer that leaves nothing half-written behind, and nothing worse than it was.

    A checkpoint that cannot be written is removed; earlier ones stay, as Trainer deletes those that are too many only
    behind a new one. A model takes the place of an earlier one when all of it is written.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does.

        Raises:
            CheckpointWriteError: If the model cannot be written.
        """
        if _internal_call and output_dir is not None:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or self.args.output_dir)
        partial = folder / ".model-partial"
        with self._removing_what_is_half_written(partial):
            super().save_model(str(partial), _internal_call)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _move_into(partial, folder)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._removing_what_is_half_written(folder):
            super()._save_checkpoint(model, trial)

    @contextmanager
    def _removing_what_is_half_written(self, folder: Path) -> Iterator[None]:
        """Explain why a folder cannot be written, and remove what there is of it."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            from_torch = any(words in str(error) for words in _TORCH_WRITER)
            is_of_writing = isinstance(error, OSError | SafetensorError) or from_torch
            if not is_of_writing or is_complete(folder / TRAINER_STATE_NAME):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointWriteError(self._what_is_missing(folder, error)) from error

    def _what_is_missing(self, folder: Path, error: Exception) -> str:
        need = bytes_of(self.model, self.optimizer, getattr(self, "average", None))
        free = shutil.disk_usage(folder.parent).free
        kept = last_complete_checkpoint(self.args.output_dir)
        return (
            f"{folder} cannot be written ({str(error)[:200]}): it needs about {need / _GB:.3f} GB, of which there are "
            f"{free / _GB:.3f} free; make room, or give --save_total_limit or another --output_dir. "
            + (
                f"{kept} is complete: --resume_from_checkpoint true goes on from it"
                if kept
                else "There is no complete checkpoint"
            )
        )


def bytes_of(model: nn.Module, optimizer: torch.optim.Optimizer | None, average: object | None) -> int:
    """Estimate what a checkpoint takes: weights, their average, and the state of the optimizer."""
    weights = [*model.parameters(), *model.buffers()] * (1 if average is None else 2)
    states = [] if optimizer is None else [x for state in optimizer.state.values() for x in state.values()]
    return sum(x.numel() * x.element_size() for x in (*weights, *states) if isinstance(x, torch.Tensor))


def _move_into(source: Path, target: Path) -> None:
    """Let what is in one folder take the place of what has the same names in another."""
    for entry in source.iterdir():
        if entry.is_dir():
            shutil.rmtree(target / entry.name, ignore_errors=True)
        os.replace(entry, target / entry.name)
    source.rmdir()
