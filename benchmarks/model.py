"""Time and memory of what the network computes in another order, against its readable form, and print a table.

    python benchmarks/model.py [--sizes AVA UCF JHMDB demo] [--rounds 3] [--threads 1]
    python benchmarks/model.py --whole
    python benchmarks/model.py --against aaa7d40 [--rounds 5]

Each row is one part of the network at the sizes of a recipe, with random weights and inputs, as it is written down in
tests/reference_forms.py and as it is computed, in turns in one process. Of UCF101-24 and JHMDB-21, decoders look at
eight frames. Forward is in evaluation mode without gradients, forward+backward in training mode without dropout, and
left out where both forms are the same then. Times are the best of all rounds, in seconds of processor time, which
other work on the machine disturbs less than wall-clock time. Memory is the peak of the process during a call above
that before it, results included.

With `--whole`, an AVA model with ViT-B looks at a clip of 16x256x340 in both forms, and the table says where the time
goes; a step of training the demo on a batch of random clips follows.

With `--against COMMIT`, the clip and a batch of the demo run with the build of that commit and with this one in turns,
one thread each: medians.
"""

import argparse
import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import SIZES, Cost, Stopwatch, cost_of, parts_of
from older_build import compare


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference_forms import readable

from classquery import (
    ClassQueryConfig,
    ClassQueryForVideoActionDetection,
    ClassQueryModel,
    ClassQueryViTConfig,
)
from classquery.configuration import load_recipe
from classquery.data.demo.movies import LABELS
from classquery.modeling_classquery import ClassQueryMemory


RECIPES = {"AVA": "ava22_vit_b", "UCF": "ucf101_24_vit_b", "JHMDB": "jhmdb21_vit_b", "demo": "demo"}
LEVELS = {name: SIZES[name] for name in ("AVA", "UCF", "JHMDB")} | {"demo": [(2, 6, 8), (2, 3, 4)]}
BATCH_SIZES = {"demo": 16}
MOST_DECODED_FRAMES = 8
DEMO_STEPS = 10


@dataclass
class Part:
    """A part of the network: the name of its rewrite, what runs, and the tensors whose gradients are asked for."""

    rewrite: str
    run: Callable[..., tuple[torch.Tensor, ...]]
    inputs: tuple[torch.Tensor, ...]


