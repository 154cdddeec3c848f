"""Recipes: what a published experiment, or the demo, is made of, as data.

A recipe is a JSON file with the sections `model` (arguments of `ClassQueryConfig`), `processor` (of
`ClassQueryVideoProcessor`), `data` (of `DataArguments`), `optimization` (of `OptimizationArguments`) and `training`
(of transformers' `TrainingArguments`). `base` names a recipe whose values it changes, `labels` a list of action names,
`description` says what it is for, and `sources` where its values come from. What is unknown is refused.
"""

from typing import TYPE_CHECKING

from classquery._lazy import lazily


# Loaded when they are used: recipes take transformers, which lists and help texts do without.
if TYPE_CHECKING:
    from classquery.configuration.arguments import DataArguments, OptimizationArguments
    from classquery.configuration.listing import list_recipes
    from classquery.configuration.recipes import Recipe, RecipeError, load_recipe


__getattr__, __dir__ = lazily(__name__)

__all__ = [
    "DataArguments",
    "OptimizationArguments",
    "Recipe",
    "RecipeError",
    "list_recipes",
    "load_recipe",
]
