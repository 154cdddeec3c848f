"""The card of a data set of shards."""

from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData


_MAX_CLASSES_SHOWN = 100


def make_card(index: dict[str, Any], name: str, repo_id: str = "USER/NAME") -> str:
    """Write the card from what the index says.

    Args:
        index: Content of `shards.json`.
        name: Of the data set.
        repo_id: Where it is on the Hub.

    Returns:
        Markdown with the header that the Hub reads: the licence, and which files are which split.
    """
    splits = index["splits"]
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    header = DatasetCardData(
        license=index["license"],
        pretty_name=name,
        task_categories=["object-detection", "video-classification"],
        tags=["video", "spatio-temporal-action-detection", "classquery"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    text = "\n".join(
        [
            f"---\n{header.to_yaml()}\n---\n",
            f"# {header.pretty_name}\n",
            f"Clips of `{index['dataset']}` with boxes and actions of people, as shards for `classquery`.\n",
            "| split | rows | clips | shards | bytes |\n|---|---|---|---|---|",
            *(_line_of_split(split, content["shards"]) for split, content in splits.items()),
            "\n" + _about_videos(index),
            "\n## Read it\n",
            "```python",
            "from classquery.data import load_action_dataset, make_clips\n",
            f'rows = load_action_dataset("shards", "hf://datasets/{repo_id}", "train")',
            "```\n",
            f'`datasets.load_dataset("{repo_id}", streaming=True)` gives the rows: `video` holds an mp4 in `bytes`, '
            "whose first frame has the number `first_frame` in the original, and `clips` the annotations of clips of "
            "these frames.\n",
            "## Classes\n",
            f"{len(index['labels'])}, with the number of actors in each split:\n",
            f"| id | class | {' | '.join(splits)} |\n|---|---|{'---|' * len(splits)}",
            *_lines_of_classes(index),
        ]
    )
    return str(DatasetCard(text + "\n"))


def _line_of_split(split: str, shards: list[dict[str, Any]]) -> str:
    rows, clips, num_bytes = (sum(shard[name] for shard in shards) for name in ("num_rows", "num_clips", "num_bytes"))
    return f"| {split} | {rows:,} | {clips:,} | {len(shards)} | {num_bytes:,} |"


def _about_videos(index: dict[str, Any]) -> str:
    encoding = index["encoding"]
    if encoding is None:
        how = "The packets of the videos are copied where their frames then are exactly those of the original."
    else:
        how = (
            f"The videos are encoded anew: H.264, a key frame every {encoding['gop']} frames, quality (crf) "
            f"{encoding['crf']}; frame by frame those of the original."
        )
    if index["has_tubes"]:
        return f"{how} A row is a whole video with the tubes of its actors."
    return (
        f"{how} A row is a part of a video with up to {index['keyframes_per_row']} keyframes, for clips of up to "
        + (f"{index['clip_seconds']:.2f} seconds around them.")
    )


def _lines_of_classes(index: dict[str, Any]) -> list[str]:
    lines = []
    for label, name in list(index["labels"].items())[:_MAX_CLASSES_SHOWN]:
        counts = [f"{content['actors_per_label'].get(label, 0):,}" for content in index["splits"].values()]
        lines.append(f"| {label} | {name.replace('|', chr(92) + '|')} | {' | '.join(counts)} |")
    left = len(index["labels"]) - _MAX_CLASSES_SHOWN
    return [*lines, f"\nand {left} more, in `shards.json`."] if left > 0 else lines
