"""Reader of a FiftyOne data set of videos, as `dataset.export(dataset_type=fiftyone.types.FiftyOneDataset)` writes it.

metadata.json    the data set
samples.json     {"samples": [{"_id": {"$oid": "..."}, "filepath": "data/clip_a.mp4", "metadata": {...}}]}
frames.json      {"frames": [{"frame_number": 1, "_sample_id": {"$oid": "..."}, "ground_truth": {"_cls": "Detections",
                     "detections": [{"label": "walk", "bounding_box": [0.1, 0.2, 0.2, 0.6], "index": 1}]}}]}
data/            the videos

With `use_dirs=True`, every sample and every frame is a file of its own, `samples/<id>.json` and `frames/<id>.json`.
Frames count from 1, boxes are x, y, width and height as fractions of the frame, and nothing is interpolated. `index`
says who it is. A detection that has an attribute named like an action does that; others do what their label says.
Source: utils/data/exporters.py and core/frame_utils.py of fiftyone 1.22.1.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from classquery.data.annotations.collecting import (
    CLASS_ATTRIBUTES,
    TubeCollector,
    as_labels,
    corners_of,
    find_attributes,
    reading,
    video_names,
)
from classquery.data.annotations.entries import Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, shorten
from classquery.data.annotations.values import whole_number


_FIELDS = ("ground_truth", "groundtruth", "gt", "annotations", "detections", "actions", "labels")
_KINDS = ("Detections", "Detection")
_ITEMS = ("samples", "frames")
# Of a detection itself, so that no attribute.
_OWN_KEYS = (
    "label",
    "tags",
    "index",
    "bounding_box",
    "mask",
    "mask_path",
    "confidence",
    "attributes",
    "instance",
    "id",
)


def sniff_fiftyone(source: Source) -> bool:
    """Whether it is one of the three files, or one sample or frame of an export with `use_dirs`."""
    document = source.json
    if not isinstance(document, dict):
        return False
    if "sample_collection_name" in document or _kind_of_one(document):
        return True
    return any(_lists(document, name, key) for name, key in (("samples", "filepath"), ("frames", "_sample_id")))


def _lists(document: Mapping[str, Any], name: str, key: str) -> bool:
    items = document.get(name)
    return set(document) == {name} and isinstance(items, list) and all(key in item for item in items[:1])


def _kind_of_one(document: Mapping[str, Any]) -> str | None:
    """Return "frames" or "samples" for a file of a single one."""
    if document.keys() >= {"_sample_id", "frame_number"}:
        return "frames"
    return "samples" if document.keys() >= {"_id", "filepath"} else None


class _Export:
    """The samples and the frames of one folder, with their places."""

    def __init__(self) -> None:
        self.samples: list[Mapping[str, Any]] = []
        self.frames: list[tuple[str, Mapping[str, Any]]] = []
        self.found: set[str] = set()

    def add(self, source: Source, kind: str) -> None:
        """Add a file of samples or frames, of all or of a single one."""
        self.found.add(kind)
        document = source.document
        items = document.get(kind, [document])
        if kind == "samples":
            self.samples += items
        else:
            for number, frame in enumerate(items):
                self.frames.append((source.place("" if frame is document else f"frames[{number}]"), frame))


def read_fiftyone(sources: Sequence[Source], context: Context) -> Content:
    """Read exports, each in a folder of its own."""
    content = Content(box_format="normalized")
    exports: dict[Path, _Export] = defaultdict(_Export)
    for source in sources:
        one = _kind_of_one(source.document)
        folder = source.path.parent.parent if one else source.path.parent
        export = exports[folder]
        for kind in [one] if one else [kind for kind in _ITEMS if kind in source.document]:
            export.add(source, kind)
    for folder, export in exports.items():
        missing = [f"{kind}.json" for kind in _ITEMS if kind not in export.found]
        if missing:
            raise AnnotationError(
                f"{folder} has no {' and no '.join(missing)} of videos: export them as FiftyOneDataset, whole"
            )
        _read(folder.name, export, context, content)
    return content


def _read(name: str, export: _Export, context: Context, content: Content) -> None:
    videos = {_id(sample["_id"]): sample for sample in export.samples}
    _count_fields_of(export.samples, content)
    frames = [frame for _, frame in export.frames]
    field = _choose_field(name, frames, content)
    uses_attributes = bool(find_attributes(_attributes_of(frames, field), CLASS_ATTRIBUTES))
    content.notes.append(
        f"{name}: boxes of the field {field!r}, classes of "
        + ("the attributes that are named like an action" if uses_attributes else "its labels")
    )
    tubes = TubeCollector(content)
    for place, frame in export.frames:
        with reading(context, place):
            sample = videos.get(_id(frame["_sample_id"]))
            if sample is None:
                raise AnnotationError("its _sample_id is of none of the samples")
            video = sample["filepath"]
            content.videos.setdefault(video, _claim(sample))
            number = whole_number(frame["frame_number"], "frame_number") - 1
            for index, detection in enumerate(_detections(frame, field)):
                track = _track(detection)
                tubes.add(
                    f"{place}, detection {index}" if track is None else f"{video}, index {track}",
                    video,
                    track,
                    _labels(detection, uses_attributes),
                    number,
                    corners_of(detection["bounding_box"]),
                )
    tubes.finish()
    left = [sample["filepath"] for sample in videos.values() if sample["filepath"] not in content.videos]
    content.ignored["videos without frames"] += len(left)
    content.ignored = +content.ignored


def _count_fields_of(samples: Iterable[Mapping[str, Any]], content: Content) -> None:
    """Take down the labels of whole videos and of parts of them, which have no boxes."""
    for sample in samples:
        for name, value in sample.items():
            if name != "metadata" and isinstance(value, Mapping) and "_cls" in value:
                content.ignored[f"{value['_cls']} of videos, {name!r}"] += 1


def _id(value: Any) -> str:
    return str(value["$oid"] if isinstance(value, Mapping) else value)


def _choose_field(export: str, frames: Sequence[Mapping[str, Any]], content: Content) -> str | None:
    """Return the field of the frames that has the boxes; None where nothing is labelled at all."""
    kinds = {
        name: value["_cls"]
        for frame in frames
        for name, value in frame.items()
        if isinstance(value, Mapping) and "_cls" in value
    }
    fields = [name for name, kind in kinds.items() if kind in _KINDS]
    if not kinds:
        return None
    usual = next((name for name in _FIELDS if name in fields), None)
    if not fields or (usual is None and len(fields) > 1):
        raise AnnotationError(
            f"{export}: which field has the boxes? Export one of type Detections, or call it ground_truth; "
            f"got {shorten([f'{name} ({kind})' for name, kind in kinds.items()]) or 'none'}"
        )
    field = usual or fields[0]
    for name, kind in kinds.items():
        content.ignored[f"fields {name!r} ({kind})"] += name != field
    return field


def _attributes_of(frames: Sequence[Mapping[str, Any]], field: str | None) -> Counter[str]:
    return Counter(name for frame in frames for item in _detections(frame, field) for name in _attributes(item))


def _detections(frame: Mapping[str, Any], field: str | None) -> Sequence[Mapping[str, Any]]:
    value = frame.get(field or "") or {}
    return [value] if value.get("_cls") == _KINDS[1] else value.get("detections") or ()


def _attributes(detection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a detection, which are values of its own, or of older versions in a dict."""
    own = {name: value for name, value in detection.items() if name not in _OWN_KEYS and not name.startswith("_")}
    return own | dict(detection.get("attributes") or {})


def _labels(detection: Mapping[str, Any], uses_attributes: bool) -> tuple[str, ...]:
    if not uses_attributes:
        return as_labels([detection.get("label")])
    attributes = _attributes(detection)
    values = [attributes[name] for name in find_attributes(attributes, CLASS_ATTRIBUTES)]
    values = [value.get("value") if isinstance(value, Mapping) else value for value in values]
    return as_labels(item for value in values for item in (value if isinstance(value, list) else [value]))


def _track(detection: Mapping[str, Any]) -> int | str | None:
    if detection.get("index") is not None:
        return whole_number(detection["index"], "index")
    instance = detection.get("instance")
    return _id(instance["_id"]) if isinstance(instance, Mapping) else None


def _claim(sample: Mapping[str, Any]) -> VideoClaim:
    facts = sample.get("metadata") or {}
    return VideoClaim(video_names(sample["filepath"]), None, facts.get("frame_rate"), facts.get("total_frame_count"))


FIFTYONE = Format("fiftyone", "FiftyOneDataset of videos", sniff_fiftyone, read_fiftyone, companions=("tags.json",))
