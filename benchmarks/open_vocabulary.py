"""Are actions found that nobody trained? Compositions of the demo are held out in turn, and described in words.

    python benchmarks/open_vocabulary.py --work_dir DIR [--seeds 0 1 2] [--max_steps 1100] [--held_out ...]
    python benchmarks/open_vocabulary.py --work_dir DIR --positives 5 20 [--held_out ...]

The recipe `demo` is trained with queries and readout from words, its labels of one class hidden as unknown
(`hide_novel_classes`), once with each kind of words:

* `descriptions`: a sentence for each class, as "a ball is on the left of the person";
* `shuffled`: the same sentences, those of the four compositions exchanged so that each has the wrong one;
* `random`: for each class a vector that has nothing to do with words.

A sentence is the mean of one random vector per word, which is never trained: nothing is known of words but that they
are the same. Reported is the AP at IoU 0.5 of the class held out, beside the part of all actors that show it, which is
about what a score at random has.

With `--positives`, the class is not hidden but rare: so many of its keyframes keep the label, in the others it is
unknown. Words may then be the `name` of a class alone, too.

Results are added to `DIR/results.json`, so that an interrupted run goes on where it was.
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import TrainingArguments, set_seed

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import load_recipe
from classquery.configuration.arguments import DataArguments, OptimizationArguments
from classquery.data.annotations.registry import (
    load_action_dataset,
    load_action_labels,
    make_clips,
    prepare_dataset,
)
from classquery.data.annotations.schema import to_dataset
from classquery.data.demo.movies import RELATIONS
from classquery.data.novel_classes import hide_novel_classes
from classquery.data.transforms import ClipTransform
from classquery.data.whole_files import write_json
from classquery.engine.training.trainer import ActionDetectionTrainer


DESCRIPTIONS = {
    "stand": "the person stands still",
    "walk": "the person walks",
    "jump": "the person jumps",
    "ball on the left": "a ball is on the left of the person",
    "ball on the right": "a ball is on the right of the person",
    "kite on the left": "a kite is on the left of the person",
    "kite on the right": "a kite is on the right of the person",
    "watch a jump": "the person watches another jump",
}
WIDTH = 64


def encode(sentences: list[str]) -> torch.Tensor:
    """Mean of one vector per word, which is the same in all runs: (n, 64)."""
    return F.normalize(torch.stack([torch.stack(list(map(_vector, s.split()))).mean(0) for s in sentences]), dim=-1)


def _vector(word: str) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def words_of(arm: str, seed: int) -> dict[str, str]:
    """What describes each class; a sentence without blanks is a vector of its own."""
    if arm == "descriptions":
        return DESCRIPTIONS
    if arm == "name":
        return {label: label for label in DESCRIPTIONS}
    if arm == "random":
        return {label: f"{label.replace(' ', '_')}_{seed}" for label in DESCRIPTIONS}
    # Each gets that of another: no turn of four by one, two or three leaves one in its place.
    turn = 1 + seed % 3
    others = [*RELATIONS[turn:], *RELATIONS[:turn]]
    return DESCRIPTIONS | {label: DESCRIPTIONS[other] for label, other in zip(RELATIONS, others, strict=True)}


def main() -> None:
    """Train what is not in the results yet, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=load_recipe("demo").training["max_steps"])
    parser.add_argument("--held_out", nargs="+", choices=RELATIONS, default=list(RELATIONS))
    parser.add_argument("--positives", type=int, nargs="+", help="make the class rare instead of hiding it")
    parser.add_argument("--arms", nargs="+", choices=("descriptions", "shuffled", "random", "name"))
    options = parser.parse_args()
    arms = options.arms or (
        ["random", "name", "descriptions"] if options.positives else ["descriptions", "shuffled", "random"]
    )
    options.work_dir.mkdir(parents=True, exist_ok=True)
    path = options.work_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    runs = [
        (seed, label, positives, arm)
        for seed in options.seeds
        for positives in options.positives or [0]
        for label in options.held_out
        for arm in arms
    ]
    for seed, label, positives, arm in runs:
        name = _name(label, positives, arm, options.max_steps, seed)
        if name not in results:
            results[name] = train_and_score(options.work_dir, label, positives, arm, seed, options.max_steps)
            write_json(path, results, indent=2)
            print(f"{name}: {results[name]}", flush=True)
    print("| class | positives | words | AP of it, mean | lowest to highest | mean AP of the others |")
    print("|---|---|---|---|---|---|")
    for label in options.held_out:
        for positives in options.positives or [0]:
            for arm in arms:
                found = [results[_name(label, positives, arm, options.max_steps, seed)] for seed in options.seeds]
                own, others = ([one[part] for one in found] for part in ("held_out", "others"))
                spread = f"{min(own):.3f} to {max(own):.3f}"
                print(f"| {label} | {positives} | {arm} | {np.mean(own):.3f} | {spread} | {np.mean(others):.3f} |")
    data_dir = prepare_dataset("demo", options.work_dir / "data")
    print(f"part of all actors that show each: {prevalence(load_action_dataset('demo', data_dir, 'validation'))}")


def _name(label: str, positives: int, arm: str, max_steps: int, seed: int) -> str:
    return f"{label}, {positives} positives, {arm}, {max_steps} steps, seed {seed}"


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


def train_and_score(
    work_dir: Path, label: str, positives: int, arm: str, seed: int, max_steps: int
) -> dict[str, float]:
    """AP of a class that was hidden or rare, and mean AP of all others, after training the recipe `demo`."""
    recipe, data_dir = load_recipe("demo"), prepare_dataset("demo", work_dir / "data")
    id2label = load_action_labels("demo", data_dir)
    label_id = list(id2label.values()).index(label)
    rows = load_action_dataset("demo", data_dir, "train")
    if positives:
        rows = keep_positives(rows, label_id, positives, len(id2label), seed)
    else:
        rows = hide_novel_classes(rows, [label_id], len(id2label))
    set_seed(seed)
    values = recipe.model | {"id2label": id2label, "class_queries": "text", "text_embedding_size": WIDTH}
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**values))
    words = words_of(arm, seed)
    model.set_classes({name: words[name] for name in id2label.values()}, encode)
    processor, data = ClassQueryVideoProcessor(**recipe.processor), DataArguments(**recipe.data)
    transform = ClipTransform(data.resize_shortest_edge, processor.size["shortest_edge"], data.flip_probability)
    training = recipe.training | {"max_steps": max_steps, "seed": seed, "eval_strategy": "no", "eval_on_start": False}
    training |= {"logging_strategy": "no", "dataloader_pin_memory": torch.cuda.is_available()}
    trainer = ActionDetectionTrainer(
        model,
        TrainingArguments(str(work_dir / "run"), disable_tqdm=True, **training),
        optimization=OptimizationArguments(**recipe.optimization),
        train_dataset=make_clips(rows, model.config, transform=transform, seed=seed),
        eval_dataset=make_clips(load_action_dataset("demo", data_dir, "validation"), model.config),
        processing_class=processor,
    )
    trainer.train()
    metrics = trainer.predict(trainer.eval_dataset).metrics
    of_class = {name: metrics.get(f"test_frame_ap_50/{name}") for name in id2label.values()}
    others = [value for name, value in of_class.items() if name != label and value is not None]
    return {"held_out": round(of_class[label], 4), "others": round(sum(others) / len(others), 4)}


if __name__ == "__main__":
    main()
