"""The demo data set: small synthetic movies in the layout of AVA v2.2, made in seconds and read by the AVA reader.

Every movie is a sequence of two-second shots with one to three identical little people. What somebody does cannot be
told from a crop of that person alone, which is what an action detector must go beyond:

* "stand", "walk" and "jump" are visible in the motion of the actor itself;
* "ball on the left" and its three siblings need a symbol *outside* the box of the actor, and the side it is on. Free
  symbols elsewhere in the scene make its mere presence worthless, and two actors of one scene differ;
* "watch a jump" depends on the motion of *another* actor.

A detector with perfect boxes and poses that sees only crops reaches `actor_crop_baseline`, and no more.

Run `python -m classquery.data.demo OUTPUT_DIR` to write the set and print what is in it. Every choice is drawn from
generators seeded with (seed, split, movie index), so the same arguments give the same files, byte for byte.
"""

import argparse
import csv
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm


FORMAT_VERSION = 1  # Raise it whenever the same arguments give other files.
HEIGHT, WIDTH = 96, 128
FRAMES_PER_SECOND = 15
GOP_SIZE = 12
MOVIE_START_SECONDS = 900  # AVA movies are cut at 15 minutes: video time t is movie time 900 + t.
SHOT_SECONDS = 2.0
FIRST_CUT_SECONDS = 0.5  # Cuts fall between whole seconds, as far from the keyframes as possible.

POSES = ("stand", "walk", "jump")
RELATIONS = tuple(f"{kind} on the {side}" for kind in ("ball", "kite") for side in ("left", "right"))
WATCH_A_JUMP = "watch a jump"
LABELS = (*POSES, *RELATIONS, WATCH_A_JUMP)
LABEL_TYPES = ("PERSON_MOVEMENT",) * 3 + ("OBJECT_MANIPULATION",) * 4 + ("PERSON_INTERACTION",)
SPLITS = {"train": "train", "validation": "val"}  # Our name of a split: its name in the files of AVA.

CAST_SIZES = (1, 2, 3, 3)  # Equally likely; two of five casts of three are cut to two for want of room.
RELATION_PROBABILITY = 0.7
WALK_SPEED = 45.0  # pixels per second
JUMP_PERIOD_SECONDS = 0.45
PERSON_SCALES = (0.90, 0.95, 1.00, 1.05, 1.10, 1.15)
SYMBOL_SIZES = {"ball": 15, "kite": 17}  # pixels
SYMBOL_GAPS = (2, 5)  # pixels between a box and the symbol that belongs to it
ADJACENT_PIXELS = 24  # Nothing but its own symbol comes this near to the left or right of an actor.
PAN_PIXELS = 8  # The background is this much larger than the frame, so that it can move.
PLACEMENT_ATTEMPTS = 200


