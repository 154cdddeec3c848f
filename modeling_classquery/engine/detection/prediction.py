"""Detection in many videos with everything around it: progress, files, pictures, going on where a run was stopped."""

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from classquery.data.annotations.schema import and_others, shorten
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.data.whole_files import remove_left_behind, replacing, write_json
from classquery.detection_classquery import ClipDetector, Sampling
from classquery.engine.detection.arguments import PredictionArguments
from classquery.engine.detection.corrections import write_for_correction
from classquery.engine.detection.detection import detect_in, with_attention
from classquery.engine.detection.drawing import draw_attention_grid, draw_keyframe, write_annotated_video
from classquery.engine.detection.identity import digest_detector, digest_source
from classquery.engine.detection.naming import VideoName, name_videos
from classquery.engine.detection.people import link_people, list_people
from classquery.engine.detection.result_folder import SUMMARY_FILE, ResultFolder
from classquery.engine.detection.results import ActorDetection, FrameDetections, read_frame
from classquery.engine.detection.timeline import draw_timeline
from classquery.engine.detection.uncertain import list_uncertain, write_uncertain
from classquery.engine.detection.video_sources import Source, VideoSource, list_sources, local_path, open_source
from classquery.engine.detection.writing import (
    VideoFacts,
    write_ava,
    write_csv,
    write_detections,
    write_timeline,
)
from classquery.engine.figures import can_draw_charts
from classquery.modeling_classquery import ClassQueryForVideoActionDetection
from classquery.video_processing_classquery import ClassQueryVideoProcessor


logger = logging.getLogger(__name__)

TABLE_FILE = "detections.csv"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOTHING_FOUND = (
    "nothing reaches its threshold: --score_threshold 0.05 --actor_threshold 0.05 shows what scores there are"
)
_MAX_NAMED_ACTIONS = 3
_MAX_NAMED_FAULTS = 5
_MAX_CLASSES_IN_GRID = 8
_BAR = "{desc}{percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f}, {rate_noinv_fmt}, {remaining} left"


class PredictionStoppedError(RuntimeError):
    """Raised by `predict_videos` when it is asked to stop."""


def find_videos(videos: Sequence[str]) -> list[Source]:
    """List files, folders, patterns, cameras and streams one by one, each once.

    What is missing is said at once, before any work; it does not stop the others.

    Raises:
        OSError: If the only folder or pattern holds none, or cannot be listed.
        VideoReadError: If not a single file can be read.
    """
    sources = once_each([source for video in videos for source in _list_videos(video, is_only=len(videos) == 1)])
    missing = [str(source) for source in sources if _is_missing(source)]
    if not sources or any(_why_unreadable(source) is None for source in sources):
        if missing:
            logger.warning(f"{len(missing)} of {len(sources)} videos are missing: {shorten(missing)}")
        return sources
    raise VideoReadError("; ".join(str(_why_unreadable(source)) for source in sources[:_MAX_NAMED_FAULTS]))


def _list_videos(video: str, *, is_only: bool) -> list[Source]:
    try:
        return list_sources(video)
    except OSError as error:
        if is_only:
            raise
        logger.warning(str(error))
        return [video]


def once_each(sources: Sequence[Source]) -> list[Source]:
    """Leave out files that are given again, under whatever path."""
    first: dict[Any, Source] = {}
    for source in sources:
        path = local_path(source)
        key = os.path.realpath(path) if path else source if isinstance(source, str | int) else id(source)
        if key not in first:
            first[key] = source
        elif source != first[key]:
            logger.warning(f"{source} is the same file as {first[key]}: taken once")
    return list(first.values())


def _is_missing(source: Source) -> bool:
    path = local_path(source)
    return path is not None and not os.path.exists(path)


