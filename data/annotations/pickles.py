"""Pickles of plain values and numpy arrays, and of nothing else: loading any other kind can run code."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from classquery.data.annotations.schema import AnnotationError


# Raised on files that are damaged or no pickles at all.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_pickle(path: Path) -> Any:
    """Load a pickle: `StoredArray` for each array, plain numbers for numpy's, plain dicts for all kinds of them.

    Raises:
        AnnotationError: If the file is damaged, no pickle, or asks for anything else.
        OSError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except _PICKLE_ERRORS as error:
        raise AnnotationError(f"{path} is no pickle of annotations, or a damaged one: {str(error)[:200]}.") from error


def as_array(stored: Any) -> np.ndarray | None:
    """Return the array that a pickle stored, or an array itself; None for anything else."""
    values = stored.values if isinstance(stored, StoredArray) else stored
    return values if isinstance(values, np.ndarray) else None


class StoredArray:
    """Stands in for `numpy.ndarray`, because numpy's own trusts the state of a pickle with its memory."""

    def __init__(self, *_: Any):
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, stored_type, is_fortran, content = state
        self.values = _from_bytes(content, stored_type, shape, "F" if is_fortran else "C")


class _StoredType:
    """Stands in for `numpy.dtype`, called and given a state as the pickle says."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _from_bytes(content: Any, stored_type: _StoredType, shape: Any, order: str) -> np.ndarray:
    content = content.encode("iso-8859-1") if isinstance(content, str) else content  # Python 2 had no bytes.
    return np.frombuffer(content, stored_type.dtype).reshape(shape, order=order)


def _from_buffer(content: Any, stored_type: _StoredType, shape: Any, order: str, *_: Any) -> StoredArray:
    """Stands in for numpy's `_frombuffer`, by which protocol 5 stores arrays."""
    array = StoredArray()
    array.values = _from_bytes(content, stored_type, shape, order)
    return array


def _scalar(stored_type: _StoredType, content: Any) -> Any:
    """Stands in for numpy's `scalar`: the plain number."""
    return _from_bytes(content, stored_type, (), "C").item()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, by which Python 3 stores bytes for Python 2."""
    return text.encode("iso-8859-1")


def _dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    """Stands in for `OrderedDict`."""
    return dict(items)


def _default_dict(*_: Any) -> dict[Any, Any]:
    """Stands in for `defaultdict`, whose items come later."""
    return {}


class _PlainUnpickler(pickle.Unpickler):
    """Loads plain Python values, and numpy arrays as `StoredArray`; refuses to call anything else."""

    _STAND_INS = {
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _StoredType,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): _dict,
        ("collections", "defaultdict"): _default_dict,
        # What a defaultdict makes new values with. Nothing is made here.
        **{(module, name): None for module in ("builtins", "__builtin__") for name in ("list", "dict", "int", "set")},
    }
    for _core in ("numpy.core", "numpy._core"):  # The latter since numpy 2.
        _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = StoredArray
        _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
        _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="iso-8859-1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain values and arrays are allowed")
        return self._STAND_INS[module, name]
