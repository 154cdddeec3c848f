"""Detectors as programs that run without this package: ONNX, for ONNX Runtime and others, and torch.export.

The file is run and compared with the model before it appears under its name; one that differs is not kept. It carries
what its users need besides tensors: the names of the classes, the values of the processor and the configuration.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.engine.export.options import AXES, ExportError, ExportOptions
from classquery.modeling_classquery import ClassQueryDetectionOutput


INPUTS = ("pixel_values", "pixel_mask")
OUTPUTS = ("logits", "scores", "pred_boxes", "actor_logits")

# By the ending of the file.
_FORMATS = {".onnx": "onnx", ".pt2": "torch"}

# Pixels that are more than one cell in the coarsest level of any backbone.
_SEVERAL_CELLS = 96

Run = Callable[..., Sequence[torch.Tensor]]


def export_detector(
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    path: str | os.PathLike[str],
    options: ExportOptions | None = None,
) -> dict[str, float]:
    """Write a detector as a program, if the program computes what the model does.

    It takes `pixel_values` and, of models that see padding, `pixel_mask`, as the processor makes them, and gives
    `logits`, `scores`, `pred_boxes` and `actor_logits` as in [`ClassQueryDetectionOutput`]. Models that do not see
    padding (`padding="masked"`) take clips of one size: for them padding changes nothing.

    Args:
        model: The detector, in float32 on the CPU; it is put in evaluation mode.
        processor: The processor that belongs to it.
        path: File to write: `.onnx` or `.pt2`. What is there is replaced, or stays as it is after an error. ONNX keeps
            the weights of models beyond 2 GB in a second file beside it.
        options: What the program is made for.

    Returns:
        The largest deviation of each output from the model's.

    Raises:
        ExportError: If the model cannot be exported that way, a package is missing or the program deviates.
    """
    path, options = Path(path), options or ExportOptions()
    format_name = _format_of(path)
    _require_packages(format_name)
    model = model.eval()
    clips = _clips(model, processor, options)
    program = _trace(model, clips[0], options, format_name)
    metadata = _metadata(model, processor)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        partial_path = Path(folder) / path.name
        _SAVE[format_name](program, partial_path, clips[0], options, metadata)
        deviations = _checked_deviations(model, _LOAD[format_name](partial_path)[0], clips, options.tolerance)
        # The model itself last, after the weights that it refers to.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == partial_path):
            file.replace(path.parent / file.name)
    return deviations


def load_exported(path: str | os.PathLike[str]) -> tuple["ExportedDetector", ClassQueryVideoProcessor]:
    """Load what `export_detector` wrote, to be used like a detector and its processor.

    Raises:
        ExportError: If the file is none of those, or a package is missing.
        OSError: If it cannot be read.
    """
    path = Path(path)
    format_name = _format_of(path)
    _require_packages(format_name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    run, metadata = _LOAD[format_name](path)
    if not {"config", "processor"} <= metadata.keys():
        raise ExportError(f"{path} was not written by classquery.engine.export: it does not say how to use it")
    processor = ClassQueryVideoProcessor.from_dict(json.loads(metadata["processor"]))
    return ExportedDetector(run, ClassQueryConfig.from_dict(json.loads(metadata["config"]))), processor


class ExportedDetector:
    """An exported detector in the place of a model, for `detect` and the processor; runs on the CPU."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, run: Run, config: ClassQueryConfig):
        self.config = config
        self._run = run

    def eval(self) -> "ExportedDetector":
        """Return itself: there is nothing else."""
        return self

    def __call__(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> ClassQueryDetectionOutput:
        """Detect actions; arguments as those of the model.

        Raises:
            ValueError: If attention is asked for, which the program does not give, or clips are padded that it wants
                without.
            ExportError: If the program was not made for clips of that shape.
        """
        if output_attentions:
            raise ValueError("an exported detector gives no attention: use the model itself for that")
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0, 0], dtype=torch.long)
        if not _takes_mask(self.config) and not pixel_mask.all():
            raise ValueError("this detector takes clips without padding: pass those of each size by themselves")
        inputs = (pixel_values, pixel_mask) if _takes_mask(self.config) else (pixel_values,)
        outputs: dict[str, Any] = dict(zip(OUTPUTS, self._run(*inputs), strict=True))
        return ClassQueryDetectionOutput(**outputs)


def _takes_mask(config: ClassQueryConfig) -> bool:
    # With "masked", the shapes of tensors depend on the content of the mask.
    return config.padding == "released"


def _format_of(path: Path) -> str:
    if path.suffix not in _FORMATS:
        raise ExportError(f"the file must end with {' or '.join(_FORMATS)}, got {path.name!r}")
    return _FORMATS[path.suffix]


def _require_packages(format_name: str) -> None:
    needed = ("onnx", "onnxscript", "onnxruntime") if format_name == "onnx" else ()
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ExportError(f"ONNX needs {' and '.join(missing)}: pip install 'classquery[export]'")


