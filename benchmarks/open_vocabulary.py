"""Are actions found that nobody trained? Compositions of the demo are held out in turn, and described in words.

    python benchmarks/open_vocabulary.py --work_dir DIR [--seeds 0 1 2] [--max_steps 1100] [--held_out ...]
    python benchmarks/open_vocabulary.py --work_dir DIR --parts [--held_out ...]
    python benchmarks/open_vocabulary.py --work_dir DIR --positives 5 20 [--held_out ...]

The recipe `demo` is trained with queries and readout from words, its labels of one class hidden as unknown
(`hide_novel_classes`), once with each kind of words:

* `descriptions`: a sentence for each class, as "a ball is on the left of the person";
* `shuffled`: the same sentences, those of the four compositions exchanged so that each has the wrong one;
* `random`: for each class a vector that has nothing to do with words.

A sentence is the mean of one random vector per word, which is never trained: nothing is known of words but that they
are the same. Reported is the AP at IoU 0.5 of the class held out, beside the part of all actors that show it, which is
about what a score at random has.

With `--parts`, there are four more classes, each for one part of a composition, as "a ball is with the person" and
"something is on the left of the person". They are labelled for the class held out, too.

With `--positives`, the class is not hidden but rare: so many of its keyframes keep the label, in the others it is
unknown. Words may then be the `name` of a class alone, too.

Results and models are kept in DIR: what is there is not run again.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from training_runs import make_model, run_missing, train
from words import DESCRIPTIONS, PARTS, WIDTH, encode

from classquery.configuration import load_recipe
from classquery.data.annotations.registry import load_action_dataset, load_action_labels, prepare_dataset
from classquery.data.annotations.schema import to_dataset
from classquery.data.demo.movies import RELATIONS
from classquery.data.novel_classes import hide_novel_classes


def words_of(arm: str, seed: int) -> dict[str, str]:
    """What describes each class; a sentence without blanks is a vector of its own."""
    described = DESCRIPTIONS | PARTS
    if arm == "descriptions":
        return described
    if arm == "name":
        return {label: label for label in described}
    if arm == "random":
        return {label: f"{label.replace(' ', '_')}_{seed}" for label in described}
    # Each gets that of another: no turn of four by one, two or three leaves one in its place.
    turn = 1 + seed % 3
    others = [*RELATIONS[turn:], *RELATIONS[:turn]]
    return described | {label: DESCRIPTIONS[other] for label, other in zip(RELATIONS, others, strict=True)}


def main() -> None:
    """Train what is not in the results yet, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=load_recipe("demo").training["max_steps"])
    parser.add_argument("--held_out", nargs="+", choices=RELATIONS, default=list(RELATIONS))
    parser.add_argument("--parts", action="store_true", help="classes for the parts of compositions, too")
    parser.add_argument("--positives", type=int, nargs="+", help="make the class rare instead of hiding it")
    parser.add_argument("--arms", nargs="+", choices=("descriptions", "shuffled", "random", "name"))
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    arms = options.arms or (
        ["random", "name", "descriptions"] if options.positives else ["descriptions", "shuffled", "random"]
    )
    data_dir = prepare_dataset("demo", options.work_dir / "demo")
    cases = [
        (label, positives, arm) for label in options.held_out for positives in options.positives or [0] for arm in arms
    ]
    runs = {}
    for seed in options.seeds:
        for label, positives, arm in cases:
            name = f"words-{label}-{positives}-{arm}{'-parts' * options.parts}-{options.max_steps}-steps-seed-{seed}"
            output_dir = options.work_dir / name.replace(" ", "_")
            runs[name] = partial(
                run_arm, data_dir, output_dir, label, positives, arm, seed, options.max_steps, options.parts
            )
    results = list(run_missing(options.work_dir, runs, options.processes).values())
    print("| class | positives | words | AP of it, mean | lowest to highest | mean AP of the others |")
    print("|---|---|---|---|---|---|")
    for index, (label, positives, arm) in enumerate(cases):
        found = results[index :: len(cases)]
        own, others = ([one[part] for one in found] for part in ("held_out", "others"))
        spread = f"{min(own):.3f} to {max(own):.3f}"
        print(f"| {label} | {positives} | {arm} | {np.mean(own):.3f} | {spread} | {np.mean(others):.3f} |")
    print(f"part of all actors that show each: {prevalence(load_action_dataset('demo', data_dir, 'validation'))}")


def prevalence(rows: Dataset) -> dict[str, float]:
    """Part of the actors that show each composition."""
    shown = [tube["labels"] for row in rows for tube in row["tubes"]]
    ids = {label: list(DESCRIPTIONS).index(label) for label in RELATIONS}
    return {label: round(sum(ids[label] in labels for labels in shown) / len(shown), 3) for label in RELATIONS}


def keep_positives(rows: Dataset, label_id: int, num_positives: int, num_labels: int, seed: int) -> Dataset:
    """Annotations in which nobody looked for a class in any but some of the keyframes that show it."""
    rows = list(rows)
    shows = [index for index, row in enumerate(rows) if any(label_id in tube["labels"] for tube in row["tubes"])]
    kept = set(np.random.default_rng(seed).permutation(shows)[:num_positives].tolist())
    hidden = iter(hide_novel_classes(to_dataset([rows[i] for i in shows if i not in kept]), [label_id], num_labels))
    # Nobody shows one composition alone, so that no keyframe is left out.
    return to_dataset([next(hidden) if i in shows and i not in kept else row for i, row in enumerate(rows)])


def with_parts(rows: Dataset, labels: list[str]) -> Dataset:
    """Annotations of the demo with labels for the parts of compositions."""
    parts = {
        labels.index(label): [labels.index(part) for part in PARTS if part in label.split()] for label in RELATIONS
    }

    def with_own(tube: dict[str, Any]) -> dict[str, Any]:
        return tube | {"labels": [*tube["labels"], *(part for own in tube["labels"] for part in parts.get(own, ()))]}

    return to_dataset([row | {"tubes": list(map(with_own, row["tubes"]))} for row in rows])


def run_arm(
    data_dir: Path,
    output_dir: Path,
    label: str,
    positives: int,
    arm: str,
    seed: int,
    max_steps: int,
    has_parts: bool,
) -> dict[str, float]:
    """AP of a class that was hidden or rare, and mean AP of all others, after training the recipe `demo`."""
    labels = [*load_action_labels("demo", data_dir).values(), *(PARTS if has_parts else ())]
    rows, validation_rows = (load_action_dataset("demo", data_dir, split) for split in ("train", "validation"))
    if has_parts:
        rows, validation_rows = with_parts(rows, labels), with_parts(validation_rows, labels)
    label_id = labels.index(label)
    if positives:
        rows = keep_positives(rows, label_id, positives, len(labels), seed)
    else:
        rows = hide_novel_classes(rows, [label_id], len(labels))
    id2label = dict(enumerate(labels))
    model = make_model("demo", data_dir, seed, id2label=id2label, class_queries="text", text_embedding_size=WIDTH)
    words = words_of(arm, seed)
    model.set_classes({name: words[name] for name in labels}, encode)
    training = {"max_steps": max_steps, "eval_strategy": "no"}
    trainer, _ = train(
        "demo", model, data_dir, output_dir, seed, rows=rows, validation_rows=validation_rows, training=training
    )
    trainer.save_model()
    metrics = trainer.evaluate()
    of_class = {name: metrics[f"eval_frame_ap_50/{name}"] for name in labels}
    others = [value for name, value in of_class.items() if name not in (label, *PARTS)]
    return {"held_out": of_class[label], "others": float(np.mean(others))}


if __name__ == "__main__":
    main()
