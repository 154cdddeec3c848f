"""What benchmarks of the operator and of the network share: sizes, forms to compare, time and memory of a call."""

import ctypes
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from classquery import ClassQueryModel, kernels
from classquery.ops_classquery import deformable_attention_3d


# Levels (t, h, w) of the configuration on the input in the comment, frames x height x width.
SIZES = {
    "AVA": [(8, 64, 84), (8, 32, 42), (8, 16, 21), (8, 8, 10)],  # ViT-B, 16x256x340
    "CSN": [(16, 32, 43), (8, 16, 22), (4, 16, 22), (4, 8, 11)],  # AVA with CSN-152, 32x256x340
    "UCF": [(16, 56, 72), (16, 28, 36), (16, 14, 18), (16, 7, 9)],  # ViT-B, 32x224x298
    "JHMDB": [(20, 64, 84), (20, 32, 42), (20, 16, 21), (20, 8, 10)],  # ViT-B, 40x256x341
}
NUM_HEADS, HEAD_DIM, NUM_POINTS = 8, 32, 8


def parts_of(network: ClassQueryModel) -> dict[str, list[torch.nn.Module]]:
    """Modules whose time is told apart."""
    return {
        "backbone": [network.backbone],
        "feature pyramid": [network.feature_pyramid],
        "encoder": [network.encoder],
        "deformable attention of it, with its projections": [layer.self_attn for layer in network.encoder.layers],
        "feed-forward layers of it": [layer.feed_forward for layer in network.encoder.layers],
        "decoder": [network.decoder],
    }


class Stopwatch:
    """Seconds that modules take, by name of their group."""

    def __init__(
        self, parts: dict[str, list[torch.nn.Module]], device: str, clock: Callable[[], float] = time.perf_counter
    ):
        self.seconds = dict.fromkeys(parts, 0.0)
        self._parts, self._device, self._clock = parts, device, clock

    def __enter__(self) -> "Stopwatch":
        self._hooks = []
        for name, modules in self._parts.items():
            for module in modules:
                self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._add(name, -1)))
                self._hooks.append(module.register_forward_hook(lambda *_, name=name: self._add(name, 1)))
        return self

    def _add(self, name: str, sign: int) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] += sign * self._clock()

    def __exit__(self, *exception) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclass
class Cost:
    """Of one call."""

    seconds: float
    cpu_seconds: float
    extra_bytes: int

    @classmethod
    def best(cls, costs: list["Cost"]) -> "Cost":
        """The least of each; the memory does not vary but for what other threads free late."""
        return cls(*(min(getattr(cost, field) for cost in costs) for field in cls.__dataclass_fields__))


def make_inputs(shapes: list[tuple[int, int, int]], device: str) -> tuple[torch.Tensor, ...]:
    """Arguments as in the encoder: cells ask for points around themselves, on offsets as initialized plus noise."""
    generator = torch.Generator().manual_seed(0)
    num_levels, num_cells = len(shapes), sum(math.prod(shape) for shape in shapes)
    samples = (1, num_cells, NUM_HEADS, num_levels, NUM_POINTS)
    angles = torch.arange(NUM_HEADS) * math.pi / 2
    directions = torch.stack((angles.cos(), angles.sin(), (torch.arange(NUM_HEADS) < NUM_HEADS / 2).float()), dim=-1)
    steps = torch.arange(1, NUM_POINTS + 1)[:, None] * directions[:, None, None]
    inputs = (
        torch.randn(1, num_cells, NUM_HEADS, HEAD_DIM, generator=generator),
        torch.cat([_cell_centers(shape) for shape in shapes])[None, :, None].repeat(1, 1, num_levels, 1),
        steps + torch.randn(*samples, 3, generator=generator) / 2,
        torch.randn(samples, generator=generator),
        # The released order: (x, y, t) divided by (t, w, h).
        1 / torch.tensor(shapes, dtype=torch.float32)[:, [0, 2, 1]],
    )
    return tuple(tensor.to(device) for tensor in inputs)


def _cell_centers(shape: tuple[int, int, int]) -> torch.Tensor:
    """As (x, y, t) in [0, 1]: (t * h * w, 3)."""
    axes = [(torch.arange(size) + 0.5) / size for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2).flip(-1)


def sample_all_levels(value, shapes, references, offsets, logits, scale) -> torch.Tensor:
    """The usual form of multi-scale deformable attention on grid_sample, here in 3-D."""
    batch_size, num_queries, num_heads, num_levels, num_points = logits.shape
    locations = references[:, :, None, :, None] + offsets * scale[:, None]
    weights = logits.flatten(3).softmax(-1).transpose(1, 2).reshape(batch_size * num_heads, 1, num_queries, -1)
    grids = 2 * locations - 1
    samples = []
    for level, cells in enumerate(value.split([math.prod(shape) for shape in shapes], dim=1)):
        volume = cells.permute(0, 2, 3, 1).reshape(batch_size * num_heads, -1, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).reshape(batch_size * num_heads, 1, num_queries, num_points, 3)
        samples.append(F.grid_sample(volume, grid, align_corners=False).squeeze(2))
    # (batch * heads, head_dim, queries, levels * points)
    output = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return output.view(batch_size, -1, num_queries).transpose(1, 2).contiguous()


def in_implementation(name: str) -> Callable[..., torch.Tensor]:
    """The package's operator, run by one of its implementations."""

    def attend(*arguments):
        with kernels.use_implementation(name):
            return deformable_attention_3d(*arguments)

    return attend


def forward(form: Callable[..., torch.Tensor], shapes: list, inputs: tuple[torch.Tensor, ...]) -> None:
    """One call without a gradient."""
    with torch.no_grad():
        form(inputs[0], shapes, *inputs[1:])


def forward_and_backward(form: Callable[..., torch.Tensor], shapes: list, inputs: tuple[torch.Tensor, ...]) -> None:
    """One call and the gradients of value, offsets and logits, as in training."""
    value, references, offsets, logits, scale = inputs
    learned = [tensor.detach().requires_grad_() for tensor in (value, offsets, logits)]
    output = form(learned[0], shapes, references, learned[1], learned[2], scale)
    torch.autograd.grad(output, learned, torch.ones_like(output))


def cost_of(call: Callable[[], None], device: str) -> Cost:
    """Time and memory of one call."""
    gc.collect()
    memory = _CudaMemory() if device == "cuda" else _ResidentMemory()
    start, cpu_start = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Cost(seconds, 0 if device == "cuda" else cpu_seconds, memory.extra_bytes())


class _CudaMemory:
    def __init__(self):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def extra_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() - self.before


class _ResidentMemory:
    """Of the process, as Linux counts it."""

    def __init__(self):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.before = _status_bytes("VmRSS")

    def extra_bytes(self) -> int:
        return _status_bytes("VmHWM") - self.before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
