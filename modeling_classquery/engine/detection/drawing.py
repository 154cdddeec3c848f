"""Draw detections, on one frame or on a whole video.

Only Pillow and PyAV are needed, which are dependencies anyway.
"""

import itertools
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw
from transformers.utils import logging

from classquery.data.fonts import font_for
from classquery.data.video.reader import Frame, VideoReadError
from classquery.data.whole_files import replacing
from classquery.engine.detection.background import Background
from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.engine.detection.video_sources import open_source


logger = logging.get_logger(__name__)

# Pillow draws better than supervision here: without OpenCV the latter's labels are jagged and take 0.5 s per frame
# (`LabelAnnotator`) or unevenly spaced (`RichLabelAnnotator`), opaque, without score bars, and lie on the actors.

# Okabe and Ito's colours, told apart with every kind of colour vision, but for the dark ones.
_ACTOR_COLORS = ("#56B4E9", "#E69F00", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#CFCFCF")
_OUTLINE_COLOR = (0, 0, 0, 150)
_PANEL_COLOR = (16, 18, 22, 205)
_TEXT_COLOR = (255, 255, 255, 255)
_BADGE_TEXT_COLOR = (16, 18, 22, 255)
_BAR_COLOR = (84, 88, 96, 255)
# How many actions of an actor to write, the fewer the more actors there are.
_MAX_ROWS = (6, 4, 2, 1)
_MIN_FONT_SIZE = 8
_MAX_LONG_SIDE = 1920
# A little more size costs more time than everything else, and text of 360 rows can be read as well as that of 480.
_MAX_ENLARGEMENT_NOT_WORTH_IT = 4 / 3
_PICTURES_AHEAD = 4
# More no screen shows, and a recording of 100,000 per second would be drawn for days.
_MAX_FRAMES_PER_SECOND = 240
_GIF_FRAMES_PER_SECOND = 10
_GIF_LONG_SIDE = 480
# matplotlib's "inferno" (CC0) at nine equal steps, and how opaque it is where a class looks least and most.
_HEAT_COLORS = np.array(
    [
        [0, 0, 4],
        [31, 12, 72],
        [85, 15, 109],
        [136, 34, 106],
        [186, 54, 85],
        [227, 89, 51],
        [249, 140, 10],
        [249, 201, 50],
        [252, 255, 164],
    ]
)
_HEAT_OPACITIES = (0.3, 0.6)
# From this factor on enlarged pixels stay squares: smoothing would only make them look out of focus.
_MIN_PIXELATED_SCALE = 3
# 90 kHz, usual for video, holds the times of any frame rate to some microseconds.
_TIME_BASE = Fraction(1, 90_000)


def color_of_person(person_id: int) -> str:
    """Colour of a person in pictures and charts, as "#RRGGBB"; it repeats after seven."""
    return _ACTOR_COLORS[(person_id - 1) % len(_ACTOR_COLORS)]


def write_annotated_video(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keyframes: Iterable[FrameDetections],
    *,
    attention_label: str | None = None,
    attention_person: int | None = None,
    min_short_side: int = 480,
    damage_is_known: bool = False,
) -> None:
    """Write a copy of a video with its detections drawn in: H.264 in mp4, frames at the same times, without sound.

    Of more than 240 frames per second, some are left out. Each frame shows the detections of the keyframe nearest in
    time; where people are numbered, their boxes move in between. A file that is there is replaced when all is written,
    or kept. Frames that cannot be decoded are left out, with a warning.

    Args:
        source: The video that the detections belong to, a file or a folder of frames; it is decoded once more, in
            constant memory.
        output: The mp4 file to write; or a gif, of ten frames per second and 480 pixels at most.
        keyframes: Detections, as by `detect`.
        attention_label, attention_person, min_short_side: See `draw_keyframe`.
        damage_is_known: Whether to do without the warning, because `detect` has given it.

    Raises:
        VideoReadError: If the source cannot be read at all; nothing is written then.
    """
    video = open_source(source)
    keyframes = sorted(keyframes, key=attrgetter("seconds")) or [FrameDetections(0, 0.0, [])]
    is_gif = Path(output).suffix.lower() == ".gif"
    size = _picture_size((video.width, video.height), min_short_side)
    frames = _readable_frames(video.frames, damage_is_known)
    if is_gif:
        size = _scaled_size(size, min(1.0, _GIF_LONG_SIDE / max(size)))
        frames = _at_gif_rate(frames)
    else:
        frames = _at_most(_MAX_FRAMES_PER_SECOND, frames)
    drawer = _VideoDrawer(keyframes, (video.width, video.height), size, attention_label, attention_person)
    pictures = ((drawer.draw(frame), frame.seconds) for frame in frames)
    # Drawn ahead, in a thread, while the encoder works.
    with replacing(output) as partial_path, Background(pictures, capacity=_PICTURES_AHEAD) as ahead:
        if is_gif:
            _write_gif(partial_path, ahead)
        else:
            _write_h264(partial_path, ahead, size, min(video.frames_per_second, _MAX_FRAMES_PER_SECOND))


def _readable_frames(frames: Iterator[Frame], damage_is_known: bool) -> Iterator[Frame]:
    """Stream what can be decoded of a video; what cannot is told of behind the last frame."""
    try:
        yield from frames
    except VideoReadError as error:
        if not damage_is_known:
            logger.warning("frames are left out: %s", error)


def draw_keyframe(
    image: Image.Image,
    keyframe: FrameDetections,
    *,
    attention_label: str | None = None,
    attention_person: int | None = None,
    attention_note: str = "",
    min_short_side: int = 480,
) -> Image.Image:
    """Draw the actors of a frame, each with a box and a block of its actions, scores and score bars.

    Text never covers text: the more actors there are, the fewer of their actions are written, and where even one has
    no place, the number of the person is.

    Args:
        image: The frame.
        keyframe: What was detected in it.
        attention_label: Name of the class that the attention of the actors belongs to. With it the attention is drawn
            as a heat map, the maximum over the actors after scaling each to a maximum of 1, and named in a corner.
        attention_person: Number of the person whose attention alone is drawn.
        attention_note: What to write behind the name of the class.
        min_short_side: Frames of less than three quarters of this short side, in pixels, are enlarged to it, so that
            text can be read; large ones are reduced to a long side of 1920.

    Returns:
        An RGB image of even width and height, as video encoders want it.
    """
    size = _picture_size(image.size, min_short_side)
    boxes = [_scaled(actor.box, image.size, size) for actor in keyframe.actors]
    layers = _draw_layers(keyframe, boxes, size, attention_label, attention_person, attention_note)
    return _compose(image.convert("RGB"), layers, zip(boxes, _colors(keyframe), strict=True))


def draw_attention_grid(
    image: Image.Image, actor: ActorDetection, labels: Sequence[str], *, note: str = "", min_short_side: int = 320
) -> Image.Image:
    """Draw where several classes look for one actor: a copy of the frame for each, in rows of four at most.

    Args:
        image: The frame.
        actor: The actor, with the attention of the classes.
        labels: Names of the classes.
        note: What to write behind the name of the first one.
        min_short_side: Of each copy, see `draw_keyframe`.

    Raises:
        ValueError: If there are no classes, or the attention of one is missing.
    """
    missing = [label for label in labels if label not in actor.attentions]
    if missing or not labels:
        raise ValueError(f"name the classes to draw in detect(..., attention=[...]), too: {missing or 'got none'}")
    size = _picture_size(image.size, min_short_side)
    box = _scaled(actor.box, image.size, size)
    color = color_of_person(actor.person_id or 1)
    columns = min(4, len(labels))
    grid = Image.new("RGB", (columns * size[0], math.ceil(len(labels) / columns) * size[1]))
    for number, label in enumerate(labels):
        heat, text = _Overlay(size, [box]), _Overlay(size, [box])
        heat.draw_heat([actor.attentions[label]])
        score = (actor.attention_scores | dict(actor.actions)).get(label)
        text.draw_caption((label if score is None else f"{label} {score:.2f}") + ("" if number else note))
        cell = _compose(image.convert("RGB"), _Layers(heat.image, text.image), [(box, color)])
        grid.paste(cell, (number % columns * size[0], number // columns * size[1]))
    return grid


# Videos


class _VideoDrawer:
    """Draws frame after frame; what does not change between two keyframes is drawn once."""

    def __init__(
        self,
        keyframes: Sequence[FrameDetections],
        frame_size: tuple[int, int],
        size: tuple[int, int],
        attention_label: str | None,
        attention_person: int | None,
    ):
        self._keyframes = keyframes
        self._frame_size = frame_size
        self._size = size
        self._attention = attention_label, attention_person
        self._seconds = [keyframe.seconds for keyframe in keyframes]
        self._turns = [(earlier + later) / 2 for earlier, later in itertools.pairwise(self._seconds)]
        self._drawn: tuple[int, _Layers] | None = None

    def draw(self, frame: Frame) -> Image.Image:
        """Draw a frame, with the keyframe nearest in time."""
        nearest = bisect_left(self._turns, frame.seconds)
        keyframe = self._keyframes[nearest]
        if self._drawn is None or self._drawn[0] != nearest:
            boxes = [_scaled(actor.box, self._frame_size, self._size) for actor in keyframe.actors]
            self._drawn = nearest, _draw_layers(keyframe, boxes, self._size, *self._attention)
        moved = [_scaled(box, self._frame_size, self._size) for box in self._boxes_at(frame.seconds, keyframe)]
        return _compose(Image.fromarray(frame.image), self._drawn[1], zip(moved, _colors(keyframe), strict=True))

    def _boxes_at(self, seconds: float, keyframe: FrameDetections) -> Iterator[Sequence[float]]:
        """Move boxes in straight lines from each keyframe to the next, where both have the person."""
        position = bisect_right(self._seconds, seconds)
        neighbours = self._keyframes[max(0, position - 1) : position + 1]
        places = [{actor.person_id: actor.box for actor in neighbour.actors} for neighbour in neighbours]
        for actor in keyframe.actors:
            ends = [place.get(actor.person_id) for place in places]
            if actor.person_id is None or len(ends) < 2 or None in ends:
                yield actor.box
                continue
            before, behind = (neighbour.seconds for neighbour in neighbours)
            yield tuple(np.add(ends[0], np.subtract(ends[1], ends[0]) * (seconds - before) / (behind - before)))


def _write_h264(
    path: os.PathLike[str],
    pictures: Iterable[tuple[Image.Image, float]],
    size: tuple[int, int],
    frames_per_second: float,
) -> None:
    """Encode RGB pictures of an even (width, height) and their times in seconds."""
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            "libx264",
            rate=Fraction(frames_per_second).limit_denominator(1001),
            options={"crf": "20", "preset": "veryfast"},
        )
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        # The rate above is a hint for the encoder: times are exact, also where the rate varies.
        stream.codec_context.time_base = _TIME_BASE
        for picture, seconds in pictures:
            frame = av.VideoFrame.from_image(picture)
            frame.time_base = _TIME_BASE
            frame.pts = round(seconds / _TIME_BASE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(path: os.PathLike[str], pictures: Iterable[tuple[Image.Image, float]]) -> None:
    """Write pictures of regular times as an animation without end."""
    first, *others = (picture.quantize(128, dither=Image.Dither.NONE) for picture, _ in pictures)
    first.save(
        path, format="GIF", save_all=True, append_images=others, duration=1000 // _GIF_FRAMES_PER_SECOND, loop=0
    )


def _at_most(frames_per_second: float, frames: Iterable[Frame]) -> Iterator[Frame]:
    """Leave out frames that come sooner after the one before than at a rate."""
    due = -math.inf
    for frame in frames:
        if frame.seconds >= due:
            yield frame
            # A tenth of tolerance: the times of real recordings are not quite even.
            due = frame.seconds + 0.9 / frames_per_second


def _at_gif_rate(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Leave out frames until the next is due."""
    due = 0.0
    for frame in frames:
        while frame.seconds >= due - 1e-6:
            yield frame
            due += 1 / _GIF_FRAMES_PER_SECOND


# Pictures: the frame, enlarged, the heat map, boxes, and text over it


class _Layers(NamedTuple):
    """What lies under and over the boxes; RGBA."""

    heat: Image.Image | None
    text: Image.Image


def _picture_size(frame_size: tuple[int, int], min_short_side: int) -> tuple[int, int]:
    """Enlarge or reduce (width, height) if necessary, to even numbers."""
    scale = min_short_side / min(frame_size)
    enlargement = scale if scale > _MAX_ENLARGEMENT_NOT_WORTH_IT else 1.0
    return _scaled_size(frame_size, min(enlargement, _MAX_LONG_SIDE / max(frame_size)))


def _scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return tuple(max(2, 2 * round(side * scale / 2)) for side in size)


def _scaled(box: Sequence[float], frame_size: tuple[int, int], size: tuple[int, int]) -> "_Rectangle":
    scale = np.tile(np.divide(size, frame_size), 2)
    return _Rectangle(*np.multiply(box, scale).round().astype(int).tolist())


def _colors(keyframe: FrameDetections) -> list[str]:
    """Colour of each actor: that of the person, or of the place from left to right."""
    return [color_of_person(actor.person_id or place) for place, actor in enumerate(keyframe.actors, start=1)]


def _compose(image: Image.Image, layers: _Layers, boxes: Iterable[tuple["_Rectangle", str]]) -> Image.Image:
    """Bring an RGB frame to the size of the layers and lay them and the boxes over it."""
    size = layers.text.size
    if image.size != size:
        is_tiny = size[1] >= _MIN_PIXELATED_SCALE * image.height
        image = image.resize(size, Image.Resampling.NEAREST if is_tiny else Image.Resampling.BICUBIC)
    if layers.heat is not None:
        image.paste(layers.heat, mask=layers.heat)
    draw = ImageDraw.Draw(image, "RGBA")
    line = _line_width(size)
    for box, color in boxes:
        # A dark rim inside sets the line off from a background of its colour.
        draw.rectangle(box.corners, outline=_OUTLINE_COLOR, width=line + 1)
        draw.rectangle(box.corners, outline=color, width=line)
    image.paste(layers.text, mask=layers.text)
    return image


def _line_width(size: tuple[int, int]) -> int:
    return max(2, round(min(size) / 160))


def _draw_layers(
    keyframe: FrameDetections,
    boxes: Sequence["_Rectangle"],
    size: tuple[int, int],
    attention_label: str | None,
    attention_person: int | None,
    attention_note: str = "",
) -> _Layers:
    """Draw the heat map and the text of a keyframe; boxes are in pixels of the picture of (width, height) `size`."""
    heat = None
    if attention_label is not None:
        overlay = _Overlay(size, boxes)
        overlay.draw_heat(
            [
                actor.attentions[attention_label]
                for actor in keyframe.actors
                if attention_label in actor.attentions and attention_person in (None, actor.person_id)
            ]
        )
        heat = overlay.image
    whose = "" if attention_person is None else f" for person {attention_person}"
    caption = None if attention_label is None else f"attention: {attention_label}{whose}{attention_note}"
    return _Layers(heat, _draw_text(keyframe, boxes, size, caption))


def _draw_text(
    keyframe: FrameDetections, boxes: Sequence["_Rectangle"], size: tuple[int, int], caption: str | None
) -> Image.Image:
    """Write so many actions of each actor that no text covers other text."""
    for max_rows in _MAX_ROWS:
        overlay = _Overlay(size, boxes, max_rows)
        if caption is not None:
            overlay.draw_caption(caption)
        for actor, box, color in zip(keyframe.actors, boxes, _colors(keyframe), strict=True):
            overlay.draw_actions(actor.actions, box, color, actor.person_id)
        if not overlay.has_skipped:
            break
    return overlay.image


class _Rectangle(NamedTuple):
    """Pixels from the first to before the last of each axis."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """First and last pixel, as Pillow draws."""
        return self.left, self.top, max(self.left, self.right - 1), max(self.top, self.bottom - 1)


class _Overlay:
    """A transparent layer on which text avoids other text and, if there is room, actors.

    Args:
        size: Width and height in pixels; text and lines grow with the smaller one.
        boxes: Where the actors are.
        max_rows: How many actions of an actor to write, at most.
    """

    def __init__(self, size: tuple[int, int], boxes: Sequence[_Rectangle], max_rows: int = _MAX_ROWS[0]):
        self.image = Image.new("RGBA", size)
        self.panels: list[_Rectangle] = []
        self.has_skipped = False
        self._boxes = boxes
        self._max_rows = max_rows
        self._draw = ImageDraw.Draw(self.image)
        self._font_size = max(_MIN_FONT_SIZE, round(min(size) / 26))
        self._ascent, descent = font_for("", self._font_size).getmetrics()
        self._line = _line_width(size)
        self._padding = round(self._font_size / 3)
        self._text_height = self._ascent + descent
        self._row_height = self._text_height + 2 * self._line

    def draw_heat(self, attentions: Sequence[np.ndarray]) -> None:
        """Fill the layer with the maximum of attentions (h, w), each scaled to a maximum of 1."""
        if attentions:
            heat = np.max([attention / attention.max() for attention in attentions], axis=0)
            smooth = Image.fromarray(heat.astype(np.float32)).resize(self.image.size, Image.Resampling.BICUBIC)
            self.image.paste(Image.fromarray(_heat_colors(np.asarray(smooth).clip(0, 1))))

    def draw_caption(self, text: str) -> None:
        """Write a line into the lower left corner."""
        text = self._shorten(text, self.image.width - 2 * self._padding)
        width = round(self._length(text)) + 2 * self._padding
        panel = _Rectangle(0, self.image.height - self._row_height, width, self.image.height)
        self._draw_panel(panel)
        self._write(text, self._padding, panel.top)

    def draw_actions(
        self, actions: list[tuple[str, float]], box: _Rectangle, color: str, person_id: int | None = None
    ) -> None:
        """Write the actions of an actor beside its box, each above a bar as long as its score.

        Where no place is left, only the number of the person is written, and `has_skipped` tells.
        """
        rows = self._rows(actions)
        badge = self._badge_width(person_id)
        text_width = self._padding + max((self._width(row, badge * (not i)) for i, row in enumerate(rows)), default=0)
        panel = self._place(text_width + 3 * self._padding, len(rows) * self._row_height + self._padding, box)
        if panel is None:
            self.has_skipped = True
        if panel is None or not rows:
            self._draw_badge(person_id, box.left, box.top, color)
            return
        self._draw_panel(panel)
        self._draw.rectangle(panel._replace(right=panel.left + self._line).corners, fill=color)
        left = panel.left + 2 * self._padding
        for index, (label, score, fraction) in enumerate(rows):
            top = panel.top + index * self._row_height
            indent = 0 if index else badge
            self._write(label, left + indent, top)
            self._write(score, left + text_width, top, side="r")
            if score:
                self._draw_bar(left, top + self._row_height - self._line, text_width, fraction, color)
        self._draw_badge(person_id, panel.left, panel.top, color)

    def _width(self, row: tuple[str, str, float], indent: int) -> int:
        label, score, _ = row
        return round(self._length(label) + self._length(f" {score}")) + indent

    def _badge_width(self, person_id: int | None) -> int:
        return 0 if person_id is None else round(self._length(str(person_id))) + 2 * self._padding

    def _draw_badge(self, person_id: int | None, left: int, top: int, color: str) -> None:
        """Write the number of a person on its colour."""
        if person_id is not None:
            badge = self._inside(left, top, self._badge_width(person_id), self._text_height)
            self._draw.rectangle(badge.corners, fill=color)
            self._write(str(person_id), badge.left + self._padding, badge.top, _BADGE_TEXT_COLOR)

    def _rows(self, actions: list[tuple[str, float]]) -> list[tuple[str, str, float]]:
        """Label, score as text and score of each action that fits; the last of many rows counts the others."""
        max_rows = max(1, min(self._max_rows, (self.image.height - self._padding) // self._row_height))
        max_width = self.image.width - 6 * self._padding - round(self._length(" 0.00 000"))
        counts_others = len(actions) > max_rows > 2
        shown = actions[: max_rows - 1 if counts_others else max_rows]
        rows = [(self._shorten(label, max_width), f"{score:.2f}", score) for label, score in shown]
        if counts_others:
            rows.append((f"+{len(actions) - len(shown)} more", "", 0.0))
        return rows

    def _shorten(self, text: str, max_width: int) -> str:
        if self._length(text) <= max_width:
            return text
        lengths = range(len(text))
        num_fitting = bisect_right(lengths, max_width, key=lambda length: self._length(f"{text[:length]}…"))
        return f"{text[: max(0, num_fitting - 1)]}…"

    def _length(self, text: str) -> float:
        return font_for(text, self._font_size).getlength(text)

    def _write(self, text: str, x: int, top: int, color: str = _TEXT_COLOR, side: Literal["l", "r"] = "l") -> None:
        """Write a line whose left or right end is at `x`; texts in other fonts stand on the same line."""
        font = font_for(text, self._font_size)
        self._draw.text((x, top + self._ascent), text, color, font, anchor=f"{side}s")

    def _draw_panel(self, panel: _Rectangle) -> None:
        self._draw.rectangle(panel.corners, fill=_PANEL_COLOR)
        self.panels.append(panel)

    def _draw_bar(self, left: int, bottom: int, width: int, fraction: float, color: str) -> None:
        bar = _Rectangle(left, bottom - self._line, left + width, bottom)
        self._draw.rectangle(bar.corners, fill=_BAR_COLOR)
        if fraction > 0:
            self._draw.rectangle(bar._replace(right=left + round(fraction * width)).corners, fill=color)

    def _place(self, width: int, height: int, box: _Rectangle) -> _Rectangle | None:
        """Choose the place for a panel at an edge of the box or of another panel: above the box if nothing is there.

        Otherwise, of those that cover no text, the one that covers the fewest actors and is near to the box; None if
        all cover text.
        """
        lefts = [box.left, box.right - width, box.right, box.left - width]
        tops = [box.top - height, box.bottom, box.top, box.bottom - height]
        for panel in self.panels:
            lefts += [panel.left - width - self._line, panel.right + self._line]
            tops += [panel.top - height - self._line, panel.bottom + self._line]
        places = np.array([self._inside(left, top, width, height) for left in lefts for top in tops])
        places = places[_overlaps(places, self.panels) == 0]
        if not len(places):
            return None
        cost = _overlaps(places, self._boxes) + height * _distances(places, box)
        return _Rectangle(*places[cost.argmin()].tolist())

    def _inside(self, left: int, top: int, width: int, height: int) -> _Rectangle:
        """Move a rectangle into the image."""
        left = max(0, min(left, self.image.width - width))
        top = max(0, min(top, self.image.height - height))
        return _Rectangle(left, top, left + width, top + height)


def _overlaps(places: np.ndarray, others: Sequence[_Rectangle]) -> np.ndarray:
    """Sum up the areas that rectangles (n, 4) share with others: (n,)."""
    # (n, 1, 2) and (others, 2): left and top, right and bottom.
    others = np.array(others).reshape(-1, 4)
    starts = np.maximum(places[:, None, :2], others[:, :2])
    ends = np.minimum(places[:, None, 2:], others[:, 2:])
    return (ends - starts).clip(min=0).prod(axis=-1).sum(axis=-1)


def _distances(places: np.ndarray, box: _Rectangle) -> np.ndarray:
    """Pixels between rectangles (n, 4) and a box, along both axes: (n,)."""
    box = np.array(box)
    gaps = np.maximum(places[:, :2], box[:2]) - np.minimum(places[:, 2:], box[2:])
    return gaps.clip(min=0).sum(axis=-1)


def _heat_colors(heat: np.ndarray) -> np.ndarray:
    """Colour values (...) in [0, 1], with more opacity for larger ones: uint8 (..., 4)."""
    steps = np.linspace(0, 1, len(_HEAT_COLORS))
    channels = [np.interp(heat, steps, channel) for channel in _HEAT_COLORS.T]
    opacity = 255 * np.interp(heat, (0, 1), _HEAT_OPACITIES)
    return np.stack((*channels, opacity), axis=-1).round().astype(np.uint8)
