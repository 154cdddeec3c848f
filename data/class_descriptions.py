"""Files with descriptions of classes, in words."""

import csv
import json
from pathlib import Path

from classquery.data.annotations.schema import AnnotationError, parsing, quote


_FORM = (
    'write {"class": "a sentence"} or {"class": ["a sentence", "another"]} as JSON, or a csv with class,description'
)


def read_class_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Read one or several sentences for each class.

    Args:
        path: JSON, an object from the names of classes to a sentence or a list of sentences; or csv with the columns
            `class` and `description`, in which a class may have several rows.

    Raises:
        AnnotationError: If the file is neither, or names a class of JSON twice.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    with parsing(path, _FORM):
        text = path.read_text(encoding="utf-8-sig")
        return _read_csv(path, text) if path.suffix.lower() == ".csv" else _read_json(path, text)


def _read_json(path: Path, text: str) -> dict[str, list[str]]:
    content = json.loads(text, object_pairs_hook=lambda pairs: _once_each(path, pairs))
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: {_FORM}, got {quote(content)}")
    descriptions = {label: [words] if isinstance(words, str) else words for label, words in content.items()}
    for label, sentences in descriptions.items():
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise AnnotationError(f"{path}: {_FORM}, got {quote(sentences)} for {quote(label)}")
    return descriptions


def _once_each(path: Path, pairs: list[tuple]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise AnnotationError(f"{path}: class {quote(twice)} is there twice, put all its sentences in one list")
    return content


def _read_csv(path: Path, text: str) -> dict[str, list[str]]:
    rows = csv.DictReader(text.splitlines(), strict=True)
    if not {"class", "description"} <= set(rows.fieldnames or ()):
        raise AnnotationError(f"{path}: {_FORM}, got the columns {quote(rows.fieldnames)}")
    descriptions: dict[str, list[str]] = {}
    for row in rows:
        descriptions.setdefault((row["class"] or "").strip(), []).append(row["description"] or "")
    return descriptions
