"""Exponential moving average of the weights: kept beside those that are trained, evaluated and saved instead."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback


# Folder in a checkpoint with the averaged model, complete with its processor.
EMA_FOLDER = "ema"


class WeightAverage(TrainerCallback):
    """Average the weights after every update.

    Buffers of floating point, as the statistics of batch norm, are averaged with the weights; others are copied.

    Args:
        model: The model to be trained, not wrapped, on its device.
        decay: Weight in [0, 1) of the average so far against the new weights: the average spans about 1 / (1 - decay)
            updates. It starts with the weights after the first update.
        distributed_type: How the run is distributed.

    Raises:
        ValueError: If the decay is out of range, or no process has all weights.
    """

    def __init__(self, model: nn.Module, decay: float, distributed_type: DistributedType = DistributedType.NO):
        if not 0 <= decay < 1:
            raise ValueError(f"--ema_decay must be at least 0 and less than 1, got {decay}")
        if distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise ValueError(
                f"--ema_decay averages all weights in every process, but {distributed_type.value} divides them among "
                "the processes: leave one of the two out"
            )
        average_floats = get_ema_multi_avg_fn(decay)

        def average(averaged: list[torch.Tensor], trained: list[torch.Tensor], num_averaged: torch.Tensor) -> None:
            if averaged[0].is_floating_point():
                average_floats(averaged, trained, num_averaged)
            else:
                for ours, theirs in zip(averaged, trained, strict=True):
                    ours.copy_(theirs)

        self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    @property
    def module(self) -> nn.Module:
        """The model with averaged weights."""
        return self.averaged.module

    def on_train_begin(self, args, state, control, model, **kwargs):
        """Start anew, or go on with what was loaded from a checkpoint."""
        if state.global_step == 0:
            self.module.load_state_dict(model.state_dict())
        self.averaged.n_averaged.fill_(state.global_step)

    def on_step_end(self, args, state, control, model, **kwargs):
        """Take the new weights into the average."""
        self.averaged.update_parameters(model)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Exchange the weights of a model and the average, bit for bit."""
        for ours, theirs in zip(_tensors(self.module), _tensors(model), strict=True):
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)

    @contextmanager
    def put_into(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averaged weights, and its own back in the end."""
        self.exchange(model)
        try:
            yield
        finally:
            self.exchange(model)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    return chain(model.parameters(), model.buffers())


class AveragingTrainer(Trainer):
    """Trainer that may average the weights.

    If it does, the averaged model is what it evaluates while it trains, and what `model` is after training. A
    checkpoint holds it in the folder `ema`, beside the weights that training goes on from.
    """

    average: WeightAverage | None = None

    def average_weights(self, decay: float) -> None:
        """Average from now on; the modules of the model may not change any more.

        Raises:
            ValueError: As of `WeightAverage`.
        """
        self.average = WeightAverage(self.model, decay, self.accelerator.distributed_type)
        self.add_callback(self.average)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as Trainer does."""
        is_apart = self.average is not None and self.is_in_train
        with self.average.put_into(self.model) if is_apart else nullcontext():
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does."""
        super().save_model(output_dir, _internal_call)
        is_checkpoint = _internal_call and output_dir is not None
        if self.average is not None and is_checkpoint:
            with self.average.put_into(self.model):
                super().save_model(os.path.join(output_dir, EMA_FOLDER), _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            super()._load_from_checkpoint(os.path.join(resume_from_checkpoint, EMA_FOLDER), self.average.module)

    def _load_best_model(self):
        if self.average is None:
            super()._load_best_model()
        else:
            super()._load_from_checkpoint(os.path.join(self.state.best_model_checkpoint, EMA_FOLDER))

    def _finalize_training(self, *args, **kwargs):
        # Before the callbacks are told of the end, who may change the modules of the model.
        if self.average is not None:
            self.average.exchange(self.model)
        return super()._finalize_training(*args, **kwargs)
