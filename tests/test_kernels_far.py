"""Tensors of more than 2^31 elements, which kernels reach by offsets of 64 bits.

Their memory is only promised by the system: pages that nobody writes to do not exist, and read as zeros.
"""

import ctypes
import math
import mmap

import pytest
import torch
from test_kernels_cuda import emulated_kernels, needs_compiler

from classquery.kernels import cpu, cuda, use_implementation
from classquery.ops_classquery import deformable_attention_3d, ms_deform_attn_3d


NORESERVE = 0x4000  # in mmap from Python 3.13 on
FAR = 2**31
NUM_HEADS, HEAD_DIM, NUM_POINTS, NUM_QUERIES = 3, 32, 4, 9
NEAR_LEVELS = [(2, 3, 4), (1, 1, 1)]
# What holds anything of the last level: its last cells.
CORNER = (2, 4, 4)


def sparse(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros that take no memory until they are written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    try:
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    except OSError as error:
        pytest.skip(f"this system promises no memory that it does not have: {error}")
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def near_problem(batch_size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Arguments of the fused form for small levels, of which the last is CORNER.

    Places are odd sixteenths of a cell, which float32 has without rounding in large levels as well, and which are no
    kinks of the interpolation.
    """
    generator = torch.Generator().manual_seed(0)
    levels = [*NEAR_LEVELS, CORNER]
    sizes = torch.tensor(levels).flip(-1)  # as (x, y, t)
    samples = (batch_size, NUM_QUERIES, NUM_HEADS, len(levels), NUM_POINTS)
    places = torch.randint(-8, 40, (batch_size, NUM_QUERIES, len(levels), 3), generator=generator) / 8 + 1 / 16
    return {
        "value": torch.randn(batch_size, 57, NUM_HEADS, HEAD_DIM, generator=generator).to(dtype),
        "reference_points": (places + 0.5) / sizes,
        "samples": torch.zeros(*samples, 3),
        "weights": torch.randn(samples, generator=generator),
        "offset_scale": torch.ones(len(levels), 3),
    }


def moved(near: dict[str, torch.Tensor], level: tuple[int, int, int]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """The same problem in the last corner of a large level of zeros, and its levels."""
    batch_size = len(near["value"])
    num_near = sum(math.prod(shape) for shape in NEAR_LEVELS)
    value = sparse(batch_size, num_near + math.prod(level), NUM_HEADS, HEAD_DIM, dtype=near["value"].dtype)
    value[:, :num_near] = near["value"][:, :num_near]
    last_corner(value, level).copy_(near["value"][:, num_near:].unflatten(1, CORNER))
    size, corner = (torch.tensor(shape).flip(-1) for shape in (level, CORNER))
    points = near["reference_points"].clone()
    points[:, :, -1] = (points[:, :, -1] * corner + (size - corner)) / size
    shapes = [extent for shape in (*NEAR_LEVELS, level) for extent in shape]
    return shapes, near | {"value": value, "reference_points": points}


def last_corner(value: torch.Tensor, level: tuple[int, int, int]) -> torch.Tensor:
    """Of the last level: (batch, *CORNER, heads, head_dim)."""
    cells = value[:, -math.prod(level) :].unflatten(1, level)
    t, h, w = CORNER
    return cells[:, -t:, -h:, -w:]


def expected_results(near: dict[str, torch.Tensor], grad_output: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of plain PyTorch: by value in the corner, by locations and by logits."""
    value, offsets, logits = (near[name].float().requires_grad_() for name in ("value", "samples", "weights"))
    with use_implementation("torch"):
        output = deformable_attention_3d(
            value, [*NEAR_LEVELS, CORNER], near["reference_points"], offsets, logits, near["offset_scale"]
        )
    gradients = torch.autograd.grad(output, (value, offsets, logits), grad_output.float())
    return [output.detach(), gradients[0][:, -math.prod(CORNER) :].unflatten(1, CORNER), *gradients[1:]]


def run_far(implementation, near: dict, level: tuple[int, int, int], grad_output: torch.Tensor) -> list[torch.Tensor]:
    """What `expected_results` returns, computed in a large level."""
    shapes, inputs = moved(near, level)
    assert inputs["value"].numel() > FAR
    output = torch.empty_like(grad_output)
    gradients = {f"grad_{name}": torch.empty_like(inputs[name]) for name in ("samples", "weights")}
    gradients["grad_value"] = sparse(*inputs["value"].shape)
    implementation._run("forward", shapes, inputs, {"output": output})
    implementation._run("backward", shapes, inputs | {"grad_output": grad_output}, gradients)
    # A step of one is a larger part of a smaller level.
    gradients["grad_samples"][:, :, :, -1] *= torch.tensor(CORNER).flip(-1) / torch.tensor(level).flip(-1)
    grad_value = last_corner(gradients["grad_value"], level)
    return [output, grad_value, gradients["grad_samples"], gradients["grad_weights"]]


def assert_far_results(implementation, level, batch_size: int, dtype: torch.dtype) -> None:
    near = near_problem(batch_size, dtype)
    grad_output = torch.randn(batch_size, NUM_QUERIES, NUM_HEADS * HEAD_DIM).to(dtype)
    expected = expected_results(near, grad_output)
    # Sums of a few hundred products, of which the output is rounded to its type.
    close = {"atol": 1e-4, "rtol": 2 * torch.finfo(dtype).eps}
    for ours, theirs in zip(run_far(implementation, near, level, grad_output), expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, **close)


@pytest.fixture
def emulator(monkeypatch):
    """The emulated kernels in the place of a GPU; `first_block` of the dict is the first of a launch that runs."""
    options = {"first_block": lambda num_blocks: 0}

    def launch(configuration, kernel, num_blocks, problem, levels, device):
        library = emulated_kernels(configuration)
        start = ctypes.c_uint.in_dll(library, "first_block")
        start.value = options["first_block"](num_blocks)
        getattr(library, f"emulate_{kernel}")(ctypes.byref(problem), levels, num_blocks, False)
        start.value = 0

    monkeypatch.setattr(cuda, "_launch", launch)
    return options


# Far by the cells of one clip already, and by the clips before.
@needs_compiler
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_kernels_reach_values_beyond_32_bits(dtype):
    assert_far_results(cuda, (32, 1024, 1024), 2, dtype)


@needs_compiler
def test_cuda_kernels_reach_queries_beyond_32_bits(emulator):
    near = near_problem(1, torch.float32)
    samples = near["samples"].numel() // NUM_QUERIES
    num_queries = FAR // samples + 1000
    far = {name: sparse(1, num_queries, *near[name].shape[2:]) for name in ("reference_points", "samples", "weights")}
    assert far["samples"].numel() > FAR
    for name, tensor in far.items():
        tensor[:, -NUM_QUERIES:] = near[name]
    output = sparse(1, num_queries, NUM_HEADS * HEAD_DIM)
    grad_output = sparse(1, num_queries, NUM_HEADS * HEAD_DIM)
    grad_output[:, -NUM_QUERIES:] = torch.randn(1, NUM_QUERIES, NUM_HEADS * HEAD_DIM)
    gradients = {f"grad_{name}": sparse(*far[name].shape) for name in ("samples", "weights")}
    gradients["grad_value"] = torch.zeros_like(near["value"])
    # Of the last head: the block with the last queries, and the one before it, which they may share.
    emulator["first_block"] = lambda num_blocks: num_blocks - 2
    shapes = [extent for shape in (*NEAR_LEVELS, CORNER) for extent in shape]

    cuda._run("forward", shapes, near | far, {"output": output})
    cuda._run("backward", shapes, near | far | {"grad_output": grad_output}, gradients)

    expected = expected_results(near, grad_output[:, -NUM_QUERIES:])
    by_head = output[:, -NUM_QUERIES:].unflatten(-1, (NUM_HEADS, HEAD_DIM))
    close = {"atol": 1e-4, "rtol": 1e-5}
    torch.testing.assert_close(by_head[:, :, -1], expected[0].unflatten(-1, (NUM_HEADS, HEAD_DIM))[:, :, -1], **close)
    for ours, theirs in zip((gradients["grad_samples"], gradients["grad_weights"]), expected[2:], strict=True):
        torch.testing.assert_close(ours[:, -NUM_QUERIES:, -1], theirs[:, :, -1], **close)


# The CPU copies all values of a head, one clip and head after the other: seconds, and the memory of one of them.
@pytest.mark.slow
def test_the_library_for_the_cpu_reaches_values_beyond_32_bits(monkeypatch):
    if reason := cpu.unavailable():
        pytest.skip(reason)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    near = near_problem(96, torch.float32)
    # Zeros everywhere but in the last clip, so that the others take no memory.
    for name in ("value", "weights"):
        near[name][:-1] = 0
    shapes, inputs = moved(near, (4, 256, 256))
    assert inputs["value"].numel() > FAR
    grad_output = torch.randn(96, NUM_QUERIES, NUM_HEADS * HEAD_DIM)
    output = torch.empty_like(grad_output)
    gradients = {f"grad_{name}": torch.empty_like(inputs[name]) for name in ("samples", "weights")}

    cpu._run("forward", shapes, inputs, {"output": output})
    cpu._run("backward", shapes, inputs | {"grad_output": grad_output}, gradients)

    expected = expected_results(near, grad_output)
    torch.testing.assert_close(output, expected[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradients["grad_weights"], expected[3], atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_the_library_for_the_cpu_reaches_queries_beyond_32_bits():
    if reason := cpu.unavailable():
        pytest.skip(reason)
    num_points, num_queries = 1024, FAR // (3 * 1024) + 1000
    value = torch.randn(1, math.prod(CORNER), 1, 8)
    locations, weights = sparse(1, num_queries, 1, 1, num_points, 3), sparse(1, num_queries, 1, 1, num_points)
    assert locations.numel() > FAR
    locations[:, -2:] = torch.rand(1, 2, 1, 1, num_points, 3)
    weights[:, -2:] = torch.rand(1, 2, 1, 1, num_points)
    output = torch.empty(1, num_queries, 8)

    cpu._run("forward", list(CORNER), {"value": value, "samples": locations, "weights": weights}, {"output": output})

    with use_implementation("torch"):
        expected = ms_deform_attn_3d(value, [CORNER], locations[:, -2:], weights[:, -2:])
    # Sums of 1,024 samples.
    torch.testing.assert_close(output[:, -2:], expected, atol=1e-3, rtol=1e-5)
    assert not output[:, :-2].any()
