"""The operator and its gradient in `torch.library`: checks, schema, shapes and derivative.

One operator serves both forms. With reference points and a scale, `samples` are offsets from them and `weights` are
logits; without, they are the sampling locations and the attention weights themselves.
"""

import torch

from . import cpu, cuda


Shapes = list[tuple[int, int, int]]

# The package `kernels` of the Hub loads this folder under a name of its own, maybe beside the installed one.
NAMESPACE = "classquery" if __package__ == "classquery.kernels" else __package__
_NAME = f"{NAMESPACE}::deformable_attention_3d"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Cells are numbered in 32 bits, with room for those around a level.
_MAX_CELLS = 2**29

torch.library.define(
    _NAME,
    "(Tensor value, SymInt[] shapes, Tensor samples, Tensor weights, Tensor? reference_points, Tensor? offset_scale)"
    " -> Tensor",
)
torch.library.define(
    f"{_NAME}_backward",
    "(Tensor grad_output, Tensor value, SymInt[] shapes, Tensor samples, Tensor weights, Tensor? reference_points,"
    " Tensor? offset_scale, bool needs_value, bool needs_samples) -> (Tensor, Tensor, Tensor)",
)

deformable_attention_3d = getattr(torch.ops, NAMESPACE).deformable_attention_3d
deformable_attention_3d_backward = getattr(torch.ops, NAMESPACE).deformable_attention_3d_backward


def check_inputs(
    value: torch.Tensor,
    spatio_temporal_shapes: Shapes,
    samples: torch.Tensor,
    weights: torch.Tensor,
    reference_points: torch.Tensor | None = None,
    offset_scale: torch.Tensor | None = None,
) -> None:
    """Refuse tensors that do not fit each other; shapes as in `deformable_attention_3d` and `ms_deform_attn_3d`.

    Raises:
        TypeError: If a tensor does not hold floating-point numbers of 16, 32 or 64 bits.
        ValueError: If devices or shapes do not fit.
    """
    fused = reference_points is not None
    if fused != (offset_scale is not None):
        raise ValueError("reference_points and offset_scale go together: give both or neither")
    names = ("sampling_offsets", "attention_logits") if fused else ("sampling_locations", "attention_weights")
    tensors = {"value": value, names[0]: samples, names[1]: weights}
    if fused:
        tensors |= {"reference_points": reference_points, "offset_scale": offset_scale}
    _check_kinds(tensors)
    _check_level_sizes(value, spatio_temporal_shapes)
    if samples.ndim != 6:
        raise ValueError(
            f"{names[0]} must be (batch, num_queries, num_heads, num_levels, num_points, 3), "
            f"got {tuple(samples.shape)}"
        )
    batch_size, _, num_heads, _ = value.shape
    num_levels, num_queries, num_points = len(spatio_temporal_shapes), samples.shape[1], samples.shape[4]
    expected = {
        names[0]: (batch_size, num_queries, num_heads, num_levels, num_points, 3),
        names[1]: (batch_size, num_queries, num_heads, num_levels, num_points),
        "reference_points": (batch_size, num_queries, num_levels, 3),
        "offset_scale": (num_levels, 3),
    }
    for name, tensor in tensors.items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} with this value and {num_levels} levels, "
                f"got {tuple(tensor.shape)}"
            )


def _check_kinds(tensors: dict[str, torch.Tensor]) -> None:
    device = tensors["value"].device
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and value on {device}: move them to one device")


def _check_level_sizes(value: torch.Tensor, shapes: Shapes) -> None:
    if value.ndim != 4:
        raise ValueError(f"value must be (batch, num_cells, num_heads, head_dim), got {tuple(value.shape)}")
    if not shapes or any(len(shape) != 3 or min(shape) < 0 for shape in shapes):
        raise ValueError(f"spatio_temporal_shapes must be a list of sizes (t, h, w), one per level, got {shapes}")
    num_cells = sum(t * h * w for t, h, w in shapes)
    if num_cells != value.shape[1]:
        raise ValueError(f"levels of sizes {shapes} have {num_cells} cells, but value has {value.shape[1]}")
    if num_cells > _MAX_CELLS:
        raise ValueError(f"value has {num_cells} cells; at most {_MAX_CELLS} are supported")


def _check_arguments(value, shapes, *tensors) -> None:
    check_inputs(value, [tuple(shapes[i : i + 3]) for i in range(0, len(shapes), 3)], *tensors)


def _check_backward_arguments(grad_output, value, shapes, samples, *tensors) -> None:
    _check_arguments(value, shapes, samples, *tensors)
    expected = (*samples.shape[:2], value.shape[2] * value.shape[3])
    if tuple(grad_output.shape) != expected or grad_output.device != value.device:
        raise ValueError(f"grad_output must have shape {expected} on {value.device}, got {tuple(grad_output.shape)}")


def _register(device_type: str, implementation) -> None:
    """Run an implementation, behind the checks, for tensors on a type of device."""

    def forward(*arguments):
        _check_arguments(*arguments)
        return implementation.forward(*arguments)

    def backward(*arguments):
        _check_backward_arguments(*arguments[:-2])
        return implementation.backward(*arguments)

    torch.library.impl(_NAME, device_type, forward)
    torch.library.impl(f"{_NAME}_backward", device_type, backward)


_register("cpu", cpu)
_register("cuda", cuda)


@torch.library.register_fake(_NAME)
def _fake_forward(value, shapes, samples, *tensors):
    _check_arguments(value, shapes, samples, *tensors)
    return value.new_empty(*samples.shape[:2], value.shape[2] * value.shape[3])


@torch.library.register_fake(f"{_NAME}_backward")
def _fake_backward(grad_output, value, shapes, samples, weights, *rest):
    *tensors, needs_value, needs_samples = rest
    _check_backward_arguments(grad_output, value, shapes, samples, weights, *tensors)
    dtype = torch.promote_types(value.dtype, torch.float32)
    return (
        value.new_empty(value.shape if needs_value else (0,)),
        samples.new_empty(samples.shape if needs_samples else (0,), dtype=dtype),
        weights.new_empty(weights.shape if needs_samples else (0,), dtype=dtype),
    )


def _save_for_backward(ctx, inputs, output) -> None:
    value, ctx.shapes, *tensors = inputs
    ctx.save_for_backward(value, *tensors)


def _backward(ctx, grad_output):
    value, samples, weights, reference_points, offset_scale = ctx.saved_tensors
    needs_value, _, *needs = ctx.needs_input_grad
    grad_value, grad_locations, grad_weights = deformable_attention_3d_backward(
        grad_output, value, ctx.shapes, samples, weights, reference_points, offset_scale, needs_value, any(needs)
    )
    needs_samples, needs_weights, needs_references, needs_scale = needs
    grad_references = grad_scale = None
    # locations = reference_points + samples * offset_scale
    if needs_references:
        grad_references = grad_locations.sum((2, 4)).to(reference_points.dtype)
    if needs_scale:
        grad_scale = (grad_locations * samples).sum((0, 1, 2, 4)).to(offset_scale.dtype)
    if needs_samples and offset_scale is not None:
        grad_locations *= offset_scale[:, None]
    return (
        grad_value if needs_value else None,
        None,
        grad_locations.to(samples.dtype) if needs_samples else None,
        grad_weights.to(weights.dtype) if needs_weights else None,
        grad_references,
        grad_scale,
    )


torch.library.register_autograd(_NAME, _backward, setup_context=_save_for_backward)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("deformable attention has no second derivative, and neither has grid_sample in 3-D")


torch.library.register_autograd(f"{_NAME}_backward", _refuse_second_derivative)
