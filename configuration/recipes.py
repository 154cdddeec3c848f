"""Reading recipes, and refusing what they cannot mean."""

import contextlib
import dataclasses
import enum
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments, VideoMAEConfig, VJEPA2Config
from transformers.processing_utils import VideosKwargs

from classquery.configuration.arguments import DataArguments, OptimizationArguments
from classquery.configuration.listing import RECIPE_DIR, list_recipes
from classquery.configuration_classquery import ClassQueryConfig, ClassQueryCSNConfig, ClassQueryViTConfig
from classquery.data.hints import closest


LABEL_DIR = RECIPE_DIR / "labels"
BACKBONES = {
    config.model_type: config for config in (ClassQueryCSNConfig, ClassQueryViTConfig, VideoMAEConfig, VJEPA2Config)
}
# What each section is made of.
SECTIONS = {
    "model": ClassQueryConfig,
    "processor": VideosKwargs,
    "data": DataArguments,
    "optimization": OptimizationArguments,
    "training": TrainingArguments,
}
# Scores of evaluation, and those that it has of each label.
METRICS = ("frame_map_50", "video_map_20", "video_map_50", "loss")
LABEL_METRICS = ("frame_ap_50", "video_ap_50")
NOT_IN_USE = "not in this model"


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
    description: str = ""

    def values(self) -> dict[str, Any]:
        """All values by path, as `model.backbone_config.depths`."""
        return dict(_leaves("", {name: getattr(self, name) for name in SECTIONS}))

    def table(self, used: Mapping[str, Any] | None = None) -> str:
        """Lay out every value of the recipe as it is used, and where it comes from.

        Args:
            used: By section, the object or dict that holds the values of a run; by default those of the recipe.

        Returns:
            A line per value: its path, the value, its source; `changed` where it is not that of the recipe, as of a
            value that the model in use does not have.
        """
        rows, used = [], {name: getattr(self, name) for name in SECTIONS} if used is None else used
        for path, value in self.values().items():
            actual = _value_at(path, used)
            same = _shortened(actual) == _shortened(value) or actual == value
            source = self.sources.get(path, "recipe") if same else f"changed, recipe: {_shortened(value)}"
            rows.append((path, _shortened(actual), source))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{path:{widths[0]}}  {value:{widths[1]}}  {source}" for path, value, source in rows)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: One of `list_recipes()`, or a JSON file.

    Raises:
        RecipeError: If there is no such recipe, it is no JSON object or its own base, or a section, key or value is
            unknown or cannot be; names it and the closest valid one.
    """
    return _load(name_or_path, ())


def _load(name_or_path: str | Path, built_on_it: tuple[Path, ...]) -> Recipe:
    path = _find(RECIPE_DIR, name_or_path, list_recipes(), "recipe")
    chain = (*built_on_it, path.resolve())
    if chain[-1] in built_on_it:
        raise RecipeError(f"a recipe is its own base: {' -> '.join(map(str, chain))}")
    content = _read(path, dict)
    _check_sections(path, content)
    base = _load(content["base"], chain) if "base" in content else Recipe(path.stem)
    if "labels" in content:
        labels = _read(_find(LABEL_DIR, content["labels"], _list_labels(), "list of labels"), list)
        content["model"] = content.get("model", {}) | {"id2label": dict(enumerate(labels))}
    sections = {name: _merge(getattr(base, name), content.get(name, {})) for name in SECTIONS}
    for name, kind in SECTIONS.items():
        _check_values(f"{path}, section {name}", sections[name], kind)
    sources = base.sources | _sources_by_path(content)
    recipe = Recipe(path.stem, **sections, sources=sources, description=content.get("description", ""))
    values = recipe.values()
    _refuse_unknown(f"{path}, sources", _sources_by_path(content), values)
    for name, check in CHECKS.items():
        with _located(f"{path}, section {name}"):
            check(recipe)
    return dataclasses.replace(recipe, sources={p: source for p, source in recipe.sources.items() if p in values})


def _find(folder: Path, name: str | Path, known: list[str], kind: str) -> Path:
    path = Path(name) if str(name).endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        hint = closest(str(name), known)
        raise RecipeError(f"there is no {kind} {str(name)!r}{hint or ';'} known: {', '.join(known)}, or a .json file")
    return path


def _list_labels() -> list[str]:
    return sorted(path.stem for path in LABEL_DIR.glob("*.json"))


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise RecipeError(f"{path} must hold {expected}, got {type(content).__name__}")
    return content


def _sources_by_path(content: Mapping[str, Any]) -> dict[str, str]:
    """Invert `sources`, which lists paths of values by where they come from."""
    return {path: source for source, paths in content.get("sources", {}).items() for path in paths}


def _check_sections(path: Path, content: Mapping[str, Any]) -> None:
    _refuse_unknown(f"{path}", content, ("base", "description", "labels", "sources", *SECTIONS))
    for name in SECTIONS:
        if not isinstance(content.get(name, {}), dict):
            raise RecipeError(f"{path}, section {name} must be an object, got {content[name]!r}")
    if not isinstance(content.get("description", ""), str):
        raise RecipeError(f"{path}: description must be a line of text, got {content['description']!r}")
    if not _fits(content.get("sources", {}), dict[str, list[str]]):
        raise RecipeError(f"{path}: sources must list paths of values by their source, got {content['sources']!r}")


def _check_values(where: str, values: Mapping[str, Any], kind: type) -> None:
    """Refuse keys and values that the annotations of a class do not allow."""
    if dataclasses.is_dataclass(kind):
        # HfArgumentParser takes None out of the types of the fields, but not out of the annotations.
        hints = {field.name: kind.__annotations__.get(field.name, field.type) for field in dataclasses.fields(kind)}
    else:
        hints = kind.__annotations__
    _refuse_unknown(where, values, hints)
    for key, value in values.items():
        if key == "backbone_config":
            _check_backbone(f"{where}.{key}", value)
            continue
        choices = _choices(hints[key])
        if isinstance(value, str) and choices and value not in choices:
            raise RecipeError(
                f"{where}: {key} is {value!r}{closest(value, choices) or ';'} known: {', '.join(choices)}"
            )
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


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Say where the values stand that something refuses."""
    try:
        yield
    except (StrictDataclassError, ValueError) as error:
        # A strict configuration wraps the reason in the name of its own check.
        reason = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise RecipeError(f"{where}: {reason}") from error


