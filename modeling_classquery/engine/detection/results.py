"""What is detected: actors in a frame with their actions, as objects, arrays, tables and what supervision takes."""

import importlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from classquery.data.video.frame_folder import read_frame_folder
from classquery.data.video.reader import ClipReader
from classquery.data.whole_files import replacing
from classquery.detection_classquery import ActorDetection, DetectedFrame


if TYPE_CHECKING:
    import pandas
    import supervision
    from PIL import Image

__all__ = ["ROW_COLUMNS", "ActorDetection", "FrameDetections", "read_frame", "to_dataframe"]

_BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")
ROW_COLUMNS = ("video", "frame_index", "seconds", "person_id", *_BOX_COLUMNS, "actor_score", "label", "score")


@dataclass(frozen=True)
class FrameDetections(DetectedFrame):
    """The actors of one frame of a video, and how to hand them on."""

    video: str | None = None
    """Path or URL of the video."""
    num_dropped: int = 0
    """How many keyframes just before this one a live source lost because the model was busy."""
    label_ids: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """Number of each class of the model."""

    @property
    def boxes(self) -> np.ndarray:
        """float32 (num_actors, 4): (x_min, y_min, x_max, y_max) in pixels of the original frame."""
        return np.array([actor.box for actor in self.actors], dtype=np.float32).reshape(-1, 4)

    @property
    def labels(self) -> list[list[str]]:
        """Names of the actions of each actor, highest score first."""
        return [[label for label, _ in actor.actions] for actor in self.actors]

    @property
    def scores(self) -> list[list[float]]:
        """Scores in [0, 1] of the actions of each actor, beside `labels`."""
        return [[score for _, score in actor.actions] for actor in self.actors]

    @property
    def actor_scores(self) -> np.ndarray:
        """float32 (num_actors,): confidence in [0, 1] of each actor."""
        return np.array([actor.actor_score for actor in self.actors], dtype=np.float32)

    def to_dict(self) -> dict:
        """Return what JSON can hold, without the attention."""
        dropped = {"num_dropped": self.num_dropped} if self.num_dropped else {}
        return {
            "frame_index": self.frame_index,
            "seconds": round(self.seconds, 4),
            **dropped,
            "actors": [actor.to_dict() for actor in self.actors],
        }

    def to_rows(self) -> list[dict]:
        """Return a flat row for each action of each actor."""
        return [
            {
                "video": self.video,
                "frame_index": self.frame_index,
                "seconds": round(self.seconds, 4),
                "person_id": actor.person_id,
                **dict(zip(_BOX_COLUMNS, (round(edge, 2) for edge in actor.box), strict=True)),
                "actor_score": round(actor.actor_score, 4),
                "label": label,
                "score": round(score, 4),
            }
            for actor in self.actors
            for label, score in actor.actions
        ]

    def plot(self, image: "Image.Image | None" = None, **options: Any) -> "Image.Image":
        """Draw the actors, their actions and scores into the frame.

        Args:
            image: The frame; by default it is read from the file of the video once more.
            options: Of `classquery.engine.detection.drawing.draw_keyframe`, as `attention_label`.

        Raises:
            ValueError: If the video is no file and no image is given.
            VideoReadError: If the frame cannot be read any more.
        """
        draw = importlib.import_module("classquery.engine.detection.drawing").draw_keyframe
        return draw(self._image() if image is None else image, self, **options)

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the detections: as a table for `.csv`, as `to_dict` for `.json`, otherwise as a picture.

        Args:
            path: The file.
            options: Of `plot`, for pictures.

        Raises:
            ValueError: As `plot`, or if there are no pictures of this kind.
        """
        path = Path(path)
        with replacing(path) as partial_path:
            if path.suffix == ".json":
                partial_path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
            elif path.suffix == ".csv":
                self.to_dataframe().to_csv(partial_path, index=False)
            else:
                self.plot(**options).save(partial_path, format=_picture_format(path))

    def _image(self) -> "Image.Image":
        if self.video is None or not os.path.exists(self.video):
            raise ValueError(f"the frames of {self.video} cannot be seen again: give the image, plot(image)")
        return PIL.Image.fromarray(read_frame(self.video, self.frame_index))

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return `to_rows` as a table; see `to_dataframe` for many frames.

        Raises:
            ImportError: If pandas is not installed.
        """
        return to_dataframe([self])

    def to_supervision(self) -> "supervision.Detections":
        """Return one detection per actor, for supervision's annotators, zones and trackers.

        `confidence` is the score of the strongest action, `tracker_id` the person, where it is known. `data` holds the
        strongest action as "class_name", and "labels", "scores" and "actor_score".

        Raises:
            ImportError: If supervision is not installed.
        """
        _require("supervision", "pip install supervision")
        import supervision

        people = [actor.person_id for actor in self.actors]
        strongest = [actor.actions[0] if actor.actions else ("", 0.0) for actor in self.actors]
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=np.array([score for _, score in strongest], dtype=np.float32),
            class_id=np.array([self.label_ids.get(label, -1) for label, _ in strongest], dtype=int),
            tracker_id=None if not people or None in people else np.array(people),
            data={
                "class_name": np.array([label for label, _ in strongest], dtype=object),
                "labels": _ragged(self.labels),
                "scores": _ragged(self.scores),
                "actor_score": self.actor_scores,
            },
        )


def to_dataframe(frames: Iterable[FrameDetections]) -> "pandas.DataFrame":
    """Lay out detections as a table with a row for each action of each actor in each frame.

    Raises:
        ImportError: If pandas is not installed.
    """
    _require("pandas", "pip install pandas")
    import pandas

    return pandas.DataFrame([row for frame in frames for row in frame.to_rows()], columns=list(ROW_COLUMNS))


def read_frame(video: str, frame_index: int) -> np.ndarray:
    """Read a frame (height, width, 3), uint8, of a video file or a folder of frames once more.

    Raises:
        VideoReadError: If it cannot be read.
    """
    read = read_frame_folder if os.path.isdir(video) else ClipReader().read
    return read(video, [frame_index])[0]


def _ragged(rows: list[list]) -> np.ndarray:
    """One object per row, also where all rows have one length."""
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return array


def _picture_format(path: Path) -> str:
    formats = PIL.Image.registered_extensions()
    if path.suffix.lower() not in formats:
        raise ValueError(f"detections are saved as .csv, .json or a picture such as .png, got {path.name[:100]!r}")
    return formats[path.suffix.lower()]


def _require(package: str, command: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"this needs {package}: {command}")
