"""Plans of sizes: made once, without waiting for the device afterwards, and right for what else is asked for."""

import copy
import pickle

import pytest
import torch
from host_waits import count_host_waits, describe, on_device, put_on_device
from utils import tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.configuration_classquery import CORRECTED
from classquery.kernels import use_implementation
from classquery.plan_classquery import ClipPlan, ClipPlans


CONFIGS = {
    "released": {},
    "masked": {"padding": "masked"},
    "corrected": CORRECTED,
    "corrected, all frames": CORRECTED | {"output_frames": "all"},
    "groups of classes": {"class_groups": [3, 2]},
    "csn": {"backbone_config": {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}, "num_frames": 8},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(**config):
    torch.manual_seed(0)
    return ClassQueryForVideoActionDetection(tiny_config(**config)).eval()


def clips(config, padded=True):
    batch = tiny_batch(config)
    return {name: batch[name] for name in ("pixel_values", "pixel_mask")[: 1 + padded]}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_forward_does_not_wait_after_the_first_clips_of_a_size(config, padded):
    model = make_model(**config)
    inputs = clips(model.config, padded)
    with torch.no_grad(), use_implementation("torch"):
        expected = model(**inputs)
        put_on_device(model)
        inputs = on_device(inputs)
        with count_host_waits():
            model(**inputs)

        with count_host_waits() as waits:
            outputs = model(**inputs)

    assert not waits, describe(waits)
    for name in ("logits", "pred_boxes", "actor_logits"):
        torch.testing.assert_close(outputs[name].held, expected[name])


def test_sizes_are_told_apart_and_padding_is_not_remembered():
    model, fresh = make_model(), make_model()
    with torch.no_grad():
        batches = [clips(model.config), clips(model.config, padded=False)]
        smaller = {"pixel_values": batches[0]["pixel_values"][..., :40].contiguous()}
        other_padding = copy.deepcopy(batches[0])
        other_padding["pixel_mask"][0, 20:] = 0
        for inputs in [*batches, smaller, other_padding, *batches]:
            fresh.model._plans = ClipPlans()
            assert torch.equal(model(**inputs).logits, fresh(**inputs).logits)


@pytest.mark.parametrize("padding", ["released", "masked"])
def test_a_mask_without_padding_changes_nothing(padding):
    model = make_model(padding=padding)
    inputs = clips(model.config, padded=False)

    with torch.no_grad():
        expected = model(**inputs).logits
        logits = model(**inputs, pixel_mask=torch.ones(2, 32, 48)).logits

    assert torch.equal(logits, expected)


def test_mask_that_is_changed_in_place_is_read_again():
    model = make_model(padding="masked")
    inputs = clips(model.config)
    with torch.no_grad():
        before = model(**inputs).logits
        inputs["pixel_mask"][1, 16:] = 0
        after = model(**inputs).logits
        expected = model(**copy.deepcopy(inputs)).logits

    assert torch.equal(after, expected)
    assert not torch.equal(after[1], before[1])


@pytest.mark.parametrize("padding", ["released", "masked"])
def test_plans_of_inference_serve_in_training(padding):
    model = make_model(padding=padding)
    batch = tiny_batch(model.config)
    with torch.inference_mode():
        model(batch["pixel_values"], batch["pixel_mask"])

    model.train()(**batch).loss.backward()

    assert all(parameter.grad is not None for parameter in model.parameters())


def test_changed_configuration_changes_the_plan():
    model = make_model()
    inputs = clips(model.config)
    with torch.no_grad():
        released = model(**inputs).logits
        model.config.resampling_grid = "pixel_centers"
        changed = model(**inputs).logits
        expected = make_model(resampling_grid="pixel_centers")(**inputs).logits

    assert torch.equal(changed, expected)
    assert not torch.equal(changed, released)


def test_only_the_last_plans_are_kept(monkeypatch):
    monkeypatch.setattr(ClipPlans, "most", 2)
    plans, config, made = ClipPlans(), tiny_config(), []
    make = ClipPlan.make
    monkeypatch.setattr(ClipPlan, "make", lambda *args: made.append(args[1][0][2]) or make(*args))

    for width in (5, 6, 5, 7, 5, 6):
        shapes = [(2, 4, width), (2, 2, 3), (2, 1, 1)]
        plan = plans.find(config, shapes, 4, torch.zeros(1))
        assert plan.shapes == shapes

    assert made == [5, 6, 7, 6]


def test_copies_of_a_model_make_plans_of_their_own():
    model = make_model()
    inputs = clips(model.config)
    with torch.no_grad():
        expected = model(**inputs).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert not other.model._plans._plans
            assert torch.equal(other(**inputs).logits, expected)


def test_plan_moves_whole():
    plan = ClipPlan.make(tiny_config(), [(2, 4, 6), (2, 2, 3), (2, 1, 1)], 4, torch.device("cpu"))

    moved = plan.to("meta")

    assert moved.read_index.is_meta
    assert moved.axis_weights[0].rows.is_meta
    assert moved.encodings[1][2].is_meta
    assert moved.shapes == plan.shapes