def _why_unreadable(source: Source) -> VideoReadError | None:
    """Look at a file; cameras, streams and folders are not opened before their turn."""
    path = local_path(source)
    if path is None or os.path.isdir(path):
        return None
    try:
        ClipReader().info(path)
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
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Detect actions in videos, and write for each a folder with `detections.json`, `detections.csv` and pictures.

    What an earlier run finished is kept where weights, configuration, processor, options and the content of the video
    are the same, see `identity`; what is kept, and what is done again for which reason, is logged. Earlier results
    stay as they are until the new ones are complete. A video that cannot be read does not stop the others: its
    `summary.json` says why, and the next run tries again.

    Args:
        sources: What `find_videos` returns; the same in all processes. A file that is given twice is taken once.
        folder: Where to write; made if it is missing.
        model: The detector.
        processor: The processor that belongs to it.
        arguments: What to report and to write.
        keyframes_per_second, batch_size: See `detect`.
        process_index, num_processes: Which of how many processes this is: each video is done by one.
        show_progress: Whether to show a bar, with the seconds of video done and to do.
        is_stopped: Asked after each keyframe whether to give up.

    Raises:
        PredictionStoppedError: If `is_stopped` says so.
        OSError: If nothing can be written; where the disk is full, with what is needed.
        ValueError: If a class is unknown.
    """
    sources = once_each(sources)
    detector = ClipDetector.from_options(
        model,
        processor,
        **_reported(arguments),
        attention=[arguments.attention] if arguments.attention else [],
        batch_size=batch_size,
    )
    work = _Work(
        detector,
        Sampling(keyframes_per_second),
        arguments,
        draws=arguments.save_video or arguments.show or len(sources) == 1,
        digests=digest_detector(model, processor),
        is_stopped=is_stopped,
    )
    to_do = _not_done(_jobs(sources, folder)[process_index::num_processes], work)
    total = _total_seconds(to_do)
    with tqdm(
        total=total, disable=not show_progress, unit=" s of video", bar_format=_BAR if total else None
    ) as progress:
        for number, job in enumerate(to_do, start=1):
            place = f" ({number} of {len(to_do)})" if len(to_do) > 1 else ""
            _predict(job, work, progress, place)


def collect_predictions(sources: Sequence[Source], folder: str | Path) -> str:
    """Put together what all processes wrote: `detections.csv` and `summary.json` of all videos.

    Returns:
        A table for reading: what was found in each video, or why it could not be read.
    """
    folder, jobs = Path(folder), _jobs(once_each(sources), folder)
    summaries = [job.summary for job in jobs]
    remove_left_behind(folder, (SUMMARY_FILE, TABLE_FILE))
    with _naming_what_is_needed(folder):
        write_json(folder / SUMMARY_FILE, summaries, indent=2, ensure_ascii=False)
        read = [
            job.folder.path / TABLE_FILE
            for job, summary in zip(jobs, summaries, strict=True)
            if "error" not in summary
        ]
        _join_tables(read, folder / TABLE_FILE)
    rows = [("video", "length", "time", "people", "most frequent actions (detections)")]
    rows += [(job.name.file, *_table_cells(summary)) for job, summary in zip(jobs, summaries, strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    failed = sum("error" in summary for summary in summaries)
    lines += [f"{failed} of {len(summaries)} videos could not be read"] if failed else []
    is_empty = failed < len(summaries) and not any(summary.get("actions") for summary in summaries)
    return "\n".join([*lines, *([_NOTHING_FOUND] if is_empty else [])])


def result_folders(sources: Sequence[Source], folder: str | Path) -> list[Path]:
    """Where `predict_videos` writes the results of each video, once for a file that is given twice."""
    return [job.folder.path for job in _jobs(once_each(sources), folder)]


def not_done(sources: Sequence[Source], folder: str | Path) -> list[str]:
    """Videos of which something that was asked for is not there after `predict_videos`."""
    jobs = _jobs(once_each(sources), Path(folder))
    return [job.name.file for job in jobs if job.summary.keys() & {"error", "left_out"}]


def _reported(arguments: PredictionArguments) -> dict[str, Any]:
    """Options of what to report: of people alone, everybody with the likeliest action, however unlikely it is."""
    if arguments.people_only:
        return {"threshold": 0.0, "class_thresholds": {}, "top_k": 1}
    return {"classes": arguments.show_classes or None, "top_k": arguments.top_k}


# One video


@dataclass(frozen=True)
class _Work:
    """What is done with every video."""

    detector: ClipDetector
    sampling: Sampling
    arguments: PredictionArguments
    draws: bool
    digests: dict[str, str]
    is_stopped: Callable[[], bool]

    def made_with(self, name: VideoName) -> dict[str, Any]:
        """Everything but the content of the video that its results depend on, as JSON holds it."""
        options = dataclasses.asdict(self.arguments) | {
            "videos": name.file,
            "keyframes_per_second": self.sampling.keyframes_per_second,
            "draws": self.draws,
        }
        # A window changes nothing in the files.
        del options["show"]
        return self.digests | {"options": options}


@dataclass(frozen=True)
class _Job:
    """A video, what it is called, and where its results go."""

    source: Source
    name: VideoName
    folder: ResultFolder

    @property
    def summary(self) -> dict[str, Any]:
        """What the last run said of it."""
        return self.folder.summary or {"video": str(self.source), "error": "nothing was written, start again"}


def _jobs(sources: Sequence[Source], folder: str | Path) -> list[_Job]:
    names = name_videos(sources, reserved=(SUMMARY_FILE, TABLE_FILE))
    return [
        _Job(source, name, ResultFolder(Path(folder) / name.folder))
        for source, name in zip(sources, names, strict=True)
    ]


def _not_done(jobs: Sequence[_Job], work: _Work) -> list[_Job]:
    """Leave out what an earlier run finished in the same way, and say so."""
    changes = [_changes(job, work) for job in jobs]
    for job in jobs:
        job.folder.clean()
    kept = [job.name.file for job, change in zip(jobs, changes, strict=True) if change == []]
    again = [
        f"{job.name.file} (other {', '.join(change)})" for job, change in zip(jobs, changes, strict=True) if change
    ]
    if kept:
        logger.warning(f"{len(kept)} of {len(jobs)} videos were done before in the same way, kept: {shorten(kept)}")
    if again:
        logger.warning(f"{len(again)} of {len(jobs)} videos are done again: {shorten(again)}")
    return [job for job, change in zip(jobs, changes, strict=True) if change != []]


def _changes(job: _Job, work: _Work) -> list[str] | None:
    """What is not as in the earlier results of a video: nothing, if they are kept; None without such results."""
    finished = job.folder.finished
    if finished is None:
        return None
    earlier = finished.get("made_with") or {}
    made_with = work.made_with(job.name)
    changes = [part for part, value in made_with.items() if earlier.get(part) != value]
    if changes:
        return changes
    with contextlib.suppress(VideoReadError):
        source = digest_source(job.source, earlier.get("source"))
        if source is not None and source["content"] == (earlier.get("source") or {}).get("content"):
            if job.folder.summary != finished or source != earlier["source"]:
                job.folder.note(finished | {"made_with": made_with | {"source": source}})
            return []
    return ["source"]


def _predict(job: _Job, work: _Work, progress: tqdm, place: str) -> None:
    """Detect in one video and write everything; its summary comes last."""
    started = time.perf_counter()
    try:
        with job.folder.writing() as unfinished, _naming_what_is_needed(unfinished, job.source):
            made_with = work.made_with(job.name) | {"source": digest_source(job.source)}
            summary = _detect_and_write(job, unfinished, work, progress, place)
            summary |= {"seconds": round(time.perf_counter() - started, 2), "made_with": made_with}
            job.folder.replace(unfinished, summary)
    except VideoReadError as error:
        logger.warning(f"passed over: {error}")
        job.folder.fail({"video": str(job.source), "error": str(error)})


def _detect_and_write(job: _Job, folder: Path, work: _Work, progress: tqdm, place: str) -> dict[str, Any]:
    """Write all files of a video, and return what its summary says of them."""
    source = open_source(job.source, frames_per_second=work.detector.model.config.frames_per_second)
    progress.set_description(f"detecting in {job.name.file}{place}")
    frames = list(_with_progress(detect_in(source, work.detector, work.sampling), work, progress))
    if work.arguments.tubes:
        frames = link_people(frames)
    num_people = _write_files(folder, source, job.name, frames, work)
    counts = Counter(label for frame in frames for labels in frame.labels for label in labels)
    summary = {
        "video": source.name,
        "video_seconds": source.duration_seconds or (frames[-1].seconds if frames else 0.0),
        "num_keyframes": len(frames),
        "num_dropped": sum(frame.num_dropped for frame in frames),
        "num_people": num_people,
        "actions": dict(counts.most_common()),
        "damaged": [str(gap) for gap in source.missing],
    }
    person = work.arguments.attention_person
    if person is not None and not any(actor.person_id == person for frame in frames for actor in frame.actors):
        summary["left_out"] = f"no attention: there is no person {person}, of {num_people}"
        logger.warning(f"{job.name.file}: {summary['left_out']}")
    if work.draws and local_path(job.source) is not None:
        progress.set_description(f"drawing {job.name.file}{place}")
        _write_pictures(folder, source, frames, work)
    elif work.arguments.save_video or work.arguments.attention:
        summary["left_out"] = (
            "no pictures: what comes from a camera or an address is seen only once; save it as a file"
        )
        logger.warning(f"{job.name.file}: {summary['left_out']}")
    # What follows the last keyframe.
    progress.update(max(0.0, summary["video_seconds"] - (frames[-1].seconds if frames else 0.0)))
    return summary


@contextlib.contextmanager
def _naming_what_is_needed(folder: Path, source: Source | None = None) -> Iterator[None]:
    """Say where the disk is full and what the results of a video need."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        written = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        path = None if source is None else local_path(source)
        size = os.path.getsize(path) if path and os.path.isfile(path) else 0
        need = f"about {max(size, 2 * written) / 1e6:,.1f} MB are needed, {written / 1e6:,.1f} MB found room"
        remedy = "make room and give the same command again, what is finished is kept"
        raise OSError(f"the disk of {folder} is full: {need}; {remedy}") from error


