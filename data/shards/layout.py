"""What lies where in a folder of shards, and what a row of a shard is.

    data/train-00000.parquet, ...     shards: a window of a video in each row, a row in each row group
    index/train.parquet               where each row is, and its annotations without the video
    shards.json                       classes, counts and hashes, and how the videos were written
    README.md                         the card of the data set

A window is a run of consecutive frames of one video with the annotations of the clips that are cut from it: some
keyframes that are near each other, whose clips share most of their frames, or a whole video with its tubes.
"""

from typing import Any

import pyarrow as pa
from datasets import Features, List, Value, Video

from classquery.data.annotations.schema import ACTION_FEATURES


INDEX_FILE = "shards.json"
CARD_FILE = "README.md"
LAYOUT_VERSION = 1

# What a clip of a window knows; where its video is, the window says.
CLIP_FEATURES = Features(
    {name: feature for name, feature in ACTION_FEATURES.items() if name not in ("video", "source")}
)
WINDOW_FEATURES = Features(
    {
        "video": Video(decode=False),  # Name of the video and, in `bytes`, the frames of the window.
        "first_frame": Value("int64"),  # 0-based number in the original video of the first frame of `bytes`.
        # Times of all frames of `bytes` on the clock of the original, which choose the frames around a keyframe. Null
        # for folders of frames, which have none.
        "frame_seconds": List(Value("float64")),
        "frames_fps": Value("float32"),  # Rate of a folder of frames; null for a video.
        "num_frames": Value("int64"),  # Of `bytes`.
        "is_start": Value("bool"),  # Whether the original starts with this window,
        "is_end": Value("bool"),  # and whether it ends with it: there, clips repeat the last frame.
        "clips": List(dict(CLIP_FEATURES)),
    }
)
INDEX_FEATURES = Features(
    {
        "shard": Value("int32"),
        "row": Value("int32"),
        "num_bytes": Value("int64"),
        "clips": List(dict(CLIP_FEATURES)),
    }
)


def shard_file(split: str, number: int) -> str:
    """Name of a shard in its folder."""
    return f"data/{split}-{number:05d}.parquet"


def index_file(split: str) -> str:
    """Name of the table of the rows of a split in its folder."""
    return f"index/{split}.parquet"


def row_range(metadata: pa.parquet.FileMetaData, row: int) -> tuple[int, int]:
    """Return the first byte of a row of a shard, and the one behind its last."""
    group = metadata.row_group(row)
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [_start(column) for column in columns]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return min(starts), max(ends)


def _start(column: Any) -> int:
    has_dictionary = column.dictionary_page_offset is not None
    return min(column.dictionary_page_offset, column.data_page_offset) if has_dictionary else column.data_page_offset
