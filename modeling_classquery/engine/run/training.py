"""Training and evaluation as a run does them, with what they leave in the output folder."""

import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import DataArguments, RecipeError
from classquery.data.annotations.registry import (
    crop_baseline,
    load_action_dataset,
    make_clips,
    prepare_dataset,
    scored_label_ids,
)
from classquery.data.annotations.schema import shorten
from classquery.data.clips import ClipCollator, KeyframeClips, TubeClips
from classquery.data.metrics.records import Record
from classquery.data.novel_classes import find_novel_classes, hide_novel_classes
from classquery.data.shards.stream import ShardStream
from classquery.data.streaming import ClipStream
from classquery.data.transforms import ClipTransform, mirrored_labels
from classquery.data.video.reader import ClipReader
from classquery.engine.run.doubts import list_doubts, refuse_empty
from classquery.engine.run.models import freeze
from classquery.engine.run.options import Options
from classquery.engine.sharing import write_card_of_run
from classquery.engine.training.charts import draw_training_curve
from classquery.engine.training.evaluation import make_scorer, report_errors, save_records
from classquery.engine.training.thresholds import RULE, fit_thresholds
from classquery.engine.training.trainer import ActionDetectionTrainer


logger = logging.getLogger(__name__)

# Of annotations that are streamed: the more there are, the better they are shuffled.
SHARDS_PER_WORKER = 8
# Of the short side of training clips before the crop, as in the published recipes (288 to 256 pixels).
DEFAULT_ENLARGEMENT = 9 / 8


def prepare_data(data_args: DataArguments, training_args: TrainingArguments) -> Path:
    """Folder of the data set; a demo set is written there first."""
    if data_args.data_dir is None and not data_args.dataset.startswith("demo"):
        raise RecipeError(f"--data_dir is needed: the folder with annotations and videos of {data_args.dataset}")
    data_dir = data_args.data_dir or Path(training_args.output_dir) / f"{data_args.dataset}_data"
    with training_args.main_process_first(desc="writing the demo data set"):
        return prepare_dataset(data_args.dataset, data_dir)


def load_split(
    split: str,
    data_dir: Path,
    model: ClassQueryForVideoActionDetection,
    options: Options,
    *,
    hidden: Sequence[str] = (),
    **clip_options: Any,
) -> KeyframeClips | TubeClips | ClipStream | ShardStream:
    """Clips of a split as the model takes them, as if nobody had looked for the `hidden` classes.

    `clip_options` are those of `make_clips`.
    """
    data, training_args = options.data, options.training
    rows = load_action_dataset(
        data.dataset,
        data_dir,
        split,
        fold=data.fold,
        movie_start_seconds=data.movie_start_seconds,
        frames_fps=data.frames_fps,
        box_format=data.box_format,
        timestamp_offset=data.timestamp_offset,
        validation_fraction=data.validation_fraction,
        split_seed=data.split_seed,
        streaming=data.streaming,
        num_shards=training_args.world_size * max(1, training_args.dataloader_num_workers) * SHARDS_PER_WORKER,
    )
    if rows.info.description:
        logger.info(f"{split}: {rows.info.description}")
    if hidden:
        label2id = model.config.label2id
        rows = hide_novel_classes(rows, [label2id[label] for label in hidden], len(label2id))
    return make_clips(
        rows,
        model.config,
        tiling=data.tiling,
        keyframes_per_second=data.keyframes_per_second,
        seed=training_args.seed,
        reader=ClipReader(backend=data.video_backend),
        **clip_options,
    )


def train_and_evaluate(
    model: ClassQueryForVideoActionDetection, processor: ClassQueryVideoProcessor, data_dir: Path, options: Options
) -> None:
    """Train on the training split and score the validation split, as asked for."""
    data, training_args = options.data, options.training
    novel = find_novel_classes(data.novel_classes, list(model.config.id2label.values())) if data.novel_classes else []
    if training_args.do_train:
        model.config.untrained_classes = novel or None
    trainer = _make_trainer(model, processor, data_dir, options, novel)
    if training_args.do_train:
        train(trainer)
    if training_args.do_eval:
        actor_crop = crop_baseline(data.dataset, data_dir, "validation")
        evaluate(trainer, actor_crop, write_report=options.model.report, fit=options.model.fit_thresholds)
    trainer.save_state()
    if training_args.do_train and trainer.is_world_process_zero():
        origin = options.model.model_name_or_path or options.model.backbone_checkpoint
        protocol = data.video_map_protocol if trainer.eval_dataset.has_tubes else None
        rule = RULE if options.model.fit_thresholds else None
        write_card_of_run(trainer, options.model.recipe, data.dataset, protocol, origin, thresholds=rule)


