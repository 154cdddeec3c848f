"""The published training, number by number."""

import pytest

from classquery.configuration import load_recipe


AVA = {"learning_rate": 1e-4, "weight_decay": 1e-4, "num_train_epochs": 12, "per_device_train_batch_size": 2}
UCF = {"learning_rate": 2e-4, "weight_decay": 2e-4, "num_train_epochs": 18, "per_device_train_batch_size": 1}
AVA_SCHEDULE = {
    "total_batch_size": 16,
    "warmup_epochs": 3,
    "warmup_start_learning_rate": 1e-5,
    "decay_epochs": [8, 11],
}
UCF_SCHEDULE = {"total_batch_size": 8, "warmup_epochs": 4, "warmup_start_learning_rate": 2e-6, "decay_epochs": [16]}


@pytest.mark.parametrize(
    ("name", "training", "optimization"),
    [
        ("ava22_vit_b", AVA, AVA_SCHEDULE),
        ("ava22_vit_b_v2", AVA, AVA_SCHEDULE),
        ("ava22_csn50", AVA, AVA_SCHEDULE | {"sync_batch_norm": True}),
        ("ava22_csn152", AVA, AVA_SCHEDULE | {"sync_batch_norm": True}),
        ("ava22_csn50_stage1", AVA | {"num_train_epochs": 15}, AVA_SCHEDULE | {"decay_epochs": [8, 12]}),
        ("ucf101_24_vit_b", UCF, UCF_SCHEDULE),
        ("ucf101_24_vit_b_stage1", UCF | {"num_train_epochs": 40}, UCF_SCHEDULE | {"decay_epochs": [30]}),
        ("jhmdb21_vit_b", UCF | {"num_train_epochs": 50}, UCF_SCHEDULE | {"warmup_epochs": 10, "decay_epochs": [40]}),
        (
            "jhmdb21_vit_b_stage1",
            UCF | {"num_train_epochs": 350},
            UCF_SCHEDULE | {"warmup_epochs": 10, "decay_epochs": [300]},
        ),
    ],
)
def test_schedule_is_the_published_one(name, training, optimization):
    recipe = load_recipe(name)
    common = {"backbone_learning_rate_factor": 0.1, "decay_norms_and_biases": True, "decay_factor": 0.1}
    # Published as `backbone.0.lateral_convs`, and the factor belongs to names that contain `backbone`.
    common |= {"pyramid_scales_with_backbone": True}

    fixed = {"max_grad_norm": 0.1, "optim": "adamw_torch", "seed": 1}
    assert recipe.training.items() >= (training | fixed).items()
    assert recipe.optimization.items() >= (common | optimization).items()


@pytest.mark.parametrize(
    ("name", "short_side", "resized", "jitter"),
    [("ava22_vit_b", 256, 288, 0.4), ("ucf101_24_vit_b", 224, 256, 0.5), ("jhmdb21_vit_b", 256, 288, 0.5)],
)
def test_augmentation_is_the_published_one(name, short_side, resized, jitter):
    recipe = load_recipe(name)

    assert recipe.processor["size"]["shortest_edge"] == short_side
    expected = {
        "resize_shortest_edge": resized,
        "flip_probability": 0.5,
        "hue_jitter": 20,
        "saturation_jitter": jitter,
        "value_jitter": jitter,
        # Added to pixels in [0, 255] by the release, where its shifts of 0.02 change nothing.
        "color_noise": 0.0,
    }
    assert recipe.data.items() >= expected.items()


def test_csn_trains_what_the_release_does():
    backbone = load_recipe("ava22_csn152").model["backbone_config"]

    # The stem and two stages are frozen.
    assert backbone["freeze_stages"] == 3
    assert load_recipe("ava22_csn50_stage1").model["class_loss_coefficient"] == 10
