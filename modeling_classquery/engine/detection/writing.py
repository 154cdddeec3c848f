"""Detections as files: JSON and tables.

| file       | read by                                                                                      |
|------------|----------------------------------------------------------------------------------------------|
| JSON       | programs: the video, its frames with actors and actions, and its people with their timelines |
| csv        | tables, and the reader of one's own annotations, to train on it                              |
| csv of AVA | the reader of AVA, and Datumaro                                                              |
"""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from classquery.data.annotations.ava_writing import ACTION_LIST, write_action_list
from classquery.data.whole_files import replacing, write_json
from classquery.engine.detection.naming import VideoName, name_videos
from classquery.engine.detection.people import Person
from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.engine.detection.video_sources import VideoSource


# Annotations of AVA are for whole seconds; a keyframe so near to one counts as its.
_AVA_TOLERANCE_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """What files say about the video that they belong to."""

    path: str
    frames_per_second: float
    num_frames: int | None
    height: int
    width: int
    duration_seconds: float | None = None
    """From the start of the clock to the end of the last frame, where it is known."""

    @classmethod
    def of(cls, source: VideoSource) -> "VideoFacts":
        """Describe an opened video."""
        size = source.height, source.width
        return cls(source.name, source.frames_per_second, source.num_frames, *size, source.duration_seconds)


def write_detections(
    path: str | os.PathLike[str],
    video: VideoFacts,
    frames: Iterable[FrameDetections],
    people: Sequence[Person] | None = None,
    untrained_classes: Sequence[str] | None = None,
) -> None:
    """Write the detections of a video as JSON; a file that is there is replaced when all is written, or kept.

    The attention is not written; classes that are known by their words only, and were never trained, are named.
    """
    content = {
        "video": video.path,
        "frames_per_second": video.frames_per_second,
        "num_frames": video.num_frames,
        "height": video.height,
        "width": video.width,
        **({"duration_seconds": round(video.duration_seconds, 3)} if video.duration_seconds is not None else {}),
        **({"untrained_classes": list(untrained_classes)} if untrained_classes else {}),
        "keyframes": [frame.to_dict() for frame in frames],
    }
    if people is not None:
        content["people"] = [person.to_dict() for person in people]
    write_json(path, content, indent=2, ensure_ascii=False)


def read_detections(path: str | os.PathLike[str]) -> tuple[VideoFacts, list[FrameDetections]]:
    """Read what `write_detections` wrote."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    video = VideoFacts(
        content["video"],
        content["frames_per_second"],
        content["num_frames"],
        content["height"],
        content["width"],
        content.get("duration_seconds"),
    )
    size = video.height, video.width
    frames = [
        FrameDetections(
            keyframe["frame_index"],
            keyframe["seconds"],
            [_read_actor(actor) for actor in keyframe["actors"]],
            size,
            video.path,
            keyframe.get("num_dropped", 0),
        )
        for keyframe in content["keyframes"]
    ]
    return video, frames


def _read_actor(content: dict) -> ActorDetection:
    actions = [(action["label"], action["score"]) for action in content["actions"]]
    return ActorDetection(tuple(content["box"]), content["actor_score"], actions, person_id=content.get("person_id"))


# Tables


def write_csv(path: str | os.PathLike[str], frames: Iterable[FrameDetections], name: VideoName | None = None) -> None:
    """Write a row for each action of each actor: `video,timestamp,x1,y1,x2,y2,label,track_id,score`.

    `video` is the end of its path that no other has, mostly the name of the file, `timestamp` in seconds after its
    first frame, corners are parts of width and height in [0, 1], and `track_id` is the person, empty where people are
    not numbered: with a score besides, the rows that `classquery.data.annotations.custom` reads.

    Args:
        path: The csv file.
        frames: Detections, of several videos if need be.
        name: What to call the video among others; by default those of the detections are named by themselves.
    """
    frames = list(frames)
    names = _names_of(frames, name)
    with replacing(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("video", "timestamp", "x1", "y1", "x2", "y2", "label", "track_id", "score"))
        for frame in frames:
            for actor in frame.actors:
                place = names[frame.video].file, round(frame.seconds, 4), *_unit_box(actor, frame)
                writer.writerows((*place, label, actor.person_id, round(score, 4)) for label, score in actor.actions)


def _names_of(frames: Sequence[FrameDetections], name: VideoName | None) -> dict[str | None, VideoName]:
    videos = list(dict.fromkeys(frame.video for frame in frames))
    return dict.fromkeys(videos, name) if name else dict(zip(videos, name_videos(videos), strict=True))


def write_timeline(path: str | os.PathLike[str], people: Iterable[Person]) -> None:
    """Write a row for each action of each person: `person_id,label,start_seconds,end_seconds,score`."""
    with replacing(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("person_id", "label", "start_seconds", "end_seconds", "score"))
        writer.writeheader()
        for person in people:
            writer.writerows({"person_id": person.person_id} | segment.to_dict() for segment in person.timeline)


def _unit_box(actor: ActorDetection, frame: FrameDetections) -> tuple[float, ...]:
    height, width = frame.size
    return tuple(round(edge / side, 5) for edge, side in zip(actor.box, (width, height) * 2, strict=True))


# AVA


def write_ava(
    path: str | os.PathLike[str],
    frames: Iterable[FrameDetections],
    label_ids: dict[str, int],
    name: VideoName | None = None,
    *,
    movie_start_seconds: float = 900.0,
) -> None:
    """Write annotations as AVA has them: `video_id,timestamp,x1,y1,x2,y2,action_id,person_id`, without a header.

    AVA has a keyframe per second: of those near to a whole second the nearest is written, and others are left out.
    Detect once or several times per second for it. The names of the classes come along, as `ava_action_list.pbtxt` in
    the same folder, in the syntax of AVA's own list. Where a class is none of AVA's, its type is a movement.

    Args:
        path: The csv file.
        frames: Detections with people.
        label_ids: 0-based number of each class, as in the model; `action_id` is one more.
        name: As for `write_csv`; `video_id` is the name without the suffix, and without folders.
        movie_start_seconds: What to call the start of the video.
    """
    path, frames = Path(path), list(frames)
    names = _names_of(frames, name)
    with replacing(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for (video, second), frame in _at_whole_seconds(frames).items():
            for actor in frame.actors:
                timestamp = f"{round(second + movie_start_seconds):04d}"
                place = names[video].video_id, timestamp, *_unit_box(actor, frame)
                writer.writerows((*place, label_ids[label] + 1, actor.person_id) for label, _ in actor.actions)
    write_action_list(path.with_name(ACTION_LIST), label_ids)


def _at_whole_seconds(frames: Iterable[FrameDetections]) -> dict[tuple[str | None, int], FrameDetections]:
    """By video and second, in the order of the detections."""
    nearest: dict[tuple[str | None, int], FrameDetections] = {}
    for frame in frames:
        second = round(frame.seconds)
        other = nearest.get((frame.video, second))
        is_near = abs(frame.seconds - second) <= _AVA_TOLERANCE_SECONDS
        if is_near and (other is None or abs(frame.seconds - second) < abs(other.seconds - second)):
            nearest[frame.video, second] = frame
    return nearest
