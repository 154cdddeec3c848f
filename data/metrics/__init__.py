"""How good are detections? Frame mAP and video mAP, what they are made of, and what costs them."""

import importlib
from pathlib import Path


# Loaded when they are used: help texts do without numpy.
_LAZY = {
    "analyze": "analysis",
    "ava_label_ids": "frame",
    "frame_map": "frame",
    "link_best_paths": "linking",
    "link_greedily": "linking",
    "tube_iou": "linking",
    "tube_map": "video",
    "video_map": "video",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


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
