"""What a run says when it cannot go well."""

import math

import pytest
import torch

from classquery.engine.training.monitoring import PATIENCE, DivergenceError, LossMonitor, NoActorError
from classquery.loss_classquery import NotFiniteError


LABELS = [{"clip_id": "a", "valid": torch.zeros(0, 1, dtype=torch.bool)}, {"clip_id": "b", "valid": torch.ones(1, 1)}]


def add(monitor, loss, labels=LABELS):
    monitor.add(labels, torch.tensor(loss), {"loss_class_0": torch.tensor(1.0), "loss_class": torch.tensor(loss)})


def test_curves_are_means_of_the_last_layer_and_of_the_sum_over_the_others():
    monitor = LossMonitor()
    for value in (1.0, 3.0):
        terms = {f"loss_class{suffix}": torch.tensor(value) for suffix in ("_0", "_1", "")}
        monitor.add(LABELS, torch.tensor(value), terms)

    assert monitor.pop_means() == {"loss_class_auxiliary": 4.0, "loss_class": 2.0}
    assert monitor.pop_means() == {}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_not_finite_names_clips_and_terms(loss):
    with pytest.raises(
        DivergenceError, match=rf"the loss is {loss} \(loss_class_0 1, loss_class {loss}\).*clips: a, b"
    ):
        add(LossMonitor(), loss)


def test_exploding_loss_stops_after_a_few_passes_of_comparison():
    monitor = LossMonitor(explosion_factor=100)
    add(monitor, 1000.0)
    for _ in range(20):
        add(monitor, 1.0)
    add(monitor, 4000.0)

    with pytest.raises(DivergenceError, match=r"the loss is 3e\+04 after a mean of 228.2 over.*clips: a, b"):
        add(monitor, 30000.0)


def test_gradient_that_is_not_finite_names_all_clips_of_the_update():
    monitor = LossMonitor()
    monitor.begin_update([{"labels": LABELS}, {"labels": [LABELS[1] | {"clip_id": "c"}]}])
    monitor.check_gradient(torch.tensor(1e30))

    with pytest.raises(DivergenceError, match="gradient is nan.*clips: a, b, c"):
        monitor.check_gradient(torch.tensor(math.nan))


def test_predictions_that_cannot_be_matched_name_the_clips():
    with pytest.raises(DivergenceError, match="boxes are not finite; clips: a, b"), LossMonitor().matching(LABELS):
        raise NotFiniteError("boxes are not finite")


def test_updates_without_any_actor_stop_the_run():
    monitor = LossMonitor()
    for _ in range(PATIENCE - 1):
        monitor.begin_update([{"labels": LABELS[:1]}])

    with pytest.raises(NoActorError, match=f"in any clip of the first {PATIENCE} updates, the last of them a:"):
        monitor.begin_update([{"labels": LABELS[:1]}])


def test_one_actor_is_enough():
    monitor = LossMonitor()
    monitor.begin_update([{"labels": LABELS}])
    for _ in range(PATIENCE):
        monitor.begin_update([{"labels": LABELS[:1]}])
