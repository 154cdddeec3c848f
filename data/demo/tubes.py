"""The demo data with a box in every frame: the little people of `demo`, in the layouts of UCF101-24 and JHMDB-21.

Everybody does one thing: has a ball on the left, has a ball on the right, or, without a ball, stands, walks or jumps.
As in the demo movies, the ball is outside of the box of its owner, other balls are around, and kites mean nothing.

* `ucf101_24`: videos of some seconds with one to three people, who come and go; each is there for one tube, and seldom
  for the whole video. Some videos are whole clips of eight frames long, and some are not.
* `jhmdb_21`: videos of five to eight frames with one person from the first to the last, and three folds.

At 15 frames per second, somebody who jumps goes up and down within eight frames.
"""

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from classquery.data.demo.movies import (
    CAST_SIZES,
    FRAMES_PER_SECOND,
    HEIGHT,
    POSES,
    RELATIONS,
    WIDTH,
    Actor,
    Shot,
    draw_background,
    draw_shot,
    encode_video,
    render_frame,
    write_once,
)


FORMAT_VERSION = 1  # Raise it whenever the same arguments give other files.
TUBE_LABELS = (*POSES, *(relation for relation in RELATIONS if relation.startswith("ball")))
SPLITS = ("train", "validation")


class _Layout(NamedTuple):
    """What differs between the two."""

    pickle_name: str
    lengths: tuple[int, ...]  # Frames of a video; equally likely.
    cast_sizes: tuple[int, ...]  # Equally likely.
    come_and_go: bool
    num_folds: int


LAYOUTS = {
    "ucf101_24": _Layout("UCF101v2-GT.pkl", (48, 53, 64, 70), CAST_SIZES, come_and_go=True, num_folds=1),
    "jhmdb_21": _Layout("JHMDB-GT.pkl", (5, 6, 7, 8, 8, 8), (1,), come_and_go=False, num_folds=3),
}


@dataclass(frozen=True)
class TubeVideo:
    """One video.

    Args:
        name: "<class of the first actor>/<split>_<number>".
        shot: The scene with everybody who is ever there.
        spans: The frames, counted from 0, in which each actor is there.
        num_frames: Length.
    """

    name: str
    shot: Shot
    spans: tuple[range, ...]
    num_frames: int

    def shot_at(self, frame: int) -> Shot:
        """Return the scene with those who are there in a frame."""
        there = (actor for actor, span in zip(self.shot.actors, self.spans, strict=True) if frame in span)
        return replace(self.shot, actors=tuple(there))

    def tube(self, actor: int) -> np.ndarray:
        """Return the rows (frame from 1, x_min, y_min, x_max, y_max) of an actor, the box in pixels, float32."""
        boxes = ((frame, self.shot.actors[actor].box(frame / FRAMES_PER_SECOND)) for frame in self.spans[actor])
        return np.array([(frame + 1, *box) for frame, box in boxes], dtype=np.float32)


def tube_label(actor: Actor) -> str:
    """Return what the actor does, one of `TUBE_LABELS`."""
    return actor.relation if actor.symbol_kind == "ball" else actor.pose


