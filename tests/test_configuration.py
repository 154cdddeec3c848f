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
        ([], "must hold an object, got list"),
        ({"model": 3}, "section model must be an object, got 3"),
        ({"labels": "ava_v22"}, "no list of labels 'ava_v22', did you mean 'ava_v2_2'"),
        ({"base": "ava22_vit"}, "no recipe 'ava22_vit', did you mean 'ava22_vit_b'"),
        ({"sources": {"paper": ["model.num_quries"]}}, "sources: unknown 'model.num_quries'"),
        ({"model": {"num_queries": 5}, "sources": {"paper": ["model.num_querys"]}}, "mean 'model.num_queries'"),
        ({"sources": ["a"]}, "sources must list paths of values by their source, got .'a'."),
        ({"sources": {"paper": "a"}}, "sources must list paths"),
        ({"labels": "ava"}, "did you mean 'ava_v2_2'"),
        ({"base": "jhmdb"}, "did you mean '(demo_)?jhmdb_?21"),
        (
            {"model": {"backbone_config": {"model_type": "classquery_csn", "hidden_size": 3}}},
            "unknown 'hidden_size'; known: .*depths, last_stride, freeze_stages, freeze_batch_norm",
        ),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"resampling_grid": "pixel_centres"}}, "is 'pixel_centres', did you mean 'pixel_centers'"),
        ({"model": {"num_queries": "many"}}, "num_queries must be int, got 'many'"),
        ({"model": {"num_queries": 2.5}}, "num_queries must be int, got 2.5"),
        ({"model": {"auxiliary_loss": 1}}, "auxiliary_loss must be bool, got 1"),
        ({"model": {"d_model": 60}}, "`d_model` must be a multiple of 16"),
        ({"model": {"backbone_config": {"position_table": "factorised"}}}, "did you mean 'factorized'"),
        ({"model": {"backbone_config": {"model_type": "classquery_csn", "depths": [3]}}}, "four positive numbers"),
        ({"data": {"dataset": "jhmdb21"}}, "dataset is 'jhmdb21', did you mean 'jhmdb_21'"),
        ({"data": {"flip_probability": "often"}}, "flip_probability must be float, got 'often'"),
        ({"optimization": {"decay_epochs": 3}}, "decay_epochs must be .*list.*, got 3"),
        ({"training": {"optim": "adamw_tortch"}}, "optim is 'adamw_tortch', did you mean 'adamw_torch'"),
        ({"training": {"lr_scheduler_type": "cosin"}}, "did you mean 'cosine'"),
        ({"training": {"seed": True}}, "seed must be int, got True"),
        ({"model": {"d_model": 60}}, r"recipe.json, section model: `d_model` must"),
        ({"model": {"class_groups": ["a"]}}, "class_groups must be .*, got .'a'."),
        ({"model": {"dropout": 2}}, "section model: `dropout` must be between 0 and 1, got 2"),
        ({"processor": {"size": {"shortest_edg": 256}}}, "section processor: size must be .*, got {'shortest_edg'"),
        ({"processor": {"size": 256}}, "section processor: size must be .*, got 256"),
        ({"processor": {"size": {"shortest_edge": 0}}}, "section processor: size must be"),
        ({"data": {"fold": 7}}, "section data: --fold must be 0, 1 or 2, got 7"),
        ({"data": {"hue_jitter": 500}}, "--hue_jitter must be between 0 and 180, got 500"),
        ({"data": {"flip_probability": 2}}, "--flip_probability must be between 0 and 1, got 2"),
        ({"data": {"keyframes_per_second": 0}}, "--keyframes_per_second must be more than 0"),
        ({"data": {"color_noise": -1}}, "--color_noise must be at least 0"),
        ({"data": {"max_resize_shortest_edge": 200}}, "at least --resize_shortest_edge 288, got 200"),
        ({"optimization": {"decay_epochs": ["a"]}}, "decay_epochs must be .*list.*, got .'a'."),
        ({"optimization": {"ema_decay": 2}}, "section optimization: --ema_decay must be"),
        ({"training": {"num_train_epochs": -3}}, "section training: num_train_epochs must be more than 0, got -3"),
        ({"training": {"learning_rate": -1}}, "learning_rate must be at least 0, got -1"),
        ({"training": {"metric_for_best_model": "frame_map_5"}}, "'frame_map_5', did you mean 'frame_map_50'"),
        ({"training": {"metric_for_best_model": "eval_frame_ap_50/run"}}, "/run.; known: .* as frame_ap_50/LABEL"),
    ],
)
def test_value_that_cannot_be_raises_and_names_the_closest(tmp_path, content, message):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(content))

    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("metric", ["loss", "eval_video_map_20", "frame_ap_50/golf"])
def test_metrics_of_evaluation_choose_the_best_model(tmp_path, metric):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"labels": "jhmdb_21", "training": {"metric_for_best_model": metric}}))

    assert load_recipe(path).training == {"metric_for_best_model": metric}


def test_recipe_that_is_its_own_base_raises(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps({"base": str(second)}))
    second.write_text(json.dumps({"base": str(first)}))

    with pytest.raises(RecipeError, match="its own base: .*first.json -> .*second.json -> .*first.json"):
        load_recipe(first)


