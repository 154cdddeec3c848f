"""What a run says when it cannot go well."""

import math
import re

import numpy as np
import pytest
import torch

from classquery.data.metrics import frame_map
from classquery.engine.monitoring import PATIENCE, DivergenceError, LossMonitor, NoActorError, explain_zero
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


BOXES = [[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.2, 0.1, 0.6, 0.4], [0.1, 0.5, 0.3, 0.9]]


def tables(
    boxes=BOXES, true_boxes=((0.6, 0.0, 0.9, 0.3), (0.6, 0.0, 0.9, 0.3)), labels=((1, 0), (1, 0)), frames=(1, 2)
):
    """Two detections in each of two frames, and an actor in each."""
    detections = {"frame": np.repeat([1, 2], 2), "boxes": np.array(boxes, float), "scores": np.full((4, 2), 0.5)}
    truth = {"frame": np.array(frames), "boxes": np.array(true_boxes, float), "labels": np.array(labels)}
    return detections, truth


@pytest.mark.parametrize(
    ("changes", "label_ids", "explanation"),
    [
        ({"labels": ((0, 0), (0, 0))}, None, "no action is annotated"),
        ({}, [2], r"none of the annotated labels \[1\] is among the scored ones, \[2\]"),
        ({"frames": (3, 4)}, None, "no frame has both .*compare 1 with 3"),
        ({"true_boxes": ((60, 0, 90, 30), (0, 0, 9, 9))}, None, "the annotated boxes reach 90, not 1"),
        ({"boxes": np.array(BOXES) * 100}, None, "the detected boxes reach 90, not 1"),
        ({}, None, "more than an IoU of 0.00: the model detects other boxes"),
        (
            {"true_boxes": ((0.1, 0.1, 0.4, 0.24),) * 2},
            None,
            "more than an IoU of 0.47: the model detects other boxes",
        ),
        ({"boxes": BOXES[:2] * 2}, None, "the same boxes in all frames, as a model does that is not trained"),
    ],
)
def test_metric_of_zero_is_explained(changes, label_ids, explanation):
    detections, truth = tables(**changes)

    assert not frame_map(detections, truth, label_ids=label_ids)["frame_map_50"] > 0
    assert re.search(explanation, explain_zero(detections, truth, label_ids))


def test_clips_without_any_actor_are_explained():
    detections, _ = tables()
    truth = {"frame": np.zeros(0, int), "boxes": np.zeros((0, 4)), "labels": np.zeros((0, 2))}

    assert explain_zero(detections, truth) == "no action is annotated"