def _with_progress(frames: Iterator[FrameDetections], work: _Work, progress: tqdm) -> Iterator[FrameDetections]:
    done = 0.0
    for frame in frames:
        if work.is_stopped():
            raise PredictionStoppedError("detection was stopped")
        yield frame
        progress.update(frame.seconds - done)
        done = frame.seconds


def _write_files(
    folder: Path, source: VideoSource, name: VideoName, frames: Sequence[FrameDetections], work: _Work
) -> int | None:
    """Write everything that can be read by programs, and return the number of people, if they are linked."""
    video, config = VideoFacts.of(source), work.detector.model.config
    write_csv(folder / TABLE_FILE, frames, name)
    if not work.arguments.tubes:
        write_detections(folder / "detections.json", video, frames, untrained_classes=config.untrained_classes)
        return None
    people = list_people(frames, end_seconds=source.duration_seconds)
    label_ids = {name: label_id for label_id, name in config.id2label.items()}
    write_detections(folder / "detections.json", video, frames, people, config.untrained_classes)
    write_timeline(folder / "timeline.csv", people)
    write_ava(folder / "ava.csv", frames, label_ids, name)
    write_for_correction(folder, video, people, label_ids, name, people_only=work.arguments.people_only)
    _write_uncertain(folder, source, frames, work)
    if can_draw_charts():
        draw_timeline(people, folder / "timeline.png", duration_seconds=source.duration_seconds)
    return len(people)


