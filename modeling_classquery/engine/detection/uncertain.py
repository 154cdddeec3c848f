"""Where to look first when detections are corrected: the moments whose scores are nearest to their thresholds."""

import base64
import csv
import html
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from classquery.data.whole_files import replacing
from classquery.engine.detection.drawing import draw_keyframe
from classquery.engine.detection.results import ActorDetection, FrameDetections


UNCERTAIN_FILES = ("uncertain.csv", "uncertain.html")
# What is uncertain of somebody is so for a while: one place for each second is enough to look at.
_SECONDS_APART = 1.0
_MAX_PICTURES = 40
_PICTURE_HEIGHT = 240
_NOBODY = "nobody there"


@dataclass(frozen=True)
class UncertainMoment:
    """What is least certain of somebody in a frame."""

    frame: FrameDetections
    actor: ActorDetection
    label: str
    """The action, or "nobody there" where it is whether that is anybody."""
    score: float
    threshold: float

    @property
    def margin(self) -> float:
        """How much lower the score could be: the smaller, the less certain."""
        return self.score - self.threshold


def list_uncertain(
    frames: Iterable[FrameDetections], thresholds: Mapping[str, float], actor_threshold: float
) -> list[UncertainMoment]:
    """List what is least certain first, of the same person one moment per second.

    Args:
        frames: Results with numbered people.
        thresholds: By class, those with which it was detected; classes that are left out of it are not looked at.
        actor_threshold: That of actors.
    """
    moments = sorted(
        (_least_certain(frame, actor, thresholds, actor_threshold) for frame in frames for actor in frame.actors),
        key=lambda moment: moment.margin,
    )
    listed: list[UncertainMoment] = []
    seconds: dict[int | None, list[float]] = {}
    for moment in moments:
        of_person = seconds.setdefault(moment.actor.person_id, [])
        if all(abs(moment.frame.seconds - other) >= _SECONDS_APART for other in of_person):
            of_person.append(moment.frame.seconds)
            listed.append(moment)
    return listed


def _least_certain(
    frame: FrameDetections, actor: ActorDetection, thresholds: Mapping[str, float], actor_threshold: float
) -> UncertainMoment:
    found = [(_NOBODY, actor.actor_score, actor_threshold)]
    found += [(label, score, thresholds[label]) for label, score in actor.actions if label in thresholds]
    return min((UncertainMoment(frame, actor, *item) for item in found), key=lambda moment: moment.margin)


def write_uncertain(
    folder: str | os.PathLike[str],
    moments: Sequence[UncertainMoment],
    video: str,
    read: Callable[[str, int], np.ndarray] | None = None,
) -> None:
    """Write `uncertain.csv`, and `uncertain.html` whose lines lead to the moments in the video.

    Args:
        folder: Where to.
        moments: The least certain first.
        video: Path or URL of the video.
        read: Reads a frame (height, width, 3) of the video by its number, to show the first moments; None for no
            pictures.
    """
    folder = Path(folder)
    with (
        replacing(folder / "uncertain.csv") as path,
        path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("video", "frame", "seconds", "person_id", "label", "score", "threshold", "link"))
        writer.writerows((video, *_cells(moment), _link(video, moment.frame.seconds)) for moment in moments)
    with replacing(folder / "uncertain.html") as path:
        path.write_text(_page(moments, video, read), encoding="utf-8", errors="backslashreplace")


def _cells(moment: UncertainMoment) -> tuple:
    frame = moment.frame.frame_index, round(moment.frame.seconds, 3)
    return *frame, moment.actor.person_id, moment.label, round(moment.score, 4), round(float(moment.threshold), 4)


def _link(video: str, seconds: float) -> str:
    address = video if "://" in video else Path(os.path.abspath(video)).as_uri()
    # Players take the second of a video from its address.
    return f"{address}#t={seconds:.2f}"


def _page(moments: Sequence[UncertainMoment], video: str, read: Callable[[str, int], np.ndarray] | None) -> str:
    lines = []
    for number, moment in enumerate(moments):
        frame, seconds, person, label, score, threshold = _cells(moment)
        picture = _picture(moment, read(video, frame)) if read is not None and number < _MAX_PICTURES else ""
        link = html.escape(_link(video, moment.frame.seconds))
        lines.append(
            f'<tr><td><a href="{link}">{picture}{seconds:.2f} s, frame {frame}</a></td><td>{person}</td>'
            f"<td>{html.escape(label)}</td><td>{score:.2f}</td><td>{threshold:.2f}</td></tr>"
        )
    return _PAGE.format(title=html.escape(video), lines="\n".join(lines))


def _picture(moment: UncertainMoment, pixels: np.ndarray) -> str:
    """Draw the one person, as a picture within the page."""
    alone = replace(moment.frame, actors=[moment.actor])
    drawn = draw_keyframe(Image.fromarray(pixels), alone)
    drawn.thumbnail((4 * _PICTURE_HEIGHT, _PICTURE_HEIGHT))
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=80)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{encoded}">'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Uncertain moments</title><style>
body {{ font: 15px system-ui, sans-serif; margin: 2em; }}
td, th {{ padding: .4em 1em; text-align: left; border-bottom: 1px solid #ccc; }}
img {{ display: block; max-width: 100%; }}
</style></head><body><h1>Uncertain moments</h1><p>{title}: the least certain first. Numbers of frames count from 0.</p>
<table><tr><th>when</th><th>person</th><th>least certain</th><th>score</th><th>threshold</th></tr>
{lines}
</table></body></html>
"""
