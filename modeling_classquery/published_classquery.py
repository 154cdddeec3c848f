"""Names of published weights, as `published:ava22_vit_b_v2`: what they stand for is fetched by `engine.weights`."""

import importlib
import os
from collections.abc import Collection
from pathlib import Path


PREFIX = "published:"


def is_published(name: str | os.PathLike[str]) -> bool:
    """Whether this is the name of published weights."""
    return str(name).startswith(PREFIX)


def local_detector(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Folder of a published detector, fetched and converted if it was not yet; anything else as it is."""
    if not is_published(name_or_path):
        return name_or_path
    # Not in what travels to the Hub, where nothing is published by these names.
    return str(importlib.import_module("classquery.engine.weights").detector_folder(str(name_or_path)))


def local_weights(name_or_path: str | Path, kinds: Collection[str]) -> str | Path:
    """File of published weights of some kinds, fetched if it was not yet; anything else as it is."""
    if not is_published(name_or_path):
        return name_or_path
    return importlib.import_module("classquery.engine.weights").weights_file(str(name_or_path), kinds)


__all__ = ["PREFIX", "is_published", "local_detector", "local_weights"]
