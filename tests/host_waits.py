"""Counts where a program and its GPU wait for each other, on a machine without one.

Tensors that `on_device` makes say that they are elsewhere, on `DEVICE`, and are computed on the CPU. Within
`count_host_waits`, everything is noted that on a GPU would make the program wait for all that it has been told to do
(a value is read, a shape depends on values, a tensor is copied to the host) or copy from pageable memory (a tensor is
made from Python numbers or on the host, and moved):

    put_on_device(model)
    with count_host_waits() as waits:
        model(**on_device(inputs))
    assert not waits, describe(waits)

That a batch is moved to the device is noted, too, where it happens within. What computes with such tensors has to run
within: elsewhere, new tensors on their device would have no values. Operations on tensors of both places, which
a GPU refuses, are refused here as well.
"""

import contextlib
import linecache
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map


# The only device that PyTorch always knows, computes nothing on, and lets autograd use.
DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parents[1]

aten = torch.ops.aten
# Their results have a shape, or are a number, that depends on values.
_READ_VALUES = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
_COPYING = {aten._to_copy, aten.copy_, aten.copy}


@dataclass(frozen=True)
class HostWait:
    """One wait: what made it necessary, and the line of code outside of PyTorch that asked for it."""

    reason: str
    path: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}: {self.code}"


class DeviceTensor(torch.Tensor):
    """A tensor that says that it is on `DEVICE`, and holds its values on the CPU."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _compute(operator, args, kwargs or {})


def on_device(tree: Any) -> Any:
    """Put all tensors in nested lists and dicts on `DEVICE`."""
    return tree_map(lambda leaf: DeviceTensor(leaf) if _is_on_host(leaf) else leaf, tree)


def on_host(tree: Any) -> Any:
    """Take all tensors in nested lists and dicts from `DEVICE`, without a note."""
    return tree_map(lambda leaf: leaf.held if isinstance(leaf, DeviceTensor) else leaf, tree)


def put_on_device(module: nn.Module) -> None:
    """Put all parameters and buffers of a module on `DEVICE`."""
    moved = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in moved:
                held = DeviceTensor(parameter.detach())
                moved[id(parameter)] = nn.Parameter(held, requires_grad=parameter.requires_grad), parameter
            if parameter is not None:
                part._parameters[name] = moved[id(parameter)][0]
        part._buffers.update({name: on_device(buffer) for name, buffer in part._buffers.items()})


@contextlib.contextmanager
def count_host_waits() -> Iterator[list[HostWait]]:
    """Note all waits within the context in the list that it gives."""
    waits = []
    autocast = torch.autocast

    # Tensors like these have no views in inference mode.
    def without_gradients(mode: bool = True):
        return torch.no_grad() if mode else contextlib.nullcontext()

    def autocast_of_the_host(device_type: str, *args, **kwargs):
        return autocast("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)

    with (
        mock.patch.object(torch, "autocast", autocast_of_the_host),
        mock.patch.object(torch, "inference_mode", without_gradients),
        _Functions(waits),
        _Operators(waits),
    ):
        yield waits


def describe(waits: list[HostWait]) -> str:
    """All waits, a line for each place, with how often."""
    return "\n".join(f"{count} x {wait}" for wait, count in Counter(waits).most_common()) or "none"


class _Operators(TorchDispatchMode):
    """Notes what operators wait for."""

    def __init__(self, waits: list[HostWait]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reason := _reason(operator, args, kwargs):
            self.waits.append(_wait(reason))
        return _compute(operator, args, kwargs)


class _Functions(TorchFunctionMode):
    """Notes what never becomes an operator, or only where no mode sees it."""

    def __init__(self, waits: list[HostWait]):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        is_on_device = isinstance(first, DeviceTensor)
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and not is_on_device:
            if kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
                return self._make(function(*args, **kwargs | {"device": "cpu"}))
        elif function is torch.Tensor.new_tensor and is_on_device and kwargs.get("device") in (None, DEVICE):
            kwargs = {"dtype": first.dtype} | kwargs | {"device": "cpu"}
            return self._make(torch.tensor(*args[1:], **kwargs))
        elif function in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__) and is_on_device:
            self.waits.append(_wait("values are read"))
            return function(first.held, *args[1:], **kwargs)
        elif function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and is_on_device:
            index = tuple(map(self._on_device, args[1])) if isinstance(args[1], tuple) else self._on_device(args[1])
            args = (first, index, *args[2:])
        return function(*args, **kwargs)

    def _make(self, tensor: torch.Tensor) -> DeviceTensor:
        self.waits.append(_wait("a tensor of numbers goes to the device"))
        return DeviceTensor(tensor)

    def _on_device(self, index: Any) -> Any:
        return self._make(torch.tensor(index)) if isinstance(index, list | tuple) else index


def _reason(operator, args, kwargs) -> str | None:
    """Why an operator waits, or None."""
    packet, leaves = operator.overloadpacket, tree_leaves((args, kwargs))
    is_on_device = any(isinstance(leaf, DeviceTensor) for leaf in leaves)
    if packet in _COPYING:
        source = args[0] if packet is aten._to_copy else args[1]
        target = kwargs.get("device") or source.device if packet is aten._to_copy else args[0].device
        if (source.device == DEVICE) == (torch.device(target) == DEVICE) or not isinstance(source, torch.Tensor):
            return None
        return "a tensor goes to the " + ("host" if source.device == DEVICE else "device")
    if not is_on_device:
        return None
    if packet in _READ_VALUES or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
        return "values are read"
    if packet in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "a mask selects, whose values are read"
        if any(index.device != DEVICE for index in indices):
            return "indices go to the device"
    return None


def _compute(operator, args, kwargs):
    """Compute an operator on the CPU; its results are on the device where those of a GPU would be."""
    leaves, packet = tree_leaves((args, kwargs)), operator.overloadpacket
    device = kwargs.get("device")
    if device is None:
        to_device = any(isinstance(leaf, DeviceTensor) for leaf in leaves)
    else:
        to_device, kwargs = torch.device(device) == DEVICE, kwargs | {"device": torch.device("cpu")}
    is_mixed = {DeviceTensor, torch.Tensor} <= {type(leaf) for leaf in leaves if not _is_number(leaf)}
    if is_mixed and packet not in _INDEXING | _COPYING:
        raise RuntimeError(f"{operator} of tensors on the host and on the device")
    result = operator(*on_host(args), **on_host(kwargs))
    if packet in (aten.copy_,):
        return args[0]
    if not to_device:
        return result
    return return_and_correct_aliasing(operator, args, kwargs, on_device(result))


def _is_on_host(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, DeviceTensor)


def _is_number(leaf: Any) -> bool:
    """Whether it is a tensor on the host that goes with an operator like a Python number."""
    return _is_on_host(leaf) and leaf.ndim == 0


def _wait(reason: str) -> HostWait:
    """A wait that the innermost line outside of PyTorch and this file asks for."""
    frame: FrameType | None = sys._getframe(1)
    hidden = (str(Path(torch.__file__).parent), __file__)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(hidden):
        frame = frame.f_back
    path, line = frame.f_code.co_filename, frame.f_lineno
    code = linecache.getline(path, line).strip()
    shown = Path(path)
    if shown.is_relative_to(ROOT):
        shown = shown.relative_to(ROOT)
    elif "site-packages" in shown.parts:
        shown = Path(*shown.parts[shown.parts.index("site-packages") + 1 :])
    return HostWait(reason, str(shown), line, code)
