"""Detection in many videos with everything around it: progress, files, pictures, going on where a run was stopped."""

import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from classquery.data.video.frame_folder import read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.data.whole_files import write_json
from classquery.detection_classquery import ClipDetector, Sampling
from classquery.engine.detection.detection import detect_in, with_attention
from classquery.engine.detection.drawing import draw_attention_grid, draw_keyframe, write_annotated_video
from classquery.engine.detection.people import link_people, list_people
from classquery.engine.detection.results import FrameDetections
from classquery.engine.detection.video_sources import Source, VideoSource, list_sources, open_source
from classquery.engine.detection.writing import (
    VideoFacts,
    write_ava,
    write_csv,
    write_cvat,
    write_detections,
    write_timeline,
)
from classquery.engine.training.charts import can_draw_charts, draw_timeline
from classquery.modeling_classquery import ClassQueryForVideoActionDetection
from classquery.video_processing_classquery import ClassQueryVideoProcessor


logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
_MAX_NAMED_ACTIONS = 3
_MAX_CLASSES_IN_GRID = 8
_BAR = "{desc}{percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f}, {rate_noinv_fmt}, {remaining} left"


@dataclass
class PredictionArguments:
    """What to detect in, and what to write besides `detections.json` and `detections.csv`."""

    videos: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What to detect actions in: files, folders, patterns, numbers of cameras or URLs of streams; by "
            "default a held-out demo movie."
        },
    )
    tubes: bool = field(
        default=False,
        metadata={"help": "Number people through the video; write and draw timelines, and files for AVA and CVAT."},
    )
    save_video: bool = field(
        default=False,
        metadata={"help": "Draw the detections into copies of the videos. Of a single one, this is always done."},
    )
    attention: str | None = field(
        default=None, metadata={"help": "Name of an action whose attention is laid over the annotated videos."}
    )
    attention_person: int | None = field(
        default=None, metadata={"help": "With --tubes: number of the person whose attention alone to show."}
    )
    show_classes: list[str] = field(
        default_factory=list, metadata={"help": "Names of the actions to report; by default all."}
    )
    top_k: int | None = field(default=None, metadata={"help": "Report so many actions of an actor, at most."})

    def __post_init__(self) -> None:
        if self.attention_person is not None and not (self.tubes and self.attention):
            raise ValueError("--attention_person needs --attention and --tubes, which numbers people")

    @property
    def labels(self) -> list[str]:
        """All classes that are named."""
        return [*self.show_classes, *([self.attention] if self.attention else [])]


def find_videos(videos: Sequence[str]) -> list[Source]:
    """List files, folders, patterns, cameras and streams one by one.

    Raises:
        FileNotFoundError: If a folder or pattern holds none.
        VideoReadError: If not a single file can be read.
    """
    sources = list_sources(list(videos))
    errors = [error for error in map(_why_unreadable, sources) if error is not None]
    if errors and len(errors) == len(sources):
        raise errors[0]
    return sources


def _why_unreadable(source: str) -> VideoReadError | None:
    """Look at a file; cameras, streams and folders are not opened before their turn."""
    if source.isdecimal() or "://" in source or os.path.isdir(source):
        return None
    try:
        ClipReader().info(source)
    except VideoReadError as error:
        return error
    return None


def predict_videos(
    sources: Sequence[Source],
    folder: str | Path,
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    arguments: PredictionArguments,
    *,
    keyframes_per_second: float | None = None,
    batch_size: int = 4,
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = True,
) -> None:
    """Detect actions in videos, and write for each a folder with `detections.json`, `detections.csv` and pictures.

    What an earlier run finished with the same model and options is kept. A video that cannot be read does not stop the
    others: its `summary.json` says why, and the next run tries again.

    Args:
        sources: What `find_videos` returns; the same in all processes.
        folder: Where to write; made if it is missing.
        model: The detector.
        processor: The processor that belongs to it.
        arguments: What to report and to write.
        keyframes_per_second, batch_size: See `detect`.
        process_index, num_processes: Which of how many processes this is: each video is done by one.
        show_progress: Whether to show a bar, with the seconds of video done and to do.

    Raises:
        ValueError: If a class is unknown.
    """
    detector = ClipDetector.from_options(
        model,
        processor,
        classes=arguments.show_classes or None,
        top_k=arguments.top_k,
        attention=[arguments.attention] if arguments.attention else [],
        batch_size=batch_size,
    )
    names = _folder_names(sources)
    work = _Work(detector, Sampling(keyframes_per_second), arguments, draws=arguments.save_video or len(sources) == 1)
    mine = [
        _Job(source, Path(folder) / name, _made_with(source, work))
        for source, name in list(zip(sources, names, strict=True))[process_index::num_processes]
    ]
    to_do = [job for job in mine if not job.is_done()]
    if len(to_do) < len(mine):
        logger.info(f"{len(mine) - len(to_do)} of {len(mine)} videos were done before: kept")
    total = _total_seconds(to_do)
    with tqdm(
        total=total, disable=not show_progress, unit=" s of video", bar_format=_BAR if total else None
    ) as progress:
        for job in to_do:
            _predict(job, work, progress)


