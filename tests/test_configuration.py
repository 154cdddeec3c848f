"""Recipes: complete, and refused where they say something unknown."""

import json

import pytest

from classquery import ClassQueryConfig, ClassQueryVideoProcessor
from classquery.configuration import RecipeError, list_recipes, load_recipe


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_makes_a_model_configuration_and_a_processor(name):
    recipe = load_recipe(name)

    assert ClassQueryConfig(**recipe.model).num_labels > 0
    assert ClassQueryVideoProcessor(**recipe.processor).size["shortest_edge"] > 0


def test_recipe_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"model": {"num_queries": 3}}')

    recipe = load_recipe(path)

    assert recipe.name == "mine"
    assert recipe.model == {"num_queries": 3}


def test_unknown_recipe_raises_with_the_closest_name():
    with pytest.raises(RecipeError, match="no recipe 'dmeo', did you mean 'demo'"):
        load_recipe("dmeo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modle": {}}, "unknown 'modle', did you mean 'model'"),
        ({"model": {"num_querys": 3}}, "unknown 'num_querys', did you mean 'num_queries'"),
        (
            {"model": {"backbone_config": {"model_type": "classquery_vit", "hiden_size": 3}}},
            "unknown 'hiden_size', did you mean 'hidden_size'",
        ),
        ({"model": {"backbone_config": {"model_type": "vit"}}}, "model_type: unknown 'vit'"),
        ({"model": {"backbone_config": "vit"}}, "backbone_config must be an object, got 'vit'"),
        ({"training": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"training": {"num_labels": 3}}, "unknown 'num_labels'"),
        ({"data": {"crop": 1}}, "section data: unknown 'crop'"),
        ({"processor": {"sise": {}}}, "did you mean 'size'"),
        ([], "must hold an object of objects"),
    ],
)
def test_unknown_key_raises_with_the_closest_name(tmp_path, content, message):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(content))

    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_broken_json_raises(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text("{")

    with pytest.raises(RecipeError, match="no valid JSON"):
        load_recipe(path)
