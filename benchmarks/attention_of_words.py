"""Where does the query of a sentence look that nobody trained? One person of a demo movie, and a picture.

    python benchmarks/attention_of_words.py MODEL --data_dir DIR --held_out "kite on the left" --output attention.png
        [--sentence "a kite is left of the person"]

MODEL is a folder with a detector that `benchmarks/open_vocabulary.py` has trained without the labels of a class, DIR
its demo data. The sentence, by default the description of that class, takes the place of the class. Of the people in
the validation movies who show it, the one is drawn to whom the query gives its highest score; beside it, where the
queries of the other three compositions look for the same person. Prints these scores.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from words import DESCRIPTIONS, encode

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, load_detector
from classquery.data.annotations.registry import load_action_dataset, load_action_labels
from classquery.data.demo.movies import RELATIONS
from classquery.data.video.reader import ClipReader
from classquery.engine.detection.detection import detect, with_attention
from classquery.engine.detection.drawing import draw_attention_grid
from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.linking_classquery import box_iou


_MIN_IOU = 0.5
Person = tuple[str, FrameDetections, ActorDetection]


def main() -> None:
    """Find the person, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--held_out", required=True, choices=RELATIONS)
    parser.add_argument("--sentence", help="other words for the class than its description")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max_movies", type=int, default=8, help="to look for the person in (default: 8)")
    options = parser.parse_args()
    model, processor = load_detector(options.model)
    sentence = options.sentence or DESCRIPTIONS[options.held_out]
    known = {label: None for label in model.config.id2label.values() if label != options.held_out}
    model.set_classes(known | {sentence: sentence}, encode)
    people = list(people_who_show(options.held_out, options.data_dir, options.max_movies, sentence, model, processor))
    if not people:
        parser.error(f"nobody with {options.held_out!r} is found in {options.max_movies} movies: train longer")
    path, frame, person = max(people, key=lambda found: dict(found[2].actions)[sentence])
    labels = [sentence, *(label for label in RELATIONS if label != options.held_out)]
    person = with_attention(path, frame, person, labels, model, processor)
    for label in labels:
        print(f"{label}: {person.attention_scores[label]:.3f}")
    image = Image.fromarray(ClipReader().read(path, [frame.frame_index])[0])
    draw_attention_grid(image, person, labels).save(options.output)
    print(f"{path}, frame {frame.frame_index}: {options.output}")


def people_who_show(
    label: str,
    data_dir: Path,
    max_movies: int,
    sentence: str,
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
) -> Iterator[Person]:
    """Yield the people who are detected where annotations have somebody who shows a class."""
    label_id = list(load_action_labels("demo", data_dir).values()).index(label)
    true_boxes: dict[str, dict[float, np.ndarray]] = {}
    for row in load_action_dataset("demo", data_dir, "validation"):
        boxes = [tube["boxes"][0] for tube in row["tubes"] if label_id in tube["labels"]]
        if boxes:
            true_boxes.setdefault(row["video"], {})[round(row["video_seconds"], 2)] = np.array(boxes)
    for path, at in list(true_boxes.items())[:max_movies]:
        for frame in detect(path, model, processor, classes=[sentence], threshold=0.0, actor_threshold=0.0):
            boxes = at.get(round(frame.seconds, 2), np.zeros((0, 4))) * np.tile(frame.size[::-1], 2)
            for person in _at_boxes(frame.actors, boxes):
                yield path, frame, person


def _at_boxes(actors: Sequence[ActorDetection], boxes: np.ndarray) -> Iterator[ActorDetection]:
    """Yield for each box the actor that is nearest to it."""
    for box in boxes:
        overlaps = [float(box_iou(np.array(actor.box)[None], box[None])[0]) for actor in actors]
        if overlaps and max(overlaps) >= _MIN_IOU:
            yield actors[int(np.argmax(overlaps))]


if __name__ == "__main__":
    main()
