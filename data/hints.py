"""What somebody may have meant who typed a name that does not exist."""

import re
from collections.abc import Iterable


_MAX_NAME = 200
# One letter of four in a word, and two of five in a name, may be others than those of what was meant.
_LIKE_WORD, _LIKE_NAME = 0.7, 0.6
_MIN_STEM = 3


def closest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that another is most like; nothing if it is like none of them.

    Names are alike in most of the words of the one that was typed, or in most letters as a whole, whatever their case.
    """
    likeness = {other: _likeness(name[:_MAX_NAME], other[:_MAX_NAME]) for other in known}
    best = max(likeness, key=likeness.__getitem__, default=None)
    if best is None or max(likeness[best]) == 0:
        return ""
    shown = best if len(best) <= _MAX_NAME else f"{best[: _MAX_NAME - 4]} ..."
    return f", did you mean {shown!r}?"


def _likeness(name: str, other: str) -> tuple[float, float]:
    """In [0, 1], first by words, then as a whole; 0 for what is not alike."""
    words, others = _words(name), _words(other)
    if not words or not others:
        return 0.0, 0.0
    by_word = sum(max(_word_likeness(word, part) for part in others) for word in words) / len(words)
    if len(others) > 1 and words == ["".join(word[0] for word in others)]:
        by_word = 1.0  # `lr` for `learning_rate`
    has_its_words = by_word > 0.5
    whole = _similarity("".join(words), "".join(others), 0.0 if has_its_words else _LIKE_NAME)
    return (by_word, whole) if has_its_words or whole else (0.0, 0.0)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def _word_likeness(word: str, other: str) -> float:
    shorter, longer = sorted((word, other), key=len)
    is_stem = len(shorter) >= _MIN_STEM and longer.startswith(shorter)
    return 1.0 if is_stem else _similarity(word, other, _LIKE_WORD)


def _similarity(text: str, other: str, at_least: float) -> float:
    """One less the part of the letters that are missing, added, changed, or changed places; 0 for less than that."""
    shorter, longer = sorted((len(text), len(other)))
    if shorter / longer < at_least:
        return 0.0
    above, row = [], list(range(len(other) + 1))
    for i, letter in enumerate(text, start=1):
        before, above, row = above, row, [i]
        for j, there in enumerate(other, start=1):
            edits = min(row[-1] + 1, above[j] + 1, above[j - 1] + (letter != there))
            if i > 1 and j > 1 and letter == other[j - 2] and there == text[i - 2]:
                edits = min(edits, before[j - 2] + 1)
            row.append(edits)
    similarity = 1 - row[-1] / longer
    return similarity if similarity >= at_least else 0.0
