"""Reader of MATLAB's level 5 files (.mat), for annotations: structs, cells, text and numbers.

Own code, because `scipy.io.loadmat` can end the process on a damaged file. Everything is taken from `bytes` here, of
which Python checks the ends. The layout is that of "MAT-File Format" by MathWorks: elements of a type, a size and
content, which hold others.
"""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classquery.data.annotations.schema import AnnotationError


_COMPRESSED = 15
_MAX_CONTENT, _MAX_VALUES, _MAX_DEPTH = 2**28, 2**24, 32  # Bytes unpacked, elements of an array, arrays in arrays.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32", 4: "utf-16", 2: "latin-1", 1: "latin-1"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


class _Element(NamedTuple):
    kind: int
    content: bytes


def read_mat(path: Path) -> dict[str, Any]:
    """Read the variables of a file.

    Returns:
        By name: arrays of numbers as they are stored, in MATLAB's shapes; text as str; cells as lists, and structs as
        lists of dicts by field, both flat in MATLAB's order.

    Raises:
        AnnotationError: If the file is damaged, of another version, or holds anything else.
        OSError: If it cannot be read.
    """
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise AnnotationError(f"{path} is no MATLAB file of version 5 to 7: save it with save(..., '-v7')")
    variables = {}
    try:
        for element in _elements(content[128:], order):
            parts = _elements(_unpack(element.content), order) if element.kind == _COMPRESSED else [element]
            variables |= dict([_matrix(part.content, order) for part in parts])
    except (struct.error, zlib.error, ValueError, KeyError, IndexError, StopIteration) as error:
        raise AnnotationError(f"{path} is damaged, or holds more than structs and arrays: {error}") from error
    return variables


def _elements(content: bytes, order: str) -> Iterator[_Element]:
    """Yield the elements that stand one behind another."""
    position = 0
    while position < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        start = position + 8
        if kind >> 16:  # A small one has its size in the upper half of its type, and its content in the place of that.
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        if start + size > len(content) or (start == position + 4 and size > 4):
            raise ValueError("it ends early")
        yield _Element(kind, content[start : start + size])
        is_padded = start == position + 8 and kind != _COMPRESSED
        position = max(position + 8, start + size + (-size % 8 if is_padded else 0))


def _unpack(content: bytes) -> bytes:
    packed = zlib.decompressobj()
    unpacked = packed.decompress(content, _MAX_CONTENT)
    if packed.unconsumed_tail or not packed.eof:
        raise ValueError("a part is cut, or too large")
    return unpacked


def _matrix(content: bytes, order: str, depth: int = 0) -> tuple[str, Any]:
    """Read an array with its name."""
    if not content:
        return "", np.zeros((0, 0))
    if depth > _MAX_DEPTH:
        raise ValueError("arrays are nested too deep")
    parts = _elements(content, order)
    flags, dimensions, name = [next(parts).content for _ in range(3)]
    (kind,) = struct.unpack_from(f"{order}I", flags)
    kind &= 0xFF
    shape = np.frombuffer(dimensions, f"{order}i4").tolist()
    if min(shape, default=-1) < 0 or prod(shape) > _MAX_VALUES:
        raise ValueError(f"an array has the shape {shape}")
    return name.decode("latin-1"), _values(kind, shape, parts, order, depth)


def _values(kind: int, shape: list[int], parts: Iterator[_Element], order: str, depth: int) -> Any:
    if kind == _CELL:
        return [_matrix(next(parts).content, order, depth + 1)[1] for _ in range(prod(shape))]
    if kind == _STRUCT:
        (length,) = struct.unpack_from(f"{order}i", next(parts).content)
        text = next(parts).content
        names = (text[start : start + length] for start in range(0, len(text), length))
        fields = [name.split(b"\0")[0].decode("latin-1") for name in names]
        count = prod(shape) if fields else 0
        return [{field: _matrix(next(parts).content, order, depth + 1)[1] for field in fields} for _ in range(count)]
    element = next(parts)
    if kind == _CHAR:
        encoding = _TEXT[element.kind] + (("-le" if order == "<" else "-be") if element.kind in (4, 17, 18) else "")
        return element.content.decode(encoding)
    values = np.frombuffer(element.content, order + _STORED[element.kind])
    return values.astype(_CLASSES[kind]).reshape(shape, order="F")
