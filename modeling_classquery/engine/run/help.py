"""The help of a run: the common options by group at once, all of them where they are asked for."""

import argparse
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin

from classquery.configuration.arguments import DataArguments, OptimizationArguments
from classquery.configuration.listing import describe_recipes
from classquery.engine.detection.arguments import PredictionArguments
from classquery.engine.run.arguments import ModelArguments
from classquery.engine.run.tasks import SCRIPT, TASKS, Task


# Of transformers' TrainingArguments, whose own texts take seconds to import.
_OF_TRAINER = {
    "output_dir": ("DIR", "Where everything is written."),
    "do_train": (None, "Train on the training split."),
    "do_eval": (None, "Score the validation split."),
    "do_predict": (None, "Detect actions in --videos."),
    "learning_rate": ("RATE", "Of the published batch size, see --total_batch_size."),
    "num_train_epochs": ("N", "How often to go through the training split."),
    "max_steps": ("N", "Updates, instead of epochs."),
    "per_device_train_batch_size": ("N", "Clips of a forward pass on each device."),
    "per_device_eval_batch_size": ("N", "Clips of a forward pass on each device without training."),
    "dataloader_num_workers": ("N", "Processes that read clips beside each of training."),
    "bf16": (None, "Compute in bfloat16 on a GPU."),
    "report_to": ("NAME", "tensorboard, wandb, ... or none."),
    "resume_from_checkpoint": ("DIR", "Go on from this checkpoint; `true` for the last complete one."),
    "use_cpu": (None, "Leave GPUs alone."),
}
_MODEL = ("recipe", "model_name_or_path")
_DATA = ("dataset", "data_dir", "fold", "validation_fraction")
_NEW = ("backbone_checkpoint", "transformer_checkpoint", "classes", "freeze")
_WORDS = ("class_descriptions", "text_encoder")
_TRAINING = (
    "total_batch_size",
    "per_device_train_batch_size",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "ema_decay",
    "bf16",
    "dataloader_num_workers",
    "resume_from_checkpoint",
)
_RESULTS = ("score_threshold", "actor_threshold", "show_classes", "top_k", "keyframes_per_second")
_PICTURES = ("tubes", "save_video", "attention", "attention_person", "show")
_COMMON = {
    TASKS["train"].prog: {
        "model": (*_MODEL, *_NEW, *_WORDS),
        "data": _DATA,
        "training": _TRAINING,
        "results": ("output_dir", "report", "fit_thresholds", "report_to"),
    },
    TASKS["eval"].prog: {
        "model": _MODEL,
        "data": (*_DATA, "movie_start_seconds"),
        "computing": ("per_device_eval_batch_size", "dataloader_num_workers", "use_cpu"),
        "results": ("output_dir", "report", "fit_thresholds"),
    },
    TASKS["detect"].prog: {
        "model": ("model_name_or_path", "classes_text", "class_descriptions"),
        "what to report": _RESULTS,
        "what to draw": _PICTURES,
        "computing": ("per_device_eval_batch_size", "video_backend", "use_cpu"),
        "results": ("output_dir",),
    },
    SCRIPT.prog: {
        "what to do": ("do_train", "do_eval", "do_predict"),
        "model": (*_MODEL, *_NEW),
        "data": _DATA,
        "training": _TRAINING,
        "detection": ("videos", *_PICTURES[:3], "score_threshold"),
        "results": ("output_dir", "report"),
    },
}


def common_options(task: Task) -> list[str]:
    """The options that most runs of a command take, the likeliest to be meant by what does not exist."""
    return [f"--{name}" for names in _COMMON[task.prog].values() for name in names]


def wanted_help(arguments: Sequence[str]) -> Literal["common", "all"] | None:
    """Which help a command line asks for, if any."""
    for name in ("--help", "-h"):
        if name in arguments:
            return "all" if "all" in arguments[arguments.index(name) + 1 :][:1] else "common"
    return None


def format_help(task: Task, extent: Literal["common", "all"]) -> str:
    """The help text of a command.

    Args:
        task: The command.
        extent: "common" for the options that most runs take, "all" for every option.
    """
    if extent == "all":
        # Takes transformers, which the short help does without.
        return importlib.import_module("classquery.engine.run.parsing").make_parser(task).format_help()
    parser = argparse.ArgumentParser(
        prog=task.prog,
        usage=f"%(prog)s {'[VIDEO ...] ' if task.takes_videos else ''}[options]",
        description=task.description,
        epilog=_list_of_recipes() if "recipe" in _COMMON[task.prog]["model"] else None,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32),
        add_help=False,
    )
    fields = _fields()
    for title, names in _COMMON[task.prog].items():
        group = parser.add_argument_group(title)
        for name in names:
            group.add_argument(f"--{name}", **fields[name])
    more = parser.add_argument_group("more")
    more.add_argument("--help", metavar="all", help="every option, with those of TrainingArguments")
    return parser.format_help()


def _fields() -> dict[str, dict[str, Any]]:
    """What argparse needs to know of an option to describe it."""
    of_trainer = {name: _described(metavar, text) for name, (metavar, text) in _OF_TRAINER.items()}
    return of_trainer | dict(_of_dataclasses())


def _of_dataclasses() -> Iterator[tuple[str, dict[str, Any]]]:
    for arguments in (ModelArguments, DataArguments, OptimizationArguments, PredictionArguments):
        for field in dataclasses.fields(arguments):
            yield field.name, _described(_metavar(field.type), field.metadata["help"])


def _described(metavar: str | None, text: str) -> dict[str, Any]:
    switch = {"nargs": 0, "action": _Switch} if metavar is None else {"metavar": metavar}
    return switch | {"help": text.replace("%", "%%")}


class _Switch(argparse.Action):
    """An option without a value; described here, parsed elsewhere."""


def _metavar(kind: Any) -> str | None:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if kind is bool:
        return None
    names = {str: "TEXT", int: "N", float: "X"}
    return next((name for part, name in names.items() if kind is part or part in get_args(kind)), "VALUE")


def _list_of_recipes() -> str:
    described = describe_recipes()
    width = max(map(len, described))
    return "\n".join(["recipes:", *(f"  {name:{width}}  {text}" for name, text in described.items())])