class Box(NamedTuple):
    """A rectangle (x_min, y_min, x_max, y_max) in pixels; the maxima are exclusive."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int

    def expanded(self, x: int, y: int) -> "Box":
        """Return the box grown by `x` pixels on the left and right and by `y` pixels above and below."""
        return Box(self.x_min - x, self.y_min - y, self.x_max + x, self.y_max + y)

    def shifted(self, x: int, y: int) -> "Box":
        """Return the box moved by (`x`, `y`) pixels."""
        return Box(self.x_min + x, self.y_min + y, self.x_max + x, self.y_max + y)

    def overlaps(self, other: "Box") -> bool:
        """Return whether the two rectangles share a pixel."""
        return (
            self.x_min < other.x_max
            and other.x_min < self.x_max
            and self.y_min < other.y_max
            and other.y_min < self.y_max
        )


@dataclass(frozen=True)
class Actor:
    """One little person and what it does during one shot.

    Args:
        person_id: Number of the person, unique within the movie, from 0.
        pose: One of `POSES`.
        relation: One of `RELATIONS`, or `None` for an actor without a symbol.
        scale: Index into `PERSON_SCALES`.
        reach: Largest distance from the resting place in pixels: sideways for "walk", up and down for "jump".
        phase: Where the motion starts, as a fraction of its period in [0, 1).
        gap: Pixels between the box and the symbol.
        symbol_rise: Pixels the centre of the symbol lies below (negative: above) half the height of the box.
        x, y: Left and upper edge of the box at rest, in pixels.
    """

    person_id: int
    pose: str
    relation: str | None
    scale: int
    reach: int
    phase: float
    gap: int
    symbol_rise: int
    x: int = 0
    y: int = 0

    @property
    def symbol_kind(self) -> str | None:
        """A key of `SYMBOL_SIZES`, or `None` for an actor without a symbol."""
        return self.relation and self.relation.split()[0]

    @property
    def rest_box(self) -> Box:
        """The box of the body in the middle of its motion."""
        height, width = person_sprite(self.scale).shape[:2]
        return Box(self.x, self.y, self.x + width, self.y + height)

    @property
    def reach_xy(self) -> tuple[int, int]:
        """Largest distance from rest in x and y, in pixels."""
        return (self.reach if self.pose == "walk" else 0, self.reach if self.pose == "jump" else 0)

    def offset(self, seconds: float) -> tuple[int, int]:
        """Return the distance (x, y) from the resting place in whole pixels at a time of the video in seconds."""
        if self.pose == "walk":
            turn = (seconds * WALK_SPEED / (4 * self.reach) + self.phase) % 1.0
            return round(self.reach * (4 * abs(turn - 0.5) - 1)), 0
        if self.pose == "jump":
            return 0, round(self.reach * math.sin(2 * math.pi * (seconds / JUMP_PERIOD_SECONDS + self.phase)))
        return 0, 0

    def box(self, seconds: float) -> Box:
        """Return the box of the body, without its symbol, at a time of the video in seconds."""
        return self.rest_box.shifted(*self.offset(seconds))

    def symbol_box(self, body: Box) -> Box | None:
        """Return the box of the symbol that belongs to the actor while its body is at `body`; `None` without one."""
        if self.relation is None:
            return None
        size = SYMBOL_SIZES[self.symbol_kind]
        x = body.x_min - self.gap - size if self.relation.endswith("left") else body.x_max + self.gap
        y = (body.y_min + body.y_max - size) // 2 + self.symbol_rise
        return Box(x, y, x + size, y + size)


@dataclass(frozen=True)
class FreeSymbol:
    """A ball or kite that belongs to nobody; it drifts slowly around (`x`, `y`), the upper left corner in pixels."""

    kind: str
    x: int
    y: int
    drift: tuple[int, int]

    @property
    def rest_box(self) -> Box:
        """The box in the middle of the motion."""
        return Box(self.x, self.y, self.x + SYMBOL_SIZES[self.kind], self.y + SYMBOL_SIZES[self.kind])

    def box(self, fraction: float) -> Box:
        """Return the box after a fraction in [0, 1] of the shot."""
        return self.rest_box.shifted(*(round(distance * (2 * fraction - 1)) for distance in self.drift))


@dataclass(frozen=True)
class Shot:
    """One scene; it covers the times of the video in [`start_seconds`, `end_seconds`)."""

    start_seconds: float
    end_seconds: float
    actors: tuple[Actor, ...]
    free_symbols: tuple[FreeSymbol, ...]
    background_seed: int

    def labels(self, actor: Actor) -> list[str]:
        """Return everything that `actor` does in this shot, in the order of `LABELS`."""
        somebody_jumps = any(other.pose == "jump" for other in self.actors if other is not actor)
        labels = [actor.pose, actor.relation, WATCH_A_JUMP if somebody_jumps else None]
        return [label for label in labels if label is not None]

    def fraction(self, seconds: float) -> float:
        """Return how much of the shot has passed at a time of the video, from 0 to 1."""
        return (seconds - self.start_seconds) / (self.end_seconds - self.start_seconds)


@dataclass(frozen=True)
class Movie:
    """One movie: its name and its shots in order of time, without gaps."""

    video_id: str
    seconds: int
    shots: tuple[Shot, ...]

    @property
    def keyframes(self) -> range:
        """The annotated times of the video: every whole second but the first."""
        return range(1, self.seconds)

    def shot_at(self, seconds: float) -> Shot:
        """Return the shot on screen at a time of the video in seconds."""
        return next(shot for shot in self.shots if seconds < shot.end_seconds)


def write_demo(
    output_dir: str | Path,
    *,
    num_train_movies: int = 160,
    num_validation_movies: int = 10,
    seconds_per_movie: int = 32,
    seed: int = 0,
) -> None:
    """Write the demo data set in the layout of AVA v2.2, unless the same one is already there.

    The folder appears under its name only when it is complete: an interrupted call leaves nothing behind.

    Args:
        output_dir: Folder to create; gets `annotations/`, `videos/` and `demo.json` with the arguments.
        num_train_movies: Movies of the training split.
        num_validation_movies: Movies of the validation split.
        seconds_per_movie: Length of a movie; it has one keyframe per whole second but the first.
        seed: Any non-negative number; other seeds give other movies.

    Raises:
        FileExistsError: If `output_dir` holds anything else than the same demo data set.
        ValueError: If a number is too small.
    """
    arguments = {
        "format_version": FORMAT_VERSION,
        "num_train_movies": num_train_movies,
        "num_validation_movies": num_validation_movies,
        "seconds_per_movie": seconds_per_movie,
        "seed": seed,
    }
    minima = {"num_train_movies": 0, "num_validation_movies": 0, "seconds_per_movie": 2, "seed": 0}
    write_once(output_dir, arguments, minima, _write_files)


def write_demo_movie(folder: str | Path, split: str, index: int, **arguments: int) -> Path:
    """Write one movie of the demo data set by itself and return its path; arguments as for `make_movie`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return _write_video(folder, make_movie(split, index, **arguments))


