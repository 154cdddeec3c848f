"""What annotations may say without being meant: nothing that is refused, and everything that is asked about."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from classquery.data.annotations.schema import abbreviate, shorten
from classquery.data.annotations.videos import ASPECT_TOLERANCE, Video


_JOINTS = re.compile(r"[;,|]")


def ask_about_names(names: Iterable[str]) -> Iterator[str]:
    """Ask about classes that look the same, and about those that are several others joined."""
    known = set(names := list(names))
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_as_seen(name), []).append(name)
    for same in alike.values():
        if len(same) > 1:
            yield f"classes whose names look alike: {abbreviate(', '.join(map(ascii, same)))}; are they one?"
    for name in names:
        parts = [part.strip() for part in _JOINTS.split(name)]
        if len(parts) > 1 and known.issuperset(parts):
            yield f"is the class {abbreviate(ascii(name))} meant, or several? Then give a row or a label for each"


def _as_seen(name: str) -> str:
    """A name without what nobody sees: how it is encoded, invisible characters, kinds of spaces, and its case."""
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return " ".join(visible.casefold().split())


def ask_about_shapes(drawn_in: tuple[int, int] | None, videos: Mapping[str, Video | None]) -> Iterator[str]:
    """Ask about videos whose shape is not that of the frames (width, height) that boxes are said to be drawn in."""
    if drawn_in is None:
        return
    width, height = drawn_in
    others = [
        f"{name} ({video.width}x{video.height})"
        for name, video in videos.items()
        if video and abs(width * video.height / (height * video.width) - 1) > ASPECT_TOLERANCE
    ]
    if others:
        yield f"boxes are said to be drawn in {width}x{height}, and videos have another shape: {shorten(others)}"
