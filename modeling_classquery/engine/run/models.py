"""The model and the processor of a run, and what of them is trained."""

import logging
from collections.abc import Mapping

from transformers import TrainerCallback

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import DataArguments, Recipe
from classquery.conversion_classquery import load_backbone, load_transformer
from classquery.data.class_descriptions import read_class_descriptions
from classquery.detection_classquery import label_id_of
from classquery.engine.checkpoint import load_detector
from classquery.engine.detection.arguments import PredictionArguments
from classquery.engine.run.arguments import ModelArguments
from classquery.engine.training.fine_tuning import TrainLowRankUpdates, TrainNewClassesOnly, change_classes
from classquery.engine.weights import accept_licence
from classquery.text_classquery import TextEncoder, TextError


logger = logging.getLogger(__name__)


def load_model(
    model_args: ModelArguments, recipe: Recipe, id2label: dict[int, str] | None = None
) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    """Load the trained model and its processor, or make those of the recipe.

    Raises:
        CheckpointError: If the trained model cannot be loaded or knows other classes than the data.
        TextError: If classes in words are asked for, and cannot be.
        ValueError: If the weights of the backbone or of stage one do not fit.
    """
    if model_args.accept_license:
        accept_licence()
    described = read_class_descriptions(model_args.class_descriptions) if model_args.class_descriptions else None
    if model_args.model_name_or_path is None:
        model, processor = _new_model(model_args, recipe, id2label, described)
        for path, load in (
            (model_args.backbone_checkpoint, load_backbone),
            (model_args.transformer_checkpoint, load_transformer),
        ):
            if path is not None:
                logger.info(f"{path}: took {len(load(model, path).loaded)} tensors")
        return model, processor
    model, processor = load_detector(model_args.model_name_or_path, allow_pickle=model_args.allow_pickle)
    if id2label is not None and model.config.id2label != id2label:
        old, labels = model.config.id2label.values(), list(id2label.values())
        if processor.class_thresholds and model_args.classes == "same":
            names = dict(zip(old, labels, strict=False))
            processor.class_thresholds = {names.get(name, name): t for name, t in processor.class_thresholds.items()}
        model = change_classes(model, labels, model_args.classes, described, model_args.text_encoder)
    elif id2label is None and (described or model_args.classes_text):
        classes, asked = described or {}, model_args.classes_text or []
        if twice := sorted({label for label in asked if asked.count(label) > 1}):
            raise TextError(f"--classes_text has {twice[0][:200]!r} twice: the same words are the same class")
        classes |= {label: _words_of(label, model.config) for label in asked if label not in classes}
        model.set_classes(classes, model_args.text_encoder)
    model.config.class_chunk = model_args.class_chunk or model.config.class_chunk
    return model, processor


def _words_of(label: str, config: ClassQueryConfig) -> str | None:
    """A sentence, or None for the name of a class that is known."""
    return None if label in (config.class_descriptions or {}) else label


def _new_model(
    model_args: ModelArguments,
    recipe: Recipe,
    id2label: Mapping[int, str] | None,
    described: Mapping[str, list[str]] | None,
) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    values = recipe.model | ({"id2label": id2label} if id2label else {}) | {"class_chunk": model_args.class_chunk}
    processor = ClassQueryVideoProcessor(**recipe.processor)
    if described is None and values.get("class_queries") != "text":
        return ClassQueryForVideoActionDetection(ClassQueryConfig(**values)), processor
    if described is None or model_args.text_encoder is None:
        raise TextError("a new model with classes in words needs both --class_descriptions and --text_encoder")
    encoder = TextEncoder.load(model_args.text_encoder)
    values |= {"class_queries": "text", "text_embedding_size": encoder.width}
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**values))
    labels = model.config.id2label.values() if id2label else described
    return model.set_classes({label: described.get(label) for label in labels}, encoder), processor


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