def _write_uncertain(folder: Path, source: VideoSource, frames: Sequence[FrameDetections], work: _Work) -> None:
    """List the moments to look at first, with pictures where frames can be read again."""
    detector, thresholds = work.detector, {}
    if not work.arguments.people_only:
        names = detector.model.config.id2label
        thresholds = {names[label_id]: value for label_id, value in enumerate(detector.thresholds.tolist())}
    moments = list_uncertain(frames, thresholds, detector.actor_threshold)
    write_uncertain(folder, moments, source.name, read_frame if os.path.exists(source.name) else None)


def _write_pictures(folder: Path, source: VideoSource, frames: Sequence[FrameDetections], work: _Work) -> None:
    """Draw into a copy of the video, and stills from it; nothing of what can be seen only once."""
    if not frames:
        return
    label, person = work.arguments.attention, work.arguments.attention_person
    attention = {"attention_label": label, "attention_person": person}
    write_annotated_video(source.name, folder / "annotated.mp4", frames, **attention, damage_is_known=True)
    clearest, actor = _moment_of(label, person, frames)
    note = _note(label, actor, work.detector)
    image = Image.fromarray(read_frame(source.name, clearest.frame_index))
    draw_keyframe(image, clearest, **attention, attention_note=note).save(folder / "preview.png")
    if actor is not None and os.path.isfile(source.name):
        _draw_classes(image, clearest, actor, note, work, source.name).save(folder / "attention.png")


