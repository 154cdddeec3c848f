"""How often a step of training and a batch of an evaluation wait for a GPU, and what they compute with one."""

import pickle

import numpy as np
import pytest
import torch
from host_waits import count_host_waits, describe, on_device, on_host, put_on_device
from utils import tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.clips import ClipLabel, ClipLabels
from classquery.engine.training.collation import BatchLabels
from classquery.engine.training.evaluation import clip_records, read_outputs
from classquery.engine.training.monitoring import DivergenceError, LossMonitor
from classquery.loss_classquery import ActionTargets, action_detection_loss


CONFIG = tiny_config(output_frames="all", score_with_actor=True, decoder_layers=3)


def random_predictions():
    generator = torch.Generator().manual_seed(0)
    shape = (2, CONFIG.num_output_frames, CONFIG.num_queries)
    return [
        {
            "logits": torch.randn(*shape, CONFIG.num_labels, generator=generator),
            "pred_boxes": torch.rand(*shape, 4, generator=generator) * 0.5 + 0.2,
            "actor_logits": torch.randn(*shape, 3, generator=generator),
        }
        for _ in range(CONFIG.decoder_layers)
    ]


def make_labels(num_padding: int = 0):
    labels = tiny_batch(CONFIG)["labels"]
    for label in labels:
        label["frame_mask"][:num_padding] = False
    return ClipLabels(ClipLabel(label, {"clip_id": str(index)}) for index, label in enumerate(labels))


@pytest.mark.parametrize("num_padding", [0, 1])
def test_loss_reads_the_device_once_for_all_layers(num_padding):
    predictions, labels = random_predictions(), make_labels(num_padding)
    expected, expected_terms = action_detection_loss(predictions, labels, CONFIG)
    predictions, labels = on_device(predictions), BatchLabels(labels)

    with count_host_waits() as waits:
        loss, terms = action_detection_loss(predictions, labels, CONFIG)

    assert [wait.reason for wait in waits if "costs" in wait.code] == ["a tensor goes to the host"]
    assert [wait.reason for wait in waits if "pairs" in wait.code] == ["a tensor goes to the device"]
    # What the labels themselves are: from pinned memory, it goes beside the forward pass.
    others = [wait for wait in waits if "costs" not in wait.code and "pairs" not in wait.code]
    assert len(others) == 1 + (num_padding > 0), describe(waits)
    assert all("non_blocking=True" in wait.code for wait in others)
    assert torch.equal(on_host(loss), expected)
    assert all(torch.equal(on_host(terms[name]), term) for name, term in expected_terms.items())


def test_labels_on_the_device_are_read_once():
    predictions, labels = random_predictions(), [dict(label) for label in make_labels()]
    expected, _ = action_detection_loss(predictions, labels, CONFIG)

    with count_host_waits() as waits:
        loss, _ = action_detection_loss(on_device(predictions), on_device(labels), CONFIG)

    assert [wait.reason for wait in waits].count("a tensor goes to the host") == 2, describe(waits)
    assert torch.equal(on_host(loss), expected)


def test_labels_come_from_workers_as_they_were_made():
    labels = BatchLabels(make_labels(num_padding=1))
    for label in labels:
        label["checksum"] = 7  # As a collator of one's own may add.

    received = pickle.loads(pickle.dumps(labels))

    assert [(label["clip_id"], label["checksum"]) for label in received] == [("0", 7), ("1", 7)]
    assert received.shape == labels.shape
    for name in ("actors", "valid", "frame_mask", "real_frames"):
        assert torch.equal(getattr(received, name), getattr(labels, name))
    assert all(torch.equal(one["boxes"], other["boxes"]) for one, other in zip(received, labels, strict=True))


def test_targets_of_another_size_than_the_predictions_raise():
    targets = ActionTargets(make_labels())
    predictions = [{name: states[..., :1, :, :] for name, states in random_predictions()[0].items()}]

    with pytest.raises(ValueError, match="must be of 1 frames and 5 classes, got 4 frames and 5 classes"):
        action_detection_loss(predictions, targets, CONFIG)


def pass_on_device(monitor, loss):
    terms = {"loss_class_0": torch.tensor(1.0), "loss_class": torch.tensor(loss)}
    monitor.add([{"clip_id": "a"}], on_device(torch.tensor(loss)), on_device(terms))


def test_losses_and_gradients_are_looked_at_once_a_log():
    monitor = LossMonitor()
    with count_host_waits() as waits:
        for loss in (1.0, 2.0, 3.0):
            pass_on_device(monitor, loss)
            monitor.check_gradient(on_device(torch.tensor(0.5)))
        assert not waits, describe(waits)
        means = monitor.pop_means()
        assert len(waits) == 1, describe(waits)
        monitor.read()

    assert len(waits) == 1
    assert means == {"loss_class_auxiliary": 1.0, "loss_class": 2.0}


@pytest.mark.parametrize("read", [LossMonitor.read, LossMonitor.pop_means])
def test_what_is_not_finite_on_the_device_is_found_at_the_log(read):
    monitor = LossMonitor()
    monitor.begin_update([{"labels": [{"clip_id": "of the update", "valid": torch.ones(1, 1)}]}])
    with count_host_waits():
        pass_on_device(monitor, 1.0)
        monitor.check_gradient(on_device(torch.tensor(torch.nan)))
        pass_on_device(monitor, torch.nan)

        with pytest.raises(DivergenceError, match="gradient is nan .*clips: of the update$"):
            read(monitor)


def test_evaluation_reads_a_batch_once():
    torch.manual_seed(0)
    model, labels = ClassQueryForVideoActionDetection(CONFIG).eval(), BatchLabels(make_labels(num_padding=1))
    inputs = {name: value for name, value in tiny_batch(CONFIG).items() if name != "labels"}
    with torch.no_grad():
        expected = model(**inputs, labels=labels)
        records = clip_records(ClassQueryVideoProcessor(), expected, labels)
        put_on_device(model)
        with count_host_waits():
            outputs = model(**on_device(inputs))
        with count_host_waits() as waits:
            read, layers = read_outputs(outputs)
            loss, _ = action_detection_loss(layers, labels, CONFIG)
            found = clip_records(ClassQueryVideoProcessor(), read, labels)

    assert [wait.reason for wait in waits] == ["a tensor goes to the host"], describe(waits)
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=0)
    for one, other in zip(found, records, strict=True):
        for name in ("boxes", "scores", "actor_scores", "true_boxes"):
            # Tensors at other addresses are summed in another order.
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-6)
