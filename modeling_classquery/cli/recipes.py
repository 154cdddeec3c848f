"""`classquery recipes`: list them, or show one with the source of each value."""

import argparse
import importlib
from collections.abc import Sequence

from classquery.configuration.listing import describe_recipes


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """Run the command.

    Raises:
        RecipeError: If there is no such recipe.
    """
    parser = argparse.ArgumentParser(prog=prog, description="List recipes, or show one with the source of each value.")
    parser.add_argument("name", nargs="?", help="one of the list, or a JSON file; without it, the list")
    name = parser.parse_args(arguments).name
    if name is None:
        described = describe_recipes()
        width = max(map(len, described))
        print("\n".join(f"{name:{width}}  {text}" for name, text in described.items()))
        return
    recipe = importlib.import_module("classquery.configuration").load_recipe(name)
    print("\n".join(filter(None, [f"{recipe.name}: {recipe.description}", recipe.table()])))
