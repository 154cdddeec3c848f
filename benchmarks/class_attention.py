"""What class queries are good for: attention of each class or of all, and a readout of each class or of all.

    python benchmarks/class_attention.py --work_dir DIR [--seeds 0 1 2] [--max_steps 600] [--processes 2]

The recipe `demo` is trained with

* `class attention, class readout`: as it is, a query and a vector that the score is read with for each class;
* `class attention, shared readout`: all scores are the mean over channels, as published;
* `shared attention, class readout`: all classes start from one query, so that their attention is the same.

Shared attention with a shared readout has one score for all classes, and is left out. The arms differ by less than
1 % of their parameters. How well they find is frame mAP; where they look is told by the attention of each layer, mean
over its heads, of the candidate nearest to each annotated actor. Of the classes that depend on something outside of
the box (a ball or a kite beside it, or somebody who jumps), the table has, as parts of the attention:

* `on its cue`: what the class depends on; shared attention cannot be on the cues of several classes at once;
* `on any cue`: on the cues of all classes that the actor shows, which is fair to it;
* `outside`: outside of the actor's box;
* `points at it`: how often the cell with most attention overlaps the cue.

`even` is what attention spread over the whole frame would have.
"""

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_runs import make_model, run_missing, spread, train

from classquery import ClassQueryForVideoActionDetection
from classquery.data.annotations.registry import prepare_dataset
from classquery.data.demo.movies import (
    HEIGHT,
    LABELS,
    MOVIE_START_SECONDS,
    WATCH_A_JUMP,
    WIDTH,
    Actor,
    Box,
    Movie,
    make_movie,
)


ARMS = {
    "class attention, class readout": {},
    "class attention, shared readout": {"class_readout": "released"},
    "shared attention, class readout": {},
}
MEASURES = ("on its cue", "on any cue", "outside", "points at it")


