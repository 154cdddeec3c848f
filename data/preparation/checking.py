"""What is wrong with a data set, said before the first training step: all of it, and what is in it."""

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from tqdm.auto import tqdm

from classquery.data.annotations.registry import load_action_dataset, load_action_labels
from classquery.data.annotations.schema import AnnotationError, AnnotationWarning
from classquery.data.names import SPLITS
from classquery.data.video.frame_folder import count_frames, read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError, iterate_frames


# Clips are chosen by time, and the last frame repeats: a keyframe may lie this much after it.
_KEYFRAME_TOLERANCE_SECONDS = 0.5
# A change of size, as by re-encoding, may round a side by a pixel or two.
_ASPECT_TOLERANCE = 0.02
_TINY_BOX_SIDE = 0.005
_MAX_COMPARED_CLASSES = 300
# "talk" and "walk" are two classes as a rule, unless one is much rarer.
_MUCH_MORE_FREQUENT = 5
_UCF_GROUP = re.compile(r"(?P<group>v_\w+_g\d+)_c\d+$")
_DIGEST_BYTES = 2**16


@dataclass(frozen=True)
class Finding:
    """One kind of problem, with everything that has it."""

    summary: str
    details: list[str]


@dataclass(frozen=True)
class VideoFacts:
    """What a look into one video shows; all but `problem` is None where it cannot be read."""

    problem: str | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    frames_per_second: float | None = None
    """None for folders of frames, which do not tell."""
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    random_access: bool = True
    digest: str | None = None
    """Equal for files with the same content; None for folders of frames."""


