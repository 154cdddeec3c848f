"""Training and evaluation on transformers' Trainer, with an evaluation that counts every clip exactly once."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.training_args import ParallelMode

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration.arguments import OptimizationArguments
from classquery.data.clips import ClipCollator
from classquery.data.whole_files import write_json
from classquery.engine.training.collation import LabelCollator
from classquery.engine.training.ema import AveragingTrainer
from classquery.engine.training.evaluation import (
    FrameScorer,
    Record,
    clip_records,
    once_per_clip,
    read_outputs,
)
from classquery.engine.training.matrices import MuonForMatrices
from classquery.engine.training.monitoring import LossMonitor
from classquery.engine.training.optimization import (
    accumulation_steps,
    check_parameter_groups,
    fitting_warmup,
    parameter_groups,
    rate_at_width,
    warmup_multistep_schedule,
)
from classquery.engine.training.resume import ResumableTrainer
from classquery.engine.training.saving import SavingTrainer
from classquery.engine.training.sharding import wrap_by_class
from classquery.engine.training.streaming import StreamingTrainer
from classquery.loss_classquery import LOSS_COUNTS, action_detection_loss, loss_counts, loss_divisors


class ActionDetectionTrainer(ResumableTrainer, AveragingTrainer, StreamingTrainer, SavingTrainer):
    """Trainer for detection labels, which are lists of dicts of different lengths.

    `processing_class` must be the video processor, with which batches are made unless a `data_collator` is given; the
    data sets are clips of `classquery.data.make_clips`. `scorer` turns the records of an evaluation into metrics, by
    default the frame mAP over all labels; `optimization` adds the parameter groups and the schedule of the published
    recipe. Logs every loss term beside the total. Evaluation gathers one record per clip over all processes; clips
    that a sampler repeated to fill a batch are dropped by their id.
    """

    model: ClassQueryForVideoActionDetection
    optimizer: torch.optim.Optimizer
    # `compute_loss` is the loss of one pass; Trainer takes the mean over the passes of an update.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: ClassQueryForVideoActionDetection,
        args: TrainingArguments,
        *,
        optimization: OptimizationArguments | None = None,
        scorer: Callable[[Sequence[Record]], dict[str, float]] | None = None,
        **kwargs,
    ):
        refuse_half_precision_on_cpu(args)
        # PyTorch warns of it where there is nothing to copy to.
        args.dataloader_pin_memory &= args.device.type != "cpu"
        self.optimization = optimization or OptimizationArguments()
        if self.optimization.total_batch_size is not None:
            # Before anything, as DeepSpeed's configuration, is filled in from it.
            args.gradient_accumulation_steps = accumulation_steps(
                self.optimization.total_batch_size, args.train_batch_size * args.world_size
            )
        # Two reads of the device in every pass, to hide what the monitor stops at.
        args.logging_nan_inf_filter = False
        # The frames of a clip are in no signature: the collator makes `pixel_values` of them.
        args.remove_unused_columns = False
        _refuse_annotations(kwargs)
        kwargs["data_collator"] = kwargs.get("data_collator") or _collator(kwargs.get("processing_class"))
        super().__init__(model, args, **kwargs)
        self.data_collator = LabelCollator(self.data_collator)
        self.scorer = scorer or FrameScorer(self.model.config.id2label)
        self.monitor = LossMonitor(self.optimization.loss_explosion_factor)
        self._loss_divisors: dict[str, torch.Tensor] | None = None
        self._rates: dict[str, float] = {}
        # There is no synchronised batch norm on CPU.
        is_distributed = self.args.parallel_mode == ParallelMode.DISTRIBUTED and self.args.device.type == "cuda"
        if self.optimization.sync_batch_norm and is_distributed:
            self.model = self.model_wrapped = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        wrap_by_class(self.accelerator, self.model)
        if self.optimization.ema_decay is not None:
            self.average_weights(self.optimization.ema_decay)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer of the training arguments with our parameter groups."""
        if self.optimizer is None:
            by_muon = self.optimization.matrix_optimizer == "muon"
            width = self.optimization.learning_rate_width
            learning_rate = rate_at_width(self.args.learning_rate, width, self.model.config.d_model)
            groups = parameter_groups(
                self.model if model is None else model,
                learning_rate=learning_rate,
                weight_decay=self.args.weight_decay,
                backbone_learning_rate_factor=self.optimization.backbone_learning_rate_factor,
                class_learning_rate_factor=self.optimization.class_learning_rate_factor,
                pyramid_scales_with_backbone=self.optimization.pyramid_scales_with_backbone,
                decay_norms_and_biases=self.optimization.decay_norms_and_biases,
                matrix_learning_rate=(self.optimization.matrix_learning_rate or learning_rate) if by_muon else None,
            )
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if by_muon:
                optimizer_class, arguments = MuonForMatrices, arguments | {"of_others": optimizer_class}
            self.optimizer_cls_and_kwargs = optimizer_class, arguments | {"params": groups}
        optimizer = super().create_optimizer(model)
        check_parameter_groups(self.model if model is None else model, optimizer.param_groups)
        return optimizer

    def set_initial_training_values(self, args, dataloader):
        """Note the number of updates in an epoch on the way, for the schedule."""
        values = super().set_initial_training_values(args, dataloader)
        self._updates_per_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Create the schedule of the recipe if it has one, otherwise that of the training arguments.

        Neither has a warm-up that is as long as the run.
        """
        epochs = self.optimization.warmup_epochs
        of_recipe = round(epochs * self._updates_per_epoch) if epochs else 0
        warmup_steps = fitting_warmup(of_recipe or self.args.get_warmup_steps(num_training_steps), num_training_steps)
        self.args.warmup_steps = warmup_steps
        if self.lr_scheduler is None and (self.optimization.warmup_epochs or self.optimization.decay_epochs):
            self.lr_scheduler = warmup_multistep_schedule(
                self.optimizer if optimizer is None else optimizer,
                updates_per_epoch=self._updates_per_epoch,
                warmup_epochs=warmup_steps / self._updates_per_epoch if of_recipe else 0.0,
                warmup_start_learning_rate=self.optimization.warmup_start_learning_rate,
                decay_epochs=self.optimization.decay_epochs,
                decay_factor=self.optimization.decay_factor,
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Note the rates of the update on the way, and count what its losses are divided by on all processes."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.monitor.begin_update(batches)
            # Groups of one part differ in their decay only.
            groups = enumerate(self.optimizer.param_groups)
            names = {group.get("name", str(index)).partition(" without")[0]: group["lr"] for index, group in groups}
            self._rates = {f"learning_rate/{name}": rate for name, rate in names.items()}
            self._loss_divisors = self._shared_loss_divisors(batches)
            note_trained_classes(self.accelerator.unwrap_model(self.model).config, batches)
        return batches, num_items

    def _shared_loss_divisors(self, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor] | None:
        """Divisors of all batches on all processes, a part for each: the losses that they give are averaged."""
        config = self.accelerator.unwrap_model(self.model).config
        if config.loss_counts != "global":
            return None
        counts = [torch.stack(list(loss_counts(batch["labels"], config).values())) for batch in batches]
        total = torch.stack(counts).sum(0)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total.to(self.args.device), "sum")
        divisors = loss_divisors(dict(zip(LOSS_COUNTS, total, strict=True)))
        return {name: divisor / (len(batches) * self.args.world_size) for name, divisor in divisors.items()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Run the model on a batch of `LabelCollator` and note its loss terms for the log."""
        with self.monitor.matching(inputs["labels"]):
            outputs = model(**inputs, loss_divisors=self._loss_divisors if model.training else None)
        if model.training:
            self.monitor.add(inputs["labels"], outputs.loss, outputs.loss_dict)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # In half precision, the scaler finds its scale by infinite gradients, whose updates it leaves out.
        if grad_norm is not None and self.accelerator.scaler is None:
            self.monitor.check_gradient(grad_norm)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with all learning rates, the means of the loss terms since the last log, and how many clips failed."""
        if "loss" in logs:
            means = self.monitor.pop_means(partial(self.accelerator.reduce, reduction="mean"))
            if "skipped_clips" in means:
                means["skipped_clips"] = round(means["skipped_clips"] * self.args.world_size)
            logs |= self._rates | means
        # Before anything of a run that diverges is saved.
        self.monitor.read()
        super().log(logs, start_time)

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> DataLoader:
        # `dataloader_drop_last` is meant for training; Trainer would also drop clips to be evaluated.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            settings = sampler_fn, is_training, dataloader_key
            dataloader = super()._get_dataloader(dataset, description, batch_size, *settings)
        finally:
            self.args.dataloader_drop_last = drop_last
        shard = dataloader.batch_sampler
        if not is_training and isinstance(shard, BatchSamplerShard) and not shard.split_batches:
            # So that the last processes repeat whole batches instead of filling up the last one: what a network makes
            # of a clip depends on the others in its batch, by rounding and by what they are padded to.
            shard.batch_size = None
        return dataloader

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Detect in every clip and score the detections.

        Clips are divided into the same batches on any number of processes, so the result is the same bit for bit where
        they compute alike. Another batch size gives other rounding errors.

        Returns:
            `predictions`: one record per clip in the order of the data set (see `clip_records`), the same on every
            process; `metrics`: those of the scorer, and the mean over clips of the loss of their batch, which depends
            on the batch size like the loss itself.

        Raises:
            RuntimeError: If a clip was not predicted, or one was that is not in the data set.
        """
        model = self._prepared_for_evaluation()
        self.callback_handler.eval_dataloader = dataloader
        config = self.accelerator.unwrap_model(self.model).config
        clips: Any = dataloader.dataset
        records: list[Record] = []
        losses: dict[str, float] = {}
        for batch in dataloader:
            labels = batch.pop("labels")
            inputs = self._prepare_inputs(batch)
            with torch.inference_mode(), self.compute_loss_context_manager():
                outputs, layers = read_outputs(model(**inputs))
                loss, _ = action_detection_loss(layers, labels, config)
            records += clip_records(self.processing_class, outputs, labels)
            losses |= {label["clip_id"]: loss.item() for label in labels}
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        records = once_per_clip(gather_object(records), clips.clip_ids)
        losses = dict(gather_object(list(losses.items())))
        metrics = {"loss": float(np.mean([losses[record["clip_id"]] for record in records]))}
        metrics |= self._scores(records)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        # Records where Trainer has arrays: they are of different lengths.
        predictions: Any = records
        return EvalLoopOutput(predictions=predictions, label_ids=None, metrics=metrics, num_samples=len(records))

    def _scores(self, records: Sequence[Record]) -> dict[str, float]:
        """Score on the main process, which all wait for: the others would need as much memory again."""
        scores = [self.scorer(records) if self.is_world_process_zero() else None]
        return broadcast_object_list(scores)[0]

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write `<split>_results.json` and add to `all_results.json` as Trainer does, but each whole or not at all."""
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        write_json(folder / f"{split}_results.json", metrics, indent=4, sort_keys=True)
        if combined:
            path = folder / "all_results.json"
            earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            write_json(path, earlier | metrics, indent=4, sort_keys=True)

    def _prepared_for_evaluation(self) -> torch.nn.Module:
        """Wrap and cast the model as Trainer does, outside of training for `*_full_eval` and autocast, too."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        if not self.is_in_train and (self.args.fp16_full_eval or self.args.bf16_full_eval):
            model = model.to(torch.float16 if self.args.fp16_full_eval else torch.bfloat16)
        return model.eval()