def main() -> None:
    """Train what is not there yet, and print a table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=600)
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    data_dir = prepare_dataset("demo", options.work_dir / "demo")
    runs = {
        f"attention-{arm}-{options.max_steps}-steps-seed-{seed}": partial(
            run_arm, arm, seed, data_dir, options.max_steps
        )
        for seed in options.seeds
        for arm in ARMS
    }
    results = list(run_missing(options.work_dir, runs, options.processes).values())
    of_arms = {arm: results[index :: len(ARMS)] for index, arm in enumerate(ARMS)}
    print("| arm | parameters | frame mAP |\n|---|---|---|")
    for arm, found in of_arms.items():
        print(f"| {arm} | {found[0]['parameters']:,} | {spread([one['frame_map_50'] for one in found])} |")
    print(f"\n| arm | layer | {' | '.join(MEASURES)} |\n|{'---|' * (2 + len(MEASURES))}")
    for arm, found in of_arms.items():
        for layer, maps in enumerate(zip(*(one["layers"] for one in found), strict=True), 1):
            print(f"| {arm} | {layer} | {' | '.join(map(spread, zip(*maps, strict=True)))} |")
    print(f"| even | | {' | '.join(f'{value:.3f}' for value in results[0]['even'])} |")


def run_arm(arm: str, seed: int, data_dir: Path, max_steps: int) -> dict[str, Any]:
    """Train once, and return what it found and where it looked."""
    model = make_model("demo", data_dir, seed, **ARMS[arm])
    if arm.startswith("shared attention"):
        share_attention(model)
    training = {"max_steps": max_steps, "eval_strategy": "no"}
    trainer, _ = train("demo", model, data_dir, data_dir.parent / "runs", seed, training=training)
    score = trainer.evaluate()["eval_frame_map_50"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"frame_map_50": score, "parameters": parameters} | where_it_looks(trainer)


def share_attention(model: ClassQueryForVideoActionDetection) -> None:
    """Let all classes start from one query."""
    decoder, num_labels = model.model.decoder, model.config.num_labels
    decoder.class_queries = torch.nn.Parameter(decoder.class_queries[:1].detach().clone())
    decoder.queries_of_classes = lambda: decoder.class_queries.expand(num_labels, -1)


def where_it_looks(trainer) -> dict[str, list]:
    """Parts of the attention of each layer, and of an even map, as `MEASURES`.

    Means over pairs of an actor and a class with a cue outside its box.
    """
    model, clips = trainer.model.eval(), trainer.eval_dataset
    rows = []
    for start in range(0, len(clips), 32):
        of_batch = [clips[index] for index in range(start, min(start + 32, len(clips)))]
        batch = trainer.data_collator(of_batch)
        with torch.inference_mode():
            outputs = model(batch["pixel_values"], output_attentions=True)
        # (clips, layers, queries, labels, h, w)
        attention = torch.stack([maps[:, 0].mean(-3) for maps in outputs.class_attentions], dim=1)
        for clip, boxes, maps in zip(of_batch, outputs.pred_boxes[:, 0], attention, strict=True):
            for movie, seconds, actor in actors_of(clip["clip_id"]):
                nearest = torch.cdist(boxes, torch.tensor([_center_size(actor.box(seconds))]), p=1).argmin()
                size = maps.shape[-2:]
                even = np.full((1, *size), 1 / math.prod(size))
                for label, cue, cues in cues_of(movie, seconds, actor):
                    masks = [_shares(of_boxes, *size) for of_boxes in (cue, cues, [actor.box(seconds)])]
                    seen = np.concatenate((maps[:, nearest, LABELS.index(label)].numpy(), even))
                    rows.append([measure(one, *masks) for one in seen])
    # An even map points at no cell: a cell at random overlaps the cue as often as cells do.
    *layers, even = np.mean(rows, axis=0).tolist()
    return {"layers": layers, "even": even}


def measure(attention: np.ndarray, cue: np.ndarray, cues: np.ndarray, body: np.ndarray) -> tuple[float, ...]:
    """Parts of a map (h, w) that sums to 1, from the share of each cell that cue, all cues and body cover."""
    highest = attention == attention.max()
    pointing = (cue[highest] > 0).mean()
    return tuple(float((attention * mask).sum()) for mask in (cue, cues, 1 - body)) + (float(pointing),)


def actors_of(clip_id: str) -> Iterator[tuple[Movie, float, Actor]]:
    """Everybody in the keyframe of a clip of the validation movies."""
    number, seconds = map(int, clip_id.split("_")[-2:])
    movie, seconds = make_movie("validation", number), seconds - MOVIE_START_SECONDS
    for actor in movie.shot_at(seconds).actors:
        yield movie, seconds, actor


def cues_of(movie: Movie, seconds: float, actor: Actor) -> Iterator[tuple[str, list[Box], list[Box]]]:
    """What the classes of an actor depend on outside of its box: label, boxes of its cue, and of all cues."""
    others = [other for other in movie.shot_at(seconds).actors if other != actor]
    jumping = [other.box(seconds) for other in others if other.pose == "jump"]
    cues = {}
    if actor.relation:
        cues[actor.relation] = [actor.symbol_box(actor.box(seconds))]
    if jumping:
        cues[WATCH_A_JUMP] = jumping
    for label, boxes in cues.items():
        yield label, boxes, [box for boxes_of in cues.values() for box in boxes_of]


def _center_size(box: Box) -> tuple[float, ...]:
    x, y, width, height = box.x_min + box.x_max, box.y_min + box.y_max, box.x_max - box.x_min, box.y_max - box.y_min
    return x / 2 / WIDTH, y / 2 / HEIGHT, width / WIDTH, height / HEIGHT


def _shares(boxes: list[Box], height: int, width: int) -> np.ndarray:
    """Share of each cell of the frame that some of the boxes cover: (height, width)."""
    pixels = np.zeros((HEIGHT, WIDTH))
    for box in boxes:
        pixels[max(box.y_min, 0) : max(box.y_max, 0), max(box.x_min, 0) : max(box.x_max, 0)] = 1
    return pixels.reshape(height, HEIGHT // height, width, WIDTH // width).mean((1, 3))


if __name__ == "__main__":
    main()
