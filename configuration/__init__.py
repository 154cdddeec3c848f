"""Recipes: what a published experiment, or the demo, is made of, as data.

A recipe is a JSON file with the sections `model` (arguments of `ClassQueryConfig`), `processor` (of
`ClassQueryVideoProcessor`), `data` (of `DataArguments`), `optimization` (of `OptimizationArguments`) and `training`
(of transformers' `TrainingArguments`). `base` names a recipe whose values it changes, `labels` a list of action names,
`description` says what it is for, and `sources` where its values come from. What is unknown is refused.
"""

import importlib


# Loaded when they are used: recipes take transformers, which lists and help texts do without.
_LAZY = {
    "DataArguments": "arguments",
    "OptimizationArguments": "arguments",
    "Recipe": "recipes",
    "RecipeError": "recipes",
    "list_recipes": "listing",
    "load_recipe": "recipes",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "DataArguments",
    "OptimizationArguments",
    "Recipe",
    "RecipeError",
    "list_recipes",
    "load_recipe",
]
