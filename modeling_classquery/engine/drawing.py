"""Draw detections, on one frame or on a whole video, and the curve of a training run.

Pictures and videos need only Pillow and PyAV, which are dependencies anyway; the training curve needs matplotlib.
"""

import contextlib
import importlib.util
import itertools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from operator import attrgetter
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers.utils import logging

from classquery.data.clip_reader import ClipReader, Frame, VideoReadError, iterate_frames
from classquery.data.whole_files import replacing
from classquery.engine.results import FrameDetections


logger = logging.get_logger(__name__)

# Pillow draws better than supervision here: without OpenCV the latter's labels are jagged and take 0.5 s per frame
# (`LabelAnnotator`) or unevenly spaced (`RichLabelAnnotator`), opaque, without score bars, and lie on the actors.

# Okabe and Ito's colours, told apart with every kind of colour vision, but for the dark ones.
_ACTOR_COLORS = ("#56B4E9", "#E69F00", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#FFFFFF")
_OUTLINE_COLOR = (0, 0, 0, 150)
_PANEL_COLOR = (16, 18, 22, 205)
_TEXT_COLOR = (255, 255, 255, 255)
_BAR_COLOR = (84, 88, 96, 255)
_MAX_ROWS = 6
_MIN_FONT_SIZE = 8
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


def write_annotated_video(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keyframes: Iterable[FrameDetections],
    *,
    attention_label: str | None = None,
    min_short_side: int = 480,
) -> None:
    """Write a copy of a video with its detections drawn in: H.264 in mp4, frames at the same times, without sound.

    Each frame shows the detections of the keyframe nearest in time. A file that is there is replaced when all is
    written, or kept. If the end of the source is damaged, a warning is logged and the copy ends there.

    Args:
        source: The video that the detections belong to; it is decoded once more, in constant memory.
        output: The mp4 file to write.
        keyframes: Detections, as by `detect`.
        attention_label, min_short_side: See `draw_keyframe`.

    Raises:
        VideoReadError: If the source cannot be read at all; nothing is written then.
    """
    info = ClipReader().info(source)
    frame_size = (info.width, info.height)
    size = _picture_size(frame_size, min_short_side)
    keyframes = sorted(keyframes, key=attrgetter("seconds")) or [FrameDetections(0, 0.0, [])]
    turns = [(earlier.seconds + later.seconds) / 2 for earlier, later in itertools.pairwise(keyframes)]
    by_keyframe = itertools.groupby(_readable_frames(source), lambda frame: bisect_left(turns, frame.seconds))
    with replacing(output) as partial_path, _h264_writer(partial_path, size, info.frames_per_second) as write:
        for index, frames in by_keyframe:
            overlay = _draw_overlay(keyframes[index], frame_size, size, attention_label)
            for frame in frames:
                write(_compose(Image.fromarray(frame.image), overlay), frame.seconds)


def _readable_frames(path: str | os.PathLike[str]) -> Iterator[Frame]:
    """Stream a video, but end with a warning where the rest is damaged; at the call, raise if nothing can be read."""
    return _up_to_damage(iterate_frames(path))


def _up_to_damage(frames: Iterator[Frame]) -> Iterator[Frame]:
    try:
        yield from frames
    except VideoReadError as error:
        logger.warning("the video ends early: %s", error)


def draw_keyframe(
    image: Image.Image,
    keyframe: FrameDetections,
    *,
    attention_label: str | None = None,
    min_short_side: int = 480,
) -> Image.Image:
    """Draw the actors of a frame, each with a box and a block of its actions, scores and score bars.

    Args:
        image: The frame.
        keyframe: What was detected in it.
        attention_label: Name of the class that the attention of the actors belongs to. With it the attention is drawn
            as a heat map, the maximum over the actors after scaling each to a maximum of 1, and named in a corner.
        min_short_side: Smaller frames are enlarged to this short side in pixels, so that text can be read.

    Returns:
        An RGB image of even width and height, as video encoders want it.
    """
    size = _picture_size(image.size, min_short_side)
    return _compose(image.convert("RGB"), _draw_overlay(keyframe, image.size, size, attention_label))


def draw_training_curve(log_history: Sequence[dict[str, float]], path: str | os.PathLike[str]) -> None:
    """Plot frame mAP and training loss over the training steps as a PNG of 900x360 pixels.

    Args:
        log_history: `trainer.state.log_history`; evaluations hold "eval_frame_map_50", training logs "loss".
        path: The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("drawing a training curve needs matplotlib: pip install classquery[demo]")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    panels = (("eval_frame_map_50", "frame mAP at IoU 0.5"), ("loss", "training loss"))
    for axes, (key, title) in zip(figure.subplots(1, 2, sharex=True), panels, strict=True):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        axes.plot(*zip(*points, strict=True), color="#0072B2", linewidth=2, marker="o" if len(points) < 30 else None)
        axes.set_title(title, loc="left", fontsize=12)
        axes.set_xlabel("training step")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


@contextlib.contextmanager
def _h264_writer(
    path: os.PathLike[str], size: tuple[int, int], frames_per_second: float
) -> Iterator[Callable[[Image.Image, float], None]]:
    """Give a function that appends an RGB picture of an even (width, height) at a time in seconds."""
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

        def write(picture: Image.Image, seconds: float) -> None:
            frame = av.VideoFrame.from_image(picture)
            frame.time_base = _TIME_BASE
            frame.pts = round(seconds / _TIME_BASE)
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode())


# Pictures: the frame, enlarged, under one layer per keyframe


def _picture_size(frame_size: tuple[int, int], min_short_side: int) -> tuple[int, int]:
    """Enlarge (width, height) if necessary, to even numbers."""
    scale = max(1.0, min_short_side / min(frame_size))
    return tuple(max(2, 2 * round(side * scale / 2)) for side in frame_size)


def _compose(image: Image.Image, overlay: Image.Image) -> Image.Image:
    """Enlarge an RGB frame to the size of the RGBA overlay and lay that over it."""
    if image.size != overlay.size:
        is_tiny = overlay.height >= _MIN_PIXELATED_SCALE * image.height
        image = image.resize(overlay.size, Image.Resampling.NEAREST if is_tiny else Image.Resampling.LANCZOS)
    image.paste(overlay, mask=overlay)
    return image


def _draw_overlay(
    keyframe: FrameDetections, frame_size: tuple[int, int], size: tuple[int, int], attention_label: str | None
) -> Image.Image:
    """Draw what lies over the frames of a keyframe: the heat map, then the boxes, then the text.

    Sizes are (width, height); the boxes are in pixels of `frame_size`, the RGBA image returned is of `size`.
    """
    scale = np.tile(np.divide(size, frame_size), 2)
    boxes = [_Rectangle(*np.multiply(actor.box, scale).round().astype(int).tolist()) for actor in keyframe.actors]
    overlay = _Overlay(size, boxes)
    if attention_label is not None:
        attentions = [actor.attentions.get(attention_label) for actor in keyframe.actors]
        overlay.draw_heat([attention for attention in attentions if attention is not None])
    for box, color in zip(boxes, itertools.cycle(_ACTOR_COLORS), strict=False):
        overlay.draw_box(box, color)
    if attention_label is not None:
        overlay.draw_caption(f"attention: {attention_label}")
    for actor, box, color in zip(keyframe.actors, boxes, itertools.cycle(_ACTOR_COLORS), strict=False):
        if actor.actions:
            overlay.draw_actions(actor.actions, box, color)
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

    def overlap(self, other: "_Rectangle") -> int:
        """Return the area that two rectangles share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0, width) * max(0, height)

    def distance(self, other: "_Rectangle") -> int:
        """Return the pixels between two rectangles, along both axes."""
        horizontal = max(self.left, other.left) - min(self.right, other.right)
        vertical = max(self.top, other.top) - min(self.bottom, other.bottom)
        return max(0, horizontal) + max(0, vertical)