def test_labels_that_are_no_list_raise(tmp_path):
    (tmp_path / "labels.json").write_text("{}")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"labels": str(tmp_path / "labels.json")}))

    with pytest.raises(RecipeError, match=r"labels.json must hold a list, got dict"):
        load_recipe(path)


def test_table_of_a_model_with_another_backbone_says_what_it_lacks():
    recipe = load_recipe("demo")
    sections = {name: getattr(recipe, name) for name in ("processor", "data", "optimization", "training")}
    config = ClassQueryConfig(backbone_config={"model_type": "classquery_csn"})

    lines = recipe.table(sections | {"model": config}).splitlines()

    row = next(line for line in lines if line.startswith("model.backbone_config.hidden_size "))
    assert row.split(maxsplit=1)[1].startswith("not in this model ")
    assert row.endswith("changed, recipe: 64")


def test_recipe_changes_its_base(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"base": "ava22_csn152", "model": {"backbone_config": {"freeze_stages": 0}}}))

    recipe, base = load_recipe(path), load_recipe("ava22_csn152")

    assert recipe.model["backbone_config"] == base.model["backbone_config"] | {"freeze_stages": 0}
    assert recipe.training == base.training


def test_another_kind_of_backbone_takes_nothing_from_that_of_the_base(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(
        json.dumps({"base": "ava22_csn152", "model": {"backbone_config": {"model_type": "classquery_vit"}}})
    )

    recipe = load_recipe(path)

    assert recipe.model["backbone_config"] == {"model_type": "classquery_vit"}
    assert not any("depths" in path for path in recipe.sources)


def test_recipe_replaces_the_labels_of_its_base(tmp_path):
    (tmp_path / "labels.json").write_text('["run", "stand"]')
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"base": "ava22_vit_b", "labels": str(tmp_path / "labels.json")}))

    assert load_recipe(path).model["id2label"] == {0: "run", 1: "stand"}


PUBLISHED = [name for name in list_recipes() if not name.startswith(("demo", "finetune"))]


def test_all_published_experiments_and_their_first_stages_have_recipes():
    assert PUBLISHED == [
        "ava22_csn152",
        "ava22_csn50",
        "ava22_csn50_stage1",
        "ava22_vit_b",
        "ava22_vit_b_v2",
        "jhmdb21_vit_b",
        "jhmdb21_vit_b_stage1",
        "ucf101_24_vit_b",
        "ucf101_24_vit_b_stage1",
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_a_published_recipe_has_a_source(name):
    recipe = load_recipe(name)

    assert recipe.sources.keys() == recipe.values().keys()
    assert set(recipe.sources.values()) <= {
        "paper",
        "released configuration",
        "released data loader",
        "authors' training code",
        "ours",
    }


@pytest.mark.parametrize(
    ("name", "frames", "stride", "short_side", "labels", "queries", "layers", "coefficients", "eos"),
    [
        ("ava22_csn50", 32, 2, 256, 80, 15, 6, (12, 5, 2, 1), 0.1),
        ("ava22_csn152", 32, 2, 256, 80, 15, 6, (10, 5, 2, 1), 0.1),
        ("ava22_vit_b", 16, 4, 256, 80, 15, 6, (10, 5, 2, 1), 0.1),
        ("ava22_vit_b_v2", 16, 4, 256, 80, 15, 6, (10, 5, 2, 1), 0.1),
        ("ucf101_24_vit_b", 32, 1, 224, 24, 15, 3, (4, 5, 2, 3), 0.5),
        ("jhmdb21_vit_b", 40, 1, 256, 21, 5, 3, (4, 5, 2, 3), 0.5),
    ],
)
def test_published_recipes_say_what_was_published(
    name, frames, stride, short_side, labels, queries, layers, coefficients, eos
):
    recipe = load_recipe(name)
    config = ClassQueryConfig(**recipe.model)

    assert (config.num_frames, config.frame_stride) == (frames, stride)
    assert recipe.processor["size"] == {"shortest_edge": short_side}
    assert (config.num_labels, config.num_queries) == (labels, queries)
    assert config.encoder_layers == config.decoder_layers == layers
    assert coefficients == (
        config.class_loss_coefficient,
        config.bbox_loss_coefficient,
        config.giou_loss_coefficient,
        config.actor_loss_coefficient,
    )
    assert config.eos_coefficient == eos
    assert config.positive_weight == 10
    assert (config.class_cost, config.bbox_cost, config.giou_cost) == (12 if labels == 80 else 4, 5, 2)
    assert config.label_smoothing == (0.1 if labels == 80 else 0)
    assert config.score_with_actor == (labels != 80)


def test_labels_of_the_published_sets_have_their_official_ids():
    ava = load_recipe("ava22_vit_b").model["id2label"]
    ucf, jhmdb = load_recipe("ucf101_24_vit_b").model["id2label"], load_recipe("jhmdb21_vit_b").model["id2label"]

    # Official ids of AVA count from 1.
    assert (ava[11], ava[79]) == ("stand", "watch (a person)")
    assert list(ucf.values()) == sorted(ucf.values())
    assert list(jhmdb.values()) == sorted(jhmdb.values())