def _make_trainer(
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    data_dir: Path,
    options: Options,
    novel: Sequence[str],
) -> ActionDetectionTrainer:
    """The trainer of a run, with its clips; training does not see the `novel` classes."""
    data, id2label, size = options.data, model.config.id2label, processor.size["shortest_edge"]
    validation = load_split("validation", data_dir, model, options)
    training = None
    if options.training.do_train:
        training = load_split(
            "train",
            data_dir,
            model,
            options,
            hidden=novel,
            transform=_augmentation(data, size, id2label),
            on_error=data.on_error,
            shuffle=True,
            supervised_frames=data.supervised_frames,
        )
    refuse_empty({"train": training, "validation": validation})
    for doubt in list_doubts(training, validation, model.config, novel):
        logger.warning(doubt)
    return ActionDetectionTrainer(
        model,
        options.training,
        optimization=options.optimization,
        train_dataset=training,
        eval_dataset=validation,
        data_collator=ClipCollator(processor),
        processing_class=processor,
        scorer=make_scorer(
            validation,
            id2label,
            protocol=data.video_map_protocol,
            shortest_edge=size,
            label_ids=scored_label_ids(data.dataset, id2label),
            novel=novel,
        ),
        callbacks=freeze(model, options.model),
    )


def _augmentation(data: DataArguments, size: int, id2label: Mapping[int, str]) -> ClipTransform:
    """What is done to training clips, whose crops have sides of `size` pixels."""
    return ClipTransform(
        data.resize_shortest_edge or round(size * DEFAULT_ENLARGEMENT),
        size,
        flip_probability=data.flip_probability,
        max_resize_shortest_edge=data.max_resize_shortest_edge,
        hue_jitter=data.hue_jitter,
        saturation_jitter=data.saturation_jitter,
        value_jitter=data.value_jitter,
        color_noise=data.color_noise,
        mirrored_labels=mirrored_labels(data.flip_pairs or (), id2label),
    )


def train(trainer: ActionDetectionTrainer) -> None:
    """Train, save the model and draw the curve."""
    checkpoint = trainer.args.resume_from_checkpoint
    # The last complete one, or a folder.
    resume = True if checkpoint is not None and checkpoint.lower() == "true" else checkpoint
    metrics = trainer.train(resume_from_checkpoint=resume).metrics
    trainer.save_model()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    if trainer.is_world_process_zero() and importlib.util.find_spec("matplotlib"):
        draw_training_curve(trainer.state.log_history, Path(trainer.args.output_dir) / "training_curve.png")


def evaluate(
    trainer: ActionDetectionTrainer, actor_crop: float | None, *, write_report: bool = False, fit: bool = False
) -> None:
    """Score the validation split, save metrics and predictions; beside them what crops of the actors would allow."""
    records, _, metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    if actor_crop is not None:
        metrics["eval_actor_crop_frame_map_50"] = actor_crop
    if fit:
        metrics |= fit_and_save_thresholds(trainer, records)
    if trainer.is_world_process_zero():
        save_records(records, Path(trainer.args.output_dir) / "eval_predictions.parquet")
    trainer.log(metrics)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero() and write_report:
        page = report_errors(records, metrics, Path(trainer.args.output_dir) / "report", trainer.scorer)
        logger.info(f"what costs frame mAP: see {page}")


def fit_and_save_thresholds(trainer: ActionDetectionTrainer, records: Sequence[Record]) -> dict[str, float]:
    """Give every class its own threshold, save the model with them, and return what they are and give, as metrics."""
    processor, config = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model).config
    fitted = fit_thresholds(
        records, config.id2label, actor_threshold=processor.actor_threshold, label_ids=trainer.scorer.label_ids
    )
    processor.class_thresholds = {label: found.threshold for label, found in fitted.items()}
    never = [label for label, found in fitted.items() if found.threshold >= 1]
    if never:
        logger.warning(f"nothing right was found on the validation split, so never reported: {shorten(never)}")
    trainer.save_model()
    return {
        f"eval_{name}/{label}": value
        for label, found in fitted.items()
        for name, value in vars(found).items()
        if not math.isnan(value)
    }