def main() -> None:
    """Measure all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="measure the whole network instead")
    parser.add_argument("--against", metavar="COMMIT", help="compare with the build of an older commit instead")
    arguments = parser.parse_args()
    if arguments.against:
        compare(arguments.against, Path(__file__).parent / "network_cost.py", [], arguments.rounds)
        return
    torch.set_num_threads(arguments.threads)
    if arguments.whole:
        measure_whole(arguments.rounds)
        return
    print("| size | part | pass | readable s | s | faster | readable MB | MB | less |\n" + "|---" * 9 + "|")
    for name in arguments.sizes:
        model = make_model(name)
        for label, part in {**encoder_parts(name, model), **decoder_parts(name, model)}.items():
            for with_gradient in (False, True) if part.rewrite != "rows at a time" else (False,):
                model.train(with_gradient)
                costs = measure(part, with_gradient, arguments.rounds)
                print(f"| {name} | {label} | forward{'+backward' * with_gradient} | {row(*costs)} |", flush=True)


def measure_whole(rounds: int) -> None:
    """Print where the time of a forward pass goes, and what a training step of the demo takes, in both forms."""
    model = ClassQueryForVideoActionDetection(ClassQueryConfig()).eval()
    pixel_values = torch.randn(1, 16, 3, 256, 340, generator=torch.Generator().manual_seed(0))
    step = make_demo_step()
    forms = {"readable": readable, "as computed": contextlib.nullcontext}
    columns = {form: [] for form in forms}
    for _ in range(rounds):
        for form, context in forms.items():
            stopwatch = Stopwatch(parts_of(model.model), "cpu", time.process_time)
            with context():
                with torch.no_grad(), stopwatch:
                    cost = cost_of(functools.partial(model, pixel_values), "cpu")
                demo = min(cost_of(step, "cpu").cpu_seconds for _ in range(DEMO_STEPS))
            columns[form].append(
                {"all, cpu s": cost.cpu_seconds, **stopwatch.seconds, "extra MB": cost.extra_bytes / 1e6}
                | {"demo, training step, cpu s": demo}
            )
    best = {form: {part: min(times[part] for times in rows) for part in rows[0]} for form, rows in columns.items()}
    print(f"\n| | {' | '.join(forms)} |\n|---|---|---|")
    for part in best["readable"]:
        print(f"| {part} | {best['readable'][part]:.3f} | {best['as computed'][part]:.3f} |")


def make_demo_step() -> Callable[[], None]:
    """One update of the demo's detector on a batch of random clips with two actors each."""
    recipe = load_recipe("demo")
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**recipe.model, num_labels=len(LABELS))).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch_size = BATCH_SIZES["demo"]
    label = {
        "boxes": torch.tensor([[0.3, 0.5, 0.2, 0.6], [0.7, 0.5, 0.3, 0.8]])[:, None],
        "class_labels": torch.eye(len(LABELS))[:2, None],
        "valid": torch.ones(2, 1, dtype=torch.bool),
        "frame_mask": torch.ones(1, dtype=torch.bool),
    }
    pixel_values, pixel_mask = torch.randn(batch_size, 8, 3, 48, 64), torch.ones(batch_size, 48, 64)

    def step() -> None:
        model(pixel_values, pixel_mask, [label] * batch_size).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_model(name: str) -> ClassQueryModel:
    """The network of a recipe with one layer of each kind."""
    torch.manual_seed(0)
    values = load_recipe(RECIPES[name]).model
    if "id2label" not in values:
        values = values | {"num_labels": len(LABELS)}
    backbone = ClassQueryViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    shallow = {"encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0, "backbone_config": backbone}
    return ClassQueryModel(ClassQueryConfig(**values | shallow))


def encoder_parts(name: str, model: ClassQueryModel) -> dict[str, Part]:
    """The last encoder layer of keyframe models, and resampling."""
    config, shapes, batch_size = model.config, LEVELS[name], BATCH_SIZES.get(name, 1)
    states = torch.randn(batch_size, sum(math.prod(shape) for shape in shapes), config.d_model)
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]

    def encode(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        plan = model.plan(maps, config.num_frames)
        sizes = plan.reference_points, plan.shapes, plan.offset_scales
        return (model.encoder.layers[0](states, torch.zeros_like(states), *sizes, None, plan.read_index),)

    def resample(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (model.resample(states, model.plan(maps, config.num_frames, every_cell=True)),)

    def feed_forward(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (model.encoder.layers[0].feed_forward(states),)

    parts = {"feed-forward layer of the encoder": Part("rows at a time", feed_forward, (states,))}
    if name == "AVA":
        return parts | {"last encoder layer": Part("last encoder layer", encode, (states,))}
    return parts | {"resampling": Part("resampling", resample, (states,))}


def decoder_parts(name: str, model: ClassQueryModel) -> dict[str, Part]:
    """The first localizing layer, and the attention of the first classifying layer without its convolutions."""
    config, size = model.config, LEVELS[name][-2][1:]
    frames = BATCH_SIZES.get(name, min(config.num_output_frames, MOST_DECODED_FRAMES))
    actors = torch.randn(frames, config.num_queries, config.d_model)
    levels = torch.randn(config.num_feature_levels, frames, math.prod(size), config.d_model)
    position = torch.randn(frames, math.prod(size), config.d_model)
    context = torch.randn(frames * config.num_queries, math.prod(size), config.d_model)
    localizing, classifying = model.decoder.localizing_layers[0], model.decoder.classifying_layers[0]

    def localize(actors: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        memory = ClassQueryMemory.of_levels(levels, position, size, None)
        return localizing(actors, actors, actors, memory)

    def classify(actors: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, ...]:
        classes = classifying._attend_to_classes(model.decoder.class_queries[None], len(context))
        return (classifying.cross_attn(classes, actors, context, position, context)[0],)

    def convolve(context: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (classifying.conv_blocks[0](context.unflatten(1, size)),)

    return {
        "convolution block": Part("rows at a time", convolve, (context,)),
        "localizing layer": Part("localizing layers", localize, (actors, levels)),
        f"class attention, {config.class_attention_heads}": Part("class attention", classify, (actors, context)),
    }


def measure(part: Part, with_gradient: bool, rounds: int) -> tuple[Cost, Cost]:
    """Costs of the readable form and of the one that runs."""
    call = functools.partial(run_once, part, with_gradient)
    costs = ([], [])
    for turn in range(rounds + 1):
        # Each form goes first in every other round: what comes second finds caches and memory in another state.
        for form in (0, 1) if turn % 2 else (1, 0):
            with readable(part.rewrite) if form == 0 else contextlib.nullcontext():
                costs[form].append(cost_of(call, "cpu"))
    # The first round warms up.
    return tuple(Cost.best(measured[1:]) for measured in costs)


def run_once(part: Part, with_gradient: bool) -> None:
    """One call, and the gradients of inputs and weights."""
    inputs = [tensor.detach().requires_grad_(with_gradient) for tensor in part.inputs]
    with torch.set_grad_enabled(with_gradient):
        outputs = part.run(*inputs)
    if with_gradient:
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def row(readable_cost: Cost, cost: Cost) -> str:
    """Both costs and their ratios."""
    faster = readable_cost.cpu_seconds / cost.cpu_seconds
    before, after = (max(measured.extra_bytes, 1e5) / 1e6 for measured in (readable_cost, cost))
    seconds = f"{readable_cost.cpu_seconds:.4f} | {cost.cpu_seconds:.4f} | {faster:.1f}"
    return f"{seconds} | {before:.1f} | {after:.1f} | {before / after:.1f}"


if __name__ == "__main__":
    main()