@dataclass
class SplitSummary:
    """What is in a split."""

    read_as: str = ""
    """How the annotations were understood, the format in the first line; empty where there is only one way."""
    num_rows: int = 0
    """Keyframes, or videos with tubes."""
    num_videos: int = 0
    num_missing_videos: int = 0
    num_unreadable_videos: int = 0
    num_actors: int = 0
    """People at keyframes, or in videos: tubes of one track are one."""
    num_boxes: int = 0
    hours: float = 0.0
    box_corners: dict[str, list[float]] = field(default_factory=dict)
    """Smallest and largest of x_min, y_min, x_max, y_max, in [0, 1] of the frame."""
    box_sizes: dict[str, list[float]] = field(default_factory=dict)
    """Smallest, median and largest width, height and area, in [0, 1] of the frame."""
    actors_per_class: dict[str, int] = field(default_factory=dict)
    videos_per_frame_rate: dict[str, int] = field(default_factory=dict)
    videos_per_size: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """Result of `check_dataset`."""

    dataset: str
    data_dir: str
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    """With any of these the data are not usable."""
    warnings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The line "usable", or "not usable: " and why."""
        reasons = "; ".join(problem.summary for problem in self.problems)
        return f"not usable: {reasons}" if reasons else "usable"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {**asdict(self), "verdict": self.verdict}

    def add_problem(self, summary: str, details: Sequence[str]) -> None:
        """Add a problem, if anything has it; `{}` in the summary is how many do."""
        if details:
            self.problems.append(Finding(summary.format(len(details)), list(details)))

    def add_warning(self, summary: str, details: Sequence[str]) -> None:
        """Add a warning in the same way."""
        if details:
            self.warnings.append(Finding(summary.format(len(details)), list(details)))


class Video(NamedTuple):
    """A video and what its annotations say of it."""

    name: str
    path: str | None
    source: str | None
    num_frames: int | None
    height: int | None
    width: int | None
    last_seconds: float | None
    """Time of its last keyframe."""
    fps: float | None


def check_dataset(
    name: str,
    data_dir: str | Path,
    *,
    splits: Sequence[str] = SPLITS,
    decode_all: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> tuple[Report, dict[str, Dataset]]:
    """Check the annotations and videos of a data set; nothing that is wrong with them is raised.

    Args:
        name: A name of `load_action_dataset`.
        data_dir: Its folder.
        splits: Which splits.
        decode_all: Whether every frame of every video is decoded, and not only three of each.
        num_workers: Processes that look into the videos; 0 for this one.
        options: Of `load_action_dataset`.

    Returns:
        The report, and the rows of the splits whose annotations could be read.
    """
    report = Report(name, str(data_dir))
    labels = _load_labels(report, name, data_dir)
    rows = {split: loaded for split in splits if (loaded := _load_rows(report, name, data_dir, split, options))}
    videos = {split: list(videos_of(split_rows)) for split, split_rows in rows.items()}
    facts = _look_into(videos, decode_all, num_workers)
    for split, split_rows in rows.items():
        report.splits[split] = _summarize(split_rows, labels, videos[split], facts)
        _compare(report, split, videos[split], facts)
        _check_boxes(report, split, split_rows)
    _check_classes(report)
    _check_leaks(report, videos, facts)
    return report, rows


def videos_of(rows: Dataset) -> Iterator[Video]:
    """Yield every video of some rows once, in their order."""
    columns = {name: rows[name][:] for name in rows.column_names if name not in ("tubes", "timestamp")}
    last_seconds: dict[str, float] = {}
    videos: dict[str, Video] = {}
    for row in zip(*columns.values(), strict=True):
        cells = dict(zip(columns, row, strict=True))
        seconds = cells["video_seconds"]
        name = cells["clip_id"] if seconds is None else cells["clip_id"].rpartition("_")[0]
        if seconds is not None:
            last_seconds[name] = max(seconds, last_seconds.get(name, seconds))
        if name not in videos:
            known = {key: cells[key] for key in ("source", "num_frames", "height", "width", "fps")}
            videos[name] = Video(name, cells["video"], last_seconds=None, **known)
    for name, video in videos.items():
        yield video._replace(last_seconds=last_seconds.get(name))


# Annotations


def _load_labels(report: Report, name: str, data_dir: str | Path) -> dict[int, str]:
    try:
        return load_action_labels(name, data_dir)
    except (AnnotationError, FileNotFoundError) as error:
        report.add_problem("the class names cannot be read", [str(error)])
        return {}


def _load_rows(report: Report, name: str, data_dir: str | Path, split: str, options: dict[str, Any]) -> Dataset | None:
    try:
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always", AnnotationWarning)
            rows = load_action_dataset(name, data_dir, split, require_videos=False, **options)
        doubts = [str(warning.message) for warning in given if issubclass(warning.category, AnnotationWarning)]
        report.add_problem(f"{split}: the annotations may not mean what was read", doubts)
        return rows
    except AnnotationError as error:
        report.add_problem(f"{split}: the annotations are wrong", [str(error)])
    except FileNotFoundError as error:
        report.add_problem(f"{split}: annotations or videos are missing", [str(error)])
    return None


def boxes_and_labels(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return all boxes (num_boxes, 4) and the labels of all actors, one after the other."""
    tubes = rows.data.table.column("tubes").combine_chunks().flatten()
    boxes = tubes.field("boxes").flatten().flatten().to_numpy(zero_copy_only=False)
    return boxes.reshape(-1, 4), tubes.field("labels").flatten().to_numpy(zero_copy_only=False)


def _summarize(
    rows: Dataset, labels: dict[int, str], videos: list[Video], facts: dict[str, VideoFacts]
) -> SplitSummary:
    boxes, actor_labels = boxes_and_labels(rows)
    looks = [facts[video.path] for video in videos if video.path is not None]
    readable = [look for look in looks if look.problem is None]
    sides = np.column_stack([boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)])
    counts = np.bincount(actor_labels, minlength=len(labels))
    rates = Counter(f"{look.frames_per_second:.2f}" for look in readable if look.frames_per_second)
    sizes = Counter(f"{look.width}x{look.height}" for look in readable)
    return SplitSummary(
        read_as=rows.info.description,
        num_rows=len(rows),
        num_videos=len(videos),
        num_missing_videos=len(videos) - len(looks),
        num_unreadable_videos=len(looks) - len(readable),
        num_actors=_count_actors(rows),
        num_boxes=len(boxes),
        hours=sum(look.duration_seconds or 0.0 for look in readable) / 3600,
        box_corners=_ranges(("x_min", "y_min", "x_max", "y_max"), boxes, (0, 1)),
        box_sizes=_ranges(("width", "height", "area"), sides, (0, 0.5, 1)),
        actors_per_class={labels.get(label, f"class {label}"): int(count) for label, count in enumerate(counts)},
        videos_per_frame_rate=dict(rates.most_common()),
        videos_per_size=dict(sizes.most_common()),
    )


