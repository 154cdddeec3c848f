"""Parameter groups and schedule: what each parameter gets at each step."""

import pytest
import torch
from utils import TOKEN_BACKBONES, tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.configuration.arguments import OptimizationArguments
from classquery.engine.training.optimization import (
    accumulation_steps,
    check_parameter_groups,
    fitting_warmup,
    parameter_groups,
    rate_at_width,
    warmup_multistep_schedule,
)


CSN = {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def model():
    return ClassQueryForVideoActionDetection(tiny_config())


@pytest.mark.parametrize("decay_norms_and_biases", [False, True])
def test_every_parameter_is_in_one_group(model, decay_norms_and_biases):
    groups = parameter_groups(
        model, learning_rate=1.0, weight_decay=0.1, decay_norms_and_biases=decay_norms_and_biases
    )

    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert len(groups) == (2 if decay_norms_and_biases else 4)


def test_backbone_has_its_own_rate_and_vectors_no_decay(model):
    groups = parameter_groups(model, learning_rate=1e-3, weight_decay=0.1, backbone_learning_rate_factor=0.1)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}

    block = model.model.backbone.layers[0]
    assert found[id(block.attn.qkv.weight)] == pytest.approx((1e-4, 0.1))
    assert found[id(block.norm1.weight)] == pytest.approx((1e-4, 0.0))
    assert found[id(model.model.feature_pyramid.scales[0][0].weight)] == pytest.approx((1e-3, 0.1))
    assert found[id(model.actor_head.bias)] == pytest.approx((1e-3, 0.0))


def test_classes_may_learn_faster_and_widths_have_rates(model, caplog):
    with caplog.at_level("INFO"):
        learning_rate = rate_at_width(1e-3, 4 * model.config.d_model, model.config.d_model)
    groups = parameter_groups(
        model, learning_rate=learning_rate, weight_decay=0.1, class_learning_rate_factor=5, matrix_learning_rate=0.02
    )
    rates = {name: group["lr"] for name, p in model.named_parameters() for group in groups if any_is(group, p)}

    assert not groups[0]["name"].startswith("classes")
    assert rates.pop("model.decoder.class_queries") == pytest.approx(2e-2)
    assert rates["actor_head.bias"] == pytest.approx(4e-3)
    assert set(map(float, rates.values())) == {4e-3, 0.02}
    assert caplog.messages == [
        f"the learning rate is 0.004: 0.001 belongs to a width of {4 * model.config.d_model}, and the model has "
        f"{model.config.d_model}"
    ]
    assert rate_at_width(1e-3, None, 48) == rate_at_width(1e-3, 48, 48) == 1e-3


def any_is(group, parameter):
    """Whether a group has a parameter."""
    return any(one is parameter for one in group["params"])


def test_scales_of_the_pyramid_may_learn_as_the_backbone(model):
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "backbone_learning_rate_factor": 0.1}
    groups = parameter_groups(model, pyramid_scales_with_backbone=True, **settings)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if rates[id(p)] == pytest.approx(1e-4)}

    pyramid = model.model.feature_pyramid
    assert all(f"model.feature_pyramid.scales.{name}" in names for name, _ in pyramid.scales.named_parameters())
    assert not any(name.startswith("model.feature_pyramid.projections") for name in names)
    backbone = {f"model.backbone.{name}" for name, _ in model.model.backbone.named_parameters()}
    assert {name for name in names if "feature_pyramid" not in name} == backbone


@pytest.mark.parametrize("backbone", [{}, *TOKEN_BACKBONES.values(), CSN])
def test_every_parameter_has_a_gradient(backbone):
    """So the recipes let no process look for those that have none."""
    model = ClassQueryForVideoActionDetection(tiny_config(**({"backbone_config": backbone} if backbone else {})))

    model.train()(**tiny_batch(model.config)).loss.backward()

    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    assert not [name for name, gradient in trained if gradient is None]


def test_frozen_parameters_are_left_out():
    model = ClassQueryForVideoActionDetection(tiny_config())
    model.model.backbone.requires_grad_(False)

    names = {group["name"] for group in parameter_groups(model, learning_rate=1.0, weight_decay=0.0)}

    assert names == {"head", "head without decay"}
    with pytest.raises(ValueError, match="every one is frozen"):
        parameter_groups(model.requires_grad_(False), learning_rate=1.0, weight_decay=0.0)


def test_groups_that_miss_or_repeat_a_parameter_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    first, second = ({"params": list(layer.parameters())} for layer in model)

    check_parameter_groups(model, [first, second])
    with pytest.raises(ValueError, match="the optimizer miss 2 of 4 parameters to be trained, as 1.weight"):
        check_parameter_groups(model, [first])
    with pytest.raises(ValueError, match="the optimizer repeat 2 of 4 parameters to be trained, as 0.weight"):
        check_parameter_groups(model, [first, second, first])
    model[1].requires_grad_(False)
    check_parameter_groups(model, [first])


def rates(groups, num_steps, **schedule):
    optimizer = torch.optim.SGD(groups)
    scheduler = warmup_multistep_schedule(optimizer, **schedule)
    seen = []
    for _ in range(num_steps):
        seen.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    return torch.tensor(seen).T


def test_rates_rise_from_one_absolute_rate_and_fall_at_the_milestones():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-4, 1e-5)]

    head, backbone = rates(
        groups, 12, updates_per_epoch=2, warmup_epochs=2, warmup_start_learning_rate=1e-5, decay_epochs=[3, 5]
    )

    expected = torch.tensor([0.1, 0.325, 0.55, 0.775, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    torch.testing.assert_close(head, expected * 1e-4)
    # The published backbone starts at its own rate and stays there.
    torch.testing.assert_close(backbone, torch.tensor([1.0] * 6 + [0.1] * 4 + [0.01] * 2) * 1e-5)


def test_constant_without_warmup_and_decay():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5}]

    assert rates(groups, 3, updates_per_epoch=2).tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(100, 1000, 100), (100, 60, 6), (5, 5, 0), (0, 0, 0)])
def test_warmup_ends_before_the_run(caplog, warmup, steps, expected):
    assert fitting_warmup(warmup, steps) == expected
    assert ("the warm-up would take" in caplog.text) == (expected != warmup)


def test_accumulation_makes_the_total_batch():
    assert accumulation_steps(16, 4) == 4
    with pytest.raises(ValueError, match="--total_batch_size 16 is no multiple of the 3 clips"):
        accumulation_steps(16, 3)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("total_batch_size", 0, "at least 1"),
        ("backbone_learning_rate_factor", 0.0, r"more than 0 \(--freeze backbone"),
        ("class_learning_rate_factor", -1.0, "more than 0"),
        ("learning_rate_width", 0, "at least 1"),
        ("warmup_epochs", -1.0, "at least 0"),
        ("warmup_start_learning_rate", -1e-5, "at least 0"),
        ("decay_epochs", [1.0, -1.0], "numbers of at least 0"),
        ("decay_factor", -1.0, "more than 0 and at most 1"),
        ("decay_factor", 0.0, "more than 0 and at most 1"),
        ("decay_factor", 1.5, "more than 0 and at most 1"),
        ("ema_decay", 1.0, "at least 0 and less than 1"),
        ("ema_decay", float("nan"), "at least 0 and less than 1"),
        ("loss_explosion_factor", 1.0, "more than 1"),
    ],
)
def test_arguments_out_of_range_are_refused(name, value, expected):
    with pytest.raises(ValueError, match=f"--{name} must be {expected}.*, got "):
        OptimizationArguments(**{name: value})
