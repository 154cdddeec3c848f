"""Exponential moving average of the weights: kept beside those that are trained, evaluated and saved instead."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from accelerate.utils import DistributedType, save_fsdp_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback


# Folder in a checkpoint with the averaged model, complete with its processor.
EMA_FOLDER = "ema"


class WeightAverage(TrainerCallback):
    """Average the weights after every update.

    Buffers of floating point, as the statistics of batch norm, are averaged with the weights; others are copied. Where
    FSDP2 divides the weights among processes, each averages its part.

    Args:
        model: The model to be trained, not wrapped, on its device.
        decay: Weight in [0, 1) of the average so far against the new weights: the average spans about 1 / (1 - decay)
            updates. It starts with the weights after the first update.

    Raises:
        ValueError: If the decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"--ema_decay must be at least 0 and less than 1, got {decay}")
        self.decay = decay
        self.start(model)

    def start(self, model: nn.Module) -> None:
        """Start anew with the weights of a model, divided as they are."""
        self.num_averaged = 0
        self.weights = {name: tensor.clone() for name, tensor in _own_tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of a model into the average."""
        trained = _own_tensors(model)
        is_averaged = {name: self.num_averaged > 0 and tensor.is_floating_point() for name, tensor in trained.items()}
        for dtype in {tensor.dtype for tensor in trained.values()}:
            names = [name for name, tensor in trained.items() if tensor.dtype == dtype and is_averaged[name]]
            if names:
                of_dtype = [self.weights[name] for name in names], [trained[name] for name in names]
                torch._foreach_lerp_(*of_dtype, 1 - self.decay)
        for name, tensor in trained.items():
            if not is_averaged[name]:
                self.weights[name].copy_(tensor)
        self.num_averaged += 1

    def on_train_begin(self, args, state, control, model, **kwargs):
        """Start anew, or go on with what was loaded from a checkpoint."""
        if state.global_step == 0:
            self.start(model)
        self.num_averaged = state.global_step

    def on_step_end(self, args, state, control, model, **kwargs):
        """Take the new weights into the average."""
        self.update(model)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Exchange the weights of a model and the average, bit for bit."""
        for name, trained in _own_tensors(model).items():
            kept = trained.clone()
            trained.copy_(self.weights[name])
            self.weights[name].copy_(kept)

    @contextmanager
    def put_into(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averaged weights, and its own back in the end."""
        self.exchange(model)
        try:
            yield
        finally:
            self.exchange(model)


def _own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; of those divided among processes, the part of this one."""
    for module in model.modules():
        # After a forward pass alone, some are still whole.
        if isinstance(module, FSDPModule):
            module.reshard()
    with torch.no_grad():
        return {
            name: tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
            for name, tensor in chain(model.named_parameters(), model.named_buffers())
        }


class AveragingTrainer(Trainer):
    """Trainer that may average the weights.

    If it does, the averaged model is what it evaluates while it trains, and what `model` is after training. A
    checkpoint holds it in the folder `ema`, beside the weights that training goes on from.
    """

    average: WeightAverage | None = None

    def average_weights(self, decay: float) -> None:
        """Average from now on; the modules of the model may not change any more.

        Raises:
            ValueError: As of `WeightAverage`, or if the model is divided by other means than FSDP2.
        """
        kind = self.accelerator.distributed_type
        divided = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
        if kind in divided and not self.accelerator.is_fsdp2:
            raise ValueError(
                f"--ema_decay averages what each process has of the weights, which is not known with {kind.value}: "
                "use FSDP2, or leave one of the two out"
            )
        self.average = WeightAverage(self.model, decay)
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
            folder = os.path.join(output_dir, EMA_FOLDER)
            with self.average.put_into(self.model):
                super().save_model(folder, _internal_call)
                if self.is_fsdp_enabled:
                    # In parts, as Trainer saves the weights beside the state of the optimizer.
                    save_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.start(self.model)
            with self.average.put_into(self.model):
                super()._load_from_checkpoint(os.path.join(resume_from_checkpoint, EMA_FOLDER), model)

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