def write_demo_tubes(
    output_dir: str | Path,
    layout: Literal["ucf101_24", "jhmdb_21"],
    *,
    num_train_videos: int,
    num_validation_videos: int,
    seed: int = 0,
) -> None:
    """Write the demo data set in the layout of UCF101-24 or JHMDB-21, unless the same one is already there.

    The folder appears under its name only when it is complete; the same arguments give the same files, byte for byte.

    Args:
        output_dir: Folder to create; gets the pickle, `videos/` and `demo.json` with the arguments.
        layout: "ucf101_24" for `load_ucf101_24`, or "jhmdb_21" for `load_jhmdb_21`.
        num_train_videos: Videos of the training split.
        num_validation_videos: Videos of the validation split; in JHMDB's layout of the first fold, where those of the
            others are taken from the training videos.
        seed: Any non-negative number; other seeds give other videos.

    Raises:
        FileExistsError: If `output_dir` holds anything else than the same demo data set.
        ValueError: If a number is too small or there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {list(LAYOUTS)}, got {layout!r}.")
    arguments = {
        "format_version": FORMAT_VERSION,
        "layout": layout,
        "num_train_videos": num_train_videos,
        "num_validation_videos": num_validation_videos,
        "seed": seed,
    }
    minima = {"num_train_videos": 0, "num_validation_videos": 0, "seed": 0}
    write_once(output_dir, arguments, minima, _write_files)


def make_tube_video(layout: str, split: str, index: int, *, seed: int = 0) -> TubeVideo:
    """Draw the scene of one video.

    Args:
        layout: A key of `LAYOUTS`.
        split: "train" or "validation".
        index: Number of the video in its split, from 0.
        seed: Seed of the whole data set.
    """
    style = LAYOUTS[layout]
    seeds = [seed, list(LAYOUTS).index(layout), SPLITS.index(split), index]
    rng = np.random.default_rng(np.random.SeedSequence(seeds))
    num_frames = int(rng.choice(style.lengths))
    shot = draw_shot(rng, 0.0, num_frames / FRAMES_PER_SECOND, cast_sizes=style.cast_sizes)
    spans = [_draw_span(rng, num_frames) if style.come_and_go else range(num_frames) for _ in shot.actors]
    folder = tube_label(shot.actors[0]).replace(" ", "_")
    return TubeVideo(f"{folder}/{split}_{index:04d}", shot, tuple(spans), num_frames)


def _draw_span(rng: np.random.Generator, num_frames: int) -> range:
    """Draw some of the frames, from a fifth of them to all."""
    first = max(0, int(rng.integers(-num_frames // 5, num_frames * 2 // 5)))
    stop = min(num_frames, int(rng.integers(num_frames * 3 // 5, num_frames * 6 // 5)))
    return range(first, stop)


def tube_crop_baseline(data_dir: str | Path, split: str, *, seed: int = 0) -> dict[str, float | np.ndarray]:
    """Return the average precision of an oracle that sees nothing but the crops of each actor, in all frames.

    It knows all boxes and how everybody moves, but not who has a ball: that is beside the crop. To those who move
    alike, it gives equal scores, in random order.

    Args:
        data_dir: A folder written by `write_demo_tubes`.
        split: "train" or "validation", of the first fold.
        seed: Seed of the random order.

    Returns:
        What `classquery.data.metrics.frame_map` returns for this oracle.
    """
    from classquery.data.metrics import frame_map  # Not at the top: who only writes the videos needs no metrics.

    arguments = json.loads((Path(data_dir) / "demo.json").read_text())
    layout, num_videos = arguments["layout"], arguments[f"num_{split}_videos"]
    rng = np.random.default_rng(seed)
    frames, boxes, labels, scores = [], [], [], []
    for index in range(num_videos):
        video = make_tube_video(layout, split, index, seed=arguments["seed"])
        for number, actor in enumerate(video.shot.actors):
            tube = video.tube(number)
            frames += [f"{video.name}/{frame:.0f}" for frame in tube[:, 0]]
            boxes.append(tube[:, 1:] / [WIDTH, HEIGHT, WIDTH, HEIGHT])
            labels.append(np.tile(np.array(TUBE_LABELS) == tube_label(actor), (len(tube), 1)))
            moves = np.array(TUBE_LABELS) == actor.pose
            scores.append(np.tile((moves + rng.random(len(TUBE_LABELS))) / 2, (len(tube), 1)))
    ground_truth = {"frame": np.array(frames), "boxes": np.concatenate(boxes), "labels": np.concatenate(labels)}
    detections = {"frame": ground_truth["frame"], "boxes": ground_truth["boxes"], "scores": np.concatenate(scores)}
    return frame_map(detections, ground_truth)


def render_tube_video(video: TubeVideo) -> Iterator[np.ndarray]:
    """Yield the frames of a video in order, each uint8 RGB of shape (`HEIGHT`, `WIDTH`, 3)."""
    background, pan = draw_background(video.shot.background_seed)
    for frame in range(video.num_frames):
        yield render_frame(video.shot_at(frame), background, pan, frame / FRAMES_PER_SECOND)


def _write_files(folder: Path, arguments: dict[str, int | str]) -> None:
    layout = arguments["layout"]
    splits = [
        [
            make_tube_video(layout, split, index, seed=arguments["seed"])
            for index in range(arguments[f"num_{split}_videos"])
        ]
        for split in SPLITS
    ]
    with (folder / LAYOUTS[layout].pickle_name).open("wb") as file:
        # As the real files, which Python 2 wrote.
        pickle.dump(_annotations(*splits, LAYOUTS[layout].num_folds), file, protocol=2)
    for video in tqdm([*splits[0], *splits[1]], desc="Writing demo videos", unit="video"):
        path = folder / "videos" / f"{video.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_video(path, render_tube_video(video))


def _annotations(train: list[TubeVideo], validation: list[TubeVideo], num_folds: int) -> dict:
    """Return what the pickle holds. Fold k is fold 0 after moving the list of all videos by k validation sets."""
    videos = [*train, *validation]
    names = [video.name for video in videos]
    folds = [np.roll(names, fold * len(validation)).tolist() for fold in range(num_folds)]
    return {
        "labels": list(TUBE_LABELS),
        "gttubes": {video.name: _tubes_by_label(video) for video in videos},
        "nframes": {video.name: video.num_frames for video in videos},
        "train_videos": [fold[: len(train)] for fold in folds],
        "test_videos": [fold[len(train) :] for fold in folds],
        "resolution": {video.name: (HEIGHT, WIDTH) for video in videos},
    }


def _tubes_by_label(video: TubeVideo) -> dict[int, list[np.ndarray]]:
    tubes: dict[int, list[np.ndarray]] = {}
    for number, actor in enumerate(video.shot.actors):
        tubes.setdefault(TUBE_LABELS.index(tube_label(actor)), []).append(video.tube(number))
    return tubes
