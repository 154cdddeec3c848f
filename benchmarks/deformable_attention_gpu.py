"""What deformable_attention.py prints with `--device cuda`: tables for kernels/README.md.

Time is that between two CUDA events around some calls in a row, after calls to warm up; forms take turns, and the best
of all rounds counts. A backward pass is timed without its forward pass; its memory is that of both, as in training.
In bf16 are `value` and the output; references, offsets and logits are float32 in all rows.

* `grid_sample` and `plain`: as on the CPU; both sample bf16 values in float32, because locations in bf16 miss cells.
* `im2col`: a kernel with a thread per channel, of float32, with locations and weights made by PyTorch; see im2col.py.
* `estimate`: what the instructions and additions to memory take on an H100, from counts; see ESTIMATES.
* `memory floor`: the bytes that must be moved at least, at the bandwidth of a copy in the same run.

The device is an argument only so that tests can run all of this on a CPU, where its times say nothing.
"""

import contextlib
import datetime
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from measuring import (
    HEAD_DIM,
    NUM_HEADS,
    NUM_POINTS,
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
from classquery.configuration import load_recipe


Form = Callable[..., torch.Tensor]
Shapes = list[tuple[int, int, int]]

# Milliseconds of a layer on an H100 by size, for (forward, backward); estimates by counting, nothing measured.
# Forward: 14.9 million samples of AVA, four queries and heads per warp with 125 instructions per sample, issued by 528
# schedulers at 1.755 GHz; the L1 cache hands over as many float32 in the same time. In bf16 twice the queries per
# warp need twice the instructions. Other sizes by their number of samples.
# Backward: a float32 is added to the gradient of value per corner, sample and channel, 15.2 GB of AVA, if the L2 cache
# adds as fast as it reads, taken to be 5.5 TB/s. It may well not, which is why the first aim is four times this.
ESTIMATES = {"AVA": (0.50, 2.8), "CSN": (0.23, 1.3), "UCF": (0.78, 4.3), "JHMDB": (1.25, 6.9)}

PASSES = ("forward", "backward")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Largest difference between outputs of two forms, as part of the largest output. bf16 resolves 4e-3; float32 has 1e-5
# of a cell in where a sample is. Mistakes are larger.
TOLERANCES = {"float32": 1e-3, "bf16": 2e-2}
RECIPES = ("ava22_csn50", "ava22_csn152", "ava22_vit_b", "ava22_vit_b_v2", "ucf101_24_vit_b", "jhmdb21_vit_b")
REPEATS = 10
LEGEND = """
Milliseconds; in brackets, how many times an estimate or floor fused takes, and how many times fused the others take.
A dash: the form does not take the type, or does not fit into memory. Memory, in MB, is the peak above the inputs:
"""
COPIED_BYTES = 2**30


@dataclass
class Measured:
    """Milliseconds and extra bytes by form; forms that do not fit into memory are missing."""

    milliseconds: dict[str, float]
    extra_bytes: dict[str, int]


def print_operator(sizes: dict[str, Shapes], rounds: int, device: str = "cuda", copied: int = COPIED_BYTES) -> None:
    """Print a table of times and one of memory."""
    bandwidth = copy_bandwidth(device, copied)
    print(f"\nA copy moves {bandwidth / 1e9:,.0f} GB/s.\n")
    print("| size | cells | type | pass | fused ms | estimate | memory floor | grid_sample | plain | im2col |")
    print("|---" * 10 + "|")
    memory = []
    for (name, shapes), dtype, label in itertools.product(sizes.items(), DTYPES, PASSES):
        num_cells = sum(math.prod(shape) for shape in shapes)
        measured = measure(shapes, dtype, label, device, rounds)
        floor = bytes_moved(num_cells, len(shapes), dtype, label) / bandwidth * 1e3
        times = time_cells(measured.milliseconds, ESTIMATES[name][PASSES.index(label)], floor)
        print(f"| {name} | {num_cells:,} | {dtype} | {label} | {times} |", flush=True)
        memory.append(f"| {name} | {dtype} | {label} | {memory_cells(measured.extra_bytes)} |")
    print(LEGEND)
    print("| size | type | pass | fused | grid_sample | plain | im2col |\n" + "|---" * 7 + "|")
    print("\n".join(memory).replace("| backward |", "| forward+backward |"))


def measure(shapes: Shapes, dtype: str, label: str, device: str, rounds: int) -> Measured:
    """Measure one pass of all forms in turns.

    Raises:
        RuntimeError: If the forms do not compute the same.
    """
    value, *others = make_inputs(shapes, device)
    inputs = (value.to(DTYPES[dtype]), *others)
    forms = forms_for(dtype, device)
    check_outputs(forms, shapes, inputs, TOLERANCES[dtype])
    milliseconds, extra_bytes = dict.fromkeys(forms, math.inf), {}
    for form, attend in forms.items():
        extra_bytes[form] = within_memory(extra_bytes_of, label, device, attend, shapes, inputs)
    for _, (form, attend) in itertools.product(range(rounds), forms.items()):
        spent = within_memory(milliseconds_of, label, device, attend, shapes, inputs)
        milliseconds[form] = min(milliseconds[form], spent)
    return Measured(*(keep_finite(costs) for costs in (milliseconds, extra_bytes)))


def keep_finite(costs: dict[str, float]) -> dict[str, float]:
    """Those of forms that fit into memory."""
    return {form: cost for form, cost in costs.items() if cost < math.inf}


def forms_for(dtype: str, device: str) -> dict[str, Form]:
    """Those that take values of a type on a device."""
    forms = {"fused": in_implementation(device), "grid_sample": grid_sample, "plain": in_implementation("torch")}
    if device == "cuda" and dtype == "float32":
        import im2col

        forms["im2col"] = im2col.attend
    return forms


def grid_sample(value: torch.Tensor, *others) -> torch.Tensor:
    """The usual form, sampling in float32."""
    return sample_all_levels(value.float(), *others).to(value.dtype)


def check_outputs(forms: dict[str, Form], shapes: Shapes, inputs: tuple[torch.Tensor, ...], tolerance: float) -> None:
    """Refuse to time what is wrong; grid_sample, which may not fit, is what `plain` calls."""
    with torch.no_grad():
        outputs = {name: form(inputs[0], shapes, *inputs[1:]) for name, form in forms.items() if name != "grid_sample"}
    expected = outputs.pop("plain").float()
    for name, output in outputs.items():
        difference = ((output.float() - expected).abs().max() / expected.abs().max()).item()
        # Not >, which lets NaN pass.
        if not difference <= tolerance:
            raise RuntimeError(f"{name} differs from plain by {difference:.1e} of the largest output")


def within_memory(measure_cost: Callable[..., float], *arguments) -> float:
    """What something costs, or infinity if there is not enough memory for it."""
    try:
        return measure_cost(*arguments)
    except torch.OutOfMemoryError:
        return math.inf


def extra_bytes_of(label: str, device: str, form: Form, shapes: Shapes, inputs: tuple[torch.Tensor, ...]) -> int:
    """Peak of memory during a pass, backward with its forward pass, above that before it."""
    whole = forward if label == "forward" else forward_and_backward
    return cost_of(functools.partial(whole, form, shapes, inputs), device).extra_bytes


def milliseconds_of(label: str, device: str, form: Form, shapes: Shapes, inputs: tuple[torch.Tensor, ...]) -> float:
    """Time of a pass, backward without its forward pass."""
    if label == "forward":
        return time_call(functools.partial(forward, form, shapes, inputs), device)
    return time_call(backward_call(form, shapes, inputs), device)


def backward_call(form: Form, shapes: Shapes, inputs: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """The backward pass of a forward pass that is over."""
    value, references, offsets, logits, scale = inputs
    learned = [tensor.detach().requires_grad_() for tensor in (value, offsets, logits)]
    output = form(learned[0], shapes, references, learned[1], learned[2], scale)
    return functools.partial(torch.autograd.grad, output, learned, torch.ones_like(output), retain_graph=True)


def time_call(call: Callable[[], object], device: str) -> float:
    """Milliseconds of one call, on a GPU from some in a row, after one to warm up."""
    call()
    if device != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / REPEATS


def copy_bandwidth(device: str, num_bytes: int) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(time_call(functools.partial(target.copy_, source), device) for _ in range(3))
    return 2 * num_bytes / best * 1e3


def bytes_moved(num_cells: int, num_levels: int, dtype: str, label: str) -> int:
    """Bytes of a pass of the fused form if everything is read or written once.

    Backward, the gradient of value is cleared before it is summed, in float32.
    """
    channels, samples = num_cells * NUM_HEADS * HEAD_DIM, num_cells * NUM_HEADS * num_levels * NUM_POINTS
    element = DTYPES[dtype].itemsize
    offsets_and_logits, references = 4 * 4 * samples, 4 * 3 * num_cells * num_levels
    # Value, and the output or its gradient.
    read_and_written = offsets_and_logits + references + 2 * element * channels
    if label == "forward":
        return read_and_written
    return read_and_written + offsets_and_logits + (4 + element) * channels


def time_cells(times: dict[str, float], estimate: float, floor: float) -> str:
    """A row of milliseconds from the fused form on, with ratios to it."""
    fused = times["fused"]
    cells = [f"{fused:.3f}", *(f"{least:.3f} ({fused / least:.1f})" for least in (estimate, floor))]
    for form in ("grid_sample", "plain", "im2col"):
        cells.append(f"{times[form]:.3f} ({times[form] / fused:.1f})" if form in times else "-")
    return " | ".join(cells)


def memory_cells(extra_bytes: dict[str, int]) -> str:
    """A row of megabytes; a dash for forms that do not take the type or do not fit."""
    forms = ("fused", "grid_sample", "plain", "im2col")
    return " | ".join(f"{extra_bytes[form] / 1e6:,.0f}" if form in extra_bytes else "-" for form in forms)


def print_models(recipes: list[str], precisions: list[str], rounds: int, device: str = "cuda") -> None:
    """Print the clips per second of whole models with random weights, and where their time goes.

    Each looks at one clip at a time, in the precisions of `in_precision`. Memory is the peak above weights and clip;
    scores change against those of "highest".
    """
    print("\n| recipe | clip | precision | clips/s | with plain operator | extra GB | largest change of a score |")
    print("|---" * 7 + "|")
    part_rows, part_names = [], []
    for recipe in recipes:
        model, pixel_values = make_model(recipe, device)
        clip = "x".join(str(size) for size in (pixel_values.shape[1], *pixel_values.shape[3:]))
        call = functools.partial(scores_of, model, pixel_values)
        costs = clip_costs(call, precisions, rounds, device)
        exact = run_in("highest", device, call)
        for precision in precisions:
            change = (run_in(precision, device, call) - exact).abs().max().item()
            rates = " | ".join(f"{1e3 / costs[precision, operator]:.2f}" for operator in (device, "torch"))
            gigabytes = cost_of(functools.partial(run_in, precision, device, call), device).extra_bytes / 1e9
            print(f"| {recipe} | {clip} | {precision} | {rates} | {gigabytes:.2f} | {change:.1e} |", flush=True)
            with Stopwatch(parts_of(model.model), device) as stopwatch:
                run_in(precision, device, call)
            part_names = list(stopwatch.seconds)
            parts = " | ".join(f"{seconds * 1e3:.1f}" for seconds in stopwatch.seconds.values())
            part_rows.append(f"| {recipe} | {precision} | {parts} |")
    print(f"\n| ms of one call | precision | {' | '.join(part_names)} |\n" + "|---" * (len(part_names) + 2) + "|")
    print("\n".join(part_rows))


def clip_costs(
    call: Callable[[], torch.Tensor], precisions: list[str], rounds: int, device: str
) -> dict[tuple[str, str], float]:
    """Milliseconds of a call by precision and implementation of the operator, the best of all rounds."""
    best = dict.fromkeys(itertools.product(precisions, (device, "torch")), math.inf)
    for _, (precision, operator) in itertools.product(range(rounds), best):
        with kernels.use_implementation(operator):
            spent = time_call(functools.partial(run_in, precision, device, call), device)
        best[precision, operator] = min(best[precision, operator], spent)
    return best


def make_model(recipe: str, device: str) -> tuple[ClassQueryForVideoActionDetection, torch.Tensor]:
    """The model of a recipe with random weights, and a clip of a 4:3 video in the size of the recipe."""
    torch.manual_seed(0)
    values = load_recipe(recipe)
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**values.model)).eval().to(device)
    height = values.processor["size"]["shortest_edge"]
    return model, torch.randn(1, model.config.num_frames, 3, height, height * 4 // 3).to(device)


@torch.no_grad()
def scores_of(model: ClassQueryForVideoActionDetection, pixel_values: torch.Tensor) -> torch.Tensor:
    """Of one clip, in [0, 1]."""
    return model(pixel_values).logits.float().sigmoid()


def run_in(precision: str, device: str, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What a call returns in a precision."""
    with in_precision(precision, device):
        return call()


@contextlib.contextmanager
def in_precision(name: str, device: str) -> Iterator[None]:
    """Within the context, float32 as it is ("highest"), TF32 ("high"), or bf16 by autocast beside TF32 ("bf16").

    PyTorch convolves in TF32 unless told otherwise, so "highest" tells it.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if name == "highest" else "high")
    torch.backends.cudnn.allow_tf32 = name != "highest"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def machine() -> str:
    """The GPU, the versions that matter, and the date."""
    date = datetime.date.today()
    memory = torch.cuda.get_device_properties().total_memory / 2**30
    return (
        f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, {date.day} {date:%B %Y}, PyTorch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, fused: {kernels.implementations()['cuda']}"
    )
