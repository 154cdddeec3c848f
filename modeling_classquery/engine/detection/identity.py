"""What the results of a video depend on, as digests: only where all of it is the same, they are kept.

| part      | digest of                                                                                              |
|-----------|--------------------------------------------------------------------------------------------------------|
| weights   | names, types, shapes and bytes of all tensors, statistics of batch norms included                      |
| config    | the configuration of the model, without names and versions                                             |
| processor | its values, thresholds included                                                                        |
| options   | written out: what to report, how often, and what to write                                              |
| source    | all bytes of the video, or of all images of a folder with their names                                  |

A file whose size, times of modification and of change, and number are as they were is not read again: the system sets
the time of change, no program does. What cannot be read twice, a camera or a stream, is never the same.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.video_processing_utils import BaseVideoProcessor

from classquery.data.video.reader import VideoReadError
from classquery.engine.detection.video_sources import Source, local_path


# Of a saved model, which are others once it is loaded again or moved.
_NAMES_AND_VERSIONS = (
    *("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "processor_class"),
    *("torch_dtype", "transformers_version"),
)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def digest_detector(model: PreTrainedModel, processor: BaseVideoProcessor) -> dict[str, str]:
    """Digests of `weights`, `config` and `processor`; the same before saving and after loading."""
    return {
        "weights": _digest(_bytes_of_tensors(model.state_dict())),
        "config": _digest([_as_json(model.config.to_dict())]),
        "processor": _digest([_as_json(processor.to_dict())]),
    }


def digest_source(source: Source, earlier: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """Digest of a video.

    Args:
        source: A single video.
        earlier: What this function returned for it before; while the files are untouched, they are not read again.

    Returns:
        `content`, by which it is known, and `files`, which tell that it is the same still; None for what is no file.

    Raises:
        VideoReadError: If it cannot be read.
    """
    path = local_path(source)
    if path is None:
        return None
    try:
        paths = _files_of(path)
        files = _digest([_as_json([_status(each) for each in paths])])
        if earlier is not None and earlier.get("files") == files:
            return {"content": earlier["content"], "files": files}
        return {"content": _digest(chunk for each in paths for chunk in _bytes_of_file(each)), "files": files}
    except OSError as error:
        raise VideoReadError(f"cannot read {path}: {error.strerror}; check the path and the rights") from error


def _files_of(path: str) -> list[Path]:
    if not os.path.isdir(path):
        return [Path(path)]
    return sorted(each for each in Path(path).iterdir() if each.suffix.lower() in _IMAGE_SUFFIXES)


def _status(path: Path) -> tuple:
    status = path.stat()
    return os.fsencode(path.name).hex(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _bytes_of_file(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        yield f"{os.fsencode(path.name).hex()} {os.fstat(file.fileno()).st_size} ".encode()
        while chunk := file.read(1 << 20):
            yield chunk


def _bytes_of_tensors(tensors: Mapping[str, torch.Tensor]) -> Iterable[bytes]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _as_json(content: Any) -> bytes:
    return json.dumps(_without_names(content), sort_keys=True, default=str).encode()


def _without_names(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _without_names(value) for key, value in content.items() if key not in _NAMES_AND_VERSIONS}
    return [_without_names(value) for value in content] if isinstance(content, list | tuple) else content


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
