"""Which recipes there are, and what each is for; importable at once."""

import json
from pathlib import Path


RECIPE_DIR = Path(__file__).parent


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_DIR.glob("*.json"))


def describe_recipes() -> dict[str, str]:
    """What each of them is for, in a line, by name."""
    return {
        name: json.loads((RECIPE_DIR / f"{name}.json").read_text(encoding="utf-8"))["description"]
        for name in list_recipes()
    }
