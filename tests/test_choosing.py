"""The recipe of a run that names none."""

import pytest

from classquery.engine.run.choosing import choose_recipe
from classquery.engine.run.parsing import parse_arguments
from classquery.engine.run.tasks import SCRIPT


def test_recipe_that_is_given_is_taken():
    assert choose_recipe("ava22_vit_b", "custom", None, True) == ("ava22_vit_b", "")


@pytest.mark.parametrize(
    ("dataset", "model", "do_train", "expected"),
    [
        (None, None, True, "demo"),
        ("demo_jhmdb_21", None, True, "demo_jhmdb_21"),
        ("custom", "model", False, "demo"),
        ("custom", "model", True, "finetune"),
    ],
)
def test_recipe_follows_from_data_and_model(dataset, model, do_train, expected):
    choice = choose_recipe(None, dataset, model, do_train)

    assert choice.recipe == expected
    assert ("chosen because model goes on" in choice.reason) == (expected == "finetune")


def test_data_of_ones_own_need_a_model_or_a_recipe():
    with pytest.raises(ValueError, match="--dataset custom alone does not say what to train: give --model_name"):
        choose_recipe(None, "custom", None, True)


def test_fine_tuning_leaves_sizes_and_thresholds_to_the_model(tmp_path):
    arguments = ["--dataset", "custom", "--data_dir", "data", "--model_name_or_path", "model", "--do_train"]

    options = parse_arguments([*arguments, "--output_dir", str(tmp_path)], SCRIPT)

    assert options.recipe.name == options.model.recipe == "finetune"
    assert options.data.resize_shortest_edge is None
    assert options.data.score_threshold is options.data.keyframes_per_second is None
    assert options.optimization.backbone_learning_rate_factor == 0.1
    assert options.optimization.class_learning_rate_factor == 10
    assert options.training.warmup_steps == 0.1
