"""Who does what from when to when: detections of a video linked to people, and the timeline of each."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.linking_classquery import link_greedily


# Shorter silence is rather a miss of the detector than somebody who stops and starts again.
_MIN_GAP_SECONDS = 1.0


@dataclass(frozen=True)
class ActionSegment:
    """An action of a person from its start to its end."""

    label: str
    start_seconds: float
    end_seconds: float
    score: float
    """Mean score in [0, 1] over the frames in which it was detected."""

    def to_dict(self) -> dict:
        """Return what JSON can hold."""
        return {
            "label": self.label,
            "start_seconds": round(self.start_seconds, 3),
            "end_seconds": round(self.end_seconds, 3),
            "score": round(self.score, 4),
        }


class _Moment(NamedTuple):
    """An action in a single frame, and the time that this stands for."""

    start_seconds: float
    end_seconds: float
    score: float


@dataclass(frozen=True)
class Person:
    """Somebody through a video: the tube of their boxes, and what they do."""

    person_id: int
    """From 1, in the order in which people appear."""
    frame_indices: np.ndarray
    """int64 (n,), ascending: the frames in which they were detected."""
    seconds: np.ndarray
    """float64 (n,): times of these frames."""
    actors: list[ActorDetection]
    """What was detected in them."""
    timeline: list[ActionSegment]
    """Their actions by start; several may go on at a time."""

    @property
    def boxes(self) -> np.ndarray:
        """float32 (n, 4): (x_min, y_min, x_max, y_max) in pixels of the original frames."""
        return np.array([actor.box for actor in self.actors], dtype=np.float32).reshape(-1, 4)

    def to_dict(self) -> dict:
        """Return what JSON can hold, without the boxes, which are with the frames."""
        return {
            "person_id": self.person_id,
            "start_seconds": round(min(segment.start_seconds for segment in self.timeline), 3),
            "end_seconds": round(max(segment.end_seconds for segment in self.timeline), 3),
            "num_detections": len(self.actors),
            "timeline": [segment.to_dict() for segment in self.timeline],
        }


def link_people(
    frames: Sequence[FrameDetections], *, iou_threshold: float = 0.3, max_gap_seconds: float | None = None
) -> list[FrameDetections]:
    """Number the people in the detections of one video.

    Boxes are linked greedily, by overlap (`classquery.data.metrics.link_greedily`). People who move by more than half
    of their width from one keyframe to the next become others: raise `keyframes_per_second` then.

    Args:
        frames: All results of a video in their order.
        iou_threshold: Smallest IoU in (0, 1] of the boxes of a person in frames that follow each other.
        max_gap_seconds: How long a person may stay undetected; by default one second, and at least one keyframe.

    Returns:
        The same results with `person_id`, from 1 in the order in which people appear.
    """
    gap = _default_gap(frames) if max_gap_seconds is None else max_gap_seconds
    actors = [actor for frame in frames for actor in frame.actors]
    # Times, in milliseconds, are the frames of the linking: dropped frames are gaps, too, and rates may vary.
    milliseconds = [round(1000 * frame.seconds) for frame in frames for _ in frame.actors]
    tubes = link_greedily(
        np.array(milliseconds, dtype=np.int64),
        [actor.box for actor in actors],
        [actor.actor_score for actor in actors],
        iou_threshold=iou_threshold,
        max_gap=round(1000 * (gap + _typical_interval(frames))),
        prefer="overlap",
    )
    person_ids = {row: person_id for person_id, tube in enumerate(tubes, start=1) for row in tube["rows"].tolist()}
    numbered = iter(dataclasses.replace(actor, person_id=person_ids[row]) for row, actor in enumerate(actors))
    return [dataclasses.replace(frame, actors=list(itertools.islice(numbered, len(frame.actors)))) for frame in frames]


def list_people(
    frames: Sequence[FrameDetections], *, max_gap_seconds: float | None = None, end_seconds: float | None = None
) -> list[Person]:
    """Collect the people of a video and what each does from when to when.

    A detection counts for the time that is nearer to its frame than to other frames with results.

    Args:
        frames: What `link_people` returns.
        max_gap_seconds: An action that is not detected for so long goes on; by default one second, and at least one
            keyframe.
        end_seconds: When the video ends, if that is known.

    Raises:
        ValueError: If people are not numbered.
    """
    if any(actor.person_id is None for frame in frames for actor in frame.actors):
        raise ValueError("people have no numbers yet: list_people(link_people(frames))")
    gap = _default_gap(frames) if max_gap_seconds is None else max_gap_seconds
    spans = _spans(frames, end_seconds)
    found: dict[int, list[tuple[int, ActorDetection]]] = {}
    for position, frame in enumerate(frames):
        for actor in frame.actors:
            found.setdefault(actor.person_id, []).append((position, actor))
    return [
        Person(
            person_id,
            np.array([frames[position].frame_index for position, _ in detections]),
            np.array([frames[position].seconds for position, _ in detections]),
            [actor for _, actor in detections],
            _timeline(detections, spans, gap),
        )
        for person_id, detections in sorted(found.items())
    ]


def _default_gap(frames: Sequence[FrameDetections]) -> float:
    # A little more than one interval: keyframes are only about regular.
    return max(_MIN_GAP_SECONDS, 1.25 * _typical_interval(frames))


def _typical_interval(frames: Sequence[FrameDetections]) -> float:
    intervals = np.diff([frame.seconds for frame in frames])
    return float(np.median(intervals)) if len(intervals) else 0.0


def _spans(frames: Sequence[FrameDetections], end_seconds: float | None) -> list[tuple[float, float]]:
    """Divide the time of a video among the frames with results."""
    if not frames:
        return []
    seconds = [frame.seconds for frame in frames]
    end = seconds[-1] + _typical_interval(frames) / 2 if end_seconds is None else max(end_seconds, seconds[-1])
    bounds = [seconds[0], *((one + other) / 2 for one, other in itertools.pairwise(seconds)), end]
    return list(itertools.pairwise(bounds))


def _timeline(
    detections: Sequence[tuple[int, ActorDetection]], spans: Sequence[tuple[float, float]], gap: float
) -> list[ActionSegment]:
    """Join the detections of each action where no longer gap is between them."""
    runs: dict[str, list[list[_Moment]]] = {}
    for position, actor in detections:
        for label, score in actor.actions:
            moment = _Moment(*spans[position], score)
            runs_of_label = runs.setdefault(label, [[moment]])
            last_moment = runs_of_label[-1][-1]
            if moment.start_seconds - last_moment.end_seconds > gap:
                runs_of_label.append([moment])
            elif moment is not last_moment:
                runs_of_label[-1].append(moment)
    segments = [
        ActionSegment(
            label, run[0].start_seconds, run[-1].end_seconds, float(np.mean([moment.score for moment in run]))
        )
        for label, runs_of_label in runs.items()
        for run in runs_of_label
    ]
    return sorted(segments, key=lambda segment: (segment.start_seconds, segment.label))
