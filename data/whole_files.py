"""Files that are written whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
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


def write_json(path: str | os.PathLike[str], content: Any, **options: Any) -> None:
    """Write what JSON can hold; `options` are those of `json.dumps`."""
    with replacing(path) as partial_path:
        partial_path.write_text(json.dumps(content, **options) + "\n", encoding="utf-8")
