"""The operator in every implementation: against goldens computed in float64, against grid_sample, and on odd input."""

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F
from test_kernels_cuda import emulated_cuda
from utils import load_golden

from classquery import kernels, ops_classquery
from classquery.ops_classquery import deformable_attention_3d, ms_deform_attn_3d


SHAPES = [(2, 3, 4), (1, 1, 1), (1, 2, 2)]
NUM_CELLS = 29


# The emulated kernels are compiled for each size anew, which takes a second or two; test_kernels_cuda.py has a choice.
@pytest.fixture(params=["torch", "cpu", pytest.param("emulated_cuda", marks=pytest.mark.slow)])
def implementation(request):
    if request.param != "torch" and (reason := kernels.cpu.unavailable()):
        pytest.skip(reason)
    context = emulated_cuda() if request.param == "emulated_cuda" else kernels.use_implementation(request.param)
    with context:
        yield request.param


def random_inputs(dtype=torch.float64, head_dim=5, num_points=4, seed=0) -> dict[str, torch.Tensor]:
    """Arguments of the fused form by name: 2 clips, 6 queries, 3 heads, the levels of SHAPES; some points outside."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "value": random(2, NUM_CELLS, 3, head_dim),
        "reference_points": random(2, 6, 3, 3).sigmoid(),
        "sampling_offsets": random(2, 6, 3, 3, num_points, 3),
        "attention_logits": random(2, 6, 3, 3, num_points),
        "offset_scale": random(3, 3).abs(),
    }
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def locations_and_weights(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the fused form computes for itself."""
    offsets = inputs["sampling_offsets"] * inputs["offset_scale"][:, None]
    weights = inputs["attention_logits"].flatten(3).softmax(-1).view_as(inputs["attention_logits"])
    return inputs["reference_points"][:, :, None, :, None] + offsets, weights


def sample_one_by_one(value, shapes, locations, weights):
    """The definition, one clip, head, level and point at a time."""
    batch_size, num_queries, num_heads, _, num_points, _ = locations.shape
    output = torch.zeros(batch_size, num_queries, num_heads, value.shape[-1], dtype=value.dtype)
    for clip in range(batch_size):
        for head in range(num_heads):
            cells = value[clip, :, head].split([t * h * w for t, h, w in shapes])
            for level, shape in enumerate(shapes):
                volume = cells[level].T.reshape(1, -1, *shape)
                for point in range(num_points):
                    grid = 2 * locations[clip, :, head, level, point].view(1, 1, 1, num_queries, 3) - 1
                    samples = F.grid_sample(volume, grid, align_corners=False)[0, :, 0, 0].T
                    output[clip, :, head] += samples * weights[clip, :, head, level, point, None]
    return output.flatten(2)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of a sum in which every element of the output weighs something else."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("name", ["op_small", "op_odd", "op_4level"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_and_its_gradients_match_the_golden(implementation, name, dtype):
    facts, tensors = load_golden(name)
    inputs = {
        key: tensors[key].to(dtype).requires_grad_() for key in ("value", "sampling_locations", "attention_weights")
    }
    shapes = [tuple(shape) for shape in facts["shapes_thw"]]
    tolerances = facts["suggested"]["atol_fp32"] if dtype == torch.float32 else None

    output = ms_deform_attn_3d(inputs["value"], shapes, inputs["sampling_locations"], inputs["attention_weights"])
    output.backward(tensors["grad_output"].to(dtype))

    def check(name, ours, expected):
        atol, rtol = (tolerances[name], facts["suggested"]["rtol"]) if tolerances else (1e-10, 0)
        torch.testing.assert_close(ours.double(), expected, atol=atol, rtol=rtol)

    check("output", output.detach(), tensors["output"])
    check("grad_value", inputs["value"].grad, tensors["grad_value"])
    check("grad_w", inputs["attention_weights"].grad, tensors["grad_attention_weights"])
    # At kinks of the interpolation the gradient by location is not unique.
    smooth = ~tensors["loc_grad_not_unique"].bool()
    ours, expected = inputs["sampling_locations"].grad[smooth], tensors["grad_sampling_locations"][smooth]
    check("grad_loc", ours, expected)


