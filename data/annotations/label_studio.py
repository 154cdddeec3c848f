"""Reader of Label Studio: the JSON export of tasks whose videos have rectangles that move.

[{"data": {"video": "/data/upload/3/0f1e2d3c-clip_a.mp4"}, "annotations": [{"result": [{"id": "k3Jx9aQw1Z",
  "type": "videorectangle", "value": {"framesCount": 120, "duration": 4.0, "labels": ["walk"], "sequence": [
      {"frame": 1, "enabled": true, "rotation": 0, "x": 10.0, "y": 20.0, "width": 20.0, "height": 50.0}]}}]}]}]

Frames count from 1; one 0 in a file means that it was written by a tool that counts from 0. x, y, width and height
are percent of the frame, rotation is clockwise degrees about the top left corner, and the box is what encloses it.
Between two entries the box moves in a straight line if the first one is `enabled`; every entry has a box itself, also
a disabled one; an enabled last one holds to the end (`framesCount`). `time` is one frame late and not read.
`interpolate_key_frames=true` writes the same frames out, with `auto`. A region is somebody by itself, unless its note
says "person 3" or "track 3". The class is a choice per region if there are any, or else the label. Source:
VideoRegion.js and VideoRectangleRegion.js of the editor and extract_key_frames of label-studio-sdk, which agree.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classquery.data.annotations.collecting import (
    MAX_FRAME,
    NO_ACTION,
    as_labels,
    as_track,
    in_file,
    look_at_video,
    note_once,
    reading,
    video_names,
)
from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.key_frames import choose_key_frames
from classquery.data.annotations.schema import VIDEO_SUFFIXES, AnnotationError
from classquery.data.annotations.values import number, whole_number
from classquery.data.annotations.writing import WrittenTrack, WrittenVideo, runs_of, tracks_of, videos_of
from classquery.data.video.index import VideoInfo
from classquery.data.whole_files import write_json


_GEOMETRY = ("x", "y", "width", "height", "rotation")
_RATE_TOLERANCE = 0.01
_NOTE = re.compile(r"(?:person|track) (\S+)")
_CHOICES = ("choices", "taxonomy")  # Kinds of results, and the names of what they hold.


def sniff_label_studio(source: Source) -> bool:
    """Whether it is a list of tasks with `data` and annotations."""
    tasks = _tasks(source.json)
    return bool(tasks) and all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) and _annotations_key(task) for task in tasks[:1]
    )


def _full(task: Any) -> Any:
    """Return a task as the full export has it; that of JSON_MIN has the values of its results under their names."""
    if not isinstance(task, dict) or "data" in task:
        return task
    results = [
        {"id": f"{task.get('annotation_id', task.get('id'))} {name} {place}", "type": "videorectangle", "value": value}
        for name, values in task.items()
        for place, value in enumerate(values if isinstance(values, list) else ())
        if isinstance(value, dict) and "sequence" in value
    ]
    return {"id": task.get("id"), "data": task, "annotations": [{"result": results}]} if results else task


def _tasks(document: Any) -> list[Any]:
    return [_full(task) for task in (document if isinstance(document, list) else [document])]


def _annotations_key(task: Mapping[str, Any]) -> str | None:
    return next((key for key in ("annotations", "completions") if isinstance(task.get(key), list)), None)


def read_label_studio(sources: Sequence[Source], context: Context) -> Content:
    """Read all tasks that somebody annotated."""
    content = Content(box_format="normalized")
    for source in sources:
        tasks = _tasks(source.document)
        first = 0 if _counts_from_zero(tasks) else 1
        if not first:
            content.notes.append(f"{source.place()}: frames count from 0, as there is a frame 0")
        uses_choices = any(_chosen(results) for results in _results_of(tasks))
        note_once(content, f"classes are the {'choices per region' if uses_choices else 'labels of the rectangles'}")
        for position, task in enumerate(tasks):
            with reading(context, source.place(f"task {task.get('id', position)}")):
                _read_task(source, context, content, task, first, uses_choices)
    return content


def _counts_from_zero(tasks: Iterable[Mapping[str, Any]]) -> bool:
    return any(
        entry.get("frame") == 0
        for results in _results_of(tasks)
        for result in results
        if result.get("type") == "videorectangle"
        for entry in result["value"]["sequence"]
    )


def _results_of(tasks: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield the results of each annotation."""
    for task in tasks:
        for annotation in task.get(_annotations_key(task) or "") or ():
            yield annotation.get("result") or ()


