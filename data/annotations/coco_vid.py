"""Reader of COCO-VID: one JSON file of videos, their frames and boxes, with behaviours as ChimpACT has them.

{"categories": [{"id": 1, "name": "chimpanzee"}],
 "videos": [{"id": 1, "name": "clip_a.mp4", "fps": 30.0, "frames": 20, "width": 160, "height": 120}],
 "images": [{"id": 1, "video_id": 1, "file_name": "clip_a/000000.jpg", "frame_id": 0}],
 "annotations": [{"image_id": 1, "category_id": 1, "bbox": [10, 20, 50, 80], "behaviors": [0], "instance_id": 3}]}

Boxes are x, y, width and height in pixels, and converters have written all frames between key frames. The frame is
the number in `file_name`, since `frame_id` skips frames that nobody labelled; the numbers count from 0, or from 1
where those of the video say so. `behaviors` are the places in `action_list.txt` (or another `.pbtxt` beside), whose
ids are one more; without them the class is an attribute named like an action, or else the category. Source:
create_coco_format.py and create_ava_dataset.py of ShirleyMaxx/ChimpACT@74fc50a.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classquery.data.annotations.ava import parse_label_map
from classquery.data.annotations.collecting import (
    CLASS_ATTRIBUTES,
    TubeCollector,
    as_labels,
    corners_of,
    find_attributes,
    in_file,
    reading,
    video_names,
)
from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, quote
from classquery.data.annotations.values import whole_number
from classquery.data.annotations.writing import IGNORE, WrittenVideo, videos_of
from classquery.data.whole_files import replacing, write_json


ACTION_LIST = "action_list.txt"
_BEHAVIORS = ("behaviors", "behaviours")
_TRACKS = ("instance_id", "track_id")
_LEFT_OUT = ("keypoints", "segmentation")


class _Frame(NamedTuple):
    video: str
    frame: int


def sniff_coco_vid(source: Source) -> bool:
    """Whether it is an object of videos, images and annotations."""
    document = source.json
    return isinstance(document, dict) and all(
        isinstance(document.get(name), list) for name in ("videos", "images", "annotations")
    )


def read_coco_vid(sources: Sequence[Source], context: Context) -> Content:
    """Read files of several videos each."""
    content = Content(box_format="pixel")
    for source in sources:
        _read(source, context, content)
    return content


def _read(source: Source, context: Context, content: Content) -> None:
    document = source.document
    frames = _frames(source, context, content)
    name_labels = _labels_by(source, content)
    tubes = TubeCollector(content)
    for position, annotation in enumerate(document["annotations"]):
        own_place = f"annotation {annotation.get('id', position)}"
        with reading(context, source.place(own_place)):
            frame = frames.get(str(annotation["image_id"]))
            if frame is None:
                raise AnnotationError(f"there is no image {quote(annotation['image_id'])}")
            box = corners_of(annotation["bbox"])
            if annotation.get("iscrowd"):
                # A crowd is several people, of whom nobody said how many and who.
                crowd = Entry(source.place(own_place), frame.video, [box], (), [frame.frame], is_ignored=True)
                content.entries.append(crowd)
                continue
            track, labels = _track(annotation), name_labels(annotation)
            place = own_place if track is None else f"{frame.video}, track {track}"
            tubes.add(source.place(place), frame.video, in_file(source, track), labels, frame.frame, box)
            for name in _LEFT_OUT:
                content.ignored[name] += bool(annotation.get(name))
    tubes.finish()
    content.ignored = +content.ignored


# Videos and their frames


def _frames(source: Source, context: Context, content: Content) -> dict[str, _Frame]:
    """Return the frame of each image by its id, which may be a number here and text there; take down the videos."""
    images: dict[str, list[Mapping[str, Any]]] = {}
    for image in source.document["images"]:
        images.setdefault(str(image.get("video_id")), []).append(image)
    frames = {}
    for video in source.document["videos"]:
        of_video = images.get(str(video["id"]), [])
        with reading(context, source.place(f"video {video['id']}")):
            name = video.get("name") or video["file_name"]
            numbers = _frame_numbers(of_video, video.get("frames", video.get("length")))
            for image, number in zip(of_video, numbers.tolist(), strict=True):
                frames[str(image["id"])] = _Frame(name, number)
            sized = next((item for item in (*of_video, video) if item.get("width") and item.get("height")), None)
            content.videos[name] = VideoClaim(
                video_names(name),
                (sized["width"], sized["height"]) if sized else None,
                video.get("fps"),
                video.get("frames"),
                np.unique(numbers),
            )
    return frames


def _frame_numbers(images: Sequence[Mapping[str, Any]], num_frames: Any) -> np.ndarray:
    """Return the 0-based frame of each image of a video, (n,)."""
    in_names = [_last_number(image.get("file_name", "")) for image in images]
    ids = [image.get("frame_id") for image in images]
    if not images or None in in_names:
        return np.array([whole_number(frame, "frame_id") for frame in ids], dtype=np.int64)
    numbers = np.array(in_names, dtype=np.int64)
    first = int(numbers.argmin())
    counts_from_one = numbers[first] > 0 and (
        numbers[first] - 1 == ids[first] if ids[first] is not None else numbers.max() == num_frames
    )
    return numbers - int(counts_from_one)


def _last_number(file_name: str) -> int | None:
    digits = re.findall(r"\d+", Path(file_name).stem)
    return int(digits[-1]) if digits else None


# What somebody does, and who it is


def _labels_by(source: Source, content: Content) -> Callable[[Mapping[str, Any]], Collection[str] | None]:
    """Return the function that names the classes of an annotation, and take down which these are."""
    annotations = source.document["annotations"]
    behaviors = next((name for name in _BEHAVIORS if any(name in item for item in annotations)), None)
    if behaviors:
        content.notes.append(f"{source.place()}: classes are the {behaviors}")
        names = _behavior_names(source, [place for item in annotations for place in item.get(behaviors) or ()])
        return lambda item: (
            None if item.get(behaviors) is None else as_labels(_name(names, place) for place in item[behaviors]) or ()
        )
    attributes = find_attributes(
        dict.fromkeys(name for item in annotations for name in _attributes(item)), CLASS_ATTRIBUTES
    )
    if attributes:
        content.notes.append(f"{source.place()}: classes are the attributes {', '.join(attributes)}")
        return lambda item: as_labels(
            value
            for name in attributes
            for given in [_attributes(item).get(name)]
            for value in (given if isinstance(given, list) else [given])
        )
    content.notes.append(f"{source.place()}: classes are the categories")
    categories = {category["id"]: category["name"] for category in source.document.get("categories", ())}
    return lambda item: as_labels([_name(categories, item["category_id"])])


def _attributes(annotation: Mapping[str, Any]) -> dict[str, Any]:
    nested = annotation.get("attributes")
    return {**annotation, **(nested if isinstance(nested, Mapping) else {})}


def _name(names: Mapping[Any, str], key: Any) -> str:
    if key in names:
        return names[key]
    raise AnnotationError(f"there is no class {quote(key)}, there are {quote(list(names))}")


def _behavior_names(source: Source, places: Sequence[Any]) -> dict[Any, str]:
    """Return the names by what stands in the annotations: places in the list from 0, or the names themselves."""
    if all(isinstance(place, str) for place in places):
        return {place: place for place in places}
    folder = source.path.parent
    paths = (path for pattern in (ACTION_LIST, f"*/{ACTION_LIST}", "*.pbtxt") for path in sorted(folder.glob(pattern)))
    path = next(paths, None) or next((parent for parent in [folder.parent / ACTION_LIST] if parent.is_file()), None)
    if path is None:
        raise AnnotationError(
            f"{source.place()}: behaviors are numbers: put their {ACTION_LIST} beside the file, or into action/ there"
        )
    return {label_id - 1: name for label_id, name in parse_label_map(path).items()}


def _track(annotation: Mapping[str, Any]) -> int | str | None:
    given = _attributes(annotation)
    return next((given[name] for name in _TRACKS if isinstance(given.get(name), int | str)), None)


# Writing


def write_coco_vid(path: str | Path, rows: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> None:
    """Write rows as COCO-VID with behaviours, and `action_list.txt` beside; `read_coco_vid` reads them to the same.

    Args:
        path: The JSON file.
        rows: With `ACTION_FEATURES`, of videos that are there; moments become frames.
        names: Of the classes, by 0-based id.

    Raises:
        ValueError: If a video is missing.
    """
    path, videos = Path(path), videos_of(rows, names)
    images, annotations = [], []
    for number, video in enumerate(videos, start=1):
        image_ids = {}
        for frame in video.frames.tolist():
            image_ids[frame] = len(images) + 1
            file_name = f"{_without_suffix(video.name)}/{frame:06d}.jpg"
            size = {"height": video.height, "width": video.width}
            images.append(
                {"id": image_ids[frame], "video_id": number, "file_name": file_name, "frame_id": frame} | size
            )
        annotations += _written_annotations(video, number, image_ids, {name: label for label, name in names.items()})
    content = {
        "categories": [{"id": 1, "name": "person"}],
        "videos": [
            {"id": number, "name": video.name, "fps": video.fps, "frames": video.num_frames}
            | {"width": video.width, "height": video.height}
            for number, video in enumerate(videos, start=1)
        ],
        "images": images,
        "annotations": [{"id": number} | annotation for number, annotation in enumerate(annotations, start=1)],
    }
    write_json(path, content, ensure_ascii=False)
    with replacing(path.with_name(ACTION_LIST)) as partial_path:
        partial_path.write_text("".join(_item(*item) for item in sorted(names.items())), encoding="utf-8")


def _item(label: int, name: str) -> str:
    mark = "'" if '"' in name else '"'
    return f"item {{\n  name: {mark}{name}{mark}\n  id: {label + 1}\n}}\n"


def _without_suffix(name: str) -> str:
    return name.removesuffix(Path(name).suffix)


def _written_annotations(
    video: WrittenVideo, number: int, image_ids: Mapping[int, int], labels: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    size = np.array([video.width, video.height] * 2)
    for tube in [*video.tubes, *video.ignored]:
        is_ignored = tube.labels == [IGNORE] and IGNORE not in labels
        track = {} if tube.track_id is None else {"instance_id": tube.track_id}
        for frame, corners in zip(tube.frames.tolist(), (tube.boxes * size).tolist(), strict=True):
            x1, y1, x2, y2 = corners
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": is_ignored}
            does = {} if tube.labels is None or is_ignored else {"behaviors": [labels[name] for name in tube.labels]}
            of_image = {"image_id": image_ids[frame], "video_id": number, "category_id": 1}
            yield of_image | box | does | track


COCO_VID = Format(
    "coco_vid",
    "COCO-VID with behaviours",
    sniff_coco_vid,
    read_coco_vid,
    companions=(ACTION_LIST, "*.pbtxt"),
    write=write_coco_vid,
)