def _moment_of(
    label: str | None, person: int | None, frames: Sequence[FrameDetections]
) -> tuple[FrameDetections, ActorDetection | None]:
    """Choose the frame to show, and where a class is asked for the actor: where its score is highest."""
    places = [
        (actor.attention_scores[label], number, actor)
        for number, frame in enumerate(frames)
        for actor in frame.actors
        if label in actor.attention_scores and person in (None, actor.person_id)
    ]
    if not places:
        return max(frames, key=_clarity), None
    _, number, actor = max(places, key=lambda place: place[0])
    return frames[number], actor


def _note(label: str | None, actor: ActorDetection | None, detector: ClipDetector) -> str:
    """What to write on a picture of the moment in which the score of a class is highest, if that is too low."""
    if label is None:
        return ""
    threshold = detector.thresholds[detector.attention_ids[label]]
    is_found = actor is not None and actor.attention_scores[label] >= threshold
    return "" if is_found or np.isinf(threshold) else f", nowhere above its threshold of {threshold:.2f}"


def _draw_classes(
    image: Image.Image, frame: FrameDetections, actor: ActorDetection, note: str, work: _Work, path: str
) -> Image.Image:
    """Draw where the class asked for and those that were found look for an actor."""
    labels = dict.fromkeys([work.arguments.attention, *(label for label, _ in actor.actions)])
    labels = list(labels)[:_MAX_CLASSES_IN_GRID]
    detector = work.detector
    return draw_attention_grid(
        image, with_attention(path, frame, actor, labels, detector.model, detector.processor), labels, note=note
    )


def _clarity(keyframe: FrameDetections) -> float:
    """Many actors of whom even the weakest action is certain; at a cut, where shots mix, it is near one half."""
    return sum(min(score for _, score in actor.actions) - 0.5 for actor in keyframe.actors)


# Many videos


def _total_seconds(jobs: Sequence[_Job]) -> float | None:
    """Length of all videos, where that is known."""
    total = 0.0
    for job in jobs:
        path = local_path(job.source)
        if path is None or os.path.isdir(path):
            return None
        # One that cannot be read is listed when its turn comes.
        if _why_unreadable(path) is None:
            total += ClipReader().info(path).duration_seconds
    return total


def _join_tables(paths: Sequence[Path], output: Path) -> None:
    """Join csv files of one header."""
    with replacing(output) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as joined:
        for number, path in enumerate(paths):
            with path.open(newline="", encoding="utf-8") as file:
                joined.writelines(itertools.islice(file, min(number, 1), None))


def _table_cells(summary: dict[str, Any]) -> tuple[str, ...]:
    if "error" in summary:
        return "", "", "", f"not read: {summary['error']}"
    actions = list(summary["actions"].items())
    named = ", ".join(f"{label} ({count})" for label, count in actions[:_MAX_NAMED_ACTIONS]) or "nothing found"
    more = and_others(len(actions) - _MAX_NAMED_ACTIONS)
    people = "" if summary["num_people"] is None else str(summary["num_people"])
    left_out = f"; {summary['left_out']}" if "left_out" in summary else ""
    if summary.get("damaged"):
        left_out += f"; the video is damaged, nothing from {', '.join(summary['damaged'][:_MAX_NAMED_ACTIONS])}"
    return f"{summary['video_seconds']:.1f} s", f"{summary['seconds']:.1f} s", people, named + more + left_out
