"""Reader of MammAlps: a JSON file for each video, with everybody in every frame.

{"info": {"file_path": "S1/C1/S1_C1_E4_V0016.mp4", "num_frames": 615, "fps": 30.0, "resolution": "1920x1080"},
 "frames": [{"frame_id": 0, "detections": [{"track_id": 1, "bbox": [0, 346, 400, 1078], "segment_id": 1,
             "attributes": {"action": "walking", "action2": "none", "activity": "foraging", "species": "red_deer"}}]}]}

Frames count from 0, boxes are corners in pixels, and nothing has to be interpolated. The classes are `action` and
`action2`, "unknown" among them; `activity`, of the whole group, and `species` are not read. Source: DATASET.md of
eceo-epfl/MammAlps@6fd6ff4.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from classquery.data.annotations.collecting import TubeCollector, as_labels, four_numbers, in_file, reading
from classquery.data.annotations.entries import Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.values import whole_number


_CLASSES = ("action", "action2")


def sniff_mammalps(source: Source) -> bool:
    """Whether it is an object of `info` and `frames` with `detections`."""
    document = source.json
    if not isinstance(document, dict) or not isinstance(document.get("info"), dict):
        return False
    frames = document.get("frames")
    return isinstance(frames, list) and all(isinstance(frame, dict) and "detections" in frame for frame in frames[:1])


def read_mammalps(sources: Sequence[Source], context: Context) -> Content:
    """Read files of one video each."""
    content = Content(box_format="pixel")
    for source in sources:
        with reading(context, source.place()):
            _read(source, context, content)
    content.notes.append("classes: the attributes action and action2")
    return content


def _read(source: Source, context: Context, content: Content) -> None:
    info, frames = source.document["info"], source.document["frames"]
    if info.get("automatically_discarded"):
        # There may be animals all the same.
        content.ignored["videos that were discarded unseen"] += 1
        return
    video = str(info.get("file_path") or info.get("file_id") or source.path.stem)
    names = [video, str(info.get("file_id") or source.path.stem), source.path.stem]
    numbers = []
    tubes = TubeCollector(content)
    for position, frame in enumerate(frames):
        with reading(context, source.place(f"frames[{position}]")):
            numbers.append(whole_number(frame["frame_id"], "frame_id"))
            for detection in frame["detections"]:
                track, labels = detection["track_id"], as_labels(map(_attributes(detection).get, _CLASSES))
                box = four_numbers(detection["bbox"])
                tubes.add(source.place(f"track {track}"), video, in_file(source, track), labels, numbers[-1], box)
    tubes.finish()
    content.videos[video] = VideoClaim(
        names, _size(info.get("resolution")), info.get("fps"), info.get("num_frames"), np.unique(numbers)
    )


def _attributes(detection: Mapping[str, Any]) -> Mapping[str, Any]:
    return detection.get("attributes") or {}


def _size(resolution: Any) -> tuple[int, int] | None:
    sides = re.fullmatch(r"(\d+)\s*[xX]\s*(\d+)", str(resolution))
    return (int(sides[1]), int(sides[2])) if sides else None


MAMMALPS = Format("mammalps", "MammAlps JSON", sniff_mammalps, read_mammalps)
