"""Recipes: what a published experiment, or the demo, is made of, as data.

A recipe is a JSON file with the sections `model` (arguments of `ClassQueryConfig`), `processor` (of
`ClassQueryVideoProcessor`), `data` (of `DataArguments`), `optimization` (of `OptimizationArguments`) and `training`
(of transformers' `TrainingArguments`). `base` names a recipe whose values it changes, `labels` a list of action names,
and `sources` tells where its values come from. What is unknown is refused.
"""

from classquery.configuration.arguments import DataArguments, OptimizationArguments
from classquery.configuration.recipes import Recipe, RecipeError, list_recipes, load_recipe


__all__ = [
    "DataArguments",
    "OptimizationArguments",
    "Recipe",
    "RecipeError",
    "list_recipes",
    "load_recipe",
]
