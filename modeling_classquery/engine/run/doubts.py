"""What a run asks about its data before it trains: all of it can be meant, and none of it would be seen later."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from classquery.configuration_classquery import ClassQueryConfig
from classquery.data.annotations.schema import shorten
from classquery.data.clips import KeyframeClips, TubeClips


def refuse_empty(clips: Mapping[str, Any]) -> None:
    """Refuse splits without a clip, before any work; of streams nobody can tell.

    Raises:
        ValueError: If there is one.
    """
    for split, of_split in clips.items():
        if isinstance(of_split, KeyframeClips | TubeClips) and not len(of_split):
            raise ValueError(
                f"there is no clip in the {split} split: annotate something there; with --validation_fraction, "
                "of at least two videos or groups"
            )


def list_doubts(train: Any, validation: Any, config: ClassQueryConfig, novel: Sequence[str] = ()) -> Iterator[str]:
    """Yield a sentence for whatever is odd about the clips of two splits; nothing of streams.

    Args:
        train, validation: The clips.
        config: Of the model, with its classes.
        novel: Classes that training is not to see.
    """
    if not isinstance(train, KeyframeClips | TubeClips):
        return
    table = train.rows.with_format("arrow")[:]
    missing = [label for label in _without_examples(table, config) if label not in novel]
    if missing:
        yield f"no example in the training split, so never learned: {shorten(missing)}"
    most = _most_actors(table, train.has_tubes)
    if most > config.num_queries:
        yield (
            f"there are up to {most} actors at once, and the model finds {config.num_queries} at most (`num_queries` "
            "of a recipe): others are passed over in training, and never found"
        )
    if isinstance(validation, KeyframeClips | TubeClips):
        unseen = _without_examples(validation.rows.with_format("arrow")[:], config)
        if unseen:
            yield f"no example in the validation split, so not scored: {shorten(unseen)}"
        shared = sorted(_videos(train.rows) & _videos(validation.rows))
        if shared:
            yield f"videos of both splits, so that scores say little about new ones: {shorten(shared)}"


def _without_examples(table: pa.Table, config: ClassQueryConfig) -> list[str]:
    labels = table["tubes"].combine_chunks().flatten().field("labels").flatten()
    counts = np.bincount(labels.to_numpy(zero_copy_only=False), minlength=config.num_labels)
    return [label for number, label in sorted(config.id2label.items()) if not counts[number]]


def _most_actors(table: pa.Table, have_tubes: bool) -> int:
    """Of a keyframe, or of a frame of a video."""
    tubes = table["tubes"].combine_chunks()
    if not have_tubes:
        return pc.max(pc.list_value_length(tubes)).as_py() or 0
    frames = tubes.flatten().field("frames")
    tube = pc.list_parent_indices(frames).to_numpy()
    row = pc.list_parent_indices(tubes).to_numpy()
    # Tubes of one track are actions of one actor; who has none is somebody else.
    track = tubes.flatten().field("track_id").to_pandas().to_numpy(float)
    actor = np.where(np.isnan(track), -1.0 - np.arange(len(track)), track)
    boxes = pd.DataFrame({"row": row[tube], "frame": frames.flatten().to_numpy(), "actor": actor[tube]})
    return int(boxes.drop_duplicates().groupby(["row", "frame"]).size().max()) if len(boxes) else 0


def _videos(rows: Dataset) -> set[str]:
    return set(pc.unique(rows.with_format("arrow")[:]["video"]).to_pylist()) - {None}
