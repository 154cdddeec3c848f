"""Detection in videos as a run does it: each in one of the processes, put together at the end."""

import logging
from pathlib import Path

from accelerate import PartialState

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.annotations.schema import shorten
from classquery.data.demo.movies import write_demo_movie
from classquery.engine.checkpoint import demo_notice
from classquery.engine.detection.prediction import (
    collect_predictions,
    not_done,
    predict_videos,
    result_folders,
)
from classquery.engine.detection.video_sources import Source
from classquery.engine.detection.window import show_results
from classquery.engine.run.options import Options


logger = logging.getLogger(__name__)


def predict(
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    videos: list[Source],
    options: Options,
) -> list[str]:
    """Detect actions in the videos, each in one of the processes, say what was found, and name what was not done."""
    training_args = options.training
    is_main = training_args.process_index == 0
    notice = demo_notice(model)
    if videos and is_main and notice:
        logger.warning(notice)
    if is_main and model.config.untrained_classes:
        logger.warning(f"never trained, known by their words only: {shorten(model.config.untrained_classes)}")
    output_dir = Path(training_args.output_dir)
    with training_args.main_process_first(desc="writing a demo movie"):
        videos = videos or [str(write_demo_movie(output_dir, "validation", 0))]
    predict_videos(
        videos,
        output_dir / "predictions",
        model.to(training_args.device),
        processor,
        options.prediction,
        keyframes_per_second=options.data.keyframes_per_second,
        batch_size=training_args.per_device_eval_batch_size,
        process_index=training_args.process_index,
        num_processes=training_args.world_size,
        show_progress=is_main and not training_args.disable_tqdm,
    )
    PartialState().wait_for_everyone()
    if is_main:
        logger.info(f"{collect_predictions(videos, output_dir / 'predictions')}\nsee {output_dir / 'predictions'}")
    if is_main and options.prediction.show:
        show_results(result_folders(videos, output_dir / "predictions"))
    return not_done(videos, output_dir / "predictions")
