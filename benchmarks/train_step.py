"""Time and memory of a training step for each published recipe, with and without what makes it cheaper.

    python benchmarks/train_step.py [RECIPE ...] [--short_side PIXELS] [--options OPTION ...] [--steps N]

One clip of random pixels with the aspect of a 4:3 video, two actors, AdamW. Every line is measured in a process of its
own, so that peaks of memory do not mix; ratios are against the first line of the recipe in the same run. On a GPU,
memory is what CUDA allocated; on CPU it is what the process held at most beyond what it held before the first step.
Full-size steps need 10 to 60 GB on CPU: lower `--short_side` there.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext

import torch

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection
from classquery.configuration import list_recipes, load_recipe
from classquery.engine.training.ema import WeightAverage
from classquery.engine.training.matrices import MuonForMatrices
from classquery.engine.training.optimization import parameter_groups


ON_CPU = ("plain", "checkpointing", "frozen backbone", "ema", "denoising", "muon")
OPTIONS = (*ON_CPU, "compile", "bf16", "bf16 + checkpointing")
PUBLISHED = [name for name in list_recipes() if not name.startswith("demo") and not name.endswith("_stage1")]


def main() -> None:
    """Measure all that is asked for, each in a process, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=PUBLISHED)
    parser.add_argument("--short_side", type=int, help="default: that of the recipe")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=OPTIONS if has_gpu() else ON_CPU)
    parser.add_argument("--steps", type=int, default=2, help="steps to measure, after one to warm up")
    parser.add_argument("--single", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.single:
        print(json.dumps(measure(**json.loads(arguments.single))))
        return
    print(f"{torch.cuda.get_device_name() if has_gpu() else f'CPU, {torch.get_num_threads()} threads'}")
    print("| recipe | clip | option | s / step | GB | time | memory |\n|---|---|---|---|---|---|---|")
    for recipe in arguments.recipes:
        first = None
        for option in arguments.options:
            case = {"recipe": recipe, "option": option, "short_side": arguments.short_side, "steps": arguments.steps}
            result = run_alone(case)
            first = first or result
            print(row(recipe, option, result, first), flush=True)


def has_gpu() -> bool:
    """Whether the steps run on a GPU."""
    return torch.cuda.is_available()


def run_alone(case: dict) -> dict | None:
    """Measure in another process; if it fails, it says why itself, and there is no result."""
    command = [sys.executable, __file__, "--single", json.dumps(case)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(finished.stdout.splitlines()[-1]) if finished.returncode == 0 else None


def row(recipe: str, option: str, result: dict | None, first: dict | None) -> str:
    """A line of the table."""
    if result is None:
        return f"| {recipe} | | {option} | failed | | | |"
    time_ratio, memory_ratio = result["seconds"] / first["seconds"], result["gigabytes"] / first["gigabytes"]
    return (
        f"| {recipe} | {result['clip']} | {option} | {result['seconds']:.2f} | {result['gigabytes']:.2f} "
        f"| {time_ratio:.2f} | {memory_ratio:.2f} |"
    )


def measure(recipe: str, option: str, short_side: int | None, steps: int) -> dict:
    """Seconds of a step and gigabytes at the peak."""
    torch.manual_seed(0)
    device = torch.device("cuda" if has_gpu() else "cpu")
    values = load_recipe(recipe)
    config = ClassQueryConfig(**values.model | ({"denoising_groups": 5} if option == "denoising" else {}))
    model = ClassQueryForVideoActionDetection(config).to(device).train()
    if option == "frozen backbone":
        model.model.backbone.requires_grad_(False)
    if "checkpointing" in option:
        model.activation_checkpointing_enable({"use_reentrant": False})
    batch = make_batch(config, short_side or values.processor["size"]["shortest_edge"], device)
    optimizer = make_optimizer(model, by_muon=option == "muon")
    run = torch.compile(model) if option == "compile" else model
    precision = torch.autocast(device.type, dtype=torch.bfloat16) if "bf16" in option else nullcontext()
    average = WeightAverage(model, decay=0.999) if option == "ema" else None
    held = resident_gigabytes()
    step(run, batch, optimizer, precision, average)
    if has_gpu():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step(run, batch, optimizer, precision, average)
    if has_gpu():
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if has_gpu() else peak_gigabytes() - held
    return {"clip": shape_of(batch), "seconds": seconds, "gigabytes": peak}


def make_optimizer(model: torch.nn.Module, by_muon: bool) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices and AdamW for the rest."""
    rates = {"learning_rate": 1e-5, "matrix_learning_rate": 1e-5 if by_muon else None}
    groups = parameter_groups(model, weight_decay=1e-4, **rates)
    return MuonForMatrices(groups, torch.optim.AdamW) if by_muon else torch.optim.AdamW(groups)


def step(model, batch: dict, optimizer: torch.optim.Optimizer, precision, average=None) -> None:
    """Forward, backward, update, and average of the weights."""
    with precision:
        loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()
    if average is not None:
        average.update(model)


def make_batch(config: ClassQueryConfig, short_side: int, device: torch.device) -> dict:
    """One clip with two actors in every frame."""
    size = short_side, int(short_side * 4 / 3)
    frames = config.num_output_frames
    label = {
        "boxes": torch.tensor([[0.3, 0.5, 0.2, 0.6], [0.7, 0.5, 0.3, 0.8]])[:, None].repeat(1, frames, 1),
        "class_labels": torch.eye(config.num_labels)[:2, None].repeat(1, frames, 1),
        "valid": torch.ones(2, frames, dtype=torch.bool),
        "frame_mask": torch.ones(frames, dtype=torch.bool),
    }
    pixel_values = torch.randn(1, config.num_frames, 3, *size, device=device)
    return {"pixel_values": pixel_values, "labels": [{name: t.to(device) for name, t in label.items()}]}


def shape_of(batch: dict) -> str:
    """Frames, height and width of the clip."""
    _, frames, _, height, width = batch["pixel_values"].shape
    return f"{frames}x{height}x{width}"


def peak_gigabytes() -> float:
    """What the process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident_gigabytes() -> float:
    """What the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**30


if __name__ == "__main__":
    main()
