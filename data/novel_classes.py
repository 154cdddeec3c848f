"""Base-to-novel splits: which classes training does not see, though evaluation asks for them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from classquery.data.annotations.schema import AnnotationError, parsing, quote, shorten, to_dataset
from classquery.data.hints import closest


# The novel classes of the four splits of JHMDB-21 into 15 and 6 that ST-CLIP is evaluated on.
JHMDB_SPLITS = {
    "jhmdb_1": ("clap", "sit", "wave", "throw", "pullup", "catch"),
    "jhmdb_2": ("kick_ball", "run", "climb_stairs", "stand", "shoot_gun", "pick"),
    "jhmdb_3": ("brush_hair", "push", "pour", "shoot_bow", "jump", "shoot_ball"),
    "jhmdb_4": ("golf", "swing_baseball", "walk", "clap", "sit", "wave"),
}
_FORM = 'a split is JSON, ["class", ...] or {"novel": ["class", ...]}, or text with a class on each line'


def find_novel_classes(values: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Read which classes are novel.

    Args:
        values: Names of classes; or one of `jhmdb_1` to `jhmdb_4`; or `seed:S:PERCENT`, for all but that part of the
            classes, drawn with a seed, to be novel; or the path of a file with a split.
        labels: All classes, in the order of their ids.

    Returns:
        The novel classes as they are called in `labels`, in that order.

    Raises:
        AnnotationError: If a class is none of `labels`, or several, or there would be no novel or no base class.
    """
    if len(values) == 1 and values[0] not in labels:
        values = _named_split(values[0], labels)
    novel = {_label_of(value, labels) for value in values}
    if not novel or len(novel) == len(labels):
        raise AnnotationError(f"some classes must be novel and some not: got {len(novel)} of {len(labels)}")
    return [label for label in labels if label in novel]


def _label_of(value: str, labels: Sequence[str]) -> str:
    """The class that is called so, or the only one whose name differs in capitals, spaces and underscores alone."""
    alike = [value] if value in labels else [label for label in labels if _plain(label) == _plain(value)]
    if not alike:
        hint = closest(value, labels) or f"; there are {shorten(labels)}"
        raise AnnotationError(f"there is no class {quote(value)} to be novel{hint}")
    if len(alike) > 1:
        raise AnnotationError(f"{quote(value)} may be each of the classes {quote(alike)}: spell it as one of them")
    return alike[0]


def _plain(label: str) -> str:
    """Published lists differ in capitals, spaces and underscores."""
    return "".join(character for character in label.casefold() if character.isalnum())


def _named_split(value: str, labels: Sequence[str]) -> Sequence[str]:
    if value in JHMDB_SPLITS:
        return JHMDB_SPLITS[value]
    if value.startswith("seed:"):
        return _drawn_split(value, labels)
    if Path(value).suffix in (".json", ".txt") or Path(value).is_file():
        return _read_split(Path(value))
    return [value]


def _drawn_split(value: str, labels: Sequence[str]) -> list[str]:
    """All but a part of the classes, drawn at random; the same on every machine."""
    with parsing(f"--novel_classes {value[:50]}", "give seed:S:PERCENT, as seed:0:75 for a quarter that is novel"):
        _, seed, percent = value.split(":")
        if not 0 <= float(percent) <= 100:
            raise ValueError(f"there is no part of {percent} percent")
        num_base = math.floor(len(labels) * float(percent) / 100 + 0.5)
        order = np.random.default_rng(int(seed)).permutation(len(labels))
        return [labels[index] for index in sorted(order[num_base:])]


def _read_split(path: Path) -> list[str]:
    with parsing(path, _FORM):
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
        names = content.get("novel") if isinstance(content, dict) else content
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise AnnotationError(f"{path}: {_FORM}, got {quote(content)}")
        return names


def hide_novel_classes(
    rows: Dataset | IterableDataset, novel_ids: Sequence[int], num_labels: int
) -> Dataset | IterableDataset:
    """Annotations in which nobody looked for some classes.

    Their labels are gone, and it is unknown, not false, whether they are there. Actors who did nothing else stay, with
    what they did not do; clips and videos in which nobody does anything else are left out.

    Args:
        rows: With `ACTION_FEATURES`.
        novel_ids: 0-based ids of the classes.
        num_labels: Number of all classes.

    Raises:
        ValueError: If the rows are those of shards, which hold clips that are cut already.
    """
    if not isinstance(rows, Dataset | IterableDataset):
        raise ValueError(
            "--novel_classes are hidden in annotations, not in shards: give the data that they were cut of"
        )
    novel = set(novel_ids)
    if isinstance(rows, IterableDataset):
        features = rows.features
        return rows.filter(lambda row: not _only_novel(row, novel)).map(
            lambda row: _without(row, novel, num_labels), features=features
        )
    return to_dataset([_without(row, novel, num_labels) for row in rows if not _only_novel(row, novel)])


def _only_novel(row: Mapping[str, Any], novel: set[int]) -> bool:
    labels = {label for tube in row["tubes"] for label in tube["labels"] or ()}
    return bool(labels) and labels <= novel


def _without(row: Mapping[str, Any], novel: set[int], num_labels: int) -> dict[str, Any]:
    annotated = row.get("annotated_labels")
    annotated = range(num_labels) if annotated is None else annotated
    return {
        **row,
        "tubes": [tube | {"labels": _others(tube["labels"], novel)} for tube in row["tubes"]],
        "annotated_labels": _others(annotated, novel),
    }


def _others(labels: Sequence[int] | None, novel: set[int]) -> list[int] | None:
    return None if labels is None else [label for label in labels if label not in novel]


def base_and_novel_means(ap: Mapping[str, Mapping[str, float]], novel: Sequence[str]) -> dict[str, float]:
    """Mean AP over base and over novel classes with ground truth, and the harmonic mean of both.

    Args:
        ap: By the name of a mean, as "frame_map_50" and "video_map_20", the AP of each class that has one.
        novel: The novel classes.

    Returns:
        `frame_map_50_base`, `frame_map_50_novel` and `frame_map_50_harmonic`, and so of all means, as far as there are
        such classes.
    """
    means = {}
    for name, of_class in ap.items():
        parts = {
            "base": [value for label, value in of_class.items() if label not in novel],
            "novel": [value for label, value in of_class.items() if label in novel],
        }
        means |= {f"{name}_{part}": sum(values) / len(values) for part, values in parts.items() if values}
        if all(parts.values()):
            base, other = means[f"{name}_base"], means[f"{name}_novel"]
            means[f"{name}_harmonic"] = 2 * base * other / (base + other) if base + other else 0.0
    return means