def _chosen(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the choices for single regions; those of the whole video have an id of their own."""
    regions = {result.get("id") for result in results if result.get("type") == "videorectangle"}
    return [result for result in results if result.get("type") in _CHOICES and result.get("id") in regions]


def _read_task(
    source: Source, context: Context, content: Content, task: Mapping[str, Any], first: int, uses_choices: bool
) -> None:
    task_name = f"task {task.get('id')}"
    annotation = _choose_annotation(task, content)
    if annotation is None:
        return
    video = _video_of(task)
    names = video_names(video) + video_names(task.get("file_upload") or video)
    content.videos.setdefault(video, VideoClaim(names))
    results = annotation.get("result") or ()
    rectangles = [result for result in results if result.get("type") == "videorectangle"]
    chosen = _chosen(results)
    choices, given = _choices(chosen), _labels_of(rectangles, results)
    are_read = set(map(id, [*rectangles, *chosen]))
    # Labels that are told from the region itself.
    are_read |= {id(result) for result in results if result.get("type") == "labels" and result.get("id") in given}
    content.ignored += Counter(
        f"results of type {result.get('type')}" for result in results if id(result) not in are_read
    )
    info, rates = look_at_video(context, names), set()
    for region in rectangles:
        place = source.place(f"{task_name}, region {region['id']}")
        with reading(context, place):
            value = region["value"]
            if not value["sequence"]:
                content.ignored["regions without a box"] += 1
                continue
            labels = choices.get(region["id"]) if uses_choices else as_labels(given[region["id"]])
            if _has_another_rate(value, info):
                rates.add(f"{_rate(value):.4g}")
            frames, boxes = _boxes(value, first, info)
            content.entries.append(
                Entry(place, video, boxes, labels, frames, track_id=in_file(source, _track(region)))
            )
    if rates:
        content.warnings.append(
            f"{source.place(task_name)}: was annotated in {', '.join(sorted(rates))} frames per second, and the video "
            f"has {info.frames_per_second:.4g}: boxes are taken over by time; give <Video> its frameRate next time"
        )


def _track(region: Mapping[str, Any]) -> int | str:
    """Return who it is: what the note of a region says, or else the region itself."""
    notes = (region.get("meta") or {}).get("text") or ()
    named = [match[1] for match in map(_NOTE.fullmatch, [notes] if isinstance(notes, str) else notes) if match]
    return as_track(named[0]) if named else str(region["id"])


def _choose_annotation(task: Mapping[str, Any], content: Content) -> Mapping[str, Any] | None:
    """Return the ground truth of a task, or what was annotated last; the others are other people's of the same."""
    given = [item for item in task[_annotations_key(task)] if not item.get("was_cancelled")]
    content.ignored["annotations that were cancelled"] += len(task[_annotations_key(task)]) - len(given)
    content.ignored["tasks that nobody annotated"] += not given
    content.ignored["further annotations of the same task"] += max(len(given) - 1, 0)
    content.ignored["predictions"] += len(task.get("predictions") or ())
    content.ignored = +content.ignored
    # `max` takes the first of equals.
    return max(given, key=lambda item: (bool(item.get("ground_truth")), str(item.get("updated_at", ""))), default=None)


def _video_of(task: Mapping[str, Any]) -> str:
    texts = {name: value for name, value in task["data"].items() if isinstance(value, str)}
    videos = [value for value in texts.values() if any(suffix in value.lower() for suffix in VIDEO_SUFFIXES)]
    video = texts.get("video") or next(iter((*videos, *texts.values())), None) or task.get("file_upload")
    if not isinstance(video, str):
        raise AnnotationError("its data must name a video")
    return video


def _choices(results: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...] | None]:
    """Return what was chosen for single regions, by region: of a taxonomy, the last part of each path."""
    chosen: dict[str, list[Any]] = defaultdict(list)
    for result in results:
        values = result["value"][result["type"]]
        chosen[result["id"]] += [value[-1] if isinstance(value, list) else value for value in values]
    return {region: as_labels(values) for region, values in chosen.items()}


