"""Who does what, from when to when, as a picture, which needs matplotlib."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from classquery.data.whole_files import replacing
from classquery.engine.detection.drawing import color_of_person
from classquery.engine.detection.people import ActionSegment, Person
from classquery.engine.figures import figure_class


if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_ROWS = 60
_ROW_INCHES = 0.24
_MAX_LABEL_LENGTH = 34


def draw_timeline(
    people: Sequence[Person], path: str | os.PathLike[str], *, duration_seconds: float | None = None
) -> None:
    """Draw the timeline of each person as a PNG: a row for each of their actions, darker where scores are higher.

    Beyond 60 rows, those that last shortest are left out, and the title says how many.

    Args:
        people: What `list_people` returns; may be nobody.
        path: The PNG file to write.
        duration_seconds: The end of the axis of time; by default that of the last action.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    rows = _timeline_rows(people)
    shown = sorted(sorted(rows, key=_length, reverse=True)[:_MAX_ROWS], key=rows.index)
    figure = figure_class()(figsize=(9, 0.9 + _ROW_INCHES * max(3, len(shown))), dpi=150, layout="constrained")
    axes = figure.subplots()
    for position, (person_id, _, segments) in enumerate(shown):
        _draw_row(axes, position, person_id, segments)
    left_out = f" ({len(rows) - len(shown)} short ones left out)" if len(shown) < len(rows) else ""
    axes.set_title(f"who does what, from when to when{left_out}", loc="left", fontsize=12)
    _label_rows(axes, shown)
    ends = [segment.end_seconds for _, _, segments in shown for segment in segments]
    axes.set_xlim(0, duration_seconds or max(ends, default=1.0))
    axes.set_xlabel("seconds")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    with replacing(path) as partial_path:
        figure.savefig(partial_path, format="png")


_Row = tuple[int, str, list[ActionSegment]]


def _timeline_rows(people: Sequence[Person]) -> list[_Row]:
    """Group the actions of each person by name, in the order in which they start."""
    rows: dict[tuple[int, str], list[ActionSegment]] = {}
    for person in people:
        for segment in person.timeline:
            rows.setdefault((person.person_id, segment.label), []).append(segment)
    return [(person_id, label, segments) for (person_id, label), segments in rows.items()]


def _length(row: _Row) -> float:
    return sum(segment.end_seconds - segment.start_seconds for segment in row[2])


def _draw_row(axes: "Axes", position: int, person_id: int, segments: list[ActionSegment]) -> None:
    for segment in segments:
        axes.barh(
            position,
            segment.end_seconds - segment.start_seconds,
            left=segment.start_seconds,
            height=0.7,
            color=color_of_person(person_id),
            alpha=0.35 + 0.65 * segment.score,
            edgecolor="0.25",
            linewidth=0.6,
        )


def _label_rows(axes: "Axes", rows: Sequence[_Row]) -> None:
    """Name the actions at the left, and each person once, with a line above."""
    shortened = (
        label if len(label) <= _MAX_LABEL_LENGTH else f"{label[: _MAX_LABEL_LENGTH - 1]}…" for _, label, _ in rows
    )
    is_first = [not position or rows[position - 1][0] != row[0] for position, row in enumerate(rows)]
    names = [
        f"person {row[0]}   {label}" if first else label
        for row, label, first in zip(rows, shortened, is_first, strict=True)
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(3, len(rows)) - 0.5, -0.5)
    for position, first in enumerate(is_first):
        if first and position:
            axes.axhline(position - 0.5, color="0.8", linewidth=0.8)
