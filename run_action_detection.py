"""Train, evaluate and run a ClassQuery video action detector.

    accelerate launch run_action_detection.py --recipe demo --output_dir out --do_train --do_eval --do_predict
    python run_action_detection.py --do_predict --videos video.mp4 --model_name_or_path DIR --tubes --output_dir out

Values come from the recipe, and from the command line where given there. Every flag of transformers' TrainingArguments
works.
"""

import argparse
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


try:
    import classquery  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "classquery":
        raise
    sys.exit('classquery is not installed. In this folder, run: pip install -c constraints.txt -e ".[demo]"')

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, TrainerCallback, TrainingArguments, set_seed
from transformers.hf_argparser import string_to_bool

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import DataArguments, Recipe, RecipeError, load_recipe
from classquery.configuration.arguments import OptimizationArguments
from classquery.convert_classquery_checkpoint import load_backbone, load_transformer
from classquery.data.annotations.registry import (
    crop_baseline,
    load_action_dataset,
    load_action_labels,
    make_clips,
    prepare_dataset,
    scored_label_ids,
)
from classquery.data.annotations.schema import shorten
from classquery.data.clips import ClipCollator, KeyframeClips, TubeClips
from classquery.data.demo.movies import write_demo_movie
from classquery.data.streaming import ClipStream
from classquery.data.transforms import ClipTransform, mirrored_labels
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.detection_classquery import label_id_of
from classquery.engine.checkpoint import demo_notice, load_detector
from classquery.engine.detection.prediction import (
    PredictionArguments,
    collect_predictions,
    find_videos,
    not_done,
    predict_videos,
)
from classquery.engine.sharing import push_run, require_token, write_card_of_run
from classquery.engine.training.charts import draw_training_curve
from classquery.engine.training.evaluation import make_scorer, report_errors, save_records
from classquery.engine.training.fine_tuning import TrainLowRankUpdates, TrainNewClassesOnly, change_classes
from classquery.engine.training.trainer import ActionDetectionTrainer


logger = logging.getLogger(__name__)

# Of annotations that are streamed: the more there are, the better they are shuffled.
SHARDS_PER_WORKER = 8

# What a user can put right; shown as one message. Errors in recipes, annotations and checkpoints are ValueErrors.
USER_ERRORS = (OSError, StrictDataclassError, ValueError, VideoReadError)


@dataclass
class ModelArguments:
    """Which model, and what to run it on."""

    recipe: str = field(default="demo", metadata={"help": "Name of a recipe, or a JSON file."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of a trained model, or `demo` for the one in the package."},
    )
    allow_pickle: bool = field(
        default=False, metadata={"help": "Read pytorch_model.bin where there is no safetensors, without its code."}
    )
    backbone_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Pre-trained backbone for a new model: .mat of CSN, .pth of a ViT, or file, folder or Hub name of "
            "VideoMAE or V-JEPA 2."
        },
    )
    transformer_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Detector of stage one, whose encoder and decoder a new model of stage two starts from."},
    )
    classes: Literal["same", "replace", "add"] = field(
        default="same",
        metadata={
            "help": "For data with other classes than the trained model: refuse; replace them, keeping those of the "
            "same name; or add those that are new, without a change to the others."
        },
    )
    freeze: Literal["nothing", "backbone", "old_classes"] = field(
        default="nothing",
        metadata={"help": "What is not trained. `old_classes`: all but the queries of the classes added."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train low-rank updates of the matrices of a trained model. Needs peft."}
    )
    report: bool = field(
        default=False, metadata={"help": "Write a page about the errors of --do_eval, `report` in the output folder."}
    )


def main() -> int:
    """Run what the command line asks for, and return the exit code: 1 if something of it could not be done."""
    model_args, data_args, optimization, prediction, training_args, recipe = parse_arguments()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if training_args.process_index == 0 else logging.WARNING)
    set_seed(training_args.seed)
    adapt_to_cpu(training_args)
    videos = find_videos(prediction.videos)
    # Not by Trainer, which would upload all of the output folder, with data and videos.
    to_share, training_args.push_to_hub = training_args.push_to_hub, False
    if to_share:
        require_token(training_args.hub_token)
    if training_args.do_train or training_args.do_eval:
        data_dir = prepare_data(data_args, training_args)
        id2label = load_action_labels(data_args.dataset, data_dir)
        model, processor = load_model(model_args, recipe, id2label)
        check_labels(prediction, model)
        set_thresholds(processor, data_args)
        used = {"model": model.config, "processor": processor, "data": data_args, "optimization": optimization}
        logger.info(f"recipe {recipe.name}\n{recipe.table(used | {'training': training_args})}")
        train_and_evaluate(model, processor, data_dir, model_args, data_args, optimization, training_args)
    else:
        model, processor = load_model(model_args, recipe)
        check_labels(prediction, model)
        set_thresholds(processor, data_args)
    failed = []
    if training_args.do_predict:
        failed = predict(model, processor, videos, data_args, prediction, training_args)
    if to_share and training_args.process_index == 0:
        logger.info(f"shared: {push_run(training_args)}")
    # Left to the interpreter's exit, the group of a multi-process run may abort.
    PartialState().destroy_process_group()
    if failed:
        logger.error(f"error: not all that was asked for could be done: {shorten(failed)}")
    return int(bool(failed))