class _Overlay:
    """A transparent layer on which text avoids other text and, if there is room, actors.

    Args:
        size: Width and height in pixels; text and lines grow with the smaller one.
        boxes: Where the actors are.
    """

    def __init__(self, size: tuple[int, int], boxes: Sequence[_Rectangle]):
        self.image = Image.new("RGBA", size)
        self._boxes = boxes
        self.panels: list[_Rectangle] = []
        self._draw = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(max(_MIN_FONT_SIZE, round(min(size) / 26)))
        self._line = max(2, round(min(size) / 160))
        self._padding = round(self._font.size / 3)
        self._row_height = sum(self._font.getmetrics()) + 2 * self._line

    def draw_heat(self, attentions: Sequence[np.ndarray]) -> None:
        """Fill the layer with the maximum of attentions (h, w), each scaled to a maximum of 1."""
        if attentions:
            heat = np.max([attention / attention.max() for attention in attentions], axis=0)
            smooth = Image.fromarray(heat.astype(np.float32)).resize(self.image.size, Image.Resampling.BICUBIC)
            self.image.paste(Image.fromarray(_heat_colors(np.asarray(smooth).clip(0, 1))))

    def draw_caption(self, text: str) -> None:
        """Write a line into the lower left corner."""
        text = self._shorten(text, self.image.width - 2 * self._padding)
        width = round(self._font.getlength(text)) + 2 * self._padding
        panel = _Rectangle(0, self.image.height - self._row_height, width, self.image.height)
        self._draw_panel(panel)
        self._draw.text((self._padding, panel.top), text, _TEXT_COLOR, self._font)

    def draw_box(self, box: _Rectangle, color: str) -> None:
        """Draw the outline of a box, with a dark rim inside that sets it off from a background of its colour."""
        self._draw.rectangle(box.corners, outline=_OUTLINE_COLOR, width=self._line + 1)
        self._draw.rectangle(box.corners, outline=color, width=self._line)

    def draw_actions(self, actions: list[tuple[str, float]], box: _Rectangle, color: str) -> None:
        """Write the actions of an actor beside its box, each above a bar as long as its score."""
        rows = self._rows(actions)
        text_width = round(max(self._font.getlength(f"{label} {score}") for label, score, _ in rows)) + self._padding
        panel = self._place(text_width + 3 * self._padding, len(rows) * self._row_height + self._padding, box)
        self._draw_panel(panel)
        self._draw.rectangle(panel._replace(right=panel.left + self._line).corners, fill=color)
        left = panel.left + 2 * self._padding
        for index, (label, score, fraction) in enumerate(rows):
            top = panel.top + index * self._row_height
            self._draw.text((left, top), label, _TEXT_COLOR, self._font)
            self._draw.text((left + text_width, top), score, _TEXT_COLOR, self._font, anchor="ra")
            if score:
                self._draw_bar(left, top + self._row_height - self._line, text_width, fraction, color)

    def _rows(self, actions: list[tuple[str, float]]) -> list[tuple[str, str, float]]:
        """Label, score as text and score of each action that fits; the last row counts the others, without a score."""
        max_rows = max(2, min(_MAX_ROWS, (self.image.height - self._padding) // self._row_height))
        max_width = self.image.width - 4 * self._padding - round(self._font.getlength(" 0.00"))
        shown = actions if len(actions) <= max_rows else actions[: max_rows - 1]
        rows = [(self._shorten(label, max_width), f"{score:.2f}", score) for label, score in shown]
        if len(shown) < len(actions):
            rows.append((f"+{len(actions) - len(shown)} more", "", 0.0))
        return rows

    def _shorten(self, text: str, max_width: int) -> str:
        if self._font.getlength(text) <= max_width:
            return text
        lengths = range(len(text))
        num_fitting = bisect_right(lengths, max_width, key=lambda length: self._font.getlength(f"{text[:length]}…"))
        return f"{text[: max(0, num_fitting - 1)]}…"

    def _draw_panel(self, panel: _Rectangle) -> None:
        self._draw.rectangle(panel.corners, fill=_PANEL_COLOR)
        self.panels.append(panel)

    def _draw_bar(self, left: int, bottom: int, width: int, fraction: float, color: str) -> None:
        bar = _Rectangle(left, bottom - self._line, left + width, bottom)
        self._draw.rectangle(bar.corners, fill=_BAR_COLOR)
        if fraction > 0:
            self._draw.rectangle(bar._replace(right=left + round(fraction * width)).corners, fill=color)

    def _place(self, width: int, height: int, box: _Rectangle) -> _Rectangle:
        """Choose the place for a panel at an edge of the box or of another panel: above the box if nothing is there.

        Otherwise the one that covers the least text and, among these, the fewest actors and is near to the box.
        """
        lefts = [box.left, box.right - width, box.right, box.left - width]
        tops = [box.top - height, box.bottom, box.top, box.bottom - height]
        for panel in self.panels:
            lefts += [panel.left - width - self._line, panel.right + self._line]
            tops += [panel.top - height - self._line, panel.bottom + self._line]

        def cost(panel: _Rectangle) -> tuple[int, int]:
            covered_text = sum(map(panel.overlap, self.panels))
            covered_actors = sum(map(panel.overlap, self._boxes))
            return covered_text, covered_actors + height * panel.distance(box)

        return min((self._inside(left, top, width, height) for left in lefts for top in tops), key=cost)

    def _inside(self, left: int, top: int, width: int, height: int) -> _Rectangle:
        """Move a rectangle into the image."""
        left = max(0, min(left, self.image.width - width))
        top = max(0, min(top, self.image.height - height))
        return _Rectangle(left, top, left + width, top + height)


def _heat_colors(heat: np.ndarray) -> np.ndarray:
    """Colour values (...) in [0, 1], with more opacity for larger ones: uint8 (..., 4)."""
    steps = np.linspace(0, 1, len(_HEAT_COLORS))
    channels = [np.interp(heat, steps, channel) for channel in _HEAT_COLORS.T]
    opacity = 255 * np.interp(heat, (0, 1), _HEAT_OPACITIES)
    return np.stack((*channels, opacity), axis=-1).round().astype(np.uint8)