def make_movie(split: str, index: int, *, seconds_per_movie: int = 32, seed: int = 0) -> Movie:
    """Draw the scenes of one movie.

    Args:
        split: "train" or "validation".
        index: Number of the movie in its split, from 0.
        seconds_per_movie: Length in seconds.
        seed: Seed of the whole data set.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, list(SPLITS).index(split), index]))
    cuts = [0.0, *np.arange(FIRST_CUT_SECONDS, seconds_per_movie, SHOT_SECONDS).tolist(), float(seconds_per_movie)]
    shots: list[Shot] = []
    for start, end in zip(cuts[:-1], cuts[1:], strict=True):
        shots.append(draw_shot(rng, start, end, first_person=sum(len(shot.actors) for shot in shots)))
    return Movie(f"demo_{SPLITS[split]}_{index:03d}", seconds_per_movie, tuple(shots))


def render_movie(movie: Movie) -> Iterator[np.ndarray]:
    """Yield the frames of a movie in order, each uint8 RGB of shape (`HEIGHT`, `WIDTH`, 3)."""
    for shot in movie.shots:
        background, pan = draw_background(shot.background_seed)
        for index in _frame_indices(shot):
            yield render_frame(shot, background, pan, index / FRAMES_PER_SECOND)


def actor_crop_baseline(data_dir: str | Path, split: str, *, seed: int = 0) -> dict[str, float | np.ndarray]:
    """Return the average precision of an oracle that sees nothing but the crop of each actor.

    It knows all boxes and poses. The crops say nothing about the other labels, so it gives all actors the same score
    there, and the order of equal scores is random.

    Args:
        data_dir: A folder written by `write_demo`.
        split: "train" or "validation".
        seed: Seed of the random order.

    Returns:
        What `classquery.data.metrics.frame_map` returns for this oracle.
    """
    from classquery.data.metrics import frame_map  # Not at the top: who only writes the movies needs no metrics.

    ground_truth = _ground_truth(data_dir, split)
    labels = ground_truth["labels"]
    scores = np.random.default_rng(seed).random(labels.shape)
    scores[:, : len(POSES)] = labels[:, : len(POSES)]
    return frame_map({"frame": ground_truth["frame"], "boxes": ground_truth["boxes"], "scores": scores}, ground_truth)


def _ground_truth(data_dir: str | Path, split: str) -> dict[str, np.ndarray]:
    """Return `"frame"` (N,), `"boxes"` (N, 4) in [0, 1] and the multi-hot `"labels"` (N, 8) of all actors."""
    from classquery.data.annotations.ava import load_ava

    dataset = load_ava(data_dir, split, movie_start_seconds=MOVIE_START_SECONDS)
    actors = [(row["clip_id"], tube) for row in dataset for tube in row["tubes"]]
    return {
        "frame": np.array([clip_id for clip_id, _ in actors]),
        "boxes": np.array([tube["boxes"][0] for _, tube in actors]),
        "labels": np.array([np.isin(range(len(LABELS)), tube["labels"]) for _, tube in actors]),
    }


# Files


def write_once(
    output_dir: str | Path,
    arguments: dict[str, int | str],
    minima: dict[str, int],
    write: Callable[[Path, dict[str, int | str]], None],
) -> None:
    """Write a data set and a record of its arguments, unless the same one is already there.

    The folder appears under its name only when it is complete.

    Args:
        output_dir: Folder to create.
        arguments: What the data set depends on, kept in `demo.json`.
        minima: The smallest value of each argument that is a number.
        write: Called with a new folder and the arguments.

    Raises:
        FileExistsError: If `output_dir` holds anything else than the same data set.
        ValueError: If a number is too small.
    """
    for name, minimum in minima.items():
        if arguments[name] < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {arguments[name]}.")
    output_dir = Path(output_dir)
    if _is_finished(output_dir, arguments):
        return
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as workspace:
        finished = Path(workspace) / "demo"
        finished.mkdir()
        write(finished, arguments)
        (finished / "demo.json").write_text(json.dumps(arguments, indent=2) + "\n")
        if output_dir.exists():  # It is empty, and Windows renames to a new name only.
            output_dir.rmdir()
        finished.rename(output_dir)


def _is_finished(output_dir: Path, arguments: dict[str, int | str]) -> bool:
    """Return whether the data set is there; raise if something else is."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    record = output_dir / "demo.json"
    if not record.is_file():
        raise FileExistsError(f"{output_dir} exists and is not a demo data set. Choose another folder.")
    found = json.loads(record.read_text())
    if found != arguments:
        raise FileExistsError(
            f"{output_dir} holds a demo data set made with {found}, not with {arguments}. "
            "Choose another folder or delete this one."
        )
    return True


