"""The model and the processor of a run, and what of them is trained."""

import logging

from transformers import TrainerCallback

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import DataArguments, Recipe
from classquery.convert_classquery_checkpoint import load_backbone, load_transformer
from classquery.detection_classquery import label_id_of
from classquery.engine.checkpoint import load_detector
from classquery.engine.detection.arguments import PredictionArguments
from classquery.engine.run.arguments import ModelArguments
from classquery.engine.training.fine_tuning import TrainLowRankUpdates, TrainNewClassesOnly, change_classes
from classquery.engine.weights import accept_licence


logger = logging.getLogger(__name__)


def load_model(
    model_args: ModelArguments, recipe: Recipe, id2label: dict[int, str] | None = None
) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    """Load the trained model and its processor, or make those of the recipe.

    Raises:
        CheckpointError: If the trained model cannot be loaded or knows other classes than the data.
        ValueError: If the weights of the backbone or of stage one do not fit.
    """
    if model_args.accept_license:
        accept_licence()
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


def check_labels(prediction: PredictionArguments, model: ClassQueryForVideoActionDetection) -> None:
    """Find out before any training that the model does not know an action that is asked for."""
    for label in prediction.labels:
        label_id_of(label, model.config)


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