def refuse_half_precision_on_cpu(args: TrainingArguments) -> None:
    """Refuse what cannot train.

    Raises:
        ValueError: If training in half precision is asked for on a CPU.
    """
    if args.device.type == "cpu" and (args.bf16 or args.fp16):
        raise ValueError("--bf16 and --fp16 need a GPU: on CPU, gradients of 3-D convolutions overflow in them")


def note_trained_classes(config: ClassQueryConfig, batches: Sequence[dict[str, Any]]) -> None:
    """Take classes that somebody looked for in batches of `LabelCollator` from those that were never trained."""
    untrained = set(config.untrained_classes or ())
    for batch in batches if untrained else ():
        looked_for = batch["labels"].partial.get("annotated_labels")
        if looked_for is None:
            untrained.clear()
        else:
            untrained -= {config.id2label[label] for label in looked_for.any(0).nonzero().flatten().tolist()}
    config.untrained_classes = [label for label in config.untrained_classes or () if label in untrained] or None


def _refuse_annotations(arguments: dict[str, Any]) -> None:
    """Find out before the first batch that annotations were given where clips are meant."""
    for name in ("train_dataset", "eval_dataset"):
        given = arguments.get(name)
        if isinstance(given, datasets.Dataset | datasets.IterableDataset):
            raise ValueError(
                f"`{name}` holds annotations, not clips: give make_clips(rows, model.config) of classquery.data"
            )


def _collator(processing_class: Any) -> ClipCollator:
    if not isinstance(processing_class, ClassQueryVideoProcessor):
        raise ValueError(
            "`processing_class` must be the video processor of the model, as load_detector returns it, got "
            f"{type(processing_class).__name__}; it makes batches of clips"
        )
    return ClipCollator(processing_class)
