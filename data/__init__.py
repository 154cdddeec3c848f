"""Data sets, clips and metrics; knows nothing of the model."""

import importlib


# Loaded when they are used: reading annotations takes `datasets`, and clips a video decoder.
_LAZY = {
    "AnnotationError": "annotations.schema",
    "ClipCollator": "clips",
    "ClipReader": "video.reader",
    "load_action_dataset": "annotations.registry",
    "load_action_labels": "annotations.registry",
    "make_clips": "annotations.registry",
    "push_action_dataset": "shards.sharing",
    "save_action_dataset": "annotations.parquet",
    "write_shards": "shards.writing",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "AnnotationError",
    "ClipCollator",
    "ClipReader",
    "load_action_dataset",
    "load_action_labels",
    "make_clips",
    "push_action_dataset",
    "save_action_dataset",
    "write_shards",
]
