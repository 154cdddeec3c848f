"""How good are detections? Frame mAP and video mAP, what they are made of, and what costs them."""

from pathlib import Path
from typing import TYPE_CHECKING

from classquery._lazy import lazily


# Loaded when they are used: help texts do without numpy.
if TYPE_CHECKING:
    from classquery.data.metrics.analysis import analyze
    from classquery.data.metrics.frame import ava_label_ids, frame_map
    from classquery.data.metrics.linking import link_best_paths, link_greedily, tube_iou
    from classquery.data.metrics.video import tube_map, video_map


__getattr__, __dir__ = lazily(__name__)


def module_path(name: str) -> str:
    """Folder of a module of HF `evaluate`, for `evaluate.load(module_path("frame_map"))`, wherever this is installed.

    Args:
        name: "frame_map" or "video_map".

    Raises:
        ValueError: If there is no such module.
    """
    folder = Path(__file__).parent / name
    if name not in ("frame_map", "video_map"):
        raise ValueError(f'a module of evaluate is "frame_map" or "video_map", got {name!r}')
    return str(folder)


__all__ = [
    "analyze",
    "ava_label_ids",
    "frame_map",
    "link_best_paths",
    "link_greedily",
    "module_path",
    "tube_iou",
    "tube_map",
    "video_map",
]
