"""Files of weights as tensors: safetensors, what `torch.save` wrote, and MATLAB files.

Bytes from outside become objects here and nowhere else. Whatever a parser makes of a damaged file, an error that names
the file comes out of it, and no code from a file is run.
"""

import contextlib
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from safetensors.torch import load_file


class CheckpointError(ValueError):
    """Raised when a model or a file of weights cannot be loaded, or not completely."""


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHT_FILES = (".bin", ".pt", ".pth", ".safetensors")
_SAFE_CONTENTS = ["model.safetensors", "model-*-of-*.safetensors"]
_PICKLED_CONTENTS = ["pytorch_model.bin", "pytorch_model-*-of-*.bin"]
# Where training scripts put the weights beside what else they save: published ones, Lightning, mmaction2 and others.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")
# Characters of a file that a message shows.
MAX_QUOTED = 200

# What parsers raise on bytes that are damaged, or none of theirs.
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    SafetensorError,
    pickle.PickleError,
    struct.error,
    zlib.error,
)


class _NotRead:
    """Stands in for a value beside the weights: keeps nothing and runs nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# What training scripts save beside the weights. None of it is ever built: numpy would trust the layout of a data type
# that the file describes.
_OFTEN_BESIDE_WEIGHTS: list[Callable | tuple[Callable, str]] = [
    (_NotRead, name)
    for name in (
        "argparse.Namespace",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
    )
]


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file or folder, or of a repository on the Hub, by their names there.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or holds something else.
    """
    path = Path(path)
    if not path.exists() and _HUB_NAME.fullmatch(path.as_posix()) and path.suffix not in _WEIGHT_FILES:
        path = _downloaded(path.as_posix())
    if not path.exists():
        raise CheckpointError(f"there is no file or folder {path}")
    files = [path]
    if path.is_dir():
        patterns = (*_SAFE_CONTENTS, *_PICKLED_CONTENTS)
        files = next(filter(None, (sorted(path.glob(pattern)) for pattern in patterns)), [])
        if not files:
            raise CheckpointError(f"the folder {path} holds neither model.safetensors nor pytorch_model.bin")
    return {name: tensor for file in files for name, tensor in _read_file(file).items()}


def _downloaded(repo_id: str) -> Path:
    """Folder with the weights of a repository on the Hub; pickles only where there is no safetensors."""
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=_SAFE_CONTENTS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo_id, allow_patterns=_PICKLED_CONTENTS))
    except (OSError, httpx.HTTPError) as error:
        raise CheckpointError(
            f"{repo_id} is no file or folder, and its weights could not be had from the Hub: {error}"
        ) from error
    return folder


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        with reading(path, "damaged or no safetensors file"):
            return load_file(path)
    if path.suffix not in _WEIGHT_FILES:
        raise CheckpointError(
            f"weights come as .pth, .pt, .bin or .safetensors (of a CSN backbone as .mat), got {path}"
        )
    content = _unpickle(path)
    while isinstance(content, dict) and (inner := [content[key] for key in _STATE_DICTS if _is_dict(content, key)]):
        content = inner[0]
    if not isinstance(content, dict) or not all(map(_is_named_tensor, content.items())):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} must hold a dict of tensors, on its own or under {', '.join(map(repr, _STATE_DICTS))}; got "
            f"{found[:MAX_QUOTED]}"
        )
    return content


def _is_dict(content: dict, key: str) -> bool:
    return isinstance(content.get(key), dict)


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    name, value = item
    is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
    return isinstance(name, str) and is_plain and value.device.type == "cpu"


def _unpickle(path: Path) -> Any:
    with reading(path, "no file that can be read"), path.open("rb") as file:
        if not file.read(2).startswith((b"PK", b"\x80")):
            raise CheckpointError(f"{path} was not written by torch.save")
    with reading(path), torch.serialization.safe_globals(_OFTEN_BESIDE_WEIGHTS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} is damaged or not complete, or holds more than tensors and plain values; reading that would "
                "run code from the file. If you trust where it comes from, load it yourself, and torch.save only its "
                "state dict"
            ) from error


def read_matlab(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the arrays of a MATLAB file by their names, as float32.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or holds something else.
    """
    path = Path(path)
    if path.suffix != ".mat" or not path.is_file():
        raise CheckpointError(f"weights of a CSN backbone come as a MATLAB file (.mat), got {path}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "arrays.npz"
        # In a process of its own: on a damaged file scipy may end the process that it runs in.
        command = [sys.executable, "-c", _READ_MATLAB, str(path.absolute()), str(copy)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["the reader crashed"])[-1]
            raise CheckpointError(
                f"{path} is damaged or no MATLAB file of version 4 to 7.2: {reason[:MAX_QUOTED]}; fetch it again"
            )
        with reading(path), np.load(copy, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays}
    not_numbers = sorted(name for name in tensors if name.startswith(_NO_NUMBERS))
    if not_numbers:
        names = ", ".join(name.removeprefix(_NO_NUMBERS) for name in not_numbers)
        raise CheckpointError(f"{path} must hold arrays of numbers; these are none: {names[:MAX_QUOTED]}")
    return tensors


# Before the name of an array of something else, which no name of MATLAB begins with.
_NO_NUMBERS = "/"
_READ_MATLAB = f"""
import sys
import numpy as np
from scipy.io import loadmat
arrays = {{name: array for name, array in loadmat(sys.argv[1]).items() if not name.startswith("__")}}
is_number = {{name: getattr(array, "dtype", np.dtype(object)).kind in "fiu" for name, array in arrays.items()}}
named = {{
    (name if is_number[name] else "{_NO_NUMBERS}" + name): array.astype(np.float32) if is_number[name] else np.zeros(0)
    for name, array in arrays.items()
}}
np.savez(sys.argv[2], **named)
"""


@contextlib.contextmanager
def reading(path: str | Path, otherwise: str = "damaged or not complete") -> Iterator[None]:
    """The border: within the context, what a parser raises on damaged bytes becomes an error that names the file.

    Raises:
        CheckpointError: In place of it.
    """
    try:
        yield
    except CheckpointError:
        raise
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {error}"[:MAX_QUOTED]
        raise CheckpointError(f"{path} is {otherwise} ({reason}); fetch it or copy it again") from error


__all__ = ["DAMAGED", "MAX_QUOTED", "CheckpointError", "read_matlab", "read_tensors", "reading"]
