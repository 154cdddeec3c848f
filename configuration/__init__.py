"""Recipes: what a published experiment, or the demo, is made of, as data.

A recipe is a JSON file with the sections `model` (arguments of `ClassQueryConfig`), `processor` (of
`ClassQueryVideoProcessor`), `data` (of `DataArguments` below) and `training` (of transformers' `TrainingArguments`).
Unknown keys are refused.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.processing_utils import VideosKwargs

from classquery.configuration_classquery import ClassQueryConfig, ClassQueryCSNConfig, ClassQueryViTConfig


RECIPE_DIR = Path(__file__).parent
BACKBONES = {config.model_type: config for config in (ClassQueryCSNConfig, ClassQueryViTConfig)}


class RecipeError(ValueError):
    """Raised when there is no such recipe, or it says something unknown."""


@dataclass
class DataArguments:
    """What the clips are and how they are prepared."""

    dataset: str = dataclasses.field(
        default="ava", metadata={"help": "`ava`: annotations and videos in AVA's layout; `demo`: made on the spot."}
    )
    data_dir: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Folder with `annotations/` and `videos/`. The demo set is written there, or beside the output."
        },
    )
    movie_start_seconds: float = dataclasses.field(
        default=900.0,
        metadata={"help": "What the annotations call the start of the video files; 0 for movies that are not cut."},
    )
    resize_shortest_edge: int = dataclasses.field(
        default=288,
        metadata={"help": "Short side in pixels of training clips before the random crop to the processor's size."},
    )
    flip_probability: float = dataclasses.field(
        default=0.5,
        metadata={"help": "Probability of mirroring a training clip; 0 where labels tell left from right."},
    )
    keyframes_per_second: float = dataclasses.field(
        default=1.0, metadata={"help": "How often to detect in a whole video, for --do_predict."}
    )
    score_threshold: float = dataclasses.field(
        default=0.3, metadata={"help": "Lowest score of an action that --do_predict reports."}
    )
    actor_threshold: float = dataclasses.field(
        default=0.5, metadata={"help": "Lowest confidence of an actor that --do_predict reports."}
    )


@dataclass(frozen=True)
class Recipe:
    """Sections of a recipe, each a dict of keyword arguments."""

    name: str
    model: dict[str, Any]
    processor: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_DIR.glob("*.json"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: One of `list_recipes()`, or a JSON file.

    Raises:
        RecipeError: If there is no such recipe, it is no JSON object, or a section or key is unknown; names the
            closest valid one.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = RECIPE_DIR / f"{name_or_path}.json"
    if not path.is_file():
        known = list_recipes()
        hint = _closest(str(name_or_path), known)
        raise RecipeError(
            f"there is no recipe {str(name_or_path)!r}{hint}; known: {', '.join(known)}, or a .json file"
        )
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path} is no valid JSON: {error}") from error
    return _checked(path, sections)


def _checked(path: Path, sections: Any) -> Recipe:
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise RecipeError(f"{path} must hold an object of objects, one per section")
    _refuse_unknown(f"{path}", sections, ("model", "processor", "data", "training"))
    model = sections.get("model", {})
    _refuse_unknown(f"{path}, section model", model, _field_names(ClassQueryConfig))
    backbone = model.get("backbone_config", {})
    if not isinstance(backbone, dict):
        raise RecipeError(f"{path}: backbone_config must be an object, got {backbone!r}")
    if backbone:
        _refuse_unknown(f"{path}, backbone_config: model_type", [backbone.get("model_type")], BACKBONES)
        known = _field_names(BACKBONES[backbone["model_type"]])
        _refuse_unknown(f"{path}, section model.backbone_config", backbone, [*known, "model_type"])
    _refuse_unknown(f"{path}, section processor", sections.get("processor", {}), VideosKwargs.__annotations__)
    _refuse_unknown(f"{path}, section data", sections.get("data", {}), _field_names(DataArguments))
    _refuse_unknown(f"{path}, section training", sections.get("training", {}), _field_names(TrainingArguments))
    return Recipe(path.stem, *(sections.get(name, {}) for name in ("model", "processor", "data", "training")))


def _field_names(dataclass_type: type) -> list[str]:
    return [field.name for field in dataclasses.fields(dataclass_type)]


def _refuse_unknown(where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in keys:
        if key not in known:
            raise RecipeError(f"{where}: unknown {key!r}{_closest(str(key), known)}")


def _closest(key: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(key, list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""
