"""A split by video where nobody made one: seeded, balanced by class, printed and kept."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classquery.data.annotations.schema import AnnotationError, parsing, quote, shorten
from classquery.data.whole_files import write_json


logger = logging.getLogger(__name__)

SPLIT_FILE = "validation_split.json"
_MAX_CANDIDATES = 200


def split_videos(
    counts: Mapping[str, Mapping[str, int]],
    groups: Mapping[str, str],
    fraction: float,
    *,
    seed: int = 0,
    kept: Mapping[str, bool] | None = None,
) -> dict[str, bool]:
    """Choose videos for validation, so that each class has about the same part of its boxes there.

    Args:
        counts: Number of boxes of each class, by video.
        groups: Videos of one group stay together; a video without one is its own.
        fraction: Part of the boxes of each class, between 0 and 1.
        seed: Of the choice.
        kept: Whether videos that were split before are in validation: they stay where they are.

    Returns:
        Whether each video is in validation. A class that only one group has stays in training, and so does at least
        one group.
    """
    members: dict[str, list[str]] = {}
    for video in counts:
        members.setdefault(groups.get(video) or f"video {video}", []).append(video)
    names = sorted(members)
    classes = sorted({label for video in counts.values() for label in video})
    number = {label: index for index, label in enumerate(classes)}
    amounts = np.zeros((len(names), len(classes)))
    for row, name in enumerate(names):
        for video in members[name]:
            for label, count in counts[video].items():
                amounts[row, number[label]] += count
    kept = kept or {}
    before = {row: [kept[video] for video in members[name] if video in kept] for row, name in enumerate(names)}
    decided = {row: any(choices) for row, choices in before.items() if choices}
    chosen = _choose(amounts, fraction, np.random.default_rng(seed), decided)
    return {video: bool(chosen[row]) for row, name in enumerate(names) for video in members[name]}


def _choose(amounts: np.ndarray, fraction: float, rng: np.random.Generator, decided: Mapping[int, bool]) -> np.ndarray:
    """Move groups (num_groups, num_classes) to validation one by one, then exchange some, as long as it helps."""
    # Every class counts alike, however frequent it is; the last column is the number of groups.
    parts = np.concatenate([amounts, np.ones((len(amounts), 1))], axis=1)
    parts = parts / parts.sum(0).clip(min=1)
    chosen = np.zeros(len(parts), bool)
    chosen[[row for row, is_chosen in decided.items() if is_chosen]] = True
    is_only = ((amounts > 0).sum(0) == 1)[None] & (amounts > 0)
    is_free = ~is_only.any(1)
    is_free[list(decided)] = False
    while _add(chosen, is_free, parts, fraction, rng):
        pass
    for row in rng.permutation(np.flatnonzero(chosen & is_free))[:_MAX_CANDIDATES]:
        _exchange(row, chosen, is_free, parts, fraction, rng)
    return chosen


def _add(
    chosen: np.ndarray, is_free: np.ndarray, parts: np.ndarray, fraction: float, rng: np.random.Generator
) -> bool:
    """Choose one more, and say whether any helps; of one random half the best, not just the longest videos of all."""
    candidates = rng.permutation(np.flatnonzero(is_free & ~chosen))[:_MAX_CANDIDATES]
    reached = parts[chosen].sum(0)
    errors = np.square(reached + parts[candidates] - fraction).sum(1)
    better = np.flatnonzero(errors < np.square(reached - fraction).sum())
    if not len(better) or chosen.sum() + 1 >= len(parts):
        return False
    half = better[: (len(better) + 1) // 2]
    chosen[candidates[half[errors[half].argmin()]]] = True
    return True


def _exchange(
    row: int, chosen: np.ndarray, is_free: np.ndarray, parts: np.ndarray, fraction: float, rng: np.random.Generator
) -> None:
    """Put another one in the place of one that is chosen, if that helps."""
    candidates = rng.permutation(np.flatnonzero(is_free & ~chosen))[:_MAX_CANDIDATES]
    reached = parts[chosen].sum(0)
    errors = np.square(reached - parts[row] + parts[candidates] - fraction).sum(1)
    if len(errors) and errors.min() < np.square(reached - fraction).sum():
        chosen[row], chosen[candidates[errors.argmin()]] = False, True


def read_split(data_dir: Path) -> dict[str, bool]:
    """Return whether videos were put into validation before."""
    path = data_dir / SPLIT_FILE
    if not path.is_file():
        return {}
    with parsing(path, "it is no split as it is kept here: remove the file to split anew"):
        content = json.loads(path.read_text(encoding="utf-8"))
        split = {video: name == "validation" for name in ("train", "validation") for video in content[name]}
        if not all(isinstance(video, str) for video in split):
            raise AnnotationError(f"{path} must hold names of videos, got {quote(list(split))}")
        return split


def keep_split(data_dir: Path, split: Mapping[str, bool], options: Mapping[str, Any]) -> None:
    """Write down which videos are in validation, for later runs; a folder that cannot be written to is said.

    The options are those of the first run, in which the videos were chosen.
    """
    names = {
        name: sorted(video for video, is_in in split.items() if is_in == (name == "validation"))
        for name in ("train", "validation")
    }
    path = data_dir / SPLIT_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        content = {**options, **before, **names}
        if before != content:
            write_json(path, content, indent=2)
    except OSError as error:
        logger.warning("The split cannot be kept for later runs: %s", error)


def describe_split(
    split: Mapping[str, bool], counts: Mapping[str, Mapping[str, int]], kept: Mapping[str, bool]
) -> list[str]:
    """Say which videos are in validation, which part of each class, and how many were there before."""
    videos = sorted(video for video, is_in in split.items() if is_in)
    totals: dict[str, list[int]] = {}
    for video, labels in counts.items():
        for label, count in labels.items():
            total = totals.setdefault(label, [0, 0])
            total[0] += count * split[video]
            total[1] += count
    shares = [f"{label} {inside / total:.0%}" for label, (inside, total) in sorted(totals.items()) if total]
    stay = sum(video in kept for video in split)
    notes = [f"{stay} videos stay where {SPLIT_FILE} has them: remove it to divide anew"] if stay else []
    return [
        f"validation: {len(videos)} of {len(split)} videos ({shorten(videos)}), kept in {SPLIT_FILE}",
        f"validation has of {shorten(shares)}",
        *notes,
    ]


def boxes_per_class(
    videos: Sequence[str], labels: Sequence[str], video: np.ndarray, label: np.ndarray
) -> dict[str, dict[str, int]]:
    """Count the boxes (n,) of each video and class."""
    table = np.zeros((len(videos), len(labels)), np.int64)
    named = label >= 0
    np.add.at(table, (video[named], label[named]), 1)
    return {
        name: {labels[code]: int(row[code]) for code in np.flatnonzero(row)}
        for name, row in zip(videos, table, strict=True)
    }