# Below, at and above whole vectors of channels and of samples.
@pytest.mark.parametrize(("head_dim", "num_points"), [(1, 1), (5, 4), (8, 8), (12, 3), (32, 8), (40, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_forms_and_their_gradients_equal_grid_sample(implementation, head_dim, num_points, dtype):
    inputs = random_inputs(head_dim=head_dim, num_points=num_points)
    ours = {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}
    theirs = {name: tensor.detach().double().requires_grad_() for name, tensor in ours.items()}

    fused = deformable_attention_3d(spatio_temporal_shapes=SHAPES, **ours)
    plain = ms_deform_attn_3d(ours["value"], SHAPES, *locations_and_weights(ours))
    expected = sample_one_by_one(theirs["value"], SHAPES, *locations_and_weights(theirs))

    # Gradients reach some tens; 1e-5 and 1e-13 are some hundred roundings of that.
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-13, "rtol": 1e-12}
    expected_gradients = gradients(expected, list(theirs.values()))
    for output in (fused, plain):
        torch.testing.assert_close(output.double(), expected, **close)
        for ours_gradient, theirs_gradient in zip(
            gradients(output, list(ours.values())), expected_gradients, strict=True
        ):
            torch.testing.assert_close(ours_gradient.double(), theirs_gradient, **close)


def test_both_forms_have_the_gradients_of_their_numeric_differences(implementation):
    inputs = [tensor[:1] if tensor.ndim > 2 else tensor for tensor in random_inputs(num_points=2).values()]
    value, references, offsets, logits, scale = (tensor.clone().requires_grad_() for tensor in inputs)

    def fused(*tensors):
        return deformable_attention_3d(tensors[0], SHAPES, *tensors[1:])

    # In a random direction: as strong against a wrong gradient as all of them, one by one.
    assert torch.autograd.gradcheck(fused, (value, references, offsets, logits, scale), fast_mode=True)
    locations = offsets.detach().sigmoid().requires_grad_()

    def given(*tensors):
        return ms_deform_attn_3d(tensors[0], SHAPES, *tensors[1:])

    assert torch.autograd.gradcheck(given, (value, locations, logits), fast_mode=True)


@pytest.mark.parametrize("needed", ["value", "reference_points", "sampling_offsets", "attention_logits"])
def test_each_gradient_can_be_had_alone(implementation, needed):
    inputs = random_inputs()
    together = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    alone = inputs | {needed: inputs[needed].clone().requires_grad_()}

    expected = gradients(deformable_attention_3d(spatio_temporal_shapes=SHAPES, **together), [together[needed]])
    ours = gradients(deformable_attention_3d(spatio_temporal_shapes=SHAPES, **alone), [alone[needed]])

    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_16_bits_are_summed_in_float32(implementation, dtype):
    inputs = random_inputs(torch.float32, head_dim=32)
    inputs["value"] = inputs["value"].to(dtype)
    half = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    single = {name: tensor.float().requires_grad_() for name, tensor in inputs.items()}

    output = deformable_attention_3d(spatio_temporal_shapes=SHAPES, **half)
    expected = deformable_attention_3d(spatio_temporal_shapes=SHAPES, **single)

    assert output.dtype == dtype
    # Rounded once at the end.
    torch.testing.assert_close(output.float(), expected, atol=1e-5, rtol=torch.finfo(dtype).eps)
    # The gradient comes in rounded to 16 bits, and that by `value` goes out so.
    rounding = 8 * torch.finfo(dtype).eps
    for ours, theirs in zip(
        gradients(output, list(half.values())), gradients(expected, list(single.values())), strict=True
    ):
        torch.testing.assert_close(ours.float(), theirs, atol=rounding * theirs.abs().max().item(), rtol=rounding)


def test_offsets_and_logits_may_be_of_fewer_bits_than_the_reference_points(implementation):
    inputs = random_inputs(torch.float32)
    for name in ("value", "sampling_offsets", "attention_logits"):
        inputs[name] = inputs[name].bfloat16().requires_grad_()

    output = deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)
    output.float().sum().backward()

    assert output.dtype == inputs["sampling_offsets"].grad.dtype == torch.bfloat16
    expected = deformable_attention_3d(
        spatio_temporal_shapes=SHAPES, **{name: tensor.float() for name, tensor in inputs.items()}
    )
    torch.testing.assert_close(output.float(), expected, atol=1e-5, rtol=torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("location", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0, -1.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_points_outside_or_nowhere_contribute_nothing(implementation, location, axis):
    inputs = random_inputs(torch.float32)
    value, locations, weights = inputs["value"], inputs["sampling_offsets"].sigmoid(), inputs["attention_logits"]
    nowhere = torch.zeros_like(weights, dtype=torch.bool)
    nowhere[0, 1, 2, 0, 1] = nowhere[1, 5, 0, 2, 3] = True
    odd = locations.clone()
    odd[..., axis][nowhere] = location
    odd.requires_grad_()

    output = ms_deform_attn_3d(value, SHAPES, odd, weights)
    output.sum().backward()

    torch.testing.assert_close(output, ms_deform_attn_3d(value, SHAPES, locations, weights * ~nowhere))
    assert (odd.grad[nowhere] == 0).all()
    assert odd.grad.isfinite().all()


def test_values_that_no_point_touches_may_be_anything(implementation):
    inputs = random_inputs(torch.float32)
    locations, weights = locations_and_weights(inputs)
    locations[:, :, :, 0] = 3  # far outside of the first level
    inputs["value"][:, :24] = float("nan")

    output = ms_deform_attn_3d(inputs["value"], SHAPES, locations, weights)

    assert output.isfinite().all()


def test_an_empty_level_counts_as_nothing(implementation):
    inputs = {name: tensor.requires_grad_() for name, tensor in random_inputs().items()}
    value, (locations, weights) = inputs["value"], locations_and_weights(inputs)

    output = ms_deform_attn_3d(value[:, :25], [(2, 3, 4), (1, 1, 1), (0, 5, 2)], locations, weights)

    two = ms_deform_attn_3d(value[:, :25], SHAPES[:2], locations[:, :, :, :2], weights[:, :, :, :2])
    torch.testing.assert_close(output, two)
    assert (torch.autograd.grad(output.sum(), locations)[0][:, :, :, 2] == 0).all()


@pytest.mark.parametrize("dim", ["batch", "queries", "heads", "points", "channels"])
def test_dimensions_of_size_zero_give_results_of_size_zero_or_zeros(implementation, dim):
    inputs = random_inputs(torch.float32)
    empty = {
        "batch": {"value": 0, "reference_points": 0, "sampling_offsets": 0, "attention_logits": 0},
        "queries": {"reference_points": 1, "sampling_offsets": 1, "attention_logits": 1},
        "heads": {"value": 2, "sampling_offsets": 2, "attention_logits": 2},
        "points": {"sampling_offsets": 4, "attention_logits": 4},
        "channels": {"value": 3},
    }[dim]
    for name, axis in empty.items():
        inputs[name] = inputs[name].narrow(axis, 0, 0)
    inputs = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}

    output = deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)
    output.sum().backward()

    batch_size, _, num_heads, head_dim = inputs["value"].shape
    assert output.shape == (batch_size, inputs["sampling_offsets"].shape[1], num_heads * head_dim)
    assert all((tensor == 0).all() for tensor in (output, inputs["value"].grad, inputs["sampling_offsets"].grad))


def test_strides_do_not_matter(implementation):
    inputs = random_inputs(torch.float32)
    # The same numbers, each last axis first in memory and every second element of it.
    strided = {}
    for name, tensor in inputs.items():
        strided[name] = tensor.movedim(-1, 0).repeat_interleave(2, dim=0)[::2].movedim(0, -1)
        assert not strided[name].is_contiguous()

    output = deformable_attention_3d(spatio_temporal_shapes=SHAPES, **strided)

    torch.testing.assert_close(output, deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs))


