"""The operator against goldens computed in float64, and its two forms against each other."""

import pytest
import torch
from utils import load_golden

from classquery.ops_classquery import deformable_attention_3d, ms_deform_attn_3d


@pytest.mark.parametrize("name", ["op_small", "op_odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_and_its_gradients_match_the_golden(name, dtype):
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


def test_fused_form_equals_the_operator_on_its_locations_and_weights():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4), (1, 2, 2)]

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    value, references = random(2, 28, 3, 5), random(2, 6, 2, 3).sigmoid()
    offsets, logits, scale = random(2, 6, 3, 2, 4, 3), random(2, 6, 3, 2, 4), random(2, 3)

    fused = deformable_attention_3d(value, shapes, references, offsets, logits, scale)

    locations = references[:, :, None, :, None] + offsets * scale[:, None]
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    torch.testing.assert_close(fused, ms_deform_attn_3d(value, shapes, locations, weights))


def test_fused_form_has_the_gradients_of_its_numeric_differences():
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 3, 3), (1, 2, 2)]

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = random(1, 22, 2, 3), torch.rand(1, 3, 2, 3, generator=generator).double(), random(1, 3, 2, 2, 2, 3)
    scale = torch.full((2, 3), 0.1, dtype=torch.float64)

    assert torch.autograd.gradcheck(
        lambda value, references, offsets, logits: deformable_attention_3d(
            value, shapes, references, offsets, logits, scale
        ),
        (*inputs, random(1, 3, 2, 2, 2)),
    )


def test_level_sizes_that_do_not_sum_to_the_cells_raise():
    value = torch.zeros(1, 5, 1, 4)

    with pytest.raises((RuntimeError, ValueError)):
        ms_deform_attn_3d(value, [(1, 2, 2)], torch.zeros(1, 1, 1, 1, 1, 3), torch.zeros(1, 1, 1, 1, 1))