def parse_arguments() -> tuple[
    ModelArguments, DataArguments, OptimizationArguments, PredictionArguments, TrainingArguments, Recipe
]:
    """Read the recipe, then the command line over it."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    finder.add_argument("--model_name_or_path")
    finder.add_argument("--do_train", nargs="?", const=True, default=False, type=string_to_bool)
    known, _ = finder.parse_known_args()
    recipe = load_recipe(known.recipe or ModelArguments.recipe)
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, OptimizationArguments, PredictionArguments, TrainingArguments),
        description=__doc__,
        allow_abbrev=False,
    )
    # Labels are lists of dicts, which no model signature names.
    parser.set_defaults(remove_unused_columns=False, **recipe.data, **recipe.optimization, **recipe.training)
    if not known.do_train:
        # Otherwise TrainingArguments takes evaluation during training for --do_eval.
        parser.set_defaults(eval_strategy="no")
    if known.recipe is None and known.model_name_or_path not in (None, "demo"):
        # How to detect with a trained model is saved with it.
        parser.set_defaults(keyframes_per_second=None, score_threshold=None, actor_threshold=None)
    model_args, data_args, optimization, prediction, training_args = parser.parse_args_into_dataclasses()
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        parser.error("nothing to do: give one or more of --do_train, --do_eval and --do_predict")
    if not training_args.do_train and not training_args.do_eval and not model_args.model_name_or_path:
        model_args.model_name_or_path = "demo"
    if model_args.report and not training_args.do_eval:
        parser.error("--report is about the errors of --do_eval: give that, too")
    if training_args.push_to_hub and not training_args.do_train:
        parser.error("--push_to_hub shares what --do_train made; a folder: python -m classquery.engine.sharing --help")
    contradiction = contradiction_in(model_args)
    if contradiction:
        parser.error(contradiction)
    return model_args, data_args, optimization, prediction, training_args, recipe


def contradiction_in(model_args: ModelArguments) -> str | None:
    """Options that cannot be meant together, if there are any."""
    new_only = model_args.backbone_checkpoint or model_args.transformer_checkpoint
    trained_only = model_args.classes != "same" or model_args.freeze == "old_classes" or model_args.lora_rank
    if model_args.model_name_or_path and new_only:
        return "--backbone_checkpoint and --transformer_checkpoint start a new model: leave --model_name_or_path out"
    if not model_args.model_name_or_path and trained_only:
        return "--classes, --freeze old_classes and --lora_rank change a trained model: give --model_name_or_path"
    if model_args.lora_rank and model_args.freeze != "nothing":
        return "--lora_rank freezes what it needs to: leave --freeze out"
    return None


def adapt_to_cpu(training_args: TrainingArguments) -> None:
    """Leave a core to each data worker: threads that have to wait for one make a step several times slower."""
    if training_args.device.type == "cpu":
        if training_args.bf16 or training_args.fp16:
            raise ValueError("--bf16 and --fp16 need a GPU: on CPU, gradients of 3-D convolutions overflow in them")
        training_args.dataloader_pin_memory = False
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, os.cpu_count() - training_args.dataloader_num_workers))


def check_labels(prediction: PredictionArguments, model: ClassQueryForVideoActionDetection) -> None:
    """Find out before any training that the model does not know an action that is asked for."""
    for label in prediction.labels:
        label_id_of(label, model.config)


def prepare_data(data_args: DataArguments, training_args: TrainingArguments) -> Path:
    """Folder of the data set; a demo set is written there first."""
    if data_args.data_dir is None and not data_args.dataset.startswith("demo"):
        raise RecipeError(f"--data_dir is needed: the folder with annotations and videos of {data_args.dataset}")
    data_dir = data_args.data_dir or Path(training_args.output_dir) / f"{data_args.dataset}_data"
    with training_args.main_process_first(desc="writing the demo data set"):
        return prepare_dataset(data_args.dataset, data_dir)


def load_model(
    model_args: ModelArguments, recipe: Recipe, id2label: dict[int, str] | None = None
) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    """Load the trained model and its processor, or make those of the recipe.

    Raises:
        CheckpointError: If the trained model cannot be loaded or knows other classes than the data.
        ValueError: If the weights of the backbone or of stage one do not fit.
    """
    if model_args.model_name_or_path is None:
        config = ClassQueryConfig(**recipe.model | ({"id2label": id2label} if id2label else {}))
        model, processor = ClassQueryForVideoActionDetection(config), ClassQueryVideoProcessor(**recipe.processor)
        for path, load in (
            (model_args.backbone_checkpoint, load_backbone),
            (model_args.transformer_checkpoint, load_transformer),
        ):
            if path is not None:
                logger.info(f"{path}: took {len(load(model, path).loaded)} tensors")
        return model, processor
    model, processor = load_detector(model_args.model_name_or_path, allow_pickle=model_args.allow_pickle)
    if id2label is not None and model.config.id2label != id2label:
        model = change_classes(model, list(id2label.values()), model_args.classes)
    return model, processor


def set_thresholds(processor: ClassQueryVideoProcessor, data_args: DataArguments) -> None:
    """Let the thresholds travel with the model; one that is given for all classes replaces those of some."""
    if data_args.score_threshold is not None:
        processor.class_thresholds = None
    for name in ("score_threshold", "actor_threshold"):
        if getattr(data_args, name) is not None:
            setattr(processor, name, getattr(data_args, name))


def freeze(model: ClassQueryForVideoActionDetection, model_args: ModelArguments) -> list[TrainerCallback]:
    """Freeze what is not to be trained, and return what has to watch over it."""
    if model_args.freeze == "backbone":
        model.model.backbone.requires_grad_(False)
    if model_args.freeze == "old_classes":
        if model.config.class_groups is None:
            raise ValueError("--freeze old_classes needs a trained model and --classes add with classes that are new")
        return [TrainNewClassesOnly(model, num_old=sum(model.config.class_groups[:-1]))]
    return [TrainLowRankUpdates(model, model_args.lora_rank)] if model_args.lora_rank else []


def load_split(
    split: str,
    data_dir: Path,
    model: ClassQueryForVideoActionDetection,
    data_args: DataArguments,
    training_args: TrainingArguments,
    **options: Any,
) -> KeyframeClips | TubeClips | ClipStream:
    """Clips of a split as the model takes them; `options` are those of `make_clips`."""
    config = model.config
    rows = load_action_dataset(
        data_args.dataset,
        data_dir,
        split,
        fold=data_args.fold,
        movie_start_seconds=data_args.movie_start_seconds,
        frames_fps=data_args.frames_fps,
        box_format=data_args.box_format,
        timestamp_offset=data_args.timestamp_offset,
        validation_fraction=data_args.validation_fraction,
        streaming=data_args.streaming,
        num_shards=training_args.world_size * max(1, training_args.dataloader_num_workers) * SHARDS_PER_WORKER,
    )
    if rows.info.description:
        logger.info(f"{split}: {rows.info.description}")
    return make_clips(
        rows,
        num_labels=config.num_labels,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
        frames_per_second=config.frames_per_second,
        tiling=data_args.tiling,
        output_frames=config.output_frames,
        keyframes_per_second=data_args.keyframes_per_second,
        seed=training_args.seed,
        reader=ClipReader(backend=data_args.video_backend),
        **options,
    )


def train_and_evaluate(
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    data_dir: Path,
    model_args: ModelArguments,
    data_args: DataArguments,
    optimization: OptimizationArguments,
    training_args: TrainingArguments,
) -> None:
    """Train on the training split and score the validation split, as asked for."""
    size = processor.size["shortest_edge"]
    transform = ClipTransform(
        data_args.resize_shortest_edge,
        size,
        flip_probability=data_args.flip_probability,
        max_resize_shortest_edge=data_args.max_resize_shortest_edge,
        hue_jitter=data_args.hue_jitter,
        saturation_jitter=data_args.saturation_jitter,
        value_jitter=data_args.value_jitter,
        color_noise=data_args.color_noise,
        mirrored_labels=mirrored_labels(data_args.flip_pairs or (), model.config.id2label),
    )
    data = (data_dir, model, data_args, training_args)
    validation = load_split("validation", *data)
    training = {"transform": transform, "on_error": data_args.on_error, "shuffle": True}
    trainer = ActionDetectionTrainer(
        model,
        training_args,
        optimization=optimization,
        train_dataset=load_split("train", *data, **training) if training_args.do_train else None,
        eval_dataset=validation,
        data_collator=ClipCollator(processor),
        processing_class=processor,
        scorer=make_scorer(
            validation,
            model.config.id2label,
            protocol=data_args.video_map_protocol,
            shortest_edge=size,
            label_ids=scored_label_ids(data_args.dataset, model.config.id2label),
        ),
        callbacks=freeze(model, model_args),
    )
    if training_args.do_train:
        train(trainer)
    if training_args.do_eval:
        actor_crop = crop_baseline(data_args.dataset, data_dir, "validation")
        evaluate(trainer, actor_crop, write_report=model_args.report)
    trainer.save_state()
    if training_args.do_train and trainer.is_world_process_zero():
        origin = model_args.model_name_or_path or model_args.backbone_checkpoint
        protocol = data_args.video_map_protocol if isinstance(validation, TubeClips) else None
        write_card_of_run(trainer, model_args.recipe, data_args.dataset, protocol, origin)


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


def evaluate(trainer: ActionDetectionTrainer, actor_crop: float | None, *, write_report: bool = False) -> None:
    """Score the validation split, save metrics and predictions; beside them what crops of the actors would allow."""
    records, _, metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    if actor_crop is not None:
        metrics["eval_actor_crop_frame_map_50"] = actor_crop
    if trainer.is_world_process_zero():
        save_records(records, Path(trainer.args.output_dir) / "eval_predictions.parquet")
    trainer.log(metrics)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero() and write_report:
        page = report_errors(records, metrics, Path(trainer.args.output_dir) / "report", trainer.scorer)
        logger.info(f"what costs frame mAP: see {page}")


def predict(
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    videos: list[str],
    data_args: DataArguments,
    prediction: PredictionArguments,
    training_args: TrainingArguments,
) -> list[str]:
    """Detect actions in the videos, each in one of the processes, say what was found, and name what was not done."""
    is_main = training_args.process_index == 0
    notice = demo_notice(model)
    if videos and is_main and notice:
        logger.warning(notice)
    output_dir = Path(training_args.output_dir)
    with training_args.main_process_first(desc="writing a demo movie"):
        videos = videos or [str(write_demo_movie(output_dir, "validation", 0))]
    predict_videos(
        videos,
        output_dir / "predictions",
        model.to(training_args.device),
        processor,
        prediction,
        keyframes_per_second=data_args.keyframes_per_second,
        batch_size=training_args.per_device_eval_batch_size,
        process_index=training_args.process_index,
        num_processes=training_args.world_size,
        show_progress=is_main and not training_args.disable_tqdm,
    )
    PartialState().wait_for_everyone()
    if is_main:
        logger.info(f"{collect_predictions(videos, output_dir / 'predictions')}\nsee {output_dir / 'predictions'}")
    return not_done(videos, output_dir / "predictions")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
