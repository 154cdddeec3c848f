"""The options of a run: values of the recipe, and of the command line where given there."""

import argparse
import itertools
import os
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from classquery.configuration import DataArguments, load_recipe
from classquery.configuration.arguments import OptimizationArguments
from classquery.data.hints import closest
from classquery.engine.detection.arguments import PredictionArguments
from classquery.engine.run.arguments import ModelArguments
from classquery.engine.run.choosing import choose_recipe
from classquery.engine.run.contradictions import check_values, contradiction_in
from classquery.engine.run.help import common_options
from classquery.engine.run.options import Options
from classquery.engine.run.tasks import Task


_TRUTH_VALUES = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")


def make_parser(task: Task) -> HfArgumentParser:
    """The parser of all options, in which those of TrainingArguments come last."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, OptimizationArguments, PredictionArguments, TrainingArguments),
        prog=task.prog,
        usage=f"{task.prog}{' [VIDEO ...]' if task.takes_videos else ''} [options]   (--help lists them)",
        description=task.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Labels are lists of dicts, which no model signature names.
    parser.set_defaults(remove_unused_columns=False)
    return parser


def parse_arguments(arguments: Sequence[str], task: Task) -> Options:
    """Read the recipe, then the command line over it.

    Raises:
        SystemExit: If options contradict each other.
        ValueError: If an option does not exist, or a value cannot be.
    """
    parser = make_parser(task)
    arguments, videos = _without_files(arguments)
    arguments = _with_values(arguments, parser)
    known = _find(arguments, task.defaults)
    _refuse_classes_to_report(arguments, known)
    choice = choose_recipe(known.recipe, known.dataset, known.model_name_or_path, known.do_train)
    recipe = load_recipe(choice.recipe)
    parser.set_defaults(recipe=choice.recipe, **recipe.data, **recipe.optimization, **recipe.training)
    parser.set_defaults(**task.defaults)
    if not known.do_train:
        # Otherwise TrainingArguments takes evaluation during training for --do_eval.
        parser.set_defaults(eval_strategy="no")
    if known.recipe is None and known.model_name_or_path not in (None, "demo"):
        # How to detect with a trained model is saved with it.
        parser.set_defaults(keyframes_per_second=None, score_threshold=None, actor_threshold=None)
    *parts, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    options = Options(*parts, recipe, choice.reason)
    options.prediction.videos += _videos_among(rest, videos, task, parser)
    if not (options.training.do_train or options.training.do_eval) and not options.model.model_name_or_path:
        options.model.model_name_or_path = "demo"
    check_values(options.training)
    contradiction = contradiction_in(options)
    if contradiction:
        parser.error(contradiction)
    return options


def _find(arguments: Sequence[str], defaults: dict[str, Any]) -> argparse.Namespace:
    """What decides about the defaults of all other options."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    finder.add_argument("--dataset")
    finder.add_argument("--model_name_or_path", "--model-name-or-path", "--model")
    do_train = defaults.get("do_train", False)
    finder.add_argument("--do_train", "--do-train", nargs="?", const=True, default=do_train, type=string_to_bool)
    return finder.parse_known_args(arguments)[0]


def _with_values(arguments: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Say `true` after switches that stand alone, so that what follows is not taken for their value."""
    alone = [action for action in parser._actions if action.type is string_to_bool]
    switches = {option for action in alone for option in action.option_strings}
    following = [*arguments, "--"][1:]
    return [
        f"{argument}=true" if argument in switches and after.lower() not in _TRUTH_VALUES else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _without_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide at `--`, behind which everything is the name of a file."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end + 1 :])


def _refuse_classes_to_report(arguments: Sequence[str], known: argparse.Namespace) -> None:
    """Refuse names of classes where their fate in training is meant, which argparse would only call no choice.

    Raises:
        ValueError: If --classes is given without training.
    """
    if not known.do_train and any(argument.partition("=")[0] == "--classes" for argument in arguments):
        raise ValueError(
            "--classes says what becomes of the classes of a model in training; --show_classes names those to report"
        )


def _videos_among(
    rest: Sequence[str], videos: Sequence[str], task: Task, parser: argparse.ArgumentParser
) -> list[str]:
    """What is no option, and what stood behind `--`: videos, where the command takes them.

    Raises:
        ValueError: If it begins like an option, or the command takes none.
    """
    is_unknown = [argument.startswith("-") or not task.takes_videos for argument in rest]
    unknown = [*itertools.compress(rest, is_unknown), *([] if task.takes_videos else videos)]
    if not unknown:
        return [*rest, *videos]
    name = unknown[0].partition("=")[0]
    if os.path.isfile(unknown[0]) and task.takes_videos:
        raise ValueError(f"{name[:200]} begins like an option: give it as ./{name[:200]}, or behind --")
    options = [option for action in parser._actions for option in action.option_strings]
    hint = closest(name, common_options(task)) or closest(name, options) if name.startswith("-") else ""
    raise ValueError(f"there is no option {name[:200]}{hint or '.'} `{task.prog} --help all` lists all")