def _write_files(folder: Path, arguments: dict[str, int]) -> None:
    drawing = {"seconds_per_movie": arguments["seconds_per_movie"], "seed": arguments["seed"]}
    movies = {
        split: [make_movie(split, index, **drawing) for index in range(arguments[f"num_{split}_movies"])]
        for split in SPLITS
    }
    (folder / "annotations").mkdir()
    (folder / "videos").mkdir()
    _write_annotations(folder / "annotations", movies)
    all_movies = [movie for of_split in movies.values() for movie in of_split]
    for movie in tqdm(all_movies, desc="Writing demo movies", unit="movie"):
        _write_video(folder / "videos", movie)


def _write_annotations(folder: Path, movies: dict[str, list[Movie]]) -> None:
    for split, name in SPLITS.items():
        _write_csv(folder / f"ava_{name}_v2.2.csv", (row for movie in movies[split] for row in _rows(movie)))
        # AVA keeps the frames and rows of the keyframes that it excludes, so the reader has something to drop.
        excluded = [(movie.video_id, f"{MOVIE_START_SECONDS + movie.keyframes[0]:04d}") for movie in movies[split][:1]]
        _write_csv(folder / f"ava_{name}_excluded_timestamps_v2.2.csv", excluded)
    entries = zip(LABELS, range(1, len(LABELS) + 1), LABEL_TYPES, strict=True)
    text = "".join(f'label {{\n  name: "{n}"\n  label_id: {i}\n  label_type: {t}\n}}\n' for n, i, t in entries)
    (folder / "ava_action_list_v2.2.pbtxt").write_text(text)


def _rows(movie: Movie) -> Iterator[tuple]:
    """Yield the rows of the AVA csv file of one movie: one per actor, keyframe and label."""
    for keyframe in movie.keyframes:
        shot = movie.shot_at(keyframe)
        for actor in shot.actors:
            box = actor.box(keyframe)
            corners = [f"{edge / size:.3f}" for edge, size in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]
            for label in shot.labels(actor):
                timestamp = f"{MOVIE_START_SECONDS + keyframe:04d}"
                yield movie.video_id, timestamp, *corners, LABELS.index(label) + 1, actor.person_id


