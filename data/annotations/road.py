"""Reader of ROAD and ROAD-Waymo: one JSON file with all videos, every annotated frame and everybody in it.

{"all_action_labels": ["Red", "Mov", ...], "action_labels": ["Mov", ...],
 "db": {"2014-06-25-16-45-34_stereo_centre_02": {"split_ids": ["train_1", ...], "numf": 5888, "frames": {"1": {
     "annotated": 1, "width": 1280, "height": 960, "annos": {"b19111": {"box": [0.1, 0.2, 0.3, 0.4],
     "agent_ids": [0], "action_ids": [1], "tube_uid": "cd4b2ad2-001-01"}}}}}}}

Frames count from 1, boxes are corners as fractions of the frame, and nothing has to be interpolated. `action_ids`
index `all_action_labels`; the classes are those of them that `action_labels` has, too. A frame with `annotated` 0 is
one in which nobody looked. Agents of every kind are read. Source: README.md and plot_annots.py of
gurkirt/road-dataset@25d2ed9.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from classquery.data.annotations.collecting import TubeCollector, four_numbers, reading
from classquery.data.annotations.entries import Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, quote


def sniff_road(source: Source) -> bool:
    """Whether it is an object of `db` and `all_action_labels`."""
    document = source.json
    return isinstance(document, dict) and isinstance(document.get("db"), dict) and "all_action_labels" in document


def read_road(sources: Sequence[Source], context: Context) -> Content:
    """Read the videos of a split, or of the first fold of three where one file has all."""
    content = Content(box_format="normalized")
    for source in sources:
        document = source.document
        classes = dict(enumerate(document["all_action_labels"]))
        kept = set(document.get("action_labels", classes.values()))
        for video, description in document["db"].items():
            with reading(context, source.place(video)):
                if context.splits is None or _is_of(description, context.splits):
                    _read(source, context, content, video, description, classes, kept)
    content.notes.append("classes: action_labels; agents of every kind; duplexes and triplets are not read")
    return content


def _is_of(description: Mapping[str, Any], splits: Sequence[str]) -> bool:
    return bool({f"{split}_1" for split in splits} & set(description.get("split_ids", ())))


def _read(
    source: Source,
    context: Context,
    content: Content,
    video: str,
    description: Mapping[str, Any],
    classes: Mapping[int, str],
    kept: set[str],
) -> None:
    annotated, tubes, size = [], TubeCollector(content), None
    for key, frame in description["frames"].items():
        with reading(context, source.place(f"{video}, frame {key}")):
            if not frame.get("annotated"):
                continue
            annotated.append(int(key) - 1)
            size = (frame["width"], frame["height"]) if "width" in frame and "height" in frame else size
            for anno in frame.get("annos", {}).values():
                actions = anno.get("action_ids") or ()
                unknown = [action for action in actions if action not in classes]
                if unknown:
                    raise AnnotationError(f"all_action_labels has no number {quote(unknown[0])}")
                names = [classes[action] for action in actions]
                for name in names:
                    if name not in kept:
                        content.ignored[f"actions {name!r}, which action_labels leaves out"] += 1
                track = anno.get("tube_uid")
                labels = tuple(sorted({name for name in names if name in kept}))
                tubes.add(
                    source.place(f"{video}, tube {track}"),
                    video,
                    track,
                    labels,
                    annotated[-1],
                    four_numbers(anno["box"]),
                )
    tubes.finish()
    content.videos[video] = VideoClaim(
        size=size, num_frames=description.get("numf"), annotated_frames=np.unique(annotated)
    )


ROAD = Format("road", "ROAD", sniff_road, read_road)