def test_compiles_without_graph_breaks_to_the_same_results(implementation):
    inputs = {name: tensor.requires_grad_() for name, tensor in random_inputs(torch.float32).items()}

    def attend(value, references, offsets, logits, scale):
        return deformable_attention_3d(value, SHAPES, references, offsets, logits, scale)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs.values())
    eager = attend(*inputs.values())

    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(
        gradients(compiled, list(inputs.values())), gradients(eager, list(inputs.values())), atol=1e-5, rtol=1e-4
    )


BAD_INPUTS = {
    "cells": ({"value": torch.zeros(2, 28, 3, 5)}, ValueError, "29 cells, but value has 28"),
    "value": ({"value": torch.zeros(2, 29, 15)}, ValueError, "value must be"),
    "integers": ({"value": torch.zeros(2, 29, 3, 5, dtype=torch.int64)}, TypeError, "value must be float16"),
    "device": ({"sampling_offsets": torch.zeros(2, 6, 3, 3, 4, 3, device="meta")}, ValueError, "one device"),
    "batch": ({"value": torch.zeros(1, 29, 3, 5)}, ValueError, "sampling_offsets must have shape"),
    "heads": ({"value": torch.zeros(2, 29, 1, 5)}, ValueError, "sampling_offsets must have shape"),
    "axes": ({"sampling_offsets": torch.zeros(2, 6, 3, 3, 4, 2)}, ValueError, "sampling_offsets must have shape"),
    "dims": ({"sampling_offsets": torch.zeros(2, 6, 3, 36)}, ValueError, "sampling_offsets must be"),
    "points": ({"attention_logits": torch.zeros(2, 6, 3, 3, 5)}, ValueError, "attention_logits must have shape"),
    "queries": ({"reference_points": torch.zeros(2, 7, 3, 3)}, ValueError, "reference_points must have shape"),
    "levels": ({"offset_scale": torch.zeros(2, 3)}, ValueError, "offset_scale must have shape"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_tensors_that_do_not_fit_are_refused_with_a_reason(implementation, case):
    change, error, message = BAD_INPUTS[case]
    inputs = random_inputs(torch.float32) | change

    with pytest.raises(error, match=message):
        deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)


@pytest.mark.parametrize("shapes", [[], [(29, 1)], [(-1, 1, -29), (0, 1, 1), (0, 1, 1)]])
def test_what_is_no_list_of_level_sizes_is_refused(implementation, shapes):
    with pytest.raises(ValueError, match="must be a list of sizes"):
        deformable_attention_3d(spatio_temporal_shapes=shapes, **random_inputs(torch.float32))


def test_the_module_alone_runs_in_plain_pytorch(monkeypatch):
    # As the Hub's remote code does: under the name of another package, with no kernels beside it.
    monkeypatch.setitem(sys.modules, "copied", type(sys)("copied"))
    sys.modules["copied"].__path__ = []
    spec = importlib.util.spec_from_file_location("copied.ops_classquery", ops_classquery.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = random_inputs(torch.float32)

    output = module.deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)

    assert module._KERNELS is None
    with kernels.use_implementation("torch"):
        expected = deformable_attention_3d(spatio_temporal_shapes=SHAPES, **inputs)
    torch.testing.assert_close(output, expected, atol=0, rtol=0)