def _write_csv(path: Path, rows: Iterable[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_video(folder: Path, movie: Movie) -> Path:
    path = folder / f"{movie.video_id}.mp4"
    encode_video(path, render_movie(movie))
    return path


def encode_video(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write frames, each uint8 RGB of shape (`HEIGHT`, `WIDTH`, 3), as an mp4 file."""
    # One thread makes the bytes reproducible, and without B-frames every reader starts at timestamp 0.
    options = {"crf": "20", "preset": "veryfast", "g": str(GOP_SIZE), "bf": "0", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


# Scenes


def draw_shot(
    rng: np.random.Generator,
    start: float,
    end: float,
    first_person: int = 0,
    cast_sizes: Sequence[int] = CAST_SIZES,
) -> Shot:
    """Draw one scene for the times in [`start`, `end`) seconds, its people numbered from `first_person` on."""
    cast = [_draw_actor(rng, first_person + i) for i in range(rng.choice(cast_sizes))]
    actors = _place_actors(rng, cast)
    free_symbols = _place_free_symbols(rng, actors, wanted=int(rng.integers(0, 4)))
    return Shot(start, end, actors, free_symbols, background_seed=int(rng.integers(2**32)))


def _draw_actor(rng: np.random.Generator, person_id: int) -> Actor:
    """Draw an actor without a place; all its properties are independent of each other."""
    pose = POSES[rng.integers(len(POSES))]
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    low, high = {"stand": (0, 0), "walk": (8, 14), "jump": (7, 9)}[pose]
    return Actor(
        person_id=person_id,
        pose=pose,
        relation=relation if rng.random() < RELATION_PROBABILITY else None,
        scale=int(rng.integers(len(PERSON_SCALES))),
        reach=int(rng.integers(low, high + 1)),
        phase=float(rng.random()),
        gap=int(rng.integers(SYMBOL_GAPS[0], SYMBOL_GAPS[1] + 1)),
        symbol_rise=int(rng.integers(-3, 4)),
    )


def _place_actors(rng: np.random.Generator, cast: list[Actor]) -> tuple[Actor, ...]:
    """Give every actor a place where it never meets another one; drop the last ones of a cast that does not fit."""
    for _ in range(PLACEMENT_ATTEMPTS):
        actors = [_at_random_place(rng, actor) for actor in cast]
        if all(_compatible(a, b) for i, a in enumerate(actors) for b in actors[:i]):
            return tuple(actors)
    return _place_actors(rng, cast[:-1])


def _at_random_place(rng: np.random.Generator, actor: Actor) -> Actor:
    """Return the actor at a place inside the frame.

    Both sides keep room for a symbol, also where there is none: the place says nothing about the relation.
    """
    reach_x, reach_y = actor.reach_xy
    height, width = person_sprite(actor.scale).shape[:2]
    margin_x, margin_y = ADJACENT_PIXELS + reach_x, 1 + reach_y
    x = int(rng.integers(margin_x, WIDTH - width - margin_x + 1))
    y = int(rng.integers(margin_y, HEIGHT - height - margin_y + 1))
    return replace(actor, x=x, y=y)


def _compatible(a: Actor, b: Actor) -> bool:
    """Return whether two actors stay apart, and each symbol away from the other actor and the other symbol."""
    body_a, body_b, symbol_a, symbol_b = _swept_body(a), _swept_body(b), _swept_symbol(a), _swept_symbol(b)
    if body_a.expanded(3, 3).overlaps(body_b):
        return False
    if symbol_a and (
        _neighbourhood(b).overlaps(symbol_a) or (symbol_b and symbol_a.expanded(2, 2).overlaps(symbol_b))
    ):
        return False
    return not (symbol_b and _neighbourhood(a).overlaps(symbol_b))


def _place_free_symbols(rng: np.random.Generator, actors: tuple[Actor, ...], wanted: int) -> tuple[FreeSymbol, ...]:
    """Draw up to `wanted` symbols beside nobody: some scenes have no room for all of them."""
    forbidden = [_neighbourhood(actor) for actor in actors]
    forbidden += [symbol.expanded(2, 2) for actor in actors if (symbol := _swept_symbol(actor))]
    symbols: list[FreeSymbol] = []
    for _ in range(PLACEMENT_ATTEMPTS):
        if len(symbols) == wanted:
            break
        symbol = _draw_free_symbol(rng)
        swept = symbol.rest_box.expanded(*map(abs, symbol.drift))
        if not any(swept.overlaps(box) for box in forbidden):
            symbols.append(symbol)
            forbidden.append(swept.expanded(2, 2))
    return tuple(symbols)


def _draw_free_symbol(rng: np.random.Generator) -> FreeSymbol:
    kind = list(SYMBOL_SIZES)[rng.integers(len(SYMBOL_SIZES))]
    drift = tuple(rng.integers(-4, 5, size=2).tolist()) if rng.random() < 0.5 else (0, 0)
    margin_x, margin_y = (1 + abs(distance) for distance in drift)
    x = int(rng.integers(margin_x, WIDTH - SYMBOL_SIZES[kind] - margin_x + 1))
    y = int(rng.integers(margin_y, HEIGHT - SYMBOL_SIZES[kind] - margin_y + 1))
    return FreeSymbol(kind, x, y, drift)


def _swept_body(actor: Actor) -> Box:
    """Return everything the body covers in its motion."""
    return actor.rest_box.expanded(*actor.reach_xy)


def _swept_symbol(actor: Actor) -> Box | None:
    """Return everything the symbol of the actor covers in its motion; `None` without one."""
    symbol = actor.symbol_box(actor.rest_box)
    return symbol and symbol.expanded(*actor.reach_xy)


def _neighbourhood(actor: Actor) -> Box:
    """Return the body and the room beside it where a symbol would seem to belong to the actor."""
    return _swept_body(actor).expanded(ADJACENT_PIXELS, 3)


# Pictures


@lru_cache
def person_sprite(scale: int) -> np.ndarray:
    """Draw the little person that everybody looks like.

    Args:
        scale: Index into `PERSON_SCALES`.

    Returns:
        uint8 RGBA of shape (height, width, 4), about 36 x 18 pixels, without empty rows or columns at the edges.
    """
    light, outline = (236, 228, 208, 255), (24, 22, 26, 255)

    def draw(canvas: ImageDraw.ImageDraw, zoom: float) -> None:
        def scaled(*corners: float) -> list[float]:
            return [zoom * corner for corner in corners]

        style = {"fill": light, "outline": outline, "width": round(1.2 * zoom)}
        for left in (4.5, 9.5):  # legs
            canvas.rounded_rectangle(scaled(left, 22, left + 4.5, 36), radius=1.5 * zoom, **style)
        canvas.rounded_rectangle(scaled(1, 11, 17.5, 26), radius=5 * zoom, **style)
        canvas.ellipse(scaled(4.25, 0, 14.25, 12), **style)

    sprite = _draw_smoothly(draw, (19, 37), PERSON_SCALES[scale])
    rows, columns = (np.flatnonzero((sprite[..., 3] > 127).any(axis)) for axis in (1, 0))
    return sprite[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache
def symbol_sprite(kind: str) -> np.ndarray:
    """Draw a "ball" (a red disc) or a "kite" (a cyan diamond), uint8 RGBA of shape (size, size, 4)."""
    size = SYMBOL_SIZES[kind]

    def draw(canvas: ImageDraw.ImageDraw, zoom: float) -> None:
        edge, middle = size * zoom - 1, size * zoom / 2
        if kind == "ball":
            canvas.ellipse([0, 0, edge, edge], fill=(225, 48, 40, 255))
        else:
            canvas.polygon([(middle, 0), (edge, middle), (middle, edge), (0, middle)], fill=(40, 210, 225, 255))

    return _draw_smoothly(draw, (size, size), 1.0)


def _draw_smoothly(
    draw: Callable[[ImageDraw.ImageDraw, float], None], size: tuple[int, int], scale: float
) -> np.ndarray:
    """Call `draw(canvas, zoom)` on a large empty canvas and shrink the result to `size` (width, height) x `scale`."""
    oversampling = 8
    width, height = (math.ceil(length * scale) for length in size)
    canvas = Image.new("RGBA", (width * oversampling, height * oversampling))
    draw(ImageDraw.Draw(canvas), scale * oversampling)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))


def draw_background(seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Draw a dim, nearly grey backdrop of soft noise, a gradient and a few blobs, and how it moves.

    Returns:
        uint8 RGB of shape (HEIGHT + PAN_PIXELS, WIDTH + PAN_PIXELS, 3), and the pan (x, y) over the shot in pixels.
    """
    rng = np.random.default_rng(seed)
    height, width = HEIGHT + PAN_PIXELS, WIDTH + PAN_PIXELS
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 24 * (x * np.cos(angle) + y * np.sin(angle))
    coarse = Image.fromarray(rng.normal(0, 9, (9, 12)).astype(np.float32))
    light += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    for _ in range(rng.integers(2, 6)):
        distance = (x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2
        light += rng.uniform(-20, 20) * np.exp(-distance / (2 * rng.uniform(0.04, 0.12) ** 2))
    light += rng.normal(0, 2, (height, width))
    colour = rng.uniform(45, 85) + rng.uniform(-10, 10, 3)
    pan = rng.uniform(-1, 1, 2) * PAN_PIXELS * rng.integers(2)
    return np.clip(light[..., None] + colour, 0, 255).astype(np.uint8), tuple(pan.tolist())


def _frame_indices(shot: Shot) -> range:
    """Return the indices in the movie of the frames shown in [`start_seconds`, `end_seconds`)."""
    first, stop = (math.ceil(seconds * FRAMES_PER_SECOND) for seconds in (shot.start_seconds, shot.end_seconds))
    return range(first, stop)


def render_frame(shot: Shot, background: np.ndarray, pan: tuple[float, float], seconds: float) -> np.ndarray:
    """Draw the frame of a shot at a time of the video, on what `draw_background` returned for the shot.

    Returns:
        uint8 RGB of shape (`HEIGHT`, `WIDTH`, 3).
    """
    fraction = shot.fraction(seconds)
    left, top = (round(PAN_PIXELS / 2 + distance * (fraction - 0.5)) for distance in pan)
    frame = background[top : top + HEIGHT, left : left + WIDTH].copy()
    for symbol in shot.free_symbols:
        _paste(frame, symbol_sprite(symbol.kind), symbol.box(fraction))
    for actor in shot.actors:
        body = actor.box(seconds)
        _paste(frame, person_sprite(actor.scale), body)
        if symbol_box := actor.symbol_box(body):
            _paste(frame, symbol_sprite(actor.symbol_kind), symbol_box)
    return frame


def _paste(frame: np.ndarray, sprite: np.ndarray, box: Box) -> None:
    """Blend an RGBA sprite into a frame, in place."""
    region = frame[box.y_min : box.y_max, box.x_min : box.x_max]
    opacity = sprite[..., 3:].astype(np.uint16)
    region[:] = (region * (255 - opacity) + sprite[..., :3] * opacity + 127) // 255


# Command line


def main() -> None:
    """Write the demo data set, count its labels and print what a detector that sees only actor crops can reach."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num_train_movies", type=int, default=160)
    parser.add_argument("--num_validation_movies", type=int, default=10)
    parser.add_argument("--seconds_per_movie", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    write_demo(**arguments)
    for split in SPLITS:
        if arguments[f"num_{split}_movies"]:
            _print_summary(arguments["output_dir"], split)


def _print_summary(data_dir: Path, split: str) -> None:
    counts = _ground_truth(data_dir, split)["labels"].sum(axis=0)
    baseline = actor_crop_baseline(data_dir, split)
    print(f"\n{split:20} {'actors':>8} {'AP@0.5 of actor crops':>24}")
    for label, count, ap in zip(LABELS, counts, baseline["ap_per_label"], strict=True):
        print(f"{label:20} {count:8} {ap:24.3f}")
    print(f"{'mean':29} {baseline['frame_map_50']:24.3f}")