def _count_actors(rows: Dataset) -> int:
    tubes = rows.data.table.column("tubes").combine_chunks()
    track = tubes.flatten().field("track_id")
    of_tracks = pa.table({"row": pc.list_parent_indices(tubes), "track": track}).filter(pc.field("track").is_valid())
    return track.null_count + of_tracks.group_by(["row", "track"]).aggregate([]).num_rows


def _ranges(names: Sequence[str], columns: np.ndarray, quantiles: Sequence[float]) -> dict[str, list[float]]:
    if not len(columns):
        return {}
    values = np.quantile(columns, quantiles, axis=0).T.round(4).tolist()
    return dict(zip(names, values, strict=True))


def _check_boxes(report: Report, split: str, rows: Dataset) -> None:
    boxes, _ = boxes_and_labels(rows)
    num_tiny = int(((boxes[:, 2:] - boxes[:, :2]).min(axis=1) < _TINY_BOX_SIDE).sum()) if len(boxes) else 0
    if num_tiny:
        text = f"{num_tiny} of {len(boxes)} boxes have a side below {_TINY_BOX_SIDE:.1%} of the frame"
        report.add_warning(f"{split}: tiny boxes", [text])
    if not len(rows):
        report.add_problem(f"{split}: nothing is annotated", ["the annotations hold no rows"])


def _check_classes(report: Report) -> None:
    if not set(SPLITS) <= report.splits.keys():
        return
    train, validation = (report.splits[split].actors_per_class for split in SPLITS)
    missing = [label for label, count in train.items() if count == 0]
    report.add_warning("classes without an example in train: {}", missing)
    unseen = [label for label in missing if validation.get(label)]
    report.add_warning("classes of validation that are not in train: {}", unseen)
    total = {label: count + validation.get(label, 0) for label, count in train.items()}
    rare = [label for label, count in total.items() if count == 1]
    report.add_warning("classes with one example: {}; are they meant?", rare)
    report.add_warning("classes spelled nearly alike: {}; are they one?", _near_in_spelling(total))


def _near_in_spelling(counts: dict[str, int]) -> list[str]:
    """Pair classes with a more frequent one that is written nearly alike."""
    kept = [label for label, count in counts.items() if count][:_MAX_COMPARED_CLASSES]
    pairs = []
    for label in kept:
        near = [
            other for other in kept if other != label and _may_be_meant(label, counts[label], other, counts[other])
        ]
        if near:
            other = max(near, key=lambda other: counts[other])
            pairs.append(f"{label!r} ({counts[label]:,}) and {other!r} ({counts[other]:,})")
    return pairs


def _may_be_meant(label: str, count: int, other: str, other_count: int) -> bool:
    """Whether a class may be another one: but for capitals, spaces or an ending, or rare and with a slip of a key."""
    words = [re.sub(r"[\W_]+", "", name.casefold()) for name in (label, other)]
    stems = [re.sub(r"(?<=...)(ing|ed|es|s)$", "", word) for word in words]
    if stems[0] == stems[1]:
        return (count, label) < (other_count, other)
    slips = 0 if len(words[0]) < 4 else 1 if len(words[0]) < 9 else 2
    return count * _MUCH_MORE_FREQUENT <= other_count and _num_slips(*words, slips) <= slips