def _check_processor(recipe: Recipe) -> None:
    size = recipe.processor.get("size")
    if size is None:
        return
    is_edge = isinstance(size, dict) and size.keys() == {"shortest_edge"} and _fits(size["shortest_edge"], int)
    if not is_edge or size["shortest_edge"] < 1:
        raise ValueError(f'size must be {{"shortest_edge": pixels}}, got {size!r}')


def _check_training(recipe: Recipe) -> None:
    training = recipe.training
    for name in ("learning_rate", "weight_decay"):
        if training.get(name, 0) < 0:
            raise ValueError(f"{name} must be at least 0, got {training[name]}")
    if training.get("num_train_epochs", 1) <= 0:
        raise ValueError(f"num_train_epochs must be more than 0, got {training['num_train_epochs']}")
    metric = training.get("metric_for_best_model")
    labels = recipe.model.get("id2label", {}).values()
    known = [*METRICS, *(f"{name}/{label}" for name in LABEL_METRICS for label in labels)]
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise ValueError(
            f"metric_for_best_model is {metric!r}{closest(metric, known) or ';'} known: {', '.join(METRICS)}, and "
            f"{' and '.join(LABEL_METRICS)} of a label as {LABEL_METRICS[0]}/LABEL"
        )


# What the annotations of a section cannot say; each raises where the values cannot be.
CHECKS: dict[str, Callable[[Recipe], Any]] = {
    "model": lambda recipe: ClassQueryConfig(**recipe.model),
    "processor": _check_processor,
    "data": lambda recipe: DataArguments(**recipe.data),
    "optimization": lambda recipe: OptimizationArguments(**recipe.optimization),
    "training": _check_training,
}


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
    if kind in (list, tuple):
        elements = get_args(hint)[:1]
        return isinstance(value, list) and all(_fits(item, element) for element in elements for item in value)
    if kind is dict and origin:
        # Names of JSON are strings, whatever they stand for.
        _, element = get_args(hint)
        return isinstance(value, dict) and all(_fits(item, element) for item in value.values())
    if kind in (bool, str, dict, types.NoneType):
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
        # A model with another kind of backbone than that of the recipe has other values.
        has = name in holder if isinstance(holder, Mapping) else hasattr(holder, name)
        if not has:
            return NOT_IN_USE
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
            hint = closest(key, known)
            listed = f"{hint or ';'} known: {', '.join(known)}" if 0 < len(known) <= 15 else hint
            raise RecipeError(f"{where}: unknown {key!r}{listed}")
