"""Writer of AVA's csv: people at whole seconds, with the names of the classes beside it."""

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from classquery.data.annotations.ava import AVA_LABELS
from classquery.data.annotations.videos import video_id
from classquery.data.annotations.writing import WrittenVideo, tracks_of, videos_of
from classquery.data.whole_files import replacing


logger = logging.getLogger(__name__)

ACTION_LIST = "ava_action_list.pbtxt"
MOVIE_START_SECONDS = 900.0
# The official ids 1 to 14 are movements of a person, up to 63 handling of objects, and then there is somebody else.
_LABEL_TYPES = ((14, "PERSON_MOVEMENT"), (63, "OBJECT_MANIPULATION"), (80, "PERSON_INTERACTION"))
# Half a frame of 25 per second.
_TOLERANCE_SECONDS = 0.02


def write_ava_rows(path: str | Path, rows: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> None:
    """Write rows as `video_id,timestamp,x1,y1,x2,y2,action_id,person_id`, without a header, and the list of actions.

    AVA has keyframes at whole seconds, and people who do something there: others are left out, and counted. Videos
    are called to start at second 900, as those of AVA that are cut.

    Args:
        path: The csv file.
        rows: With `ACTION_FEATURES`, of videos that are there.
        names: Of the classes, by 0-based id.

    Raises:
        ValueError: If a video is missing.
    """
    path, label_ids = Path(path), {name: label for label, name in names.items()}
    num_given = num_written = 0
    with replacing(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for video in videos_of(rows, names):
            num_given += sum(len(tube.frames) * max(1, len(tube.labels or ())) for tube in video.tubes)
            written = list(_lines(video, label_ids))
            num_written += len(written)
            writer.writerows(written)
    if num_written < num_given:
        logger.warning(f"AVA has actions at whole seconds only: {num_written} of {num_given} are written.")
    write_action_list(path.with_name(ACTION_LIST), label_ids)


def _lines(video: WrittenVideo, label_ids: Mapping[str, int]) -> Iterator[tuple]:
    for number, track in enumerate(tracks_of(video.tubes)):
        who = number if track.track_id is None else track.track_id
        for frame, box, does in zip(track.frames.tolist(), track.boxes.tolist(), track.labels, strict=True):
            second = round(frame / video.fps)
            if abs(frame / video.fps - second) <= _TOLERANCE_SECONDS:
                place = video_id(video.name), f"{round(second + MOVIE_START_SECONDS):04d}", *(round(x, 5) for x in box)
                yield from ((*place, label_ids[name] + 1, who) for name in does or ())


def write_action_list(path: Path, label_ids: Mapping[str, int]) -> None:
    """Write the names of the classes in the syntax of AVA's own list.

    Args:
        path: The file.
        label_ids: 0-based number of each class; where a class is none of AVA's, its type is a movement.
    """
    with replacing(path) as partial_path:
        # In the order of the ids, because Datumaro counts.
        items = (_item(name, label_id) for name, label_id in sorted(label_ids.items(), key=itemgetter(1)))
        partial_path.write_text("".join(items), encoding="utf-8")


def _item(name: str, label_id: int) -> str:
    quote = "'" if '"' in name else '"'
    official_id = AVA_LABELS.index(name) + 1 if name in AVA_LABELS else 1
    label_type = next(label_type for last_id, label_type in _LABEL_TYPES if official_id <= last_id)
    return f"label {{\n  name: {quote}{name}{quote}\n  label_id: {label_id + 1}\n  label_type: {label_type}\n}}\n"
