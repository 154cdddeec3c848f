"""Detections as annotations that people correct in a tool and train on again.

| file                             | tool         | boxes                                                            |
|----------------------------------|--------------|------------------------------------------------------------------|
| `cvat.xml`, `cvat_labels.json`   | CVAT         | as few key frames as leave all boxes within 1 % of the frame     |
| `label_studio.json`              | Label Studio | the same                                                         |
| `via3.json`                      | VIA 3        | at the moments of the detections: it moves none in between       |
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classquery.data.annotations.cvat_writing import LABELS_FILE, write_cvat
from classquery.data.annotations.label_studio import write_label_studio
from classquery.data.annotations.via3 import write_via3
from classquery.engine.detection.naming import VideoName, name_videos
from classquery.engine.detection.people import Person
from classquery.engine.detection.writing import VideoFacts


CORRECTION_FILES = ("cvat.xml", LABELS_FILE, "label_studio.json", "via3.json")
_TOLERANCE = 0.01


def write_for_correction(
    folder: str | os.PathLike[str],
    video: VideoFacts,
    people: Sequence[Person],
    label_ids: Mapping[str, int],
    name: VideoName | None = None,
    *,
    people_only: bool = False,
    tolerance: float = _TOLERANCE,
) -> None:
    """Write `CORRECTION_FILES`.

    Key frames are as few as a tolerance allows, and every one with which somebody starts or stops to do something, so
    that a correction need not be repeated in every frame. Somebody ends with their last detection; while they are not
    detected for a moment, they go on.

    Args:
        folder: Where to.
        video: The video.
        people: The tracks.
        label_ids: 0-based number of each class, as in the model.
        name: What to call the video among others; by default the name of the file.
        people_only: Leave out what they do, for classes that no model knows yet.
        tolerance: How far boxes between key frames may be off, as a part of width and height of the frame.
    """
    folder, name = Path(folder), name or name_videos([video.path])[0]
    names = {} if people_only else {number: label for label, number in label_ids.items()}
    in_every_frame = [annotations_of(video, people, label_ids, name, people_only=people_only)]
    write_cvat(folder / "cvat.xml", in_every_frame, names, tolerance=tolerance)
    write_label_studio(folder / "label_studio.json", in_every_frame, names, tolerance=tolerance)
    moments = annotations_of(video, people, label_ids, name, people_only=people_only, every_frame=False)
    write_via3(folder / "via3.json", [moments], names)


def annotations_of(
    video: VideoFacts,
    people: Iterable[Person],
    label_ids: Mapping[str, int],
    name: VideoName,
    *,
    people_only: bool = False,
    every_frame: bool = True,
) -> dict[str, Any]:
    """Return people as a row with `ACTION_FEATURES`, a tube for each set of actions of somebody.

    Args:
        video, people, label_ids, name, people_only: As for `write_for_correction`.
        every_frame: Whether boxes move and actions go on from one detection to the next; otherwise there are those of
            the detections alone.
    """
    people = list(people)
    last = max((int(person.frame_indices[-1]) for person in people), default=0)
    facts = {"width": video.width, "height": video.height, "fps": video.frames_per_second}
    size = np.array([video.width, video.height] * 2)
    return facts | {
        "clip_id": name.stem,
        "video": name.file,
        # The end of a stream is not known.
        "num_frames": last + 2 if video.num_frames is None else video.num_frames,
        "video_seconds": None,
        "tubes": [
            tube for person in people for tube in _tubes(person, size, None if people_only else label_ids, every_frame)
        ],
    }


def _tubes(
    person: Person, size: np.ndarray, label_ids: Mapping[str, int] | None, every_frame: bool
) -> Iterable[dict[str, Any]]:
    given, boxes = person.frame_indices, person.boxes / size
    frames = np.arange(given[0], given[-1] + 1) if every_frame else given
    boxes = np.stack([np.interp(frames, given, edge) for edge in boxes.T], axis=1)
    last_given = np.searchsorted(given, frames, side="right") - 1
    does = [
        None if label_ids is None else tuple(sorted(label_ids[label] for label, _ in actor.actions))
        for actor in person.actors
    ]
    for labels in dict.fromkeys(does):
        rows = np.array([own == labels for own in does])[last_given]
        yield {
            "track_id": person.person_id,
            "labels": None if labels is None else list(labels),
            "frames": frames[rows],
            "boxes": boxes[rows],
        }
