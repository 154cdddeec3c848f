"""Single values of annotations, checked."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from classquery.data.annotations.schema import AnnotationError, quote


# Names of the files, folders and values of a column that mean a split.
SPLITS = {"train": ("train",), "validation": ("validation", "val"), "val": ("validation", "val")}
OTHER_SPLITS = ("test",)  # May be there, but nobody asks for it.
MAX_WHOLE_NUMBER = 2**31 - 1


def number(value: Any, name: str) -> float:
    """Return a finite number, given as such or as text."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise AnnotationError(f"{name} must be a number, got {quote(value)}")
    return result


def whole_number(value: Any, name: str) -> int:
    """Return a whole number from 0 to that of 32 bits, given as such or as text."""
    result = number(value, name)
    if result % 1 or not 0 <= result <= MAX_WHOLE_NUMBER:
        raise AnnotationError(f"{name} must be a whole number from 0 on, got {quote(value)}")
    return int(result)


def flag(value: Any, name: str, default: bool = False) -> bool:
    """Return a truth value, given as such, as 0 or 1, or as text; nothing means the default."""
    if value is None or value == "":
        return default
    text = str(value).strip().lower()
    if text not in ("0", "1", "false", "true"):
        raise AnnotationError(f"`{name}` must be true or false, got {quote(value)}")
    return text in ("1", "true")


def join_labels(known: frozenset[str] | None, labels: Collection[str] | None) -> frozenset[str] | None:
    """Return the classes that were looked for, where several rows of a video say some; None where none does."""
    return known if labels is None else (known or frozenset()) | frozenset(labels)


def in_splits(split: Any, splits: Sequence[str] | None) -> bool:
    """Whether a row is of a split that is asked for; `splits` is None where the files are of one split alone."""
    if splits is None:
        return True
    known = (*dict.fromkeys(name for names in SPLITS.values() for name in names), *OTHER_SPLITS)
    if split not in known:
        raise AnnotationError(f"`split` must be one of {', '.join(known)}, got {quote(split)}")
    return split in splits