def collect_predictions(sources: Sequence[Source], folder: str | Path) -> str:
    """Put together what all processes wrote: `detections.csv` and `summary.json` of all videos.

    Returns:
        A table for reading: what was found in each video, or why it could not be read.
    """
    folder = Path(folder)
    folders = [folder / name for name in _folder_names(sources)]
    summaries = [json.loads((each / SUMMARY_FILE).read_text(encoding="utf-8")) for each in folders]
    write_json(folder / SUMMARY_FILE, summaries, indent=2, ensure_ascii=False)
    _join_tables([each / "detections.csv" for each in folders], folder / "detections.csv")
    rows = [("video", "length", "time", "people", "most frequent actions (detections)"), *map(_table_row, summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    failed = sum("error" in summary for summary in summaries)
    return "\n".join([*lines, *([f"{failed} of {len(summaries)} videos could not be read"] if failed else [])])


# One video


@dataclass(frozen=True)
class _Work:
    """What is done with every video."""

    detector: ClipDetector
    sampling: Sampling
    arguments: PredictionArguments
    draws: bool


@dataclass(frozen=True)
class _Job:
    """A video, where its results go, and what they depend on."""

    source: Source
    folder: Path
    made_with: dict[str, Any]

    def is_done(self) -> bool:
        """Whether an earlier run has finished it in the same way."""
        path = self.folder / SUMMARY_FILE
        if not path.is_file():
            return False
        summary = json.loads(path.read_text(encoding="utf-8"))
        return "error" not in summary and summary.get("made_with") == self.made_with


def _made_with(source: Source, work: _Work) -> dict[str, Any]:
    """Everything that results depend on, as JSON holds it."""
    status = os.stat(source) if os.path.isfile(str(source)) else None
    detector, arguments = work.detector, dataclasses.asdict(work.arguments)
    return {
        "file": [status.st_size, status.st_mtime_ns] if status else None,
        "model": detector.model.name_or_path,
        "thresholds": [round(min(threshold, 2.0), 6) for threshold in detector.thresholds.tolist()],
        "actor_threshold": detector.actor_threshold,
        "keyframes_per_second": work.sampling.keyframes_per_second,
        "draws": work.draws,
        **{name: arguments[name] for name in ("tubes", "attention", "attention_person", "top_k")},
    }


def _predict(job: _Job, work: _Work, progress: tqdm) -> None:
    """Detect in one video and write everything; its summary comes last."""
    job.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        source = open_source(job.source, frames_per_second=work.detector.model.config.frames_per_second)
        progress.set_description(f"detecting in {job.folder.name}")
        frames = list(_with_progress(detect_in(source, work.detector, work.sampling), progress))
        if work.arguments.tubes:
            frames = link_people(frames)
        num_people = _write_files(job.folder, source, frames, work)
        if work.draws:
            progress.set_description(f"drawing {job.folder.name}")
            _write_pictures(job.folder, source, frames, work)
    except VideoReadError as error:
        logger.warning(f"passed over: {error}")
        write_json(job.folder / SUMMARY_FILE, {"video": str(job.source), "error": str(error)}, indent=2)
        return
    counts = Counter(label for frame in frames for labels in frame.labels for label in labels)
    summary = {
        "video": source.name,
        "video_seconds": source.duration_seconds or (frames[-1].seconds if frames else 0.0),
        "seconds": round(time.perf_counter() - started, 2),
        "num_keyframes": len(frames),
        "num_dropped": sum(frame.num_dropped for frame in frames),
        "num_people": num_people,
        "actions": dict(counts.most_common()),
        "made_with": job.made_with,
    }
    write_json(job.folder / SUMMARY_FILE, summary, indent=2, ensure_ascii=False)


def _with_progress(frames: Iterator[FrameDetections], progress: tqdm) -> Iterator[FrameDetections]:
    done = 0.0
    for frame in frames:
        yield frame
        progress.update(frame.seconds - done)
        done = frame.seconds


def _write_files(folder: Path, source: VideoSource, frames: Sequence[FrameDetections], work: _Work) -> int | None:
    """Write everything that can be read by programs, and return the number of people, if they are linked."""
    video = VideoFacts.of(source)
    write_csv(folder / "detections.csv", frames)
    if not work.arguments.tubes:
        write_detections(folder / "detections.json", video, frames)
        return None
    people = list_people(frames, end_seconds=source.duration_seconds)
    label_ids = {name: label_id for label_id, name in work.detector.model.config.id2label.items()}
    write_detections(folder / "detections.json", video, frames, people)
    write_timeline(folder / "timeline.csv", people)
    write_ava(folder / "ava.csv", frames, label_ids)
    write_cvat(folder / "cvat.xml", video, people, label_ids)
    if can_draw_charts():
        draw_timeline(people, folder / "timeline.png", duration_seconds=source.duration_seconds)
    return len(people)


def _write_pictures(folder: Path, source: VideoSource, frames: Sequence[FrameDetections], work: _Work) -> None:
    """Draw into a copy of the video, and stills from it; nothing of what can be seen only once."""
    if not frames or not os.path.exists(source.name):
        return
    attention = {"attention_label": work.arguments.attention, "attention_person": work.arguments.attention_person}
    write_annotated_video(source.name, folder / "annotated.mp4", frames, **attention)
    clearest = max(frames, key=_clarity)
    read = read_frame_folder if os.path.isdir(source.name) else ClipReader().read
    image = Image.fromarray(read(source.name, [clearest.frame_index])[0])
    draw_keyframe(image, clearest, **attention).save(folder / "preview.png")
    if work.arguments.attention and clearest.actors and os.path.isfile(source.name):
        _draw_classes(image, clearest, work, source.name).save(folder / "attention.png")


def _draw_classes(image: Image.Image, frame: FrameDetections, work: _Work, path: str) -> Image.Image:
    """Draw where the class asked for and those that were found look for the actor of the highest score."""
    actor = max(frame.actors, key=lambda actor: actor.actions[0][1])
    labels = dict.fromkeys([work.arguments.attention, *(label for label, _ in actor.actions)])
    labels = list(labels)[:_MAX_CLASSES_IN_GRID]
    detector = work.detector
    return draw_attention_grid(
        image, with_attention(path, frame, actor, labels, detector.model, detector.processor), labels
    )


def _clarity(keyframe: FrameDetections) -> float:
    """Many actors of whom even the weakest action is certain; at a cut, where shots mix, it is near one half."""
    return sum(min(score for _, score in actor.actions) - 0.5 for actor in keyframe.actors)


# Many videos


def _folder_names(sources: Sequence[Source]) -> list[str]:
    """Name the folder of each video: like the file, with the folders above it where two are called alike."""
    paths = [Path(str(source).replace("://", "_")) for source in sources]
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else "_".join((*path.parts[-3:-1], path.name)) for path in paths]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"videos of one name would overwrite each other's results: {repeated}; run them apart")
    return [name.strip("/ ").replace("/", "_") for name in names]


