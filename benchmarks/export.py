"""Time and memory of exported detectors beside the model itself, and what exporting takes; print two tables.

    python benchmarks/export.py [RECIPE] [--formats pt2 onnx] [--sampling gather grid_sample] [--rounds 3]

RECIPE is `demo`, the trained model of the package and the default, or a recipe, with random weights. Programs are made
for one clip of a 4:3 video in the size of the recipe, nothing left open, and checked by the exporter. Then they and
the model, with the compiled operator and with the plain one, compute the scores of that clip in turns, in one process
after a round to warm up. Times are the best of all rounds; seconds of processor time are those of all threads. Memory
is the peak of the process during a call above that before it.
"""

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import Cost, cost_of

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, kernels
from classquery.configuration import load_recipe
from classquery.engine.checkpoint import load_detector
from classquery.engine.export import ExportOptions, export_detector, load_exported


FORMATS, SAMPLINGS = ("pt2", "onnx"), ("gather", "grid_sample")
Detector = tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]


def main() -> None:
    """Export, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="demo")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--sampling", nargs="+", choices=(*SAMPLINGS, "default"), default=SAMPLINGS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = make_detector(arguments.recipe)
    model, clip = detector[0], clip_for(*detector)
    # What runs, and with which implementation of the operator.
    forms = {"model, compiled operator": (model, "cpu"), "model, plain operator": (model, "torch")}
    print(f"{arguments.recipe}, {'x'.join(map(str, clip.shape))}, {arguments.threads} threads\n")
    print("| program | sampling | to export, cpu s | to load, cpu s | MB | largest deviation |\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for ending, sampling in itertools.product(arguments.formats, arguments.sampling):
            program = export_and_load(detector, clip, Path(folder) / f"{sampling}.{ending}", sampling)
            forms[f".{ending}, {sampling}"] = program, "torch"
        print("\n| form | s | cpu s | times the first | extra MB |\n|---|---|---|---|---|")
        print_costs({form: functools.partial(run, *what, clip) for form, what in forms.items()}, arguments.rounds)


def make_detector(recipe: str) -> Detector:
    """The demo model, or that of a recipe with random weights."""
    if recipe == "demo":
        return load_detector("demo")
    torch.manual_seed(0)
    values = load_recipe(recipe)
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**values.model)).eval()
    return model, ClassQueryVideoProcessor(**values.processor)


def clip_for(model: ClassQueryForVideoActionDetection, processor: ClassQueryVideoProcessor) -> torch.Tensor:
    """One clip of a 4:3 video."""
    height = processor.size["shortest_edge"]
    return torch.randn(1, model.config.num_frames, 3, height, height * 4 // 3)


def export_and_load(detector: Detector, clip: torch.Tensor, path: Path, sampling: str) -> Callable:
    """Print what one program takes, and return it."""
    size = {"height": clip.shape[-2], "width": clip.shape[-1]}
    options = ExportOptions(dynamic=(), sampling=None if sampling == "default" else sampling, **size)
    starts = [time.process_time()]
    deviations = export_detector(*detector, path, options)
    starts.append(time.process_time())
    program, _ = load_exported(path)
    starts.append(time.process_time())
    seconds = " | ".join(f"{end - start:.1f}" for start, end in itertools.pairwise(starts))
    megabytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6
    print(f"| {path.suffix} | {sampling} | {seconds} | {megabytes:.1f} | {max(deviations.values()):.1e} |", flush=True)
    return program


@torch.inference_mode()
def run(detector: Callable, implementation: str, clip: torch.Tensor) -> None:
    """Compute the scores of a clip."""
    with kernels.use_implementation(implementation):
        detector(clip)


def print_costs(calls: dict[str, Callable[[], None]], rounds: int) -> None:
    """Measure calls in turns and print a line for each."""
    costs = {form: [] for form in calls}
    for _, form in itertools.product(range(rounds + 1), calls):
        costs[form].append(cost_of(calls[form], "cpu"))
    # The first round warms up.
    best = {form: Cost.best(measured[1:]) for form, measured in costs.items()}
    first = next(iter(best.values()))
    for form, cost in best.items():
        times = cost.cpu_seconds / first.cpu_seconds
        print(f"| {form} | {cost.seconds:.3f} | {cost.cpu_seconds:.3f} | {times:.1f} | {cost.extra_bytes / 1e6:.0f} |")


if __name__ == "__main__":
    main()
