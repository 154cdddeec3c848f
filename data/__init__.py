"""Data sets, clips and metrics; knows nothing of the model."""

from typing import TYPE_CHECKING

from classquery._lazy import lazily


# Loaded when they are used: reading annotations takes `datasets`, and clips a video decoder.
if TYPE_CHECKING:
    from classquery.data.annotations.parquet import save_action_dataset
    from classquery.data.annotations.registry import load_action_dataset, load_action_labels, make_clips
    from classquery.data.annotations.schema import AnnotationError
    from classquery.data.clips import ClipCollator
    from classquery.data.shards.sharing import push_action_dataset
    from classquery.data.shards.writing import write_shards
    from classquery.data.video.reader import ClipReader


__getattr__, __dir__ = lazily(__name__)

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