def _labels_of(
    rectangles: Iterable[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[Any, ...]]:
    """Return the labels of each region: its own, and those of results of the same id."""
    labels = {region["id"]: tuple(region["value"].get("labels") or ()) for region in rectangles}
    for result in results:
        if result.get("type") == "labels" and result.get("id") in labels:
            labels[result["id"]] += tuple(result["value"]["labels"])
    return labels


# Boxes


def _boxes(value: Mapping[str, Any], first: int, video: VideoInfo | None) -> tuple[np.ndarray, np.ndarray]:
    """Return 0-based frames (n,) and corners (n, 4) in fractions of the frame.

    Args:
        value: Of a region.
        first: The number of the first frame.
        video: Where it is there: its shape is that of rotated boxes, and its end that of boxes that hold on.
    """
    given, geometry, enabled = _entries(value, first)
    ratio = _rate(value) / video.frames_per_second if _has_another_rate(value, video) else 1.0
    own_frames = np.rint(given / ratio).astype(np.int64)
    if video is not None and own_frames[-1] >= video.num_frames:
        raise AnnotationError(f"its last entry, frame {given[-1] + first}, is behind the end of the video")
    end = own_frames[-1] + 1
    count = value.get("framesCount") or (video.num_frames * ratio if video else 0)
    if enabled[-1] and count:
        held = round(min(number(count, "framesCount"), MAX_FRAME) / ratio)
        # Players round the count, and what holds on ends with the video.
        end = max(end, min(held, video.num_frames) if video else held)
    frames = np.arange(own_frames[0], end)
    positions = np.maximum(frames * ratio, given[0])
    before = np.searchsorted(given, positions + 1e-6, side="right") - 1
    behind = np.minimum(before + 1, len(given) - 1)
    share = (positions - given[before]) / np.maximum(given[behind] - given[before], 1)
    moved = geometry[before] + share[:, None] * (geometry[behind] - geometry[before])
    is_there = enabled[before] | np.isin(frames, own_frames)
    return frames[is_there], _corners(moved[is_there], (video.width, video.height) if video else None)


def _entries(value: Mapping[str, Any], first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the frames of the entries, counted from 0, their geometry (n, 5), and which are enabled."""
    entries = {whole_number(entry["frame"], "frame") - first: entry for entry in value["sequence"]}
    if not entries or min(entries) < 0 or max(entries) > MAX_FRAME:
        raise AnnotationError("a sequence needs at least one entry, and frames count from 1")
    given = sorted(entries)
    geometry = [[number(entries[frame].get(name, 0), name) for name in _GEOMETRY] for frame in given]
    enabled = [entries[frame].get("enabled", True) is not False for frame in given]
    return np.array(given), np.array(geometry), np.array(enabled)


def _rate(value: Mapping[str, Any]) -> float | None:
    """Return the frames per second that the player counted in."""
    if not value.get("framesCount") or not value.get("duration"):
        return None
    rate = number(value["framesCount"], "framesCount") / number(value["duration"], "duration")
    return rate if rate > 0 else None


def _has_another_rate(value: Mapping[str, Any], video: VideoInfo | None) -> bool:
    """Whether frames are those of the player, which counts 24 a second unless told otherwise, and not the video's."""
    rate = _rate(value)
    if rate is None or video is None or abs(value["framesCount"] - video.num_frames) <= 1:
        return False
    return abs(rate / video.frames_per_second - 1) > _RATE_TOLERANCE


def _corners(geometry: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Return the corners (n, 4) that enclose rectangles (n, 5) in percent and degrees, in fractions of the frame."""
    left, top, width, height = geometry[:, :4].T / 100
    if not geometry[:, 4].any():
        return np.stack([left, top, left + width, top + height], axis=1)
    if size is None:
        raise AnnotationError("it is rotated, which takes the shape of the frame: put its video into videos/")
    aspect = size[0] / size[1]
    sine, cosine = np.sin(np.radians(geometry[:, 4])), np.cos(np.radians(geometry[:, 4]))
    across, down = np.stack([0 * width, width, 0 * width, width]), np.stack([0 * height, 0 * height, height, height])
    x, y = left + across * cosine - down * sine / aspect, top + across * sine * aspect + down * cosine
    return np.clip(np.stack([x.min(0), y.min(0), x.max(0), y.max(0)], axis=1), 0, 1)


# Writing


def write_label_studio(
    path: str | Path, rows: Iterable[Mapping[str, Any]], names: Mapping[int, str], *, tolerance: float = 1e-6
) -> None:
    """Write rows as tasks with annotations, which Label Studio imports and `read_label_studio` reads to the same rows.

    A region has one set of labels from its beginning to its end; what else the same person does is a region with the
    same note, "person 3". The labelling interface needs `<VideoRectangle>` and `<Labels>` with all classes.

    Args:
        path: The JSON file.
        rows: With `ACTION_FEATURES`, of videos that are there; moments become single frames.
        names: Of the classes, by 0-based id.
        tolerance: How far boxes may be from their place, in parts of the frame, for fewer key frames.

    Raises:
        ValueError: If a video is missing.
    """
    tasks = [
        {
            "id": number,
            "data": {"video": video.name},
            "annotations": [{"id": number, "result": list(_written_regions(video, tolerance))}],
        }
        for number, video in enumerate(videos_of(rows, names), start=1)
    ]
    write_json(path, tasks, ensure_ascii=False)


def _written_regions(video: WrittenVideo, tolerance: float) -> Iterator[dict[str, Any]]:
    for who, track in enumerate(tracks_of([*video.tubes, *video.ignored])):
        for what, labels in enumerate(dict.fromkeys(track.labels)):
            yield _region(f"region{who:04d}_{what}", track, labels, video, tolerance)


def _region(
    name: str, track: WrittenTrack, labels: tuple[str, ...] | None, video: WrittenVideo, tolerance: float
) -> dict[str, Any]:
    """Return one person while they do the same."""
    does = np.array([own == labels for own in track.labels])
    frames, boxes = track.frames[does], track.boxes[does]
    sequence = []
    for run in runs_of(frames):
        chosen = choose_key_frames(frames[run], boxes[run], [labels] * len(frames[run]), np.full(4, tolerance))
        keys = [run.start + key for key in chosen]
        # The last entry of a run shows itself and ends it.
        sequence += [_sequence_entry(frames[key], boxes[key], video.fps, key != keys[-1]) for key in keys]
    # Saying that somebody does nothing that is a class is more than saying nothing.
    said = {} if labels is None else {"labels": list(labels) or [NO_ACTION[1]]}
    note = {} if track.track_id is None else {"meta": {"text": [f"person {track.track_id}"]}}
    return {
        "id": name,
        "type": "videorectangle",
        "from_name": "box",
        "to_name": "video",
        "origin": "manual",
        "value": {
            "framesCount": video.num_frames,
            "duration": video.num_frames / video.fps,
            "sequence": sequence,
        }
        | said,
    } | note


def _sequence_entry(frame: int, box: np.ndarray, fps: float, enabled: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = (box * 100).tolist()
    number_of_frame = int(frame) + 1
    return {
        "frame": number_of_frame,
        "enabled": enabled,
        "rotation": 0,
        "x": x1,
        "y": y1,
        "width": x2 - x1,
        "height": y2 - y1,
        "time": number_of_frame / fps,  # One frame late, as the editor writes it.
    }


LABEL_STUDIO = Format(
    "label_studio", "Label Studio video JSON", sniff_label_studio, read_label_studio, write=write_label_studio
)
