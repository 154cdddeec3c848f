"""Detections as files: JSON, tables, and annotations that can be corrected and trained on."""

import json
import os
from collections.abc import Iterable

from classquery.data.clip_reader import VideoInfo
from classquery.data.whole_files import replacing
from classquery.engine.results import FrameDetections


def write_detections(path: str | os.PathLike[str], video_info: VideoInfo, frames: Iterable[FrameDetections]) -> None:
    """Write the detections of a video as JSON; a file that is there is replaced when all is written, or kept.

    The attention is not written.
    """
    content = {
        "video": video_info.path,
        "frames_per_second": video_info.frames_per_second,
        "num_frames": video_info.num_frames,
        "height": video_info.height,
        "width": video_info.width,
        "keyframes": [frame.to_dict() for frame in frames],
    }
    with replacing(path) as partial_path:
        partial_path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
