"""A run from its command line to its exit code."""

import logging
import os
from collections.abc import Sequence

import torch
from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.annotations.registry import load_action_labels
from classquery.data.annotations.schema import shorten
from classquery.engine.detection.prediction import find_videos
from classquery.engine.run.detection import predict
from classquery.engine.run.models import check_labels, load_model, set_thresholds
from classquery.engine.run.options import Options
from classquery.engine.run.parsing import parse_arguments
from classquery.engine.run.tasks import Task
from classquery.engine.run.training import prepare_data, train_and_evaluate
from classquery.engine.sharing import push_run, require_token
from classquery.engine.training.trainer import refuse_half_precision_on_cpu


logger = logging.getLogger(__name__)


def run(arguments: Sequence[str], task: Task) -> int:
    """Do what a command line asks for, and return the exit code: 1 if something of it could not be done.

    Args:
        arguments: The options; where they say nothing, the values of the recipe hold.
        task: Which of the commands they belong to.

    Raises:
        SystemExit: If options contradict each other or do not exist; usage and message are on stderr.
        OSError, StrictDataclassError, ValueError, VideoReadError: What a user can put right, said in the message.
    """
    options = parse_arguments(arguments, task)
    training_args = options.training
    logging.basicConfig(format="%(message)s")
    # Of all modules of a run, and of the trainer's.
    level = logging.INFO if training_args.process_index == 0 else logging.WARNING
    logging.getLogger("classquery.engine").setLevel(level)
    set_seed(training_args.seed)
    adapt_to_cpu(training_args)
    videos = find_videos(options.prediction.videos)
    # Not by Trainer, which would upload all of the output folder, with data and videos.
    to_share, training_args.push_to_hub = training_args.push_to_hub, False
    if to_share:
        require_token(training_args.hub_token)
    model, processor = _prepare(options)
    failed = predict(model, processor, videos, options) if training_args.do_predict else []
    if to_share and training_args.process_index == 0:
        logger.info(f"shared: {push_run(training_args)}")
    # Left to the interpreter's exit, the group of a multi-process run may abort.
    PartialState().destroy_process_group()
    if failed:
        logger.error(f"error: not all that was asked for could be done: {shorten(failed)}")
    return int(bool(failed))


def _prepare(options: Options) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    """Model and processor of a run, trained and evaluated where that is asked for."""
    training_args, recipe, data_dir, id2label = options.training, options.recipe, None, None
    if training_args.do_train or training_args.do_eval:
        data_dir = prepare_data(options.data, training_args)
        id2label = load_action_labels(options.data.dataset, data_dir)
    model, processor = load_model(options.model, recipe, id2label)
    check_labels(options.prediction, model)
    set_thresholds(processor, options.data)
    if data_dir is not None:
        used = {
            "model": model.config,
            "processor": processor,
            "data": options.data,
            "optimization": options.optimization,
            "training": training_args,
        }
        logger.info(f"recipe {recipe.name}{options.reason}\n{recipe.table(used)}")
        train_and_evaluate(model, processor, data_dir, options)
    return model, processor


def adapt_to_cpu(training_args: TrainingArguments) -> None:
    """Leave a core to each data worker: threads that have to wait for one make a step several times slower."""
    if training_args.device.type == "cpu":
        refuse_half_precision_on_cpu(training_args)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, os.cpu_count() - training_args.dataloader_num_workers))