def _num_slips(word: str, other: str, limit: int) -> int:
    """Count letters that are wrong, missing, too many or swapped with the next one; more than the limit is enough."""
    if abs(len(word) - len(other)) > limit:
        return limit + 1
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(word, start=1):
        row = [i]
        for j, wanted in enumerate(other, start=1):
            row.append(min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and word[i - 2] == wanted:
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


# Videos


def _look_into(videos: dict[str, list[Video]], decode_all: bool, num_workers: int) -> dict[str, VideoFacts]:
    """Look into every video once; the keys are paths."""
    jobs = {video.path: (video, decode_all) for split in videos.values() for video in split if video.path is not None}
    with tqdm(total=len(jobs), desc="Reading videos", unit="video") as progress:
        looks = {}
        for path, look in zip(jobs, map_in_processes(look_into, list(jobs.values()), num_workers), strict=True):
            looks[path] = look
            progress.update()
    return looks


def map_in_processes(function: Any, jobs: Sequence[Any], num_workers: int) -> Iterator[Any]:
    """Call a function of a module with each job, in their order, in so many processes; 0 for this one."""
    if num_workers == 0:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(min(num_workers, len(jobs)) or 1, mp_context=process_context()) as processes:
        yield from processes.map(function, jobs)


def process_context() -> BaseContext:
    """Processes are not forked from this one, whose libraries have threads; where possible they share one import."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def look_into(job: tuple[Video, bool]) -> VideoFacts:
    """Decode three frames of a video, or all."""
    video, decode_all = job
    try:
        return _look_into_frames(video, decode_all) if video.source == "frames" else _look_into_file(video, decode_all)
    except VideoReadError as error:
        return VideoFacts(problem=str(error))


def _look_into_file(video: Video, decode_all: bool) -> VideoFacts:
    reader = ClipReader()
    info = reader.info(video.path)
    if decode_all:
        for _ in iterate_frames(video.path):
            pass
    else:
        reader.read(video.path, _three_frames(info.num_frames))
    facts = {name: getattr(info, name) for name in ("num_frames", "height", "width", "frames_per_second")}
    return VideoFacts(
        start_seconds=info.start_seconds,
        duration_seconds=info.duration_seconds,
        random_access=info.random_access,
        digest=digest_of(Path(video.path)),
        **facts,
    )


def _look_into_frames(video: Video, decode_all: bool) -> VideoFacts:
    num_frames = count_frames(video.path)
    frame_indices = range(num_frames) if decode_all else _three_frames(num_frames)
    sizes = {read_frame_folder(video.path, [index]).shape[1:3] for index in frame_indices}
    if len(sizes) > 1:
        raise VideoReadError(f"cannot read {video.path}: its images differ in (height, width): {sorted(sizes)}")
    height, width = sizes.pop()
    duration = num_frames / video.fps if video.fps else None
    return VideoFacts(num_frames=num_frames, height=height, width=width, duration_seconds=duration)


def _three_frames(num_frames: int) -> list[int]:
    return sorted({0, num_frames // 2, num_frames - 1})


def digest_of(path: Path) -> str:
    """Return what tells files apart without reading all of them: their length and their two ends."""
    with path.open("rb") as file:
        ends = file.read(_DIGEST_BYTES)
        file.seek(max(0, path.stat().st_size - _DIGEST_BYTES))
        return f"{path.stat().st_size}-{hashlib.sha256(ends + file.read()).hexdigest()}"


def _compare(report: Report, split: str, videos: list[Video], facts: dict[str, VideoFacts]) -> None:
    """Compare the videos of a split with what the annotations say of them."""
    report.add_problem(f"{split}, missing videos: {{}}", [video.name for video in videos if video.path is None])
    present = [(video, facts[video.path]) for video in videos if video.path is not None]
    report.add_problem(
        f"{split}, videos that cannot be read: {{}}", [look.problem for _, look in present if look.problem]
    )
    readable = [(video, look) for video, look in present if look.problem is None]
    _compare_lengths(report, split, readable)
    _compare_pictures(report, split, readable)


def _compare_lengths(report: Report, split: str, readable: list[tuple[Video, VideoFacts]]) -> None:
    counts = [(video.name, video.num_frames, look.num_frames) for video, look in readable if video.num_frames]
    message = "{}: {} frames are annotated, the video has {}"
    report.add_problem(
        f"{split}, videos with fewer frames than annotated: {{}}",
        [message.format(*count) for count in counts if count[1] > count[2]],
    )
    report.add_warning(
        f"{split}, videos with more frames than annotated: {{}}",
        [message.format(*count) for count in counts if count[1] < count[2]],
    )
    report.add_problem(
        f"{split}, videos that end before their last keyframe: {{}}",
        [
            f"{video.name}: a keyframe at {video.last_seconds:g} s, the video has {look.duration_seconds:.1f} s "
            "(does movie_start_seconds or timestamp_offset fit?)"
            for video, look in readable
            if _ends_early(video, look)
        ],
    )


def _compare_pictures(report: Report, split: str, readable: list[tuple[Video, VideoFacts]]) -> None:
    report.add_problem(
        f"{split}, videos of another aspect than annotated: {{}}",
        [
            f"{video.name}: {video.width}x{video.height} is annotated, the video has {look.width}x{look.height}"
            for video, look in readable
            if video.height and abs(video.width * look.height / (video.height * look.width) - 1) > _ASPECT_TOLERANCE
        ],
    )
    report.add_warning(
        f"{split}, videos whose pictures start later than the file, so that second 0 of the file, of players and of "
        "frames extracted by `ffmpeg -r` is not the first picture, and frames or annotations that count from that one "
        "are off: {}",
        [f"{video.name}: by {look.start_seconds:.3f} s" for video, look in readable if _starts_late(look)],
    )
    report.add_warning(
        f"{split}, videos without random access, whose clips are all decoded from the first frame on "
        "(`python -m classquery.data prepare` makes that quick): {}",
        [video.name for video, look in readable if not look.random_access],
    )


def _starts_late(look: VideoFacts) -> bool:
    """Whether counting frames from the first picture is off by more than half a frame from the clock of the file."""
    return look.frames_per_second is not None and look.start_seconds * look.frames_per_second > 0.5


def _ends_early(video: Video, look: VideoFacts) -> bool:
    if video.last_seconds is None or look.duration_seconds is None:
        return False
    return video.last_seconds > look.duration_seconds + _KEYFRAME_TOLERANCE_SECONDS


# Leaks


def _check_leaks(report: Report, videos: dict[str, list[Video]], facts: dict[str, VideoFacts]) -> None:
    if not set(SPLITS) <= videos.keys():
        return
    train, validation = (videos[split] for split in SPLITS)
    same = {name for name, _ in {video[:2] for video in train} & {video[:2] for video in validation}}
    report.add_problem("videos in train and validation: {}", sorted(same))
    groups = {_group(video.name) for video in train} & {_group(video.name) for video in validation} - {None}
    shared = [group for group in groups if not any(_group(name) == group for name in same)]
    report.add_problem("groups of UCF101 (clips of one recording) in train and validation: {}", sorted(shared))
    report.add_problem(
        "files of validation with the content of one of train: {}", sorted(_same_content(train, validation, facts))
    )


def _group(name: str) -> str | None:
    match = _UCF_GROUP.search(name)
    return match["group"] if match else None


def _same_content(train: list[Video], validation: list[Video], facts: dict[str, VideoFacts]) -> Iterator[str]:
    twins_of = defaultdict(list)
    for video in train:
        digest = facts[video.path].digest if video.path else None
        if digest:
            twins_of[digest].append(video)
    for video in validation:
        digest = facts[video.path].digest if video.path else None
        twins = [twin.name for twin in twins_of.get(digest, []) if twin.path != video.path]
        if twins:
            yield f"{video.name} = {twins[0]}"