def _total_seconds(jobs: Sequence[_Job]) -> float | None:
    """Length of all videos, where that is known."""
    total = 0.0
    for job in jobs:
        if not os.path.isfile(str(job.source)):
            return None
        # One that cannot be read is listed when its turn comes.
        if _why_unreadable(str(job.source)) is None:
            total += ClipReader().info(str(job.source)).duration_seconds
    return round(total, 1)


def _join_tables(paths: Sequence[Path], output: Path) -> None:
    """Join csv files of one header."""
    tables = [path.read_text(encoding="utf-8").splitlines(keepends=True) for path in paths if path.is_file()]
    header = tables[0][:1] if tables else []
    output.write_text("".join([*header, *(line for table in tables for line in table[1:])]), encoding="utf-8")


def _table_row(summary: dict[str, Any]) -> tuple[str, ...]:
    name = Path(summary["video"]).name
    if "error" in summary:
        return name, "", "", "", f"not read: {summary['error']}"
    actions = list(summary["actions"].items())
    named = ", ".join(f"{label} ({count})" for label, count in actions[:_MAX_NAMED_ACTIONS]) or "nothing found"
    more = f", and {len(actions) - _MAX_NAMED_ACTIONS} others" if len(actions) > _MAX_NAMED_ACTIONS else ""
    people = "" if summary["num_people"] is None else str(summary["num_people"])
    return name, f"{summary['video_seconds']:.1f} s", f"{summary['seconds']:.1f} s", people, named + more
