"""One picture of many frames of a data set, with their boxes and labels: whether they fit is seen at a glance."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont

from classquery.data.fonts import font_for
from classquery.data.video.frame_folder import frame_indices_at, read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError


COLUMNS, ROWS = 4, 3
CELL_WIDTH, CELL_HEIGHT = 320, 240
_GAP = 12
_FONT_SIZE = 13
_LINE_HEIGHT = 17
_TEXT_LINES = 5  # Of a cell: where the frame is from, and what the actors do.
_BACKGROUND, _TEXT_COLOR = "#FFFFFF", "#202020"
# Okabe and Ito's colours, told apart with every kind of colour vision.
_COLORS = ("#56B4E9", "#E69F00", "#F0E442", "#CC79A7", "#009E73", "#D55E00")


class _Sample(NamedTuple):
    """A frame of a video and what everybody in it does, with their boxes; also the regions that are ignored."""

    caption: str
    row: dict[str, Any]
    frame: int | None
    """None at a keyframe, which is found by its time."""
    actors: list[tuple[str, list[float]]]


def draw_contact_sheet(rows: Dataset, labels: dict[int, str], *, seed: int = 0) -> Image.Image:
    """Draw frames from all over a data set with their boxes and labels.

    Args:
        rows: Annotations with `ACTION_FEATURES`. Rows without video, or with one that cannot be read, are passed over.
        labels: Names of the classes, by 0-based id.
        seed: Other seeds show other frames.

    Returns:
        An RGB image of `COLUMNS` x `ROWS` cells, fewer rows if there is less to show.
    """
    cells = []
    reader = ClipReader(max_open_files=1)
    for index in np.random.default_rng(seed).permutation(len(rows)):
        sample = _choose_frame(rows[int(index)], labels)
        image = _read(reader, sample) if sample else None
        if image is not None:
            cells.append(_draw_cell(image, sample))
        if len(cells) == COLUMNS * ROWS:
            break
    return _join(cells)


def _choose_frame(row: dict[str, Any], labels: dict[int, str]) -> _Sample | None:
    """Choose the keyframe, or the middle of the first tube; None without video or boxes."""
    if row["video"] is None or not row["tubes"]:
        return None
    drawn = [(_named(tube["labels"], labels), tube) for tube in row["tubes"]]
    drawn += [("(ignored region)", region) for region in row.get("ignored") or ()]
    if row["video_seconds"] is not None:
        return _Sample(row["clip_id"], row, None, [(text, tube["boxes"][0]) for text, tube in drawn])
    frames = row["tubes"][0]["frames"]
    frame = frames[len(frames) // 2]
    actors = [(text, tube["boxes"][tube["frames"].index(frame)]) for text, tube in drawn if frame in tube["frames"]]
    return _Sample(f"{row['clip_id']}, frame {frame}", row, frame, actors)


def _named(label_ids: list[int] | None, labels: dict[int, str]) -> str:
    """Say what somebody does; nobody knowing it is something else than nothing that is a class."""
    if not label_ids:
        return "(unknown)" if label_ids is None else "(nothing)"
    return ", ".join(labels.get(label, f"class {label}") for label in label_ids)


def _read(reader: ClipReader, sample: _Sample) -> Image.Image | None:
    path, seconds = sample.row["video"], sample.row["video_seconds"]
    try:
        if sample.row["source"] == "frames":
            frames = [sample.frame] if seconds is None else frame_indices_at(path, [seconds], sample.row["fps"])
            return Image.fromarray(read_frame_folder(path, frames)[0])
        frames = [sample.frame] if seconds is None else reader.frame_indices_at(path, [seconds])
        return Image.fromarray(reader.read(path, frames)[0])
    except VideoReadError:
        return None


def _draw_cell(image: Image.Image, sample: _Sample) -> Image.Image:
    """Draw the boxes, numbered, into the frame, and what everybody does below it, where it hides nothing."""
    scale = min(CELL_WIDTH / image.width, CELL_HEIGHT / image.height)
    size = round(image.width * scale), round(image.height * scale)
    left, top = (CELL_WIDTH - size[0]) // 2, (CELL_HEIGHT - size[1]) // 2
    cell = Image.new("RGB", (CELL_WIDTH, CELL_HEIGHT + _TEXT_LINES * _LINE_HEIGHT), _BACKGROUND)
    # Enlarged pixels stay squares: smoothing would only make them look out of focus.
    cell.paste(image.resize(size, Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST), (left, top))
    canvas = ImageDraw.Draw(cell)
    boxes = np.array([box for _, box in sample.actors]) * [*size, *size] + [left, top, left, top]
    _draw_boxes(canvas, boxes.round().astype(int).tolist())
    _write(canvas, sample.caption, 0, CELL_HEIGHT)
    _list_actions(canvas, [text for text, _ in sample.actors])
    return cell


def _draw_boxes(canvas: ImageDraw.ImageDraw, boxes: list[list[int]]) -> None:
    """Draw boxes (x_min, y_min, x_max, y_max) in pixels of the cell, then their numbers, which none may hide."""
    for number, (x_min, y_min, x_max, y_max) in enumerate(boxes):
        canvas.rectangle([x_min - 1, y_min - 1, x_max + 1, y_max + 1], outline="black", width=4)
        canvas.rectangle([x_min, y_min, x_max, y_max], outline=_COLORS[number % len(_COLORS)], width=2)
    for number, (x_min, y_min, *_) in enumerate(boxes):
        _draw_tag(canvas, x_min, max(0, y_min - _LINE_HEIGHT), number)


def _list_actions(canvas: ImageDraw.ImageDraw, actors: list[str]) -> None:
    """Write a line for each actor below the caption, the last one for all that are left."""
    num_lines = _TEXT_LINES - 1
    num_shown = len(actors) if len(actors) <= num_lines else num_lines - 1
    indent = _LINE_HEIGHT + 4
    for number, text in enumerate(actors[:num_shown]):
        line = CELL_HEIGHT + (number + 1) * _LINE_HEIGHT
        _draw_tag(canvas, 0, line, number)
        _write(canvas, text, indent, line)
    if num_shown < len(actors):
        line = CELL_HEIGHT + num_lines * _LINE_HEIGHT
        _write(canvas, f"and {len(actors) - num_shown} more", indent, line)


def _draw_tag(canvas: ImageDraw.ImageDraw, left: int, top: int, number: int) -> None:
    color = _COLORS[number % len(_COLORS)]
    canvas.rectangle([left, top, left + _LINE_HEIGHT - 1, top + _LINE_HEIGHT - 2], fill=color)
    middle = (left + _LINE_HEIGHT / 2, top + _LINE_HEIGHT / 2 - 1)
    canvas.text(middle, str(number + 1), "black", font_for("", _FONT_SIZE), anchor="mm")


def _write(canvas: ImageDraw.ImageDraw, text: str, left: int, top: int) -> None:
    """Write a line that ends with the cell at the latest; texts in other fonts stand on the same line."""
    font, (ascent, _) = font_for(text, _FONT_SIZE), font_for("", _FONT_SIZE).getmetrics()
    canvas.text((left, top + ascent), _fit(text, font, CELL_WIDTH - left), _TEXT_COLOR, font, anchor="ls")


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text off where it becomes wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _join(cells: Sequence[Image.Image]) -> Image.Image:
    num_rows = -(-len(cells) // COLUMNS)
    width, height = CELL_WIDTH + _GAP, CELL_HEIGHT + _TEXT_LINES * _LINE_HEIGHT + _GAP
    sheet = Image.new("RGB", (COLUMNS * width + _GAP, num_rows * height + _GAP), _BACKGROUND)
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        sheet.paste(cell, (_GAP + column * width, _GAP + row * height))
    return sheet