# From model to program


class _Detections(nn.Module):
    """The model with a tuple of tensors for an output."""

    def __init__(self, model: ClassQueryForVideoActionDetection):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values, pixel_mask, return_dict=True)
        return tuple(outputs[name] for name in OUTPUTS)


def _clips(
    model: ClassQueryForVideoActionDetection, processor: ClassQueryVideoProcessor, options: ExportOptions
) -> list[tuple[torch.Tensor, ...]]:
    """Inputs to trace and to check with; the second of them, if any, differs in all that is left open."""
    height = options.height or processor.size["shortest_edge"]
    width = options.width or 4 * height // 3
    if "size" in options.dynamic:
        height, width = max(height, _SEVERAL_CELLS), max(width, _SEVERAL_CELLS)
    # torch.export takes a batch of one for a constant, and a level of one row or column.
    batch_size = max(options.batch_size, 2) if "batch" in options.dynamic else options.batch_size
    sizes = [(batch_size, height, width)]
    if options.dynamic:
        other_batch = 1 if "batch" in options.dynamic else batch_size
        # The other way up and somewhat larger: other numbers of cells, and no multiples of anything.
        other_size = (width + height // 4 + 1, height) if "size" in options.dynamic else (height, width)
        sizes.append((other_batch, *other_size))
    generator = torch.Generator().manual_seed(0)
    clips: list[tuple[torch.Tensor, ...]] = []
    for batch_size, height, width in sizes:
        pixel_values = torch.randn(batch_size, model.config.num_frames, 3, height, width, generator=generator)
        if _takes_mask(model.config):
            mask = torch.ones(batch_size, height, width, dtype=torch.long)
            # One clip is smaller than the others.
            mask[-1, 3 * height // 4 :] = mask[-1, :, 4 * width // 5 :] = 0
            clips.append((pixel_values * mask[:, None, None], mask))
        else:
            clips.append((pixel_values,))
    return clips


def _trace(
    model: ClassQueryForVideoActionDetection,
    clip: tuple[torch.Tensor, ...],
    options: ExportOptions,
    format_name: str,
) -> torch.export.ExportedProgram:
    axes = [sum((AXES[name][i] for name in options.dynamic), ()) for i in range(len(clip))]
    dynamic_shapes = tuple(dict.fromkeys(of_input, torch.export.Dim.DYNAMIC) for of_input in axes)
    sampling = options.sampling or ("gather" if format_name == "onnx" else "grid_sample")
    # ONNX takes fused attention apart, and what it puts in its place lies otherwise in memory than the trace assumes.
    attention = "eager" if format_name == "onnx" else model.config._attn_implementation
    try:
        with (
            torch.no_grad(),
            _with_attention(model, attention),
            _Gathering() if sampling == "gather" else contextlib.nullcontext(),
        ):
            return torch.export.export(_Detections(model), clip, dynamic_shapes=dynamic_shapes, strict=False)
    except torch._dynamo.exc.UserError as error:
        raise ExportError(
            f"this model cannot be exported with dynamic {' and '.join(options.dynamic) or 'nothing'}: {error}"
        ) from error


@contextlib.contextmanager
def _with_attention(model: ClassQueryForVideoActionDetection, implementation: str) -> Iterator[None]:
    """Within the context, attention is computed in one of transformers' implementations."""
    before = model.config._attn_implementation
    model.config._attn_implementation = implementation
    try:
        yield
    finally:
        model.config._attn_implementation = before


class _Gathering(TorchFunctionMode):
    """Within the context, `grid_sample` is spelled out."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        called = sample_by_gathering if function is F.grid_sample else function
        return called(*args, **(kwargs or {}))


def sample_by_gathering(
    volume: torch.Tensor,
    grid: torch.Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> torch.Tensor:
    """Do what trilinear `grid_sample` does in operations that every runtime has.

    Args:
        volume: Shape (batch, channels, t, h, w).
        grid: Shape (batch, t_out, h_out, w_out, 3), as (x, y, t) in [-1, 1].
        mode, align_corners: Must be "bilinear" and false.
        padding_mode: "zeros", or the "border" outside of the volume.

    Returns:
        Shape (batch, channels, t_out, h_out, w_out).
    """
    if volume.ndim != 5 or mode != "bilinear" or padding_mode not in ("zeros", "border") or align_corners:
        raise ExportError("only trilinear sampling by the centres of cells is written out; use 'grid_sample'")
    # In few operations: a program is converted in minutes, by the operation.
    batch_size, channels, *sizes = volume.shape
    (t, weight_t), (y, weight_y), (x, weight_x) = (
        _sides(point, size, padding_mode == "zeros")
        for point, size in zip(grid.flatten(1, 3).unbind(-1)[::-1], sizes, strict=True)
    )
    first_rows = torch.arange(batch_size, device=volume.device)[:, None] * math.prod(sizes)
    # (2, batch, points) -> (2, 2, 2, batch, points) -> (8, batch * points)
    corners = (first_rows + (t[:, None, None] * sizes[1] + y[:, None]) * sizes[2] + x).view(8, -1)
    corner_weights = (weight_t[:, None, None] * weight_y[:, None] * weight_x).view(8, -1, 1)
    # (batch, channels, t, h, w) -> (batch * cells, channels)
    rows = volume.flatten(2).transpose(1, 2).flatten(0, 1)
    # One corner after the other: eight times all samples would not fit into memory.
    of_corners = (
        rows.index_select(0, corner) * weight
        for corner, weight in zip(corners.unbind(), corner_weights.unbind(), strict=True)
    )
    sampled = functools.reduce(torch.add, of_corners)
    # (batch * points, channels) -> (batch, channels, t_out, h_out, w_out)
    return sampled.view(batch_size, -1, channels).transpose(1, 2).reshape(batch_size, channels, *grid.shape[1:4])


def _sides(point: torch.Tensor, size: int, zeros: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and weights of the cells below and above each point of one axis, (2, batch, points) both."""
    position = ((point + 1) * size - 1) / 2
    if zeros:
        # Far outside, and nowhere at all, is where both cells are outside.
        position = torch.where((position > -1) & (position < size), position, -2)
    else:
        position = position.clamp(0, size - 1)
    low = position.floor()
    cells = torch.stack((low, low + 1))
    weights = 1 - (position - cells).abs()
    inside = (cells >= 0) & (cells < size)
    return cells.clamp(0, size - 1).long(), torch.where(inside, weights, 0)


# Files


def _metadata(model: ClassQueryForVideoActionDetection, processor: ClassQueryVideoProcessor) -> dict[str, str]:
    """What the file says about itself."""
    return {
        "classquery_version": importlib.metadata.version("classquery"),
        "labels": json.dumps(model.config.id2label),
        "config": model.config.to_json_string(use_diff=False),
        "processor": processor.to_json_string(),
    }


def _save_onnx(program, path: Path, clip, options: ExportOptions, metadata: dict[str, str]) -> None:
    # Says of each layer norm that it is not folded, which it could not be.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    onnx_program: Any = torch.onnx.export(
        program,
        clip,
        dynamo=True,
        opset_version=options.opset,
        input_names=list(INPUTS[: len(clip)]),
        output_names=list(OUTPUTS),
        verbose=False,
    )
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(path)


def _load_onnx(path: Path) -> tuple[Run, dict[str, str]]:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise ExportError(f"{path} is damaged or no ONNX file: {error}") from error

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=False)}
        try:
            return [torch.from_numpy(array) for array in session.run(list(OUTPUTS), feed)]
        except InvalidArgument as error:
            raise _refused(inputs, error) from error

    return run, session.get_modelmeta().custom_metadata_map


