"""Reading recipes, and refusing what they cannot mean."""

import dataclasses
import difflib
import enum
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments
from transformers.processing_utils import VideosKwargs

from classquery.configuration.arguments import DataArguments
from classquery.configuration_classquery import ClassQueryConfig, ClassQueryCSNConfig, ClassQueryViTConfig
from classquery.engine.optimization import OptimizationArguments


RECIPE_DIR = Path(__file__).parent
LABEL_DIR = RECIPE_DIR / "labels"
BACKBONES = {config.model_type: config for config in (ClassQueryCSNConfig, ClassQueryViTConfig)}
# What each section is made of.
SECTIONS = {
    "model": ClassQueryConfig,
    "processor": VideosKwargs,
    "data": DataArguments,
    "optimization": OptimizationArguments,
    "training": TrainingArguments,
}


class RecipeError(ValueError):
    """Raised when there is no such recipe, or it says something unknown."""


@dataclass(frozen=True)
class Recipe:
    """Sections of a recipe, each a dict of keyword arguments, and where its values come from."""

    name: str
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    processor: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimization: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """All values by path, as `model.backbone_config.depths`."""
        return dict(_leaves("", {name: getattr(self, name) for name in SECTIONS}))

    def table(self, used: Mapping[str, Any]) -> str:
        """Lay out every value of the recipe as it is used, and where it comes from.

        Args:
            used: By section, the object or dict that holds the values of a run.

        Returns:
            A line per value: its path, the value, its source; `changed` where it is not that of the recipe.
        """
        rows = []
        for path, value in self.values().items():
            actual = _value_at(path, used)
            same = _shortened(actual) == _shortened(value) or actual == value
            source = self.sources.get(path, "recipe") if same else f"changed, recipe: {_shortened(value)}"
            rows.append((path, _shortened(actual), source))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{path:{widths[0]}}  {value:{widths[1]}}  {source}" for path, value, source in rows)


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_DIR.glob("*.json"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: One of `list_recipes()`, or a JSON file.

    Raises:
        RecipeError: If there is no such recipe, it is no JSON object, or a section, key or value is unknown or cannot
            be; names it and the closest valid one.
    """
    path = _find(RECIPE_DIR, name_or_path, list_recipes(), "recipe")
    content = _read(path)
    _check_sections(path, content)
    base = load_recipe(content["base"]) if "base" in content else Recipe(path.stem)
    if "labels" in content:
        labels = json.loads(_find(LABEL_DIR, content["labels"], _list_labels(), "list of labels").read_text("utf-8"))
        content["model"] = content.get("model", {}) | {"id2label": dict(enumerate(labels))}
    sections = {name: _merge(getattr(base, name), content.get(name, {})) for name in SECTIONS}
    for name, kind in SECTIONS.items():
        _check_values(f"{path}, section {name}", sections[name], kind)
    recipe = Recipe(path.stem, **sections, sources=base.sources | _sources_by_path(content))
    values = recipe.values()
    _refuse_unknown(f"{path}, sources", _sources_by_path(content), values)
    _check_model(path, recipe.model)
    return dataclasses.replace(recipe, sources={p: source for p, source in recipe.sources.items() if p in values})


def _find(folder: Path, name: str | Path, known: list[str], kind: str) -> Path:
    path = Path(name) if str(name).endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        hint = closest(str(name), known)
        raise RecipeError(f"there is no {kind} {str(name)!r}{hint}; known: {', '.join(known)}, or a .json file")
    return path


def _list_labels() -> list[str]:
    return sorted(path.stem for path in LABEL_DIR.glob("*.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold an object, got {type(content).__name__}")
    return content


def _sources_by_path(content: Mapping[str, Any]) -> dict[str, str]:
    """Invert `sources`, which lists paths of values by where they come from."""
    return {path: source for source, paths in content.get("sources", {}).items() for path in paths}


def _check_sections(path: Path, content: Mapping[str, Any]) -> None:
    _refuse_unknown(f"{path}", content, ("base", "labels", "sources", *SECTIONS))
    for name in SECTIONS:
        if not isinstance(content.get(name, {}), dict):
            raise RecipeError(f"{path}, section {name} must be an object, got {content[name]!r}")


def _check_values(where: str, values: Mapping[str, Any], kind: type) -> None:
    """Refuse keys and values that the annotations of a class do not allow."""
    if dataclasses.is_dataclass(kind):
        hints = {field.name: field.type for field in dataclasses.fields(kind)}
    else:
        hints = kind.__annotations__
    _refuse_unknown(where, values, hints)
    for key, value in values.items():
        if key == "backbone_config":
            _check_backbone(f"{where}.{key}", value)
            continue
        choices = _choices(hints[key])
        if isinstance(value, str) and choices and value not in choices:
            raise RecipeError(f"{where}: {key} is {value!r}{closest(value, choices)}; known: {', '.join(choices)}")
        if not _fits(value, hints[key]):
            expected = getattr(hints[key], "__name__", str(hints[key]))
            raise RecipeError(f"{where}: {key} must be {expected}, got {value!r}")


def _check_backbone(where: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be an object, got {values!r}")
    values = dict(values)
    model_type = values.pop("model_type", ClassQueryViTConfig.model_type)
    _refuse_unknown(f"{where}, model_type", [str(model_type)], BACKBONES)
    _check_values(where, values, BACKBONES[model_type])


def _check_model(path: Path, model: Mapping[str, Any]) -> None:
    try:
        ClassQueryConfig(**model)
    except StrictDataclassError as error:
        raise RecipeError(f"{path}, section model: {error}") from error


def _choices(hint: Any) -> list[str]:
    """What a string must be one of, where the annotation says so."""
    if get_origin(hint) is Literal:
        return [value for value in get_args(hint) if isinstance(value, str)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    return [choice for argument in get_args(hint) for choice in _choices(argument)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON can be meant by an annotation; what JSON cannot say is taken to fit."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    kind = origin or hint
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, list)
    if kind in (bool, str, list, dict, types.NoneType):
        return isinstance(value, kind)
    return True


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the base with changes over them, also inside of nested objects."""
    merged = {**base, **changes}
    for key, change in changes.items():
        # Another list of labels, or another kind of backbone, has nothing in common with that of the base.
        both = isinstance(change, dict) and isinstance(base.get(key), dict)
        if both and key != "id2label" and "model_type" not in change:
            merged[key] = _merge(base[key], change)
    return merged


def _leaves(path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and key != "id2label":
            yield from _leaves(f"{path}{key}.", value)
        else:
            yield f"{path}{key}", value


def _value_at(path: str, holder: Any) -> Any:
    for name in path.split("."):
        holder = holder[name] if isinstance(holder, Mapping) else getattr(holder, name)
    return holder.value if isinstance(holder, enum.Enum) else holder


def _shortened(value: Any) -> str:
    if isinstance(value, Mapping):
        names = list(value.values())
        return f"{len(names)} labels, {names[0]} to {names[-1]}"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def _refuse_unknown(where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in keys:
        if key not in known:
            raise RecipeError(f"{where}: unknown {key!r}{closest(key, known)}")


def closest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like another, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""
