"""What options cannot mean, by themselves or together; found before any work."""

import math
import os

from transformers import TrainingArguments

from classquery.configuration.arguments import require_argument
from classquery.data.annotations.schema import VIDEO_SUFFIXES
from classquery.engine.run.options import Options


_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
}


def check_values(training_args: TrainingArguments) -> None:
    """Refuse numbers that `TrainingArguments` takes and a run would stumble over, some of them at its end.

    Raises:
        ValueError: If there is one; names the option, what is expected and the value.
    """
    for name, least in _AT_LEAST.items():
        require_argument(training_args, name, least <= getattr(training_args, name) < math.inf, f"at least {least}")
    epochs, steps = training_args.num_train_epochs, training_args.max_steps
    require_argument(training_args, "num_train_epochs", 0 < epochs < math.inf, "more than 0")
    require_argument(training_args, "max_steps", steps == -1 or steps >= 1, "at least 1, or -1 for whole epochs")


def contradiction_in(options: Options) -> str | None:
    """Options that cannot be meant together, if there are any."""
    model_args, training_args = options.model, options.training
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        return "nothing to do: give one or more of --do_train, --do_eval and --do_predict"
    if model_args.report and not training_args.do_eval:
        return "--report is about the errors of --do_eval: give that, too"
    if model_args.fit_thresholds and not training_args.do_eval:
        return "--fit_thresholds looks at what --do_eval finds: give that, too"
    if training_args.do_eval and not (training_args.do_train or model_args.model_name_or_path):
        return "--do_eval scores a trained model: give --model_name_or_path, `demo` for the one in the package"
    if training_args.resume_from_checkpoint and not training_args.do_train:
        return (
            "--resume_from_checkpoint goes on with --do_train: give --model_name_or_path for what a checkpoint holds"
        )
    if training_args.push_to_hub and not training_args.do_train:
        return "--push_to_hub shares what --do_train made; a folder: classquery share --help"
    if model_args.classes_text and (training_args.do_train or training_args.do_eval):
        return "--classes_text is for detection: classes of data are described by --class_descriptions"
    is_new = not model_args.model_name_or_path
    new_only = model_args.backbone_checkpoint or model_args.transformer_checkpoint
    trained_only = model_args.classes != "same" or model_args.freeze == "old_classes" or model_args.lora_rank
    if model_args.model_name_or_path and new_only:
        return "--backbone_checkpoint and --transformer_checkpoint start a new model: leave --model_name_or_path out"
    if is_new and trained_only:
        return "--classes, --freeze old_classes and --lora_rank change a trained model: give --model_name_or_path"
    if model_args.lora_rank and model_args.freeze != "nothing":
        return "--lora_rank freezes what it needs to: leave --freeze out"
    if options.data.supervised_frames and is_new and options.recipe.model.get("output_frames") != "all":
        return f"--supervised_frames is for recipes that detect in all frames, which {options.recipe.name} does not"
    return _swallowed_video_in(options)


def _swallowed_video_in(options: Options) -> str | None:
    """A video that was taken for a class, because it stands behind an option that takes several."""
    for name, values in (
        ("show_classes", options.prediction.show_classes),
        ("classes_text", options.model.classes_text or []),
    ):
        for value in values:
            is_path = os.path.isfile(value) or (os.sep in value and os.path.exists(value))
            if is_path or value.lower().endswith(VIDEO_SUFFIXES):
                return f"--{name} takes all that follows for classes, also {value[:200]}: give videos before it"
    return None
