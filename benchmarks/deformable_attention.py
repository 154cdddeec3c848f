"""Time and memory of 3-D deformable attention at the sizes of the published encoders, and print a table.

    python benchmarks/deformable_attention.py [--sizes AVA CSN UCF JHMDB] [--rounds 3] [--threads 2] [--device cpu]
    python benchmarks/deformable_attention.py --model
    python benchmarks/deformable_attention.py --device cuda [--model [--recipes RECIPE ...] [--matmul_precision high]]

One layer, one clip, 8 heads of 32 channels, 4 levels of 8 points each, in one process and in turns:

* `grid_sample`: the usual way, all samples of all levels in one tensor, weighed and summed at the end;
* `plain`: the package's form in plain PyTorch, one level at a time;
* `fused`: the compiled form.

Times are the best of all rounds, as wall-clock seconds and, on the CPU, as seconds of processor time, which other work
on the machine disturbs less. Memory is the peak during a call above that before it, results included.

With `--model`, a whole AVA model with ViT-B and random weights looks at a clip of 16x256x340 with the plain and with
the fused form, and the table says where the time goes.

On a GPU (`--device cuda`) there are more forms to compare with, float32 and bf16, and the whole models of all recipes;
see deformable_attention_gpu.py.
"""

import argparse
import functools
import math
from pathlib import Path

import deformable_attention_gpu as gpu
import torch
from measuring import (
    HEAD_DIM,
    NUM_HEADS,
    NUM_POINTS,
    SIZES,
    Cost,
    Stopwatch,
    cost_of,
    forward,
    forward_and_backward,
    in_implementation,
    make_inputs,
    parts_of,
    sample_all_levels,
)

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, kernels


def main() -> None:
    """Measure all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", action="store_true", help="measure the whole network instead")
    parser.add_argument("--recipes", nargs="+", help="of the models on a GPU; default: the six that were published")
    parser.add_argument(
        "--matmul_precision",
        nargs="*",
        choices=("highest", "high"),
        default=["highest", "high"],
        help="of the models on a GPU, where high is TF32; bf16 autocast is measured in any case",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        measure_on_gpu(arguments)
        return
    print(f"{_machine()}, {arguments.threads} threads, PyTorch {torch.__version__}, fused: ", end="")
    print(kernels.implementations()["cpu"])
    if arguments.model:
        measure_model(arguments.rounds)
        return
    print("\n| size | cells | pass | form | s | cpu s | times fused | extra MB | times fused |\n" + "|---" * 9 + "|")
    for name in arguments.sizes:
        measure(name, arguments.rounds)


def measure_on_gpu(arguments: argparse.Namespace) -> None:
    """Print the tables of a GPU, or say that there is none."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: PyTorch finds no CUDA device here, so nothing was measured")
    print(gpu.machine())
    if arguments.model:
        gpu.print_models(arguments.recipes or gpu.RECIPES, [*arguments.matmul_precision, "bf16"], arguments.rounds)
    else:
        gpu.print_operator({name: SIZES[name] for name in arguments.sizes}, arguments.rounds)


def measure(name: str, rounds: int) -> None:
    """Print the rows of one size."""
    inputs = make_inputs(SIZES[name], "cpu")
    forms = {"grid_sample": sample_all_levels, "plain": in_implementation("torch"), "fused": in_implementation("cpu")}
    for label, run in {"forward": forward, "forward+backward": forward_and_backward}.items():
        costs = {form: [] for form in forms if form != "grid_sample" or _fits(SIZES[name])}
        for _ in range(rounds + 1):
            for form in costs:
                costs[form].append(cost_of(functools.partial(run, forms[form], SIZES[name], inputs), "cpu"))
        # The first round warms up.
        best = {form: Cost.best(measured[1:]) for form, measured in costs.items()}
        for form in forms:
            print(f"| {name} | {inputs[0].shape[1]:,} | {label} | {_row(form, best)} |", flush=True)


def measure_model(rounds: int) -> None:
    """Print where the time of one forward pass goes, with either form of the operator."""
    model = ClassQueryForVideoActionDetection(ClassQueryConfig()).eval()
    pixel_values = torch.randn(1, 16, 3, 256, 340, generator=torch.Generator().manual_seed(0))
    parts = parts_of(model.model)
    forms = {"plain": "torch", "fused": "cpu"}
    columns = {form: [] for form in forms}
    for _ in range(rounds):
        for form, implementation in forms.items():
            with Stopwatch(parts, "cpu") as stopwatch, kernels.use_implementation(implementation), torch.no_grad():
                cost = cost_of(functools.partial(model, pixel_values), "cpu")
            times = {"all": cost.seconds, "all, cpu": cost.cpu_seconds} | stopwatch.seconds
            columns[form].append(times | {"extra MB": cost.extra_bytes / 1e6})
    best = {form: {part: min(times[part] for times in rows) for part in rows[0]} for form, rows in columns.items()}
    print("\n| s | plain | fused |\n|---|---|---|")
    for part in best["plain"]:
        print(f"| {part} | {best['plain'][part]:.2f} | {best['fused'][part]:.2f} |")


def _row(form: str, best: dict[str, Cost]) -> str:
    if form not in best:
        return f"{form} | does not fit | | | |"
    cost, fused = best[form], best["fused"]
    times, memory_times = cost.cpu_seconds / fused.cpu_seconds, cost.extra_bytes / fused.extra_bytes
    seconds = f"{cost.seconds:.4f} | {cost.cpu_seconds:.3f} | {times:.1f}"
    return f"{form} | {seconds} | {cost.extra_bytes / 1e6:.0f} | {memory_times:.1f}"


def _fits(shapes: list[tuple[int, int, int]]) -> bool:
    """Whether the usual form leaves room for others: it holds about four copies of all samples of all heads."""
    num_cells = sum(math.prod(shape) for shape in shapes)
    needed = 4 * num_cells * NUM_HEADS * HEAD_DIM * len(shapes) * NUM_POINTS * 4
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return needed < 0.7 * available


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