def _save_torch(program, path: Path, clip, options: ExportOptions, metadata: dict[str, str]) -> None:
    torch.export.save(program, path, extra_files=metadata)


def _load_torch(path: Path) -> tuple[Run, dict[str, str]]:
    if not zipfile.is_zipfile(path):
        raise ExportError(f"{path} is damaged or no program of torch.export")
    metadata = dict.fromkeys(("classquery_version", "labels", "config", "processor"), "")
    program = torch.export.load(path, extra_files=metadata).module()

    def run(*inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        try:
            return program(*inputs)
        except AssertionError as error:
            raise _refused(inputs, error) from error

    return run, {name: content for name, content in metadata.items() if content}


def _refused(inputs: Sequence[torch.Tensor], reason: Exception) -> ExportError:
    return ExportError(
        f"the program does not take clips of shape {tuple(inputs[0].shape)}, export one with open sizes or for this "
        f"one: {reason}"
    )


_SAVE = {"onnx": _save_onnx, "torch": _save_torch}
_LOAD = {"onnx": _load_onnx, "torch": _load_torch}


def _checked_deviations(
    model: ClassQueryForVideoActionDetection, run: Run, clips: list[tuple[torch.Tensor, ...]], tolerance: float
) -> dict[str, float]:
    """Largest deviation of each output of a program from the model's."""
    deviations = dict.fromkeys(OUTPUTS, 0.0)
    for clip in clips:
        with torch.no_grad():
            expected, ours = _Detections(model)(*clip), run(*clip)
        for name, one, other in zip(OUTPUTS, ours, expected, strict=True):
            difference = (one - other).abs()
            deviations[name] = max(deviations[name], difference.max().item())
            # Not the other way round: a NaN is not close.
            if not (difference <= tolerance * (1 + other.abs())).all():
                raise ExportError(
                    f"{name} of the program is up to {difference.max().item():.2g} off for a clip of shape "
                    f"{tuple(clip[0].shape)}, and {tolerance:g} was allowed: nothing was written"
                )
    return deviations
