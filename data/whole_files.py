"""Files that are written whole or not at all."""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path of a new file beside `path` that takes its place at the end, or is deleted after an error."""
    path = Path(path)
    partial_path = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield partial_path
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def remove_left_behind(folder: str | os.PathLike[str], names: Collection[str]) -> None:
    """Remove what `replacing` left of files of these names in a process that was killed."""
    for path in Path(folder).glob(".*"):
        partial = re.fullmatch(r"\.(.+)-[0-9a-f]{8}(\.[^.]+)?", path.name)
        if partial and f"{partial[1]}{partial[2] or ''}" in names:
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any, **options: Any) -> None:
    """Write what JSON can hold; `options` are those of `json.dumps`.

    Names of files with bytes that are not UTF-8 are read back as they are.
    """
    with replacing(path) as partial_path:
        # Escaped like this, a lone surrogate is valid JSON.
        partial_path.write_text(json.dumps(content, **options) + "\n", encoding="utf-8", errors="backslashreplace")
