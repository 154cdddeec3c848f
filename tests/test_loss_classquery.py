"""Matcher and criterion against brute force; the published ones are in `test_criterion_goldens.py`."""

import itertools
from unittest.mock import Mock, patch

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from classquery import ClassQueryConfig, loss_classquery
from classquery.loss_classquery import (
    action_detection_loss,
    generalized_box_iou,
    loss_counts,
    loss_divisors,
    match_actors,
)


# What the configurations of the two styles of data sets differ in.
STYLES = {
    "keyframes": {},
    "tubes": {
        "problem_type": "single_label_classification",
        "score_with_actor": True,
        "class_loss_normalization": "frames",
        "eos_coefficient": 0.5,
        "label_smoothing": 0.0,
    },
}


def style_config(style: str, **overrides) -> ClassQueryConfig:
    return ClassQueryConfig(**({"num_labels": 5, "num_queries": 4} | STYLES[style] | overrides))


def random_case(seed: int, actors_per_clip: list[int], num_frames: int = 3, num_queries: int = 4, num_labels: int = 5):
    """Predictions of two layers and labels with padding frames and absent actors."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(shape, generator=generator)

    batch_size = len(actors_per_clip)
    predictions = [
        {
            "logits": random(batch_size, num_frames, num_queries, num_labels) * 4 - 2,
            "pred_boxes": random(batch_size, num_frames, num_queries, 4) * 0.5 + 0.2,
            "actor_logits": random(batch_size, num_frames, num_queries, 3) * 4 - 2,
        }
        for _ in range(2)
    ]
    labels = [
        {
            "boxes": random(n, num_frames, 4) * 0.5 + 0.2,
            "class_labels": (random(n, num_frames, num_labels) > 0.5).float(),
            "valid": random(n, num_frames) > 0.3,
            "frame_mask": torch.tensor([True] * (num_frames - 1) + [index % 2 == 0]),
        }
        for index, n in enumerate(actors_per_clip)
    ]
    return predictions, labels


def padded_case(seed: int, actors_per_clip: list[int]):
    """A random case of six frames in which each clip has its own padding frames."""
    predictions, labels = random_case(seed, actors_per_clip, num_frames=6)
    for label, (front, end) in zip(labels, [(2, 0), (0, 1), (0, 0), (1, 3)], strict=False):
        label["frame_mask"] = torch.tensor([False] * front + [True] * (6 - front - end) + [False] * end)
    return predictions, labels


def clips_of(predictions: list[dict[str, torch.Tensor]], clips: slice | list[int]) -> list[dict[str, torch.Tensor]]:
    return [{name: states[clips] for name, states in layer.items()} for layer in predictions]


def match_labels(layer, labels, config):
    """Match one decoder layer of clips with the same number of actors."""
    targets = {
        "boxes": torch.cat([label["boxes"].transpose(0, 1) for label in labels]),
        "valid": torch.cat([(label["valid"] & label["frame_mask"]).T for label in labels]),
    }
    return match_actors({name: states.flatten(0, 1) for name, states in layer.items()}, targets, config)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("actors_per_clip", [[2, 1], [2, 0, 3], [0, 0]])
def test_terms_of_a_batch_are_the_sums_over_its_clips_divided_by_the_counts_of_the_batch(style, actors_per_clip):
    config = style_config(style)
    predictions, labels = padded_case(0, actors_per_clip)
    divisors = loss_divisors(loss_counts(labels, config))

    _, joint = action_detection_loss(predictions, labels, config)
    singles = [
        action_detection_loss(clips_of(predictions, slice(i, i + 1)), labels[i : i + 1], config, divisors)[1]
        for i in range(len(labels))
    ]

    assert len(joint) == 8
    for name, term in joint.items():
        torch.testing.assert_close(term, sum(single[name] for single in singles))


@pytest.mark.parametrize("style", STYLES)
def test_clip_without_actors_does_not_change_the_box_gradients_of_the_others(style):
    config = style_config(style, auxiliary_loss=False)
    predictions, labels = padded_case(11, [2, 0, 1])
    boxes = predictions[-1]["pred_boxes"].requires_grad_()

    action_detection_loss(predictions, labels, config)[0].backward()
    together, boxes.grad = boxes.grad, None
    action_detection_loss(clips_of(predictions, [0, 2]), [labels[0], labels[2]], config)[0].backward()

    assert together[0].any()
    torch.testing.assert_close(together, boxes.grad)


def test_layers_are_matched_and_supervised_alike():
    config = style_config("tubes")
    predictions, labels = padded_case(12, [2, 1])

    _, terms = action_detection_loss(predictions, labels, config)

    expected = {}
    for layer, suffix in zip(predictions, ["_0", ""], strict=True):
        single = action_detection_loss([layer], labels, config)[1]
        expected |= {name + suffix: term for name, term in single.items()}
    assert terms == expected


def test_counts_are_those_of_actors_frames_and_candidates_outside_padding():
    config = style_config("tubes")
    _, labels = padded_case(13, [6, 0, 1])
    actors = frames = candidate_weight = 0
    for label in labels:
        for frame in label["frame_mask"].nonzero().flatten():
            in_frame = int(label["valid"][:, frame].sum())
            matched = min(in_frame, 4)
            actors, frames = actors + in_frame, frames + 1
            candidate_weight += matched + 0.5 * (4 - matched)

    counts = loss_counts(labels, config)

    assert max(int(label["valid"].sum(0).max()) for label in labels if len(label["valid"])) > 4
    expected = {"actors": actors, "frames": frames, "candidate_weight": candidate_weight}
    assert {name: count.item() for name, count in counts.items()} == expected


@pytest.mark.parametrize("normalization", ["none", "frames", "actors"])
def test_terms_are_divided_by_the_counts_of_the_batch(normalization):
    config = style_config("tubes", class_loss_normalization=normalization)
    predictions, labels = padded_case(14, [2, 0, 1])
    counts = loss_counts(labels, config)
    ones = {name: torch.ones(()) for name in counts}

    terms = action_detection_loss(predictions, labels, config)[1]
    sums = action_detection_loss(predictions, labels, config, ones)[1]

    divisors = {
        "loss_class": counts.get(normalization, 1),
        "loss_actor": counts["candidate_weight"],
        "loss_bbox": counts["actors"],
        "loss_giou": counts["actors"],
    }
    for name, divisor in divisors.items():
        torch.testing.assert_close(terms[name] * divisor, sums[name])


@pytest.mark.parametrize("normalization", ["frames", "actors"])
@pytest.mark.parametrize("actors_per_clip", [[3, 1, 0, 2], [0, 0, 1, 0]])
def test_mean_loss_of_passes_with_a_part_of_the_divisors_is_the_loss_of_the_batch(normalization, actors_per_clip):
    config = style_config("tubes", class_loss_normalization=normalization)
    predictions, labels = padded_case(15, actors_per_clip)
    passes = [slice(i, i + 1) for i in range(4)]
    counts = [loss_counts(labels[clips], config) for clips in passes]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    parts = {name: divisor / 4 for name, divisor in loss_divisors(total).items()}

    whole, _ = action_detection_loss(predictions, labels, config)
    losses = [action_detection_loss(clips_of(predictions, clips), labels[clips], config, parts)[0] for clips in passes]

    # Some ten roundings of float32.
    torch.testing.assert_close(sum(losses) / 4, whole, rtol=1e-6, atol=0)


def test_clip_without_actors_has_no_box_loss_but_trains_the_background():
    config = style_config("keyframes")
    predictions, labels = random_case(1, [0])
    for tensor in predictions[-1].values():
        tensor.requires_grad_()

    loss, loss_dict = action_detection_loss(predictions, labels, config)
    loss.backward()

    assert loss_dict["loss_bbox"] == 0
    assert loss_dict["loss_giou"] == 0
    assert loss_dict["loss_class"] > 0
    assert predictions[-1]["actor_logits"].grad.abs().sum() > 0


def test_padding_frames_change_nothing():
    config = style_config("keyframes", class_loss_normalization="frames")
    predictions, labels = random_case(2, [2])
    labels[0]["frame_mask"] = torch.tensor([True, True, False])
    shorter = [{key: tensor[:, :2] for key, tensor in layer.items()} for layer in predictions]
    cut = [{key: t[:2] if key == "frame_mask" else t[:, :2] for key, t in labels[0].items()}]

    padded, _ = action_detection_loss(predictions, labels, config)
    unpadded, _ = action_detection_loss(shorter, cut, config)

    torch.testing.assert_close(padded, unpadded)


def test_order_of_actors_does_not_matter():
    config = style_config("keyframes")
    predictions, labels = random_case(3, [3])
    reordered = [{k: t if k == "frame_mask" else t[[2, 0, 1]] for k, t in labels[0].items()}]

    torch.testing.assert_close(
        action_detection_loss(predictions, labels, config)[0], action_detection_loss(predictions, reordered, config)[0]
    )


def test_matching_is_the_cheapest_of_all_assignments():
    config = style_config("keyframes")
    predictions, labels = random_case(4, [3], num_frames=1)
    layer = {key: tensor.flatten(0, 1) for key, tensor in predictions[0].items()}
    boxes = labels[0]["boxes"].transpose(0, 1)

    _, candidates, actors = match_actors(layer, {"boxes": boxes, "valid": torch.ones(1, 3, dtype=torch.bool)}, config)

    def cost(candidate, actor):
        box, target = layer["pred_boxes"][0, candidate], boxes[0, actor]
        confidence = layer["actor_logits"][0, candidate].softmax(-1)[1]
        overlap = generalized_box_iou(box, target)
        return 5 * (box - target).abs().sum() - 2 * overlap - 12 * confidence

    cheapest = min(itertools.permutations(range(4), 3), key=lambda order: sum(cost(c, a) for a, c in enumerate(order)))
    assert dict(zip(actors.tolist(), candidates.tolist(), strict=True)) == dict(enumerate(cheapest))


@pytest.mark.parametrize("num_actors", [0, 1, 4, 6])
def test_each_frame_has_as_many_matches_as_actors_or_queries_whichever_are_fewer(num_actors):
    predictions, labels = padded_case(17, [num_actors, num_actors])
    expected = torch.cat([(label["valid"] & label["frame_mask"]).sum(0).clamp(max=4) for label in labels])

    frames, candidates, actors = match_labels(predictions[0], labels, style_config("tubes"))

    assert frames.bincount(minlength=12).tolist() == expected.tolist()
    for matched in (candidates, actors):
        assert len(set(zip(frames.tolist(), matched.tolist(), strict=True))) == len(frames)


class OperationCounter(TorchDispatchMode):
    """Counts the operations on tensors within its context."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_nothing_but_the_assignment_is_done_frame_by_frame():
    config = style_config("tubes", num_queries=15, num_labels=24)
    operations, assignments = [], []
    for num_frames in (4, 32):
        predictions, labels = random_case(18, [1, 2, 3, 1, 2, 3, 1, 2], num_frames, 15, 24)
        assign = Mock(wraps=loss_classquery.linear_sum_assignment)
        with OperationCounter() as counter, patch.object(loss_classquery, "linear_sum_assignment", assign):
            action_detection_loss(predictions[-1:], labels, config)
        operations.append(counter.count)
        assignments.append(assign.call_count)

    assert operations[0] == operations[1]
    assert assignments[0] <= 8 * 4 < assignments[1] <= 8 * 32


@pytest.mark.parametrize("auxiliary_loss", [True, False])
def test_total_weighs_all_terms_of_all_supervised_layers(auxiliary_loss):
    config = style_config("keyframes", auxiliary_loss=auxiliary_loss)
    predictions, labels = random_case(7, [2])

    loss, terms = action_detection_loss(predictions, labels, config)

    weights = {"class": 10, "actor": 1, "bbox": 5, "giou": 2}
    assert len(terms) == (8 if auxiliary_loss else 4)
    torch.testing.assert_close(loss, sum(weights[name.split("_")[1]] * term for name, term in terms.items()))


def test_score_with_actor_supervises_the_product_of_both_probabilities():
    predictions, labels = random_case(8, [2])
    product = [
        {**layer, "logits": (layer["logits"].sigmoid() * layer["actor_logits"].softmax(-1)[..., 1:2]).logit()}
        for layer in predictions
    ]

    joint, _ = action_detection_loss(predictions, labels, style_config("keyframes", score_with_actor=True))
    plain, _ = action_detection_loss(product, labels, style_config("keyframes"))

    torch.testing.assert_close(joint, plain, rtol=1e-4, atol=1e-4)


def test_predictions_that_are_not_finite_raise():
    predictions, labels = random_case(10, [1])
    predictions[0]["pred_boxes"][0, 0, 0] = float("nan")

    with pytest.raises(ValueError, match="training has diverged"):
        action_detection_loss(predictions, labels, style_config("keyframes"))


def test_generalized_box_iou_matches_torchvision():
    from torchvision.ops import box_convert
    from torchvision.ops import generalized_box_iou as reference

    boxes = torch.rand(2, 20, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.1
    corners = box_convert(boxes, "cxcywh", "xyxy")

    torch.testing.assert_close(generalized_box_iou(boxes[0][:, None], boxes[1]), reference(*corners))


def test_boxes_without_area_give_finite_losses_and_gradients():
    config = style_config("keyframes")
    predictions, labels = random_case(5, [1])
    labels[0]["boxes"].zero_()
    labels[0]["valid"].fill_(True)
    boxes = torch.zeros_like(predictions[-1]["pred_boxes"], requires_grad=True)
    predictions[-1]["pred_boxes"] = boxes

    loss, _ = action_detection_loss(predictions, labels, config)
    loss.backward()

    assert loss.isfinite()
    assert boxes.grad.isfinite().all()


@pytest.mark.parametrize(
    ("problem_type", "uniform"), [("multi_label_classification", 1 / 2), ("single_label_classification", 1 / 5)]
)
def test_label_smoothing_of_the_configuration_mixes_targets_with_a_uniform_distribution(problem_type, uniform):
    # With these parameters the focal loss is half the cross-entropy.
    plain = {"focal_gamma": 0.0, "focal_alpha": 0.5, "positive_weight": 1.0}
    config = style_config("keyframes", num_queries=1, label_smoothing=0.3, problem_type=problem_type, **plain)
    predictions, labels = random_case(16, [1, 0], num_frames=1, num_queries=1)
    for label in labels:
        label["frame_mask"].fill_(True)
        label["valid"].fill_(True)

    _, terms = action_detection_loss(predictions, labels, config)

    class_targets = torch.stack((labels[0]["class_labels"][0, 0], torch.zeros(5)))
    logits = predictions[-1]["logits"][:, 0, 0]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, 0.7 * class_targets + 0.3 * uniform, reduction="none")
    torch.testing.assert_close(terms["loss_class"], cross_entropy.mean(-1).sum() / 2)


def test_wrong_label_shapes_raise():
    config = style_config("keyframes")
    predictions, labels = random_case(6, [2])

    with pytest.raises(ValueError, match="one dict per clip: got 2 for 1"):
        action_detection_loss(predictions, labels * 2, config)
    with pytest.raises(ValueError, match=r"'frame_mask'\]` must have shape \(3,\), got \(2,\)"):
        action_detection_loss(predictions, [labels[0] | {"frame_mask": torch.ones(2)}], config)
    labels[0]["boxes"] = labels[0]["boxes"][:, 0]
    with pytest.raises(ValueError, match=r"labels\[0\]\['boxes'\].*must have shape \(2, 3, 4\), got \(2, 4\)"):
        action_detection_loss(predictions, labels, config)


def test_targets_in_pixels_raise():
    predictions, labels = random_case(3, [1])
    labels[0]["boxes"] = labels[0]["boxes"] * 200
    labels[0]["valid"][:] = True

    with pytest.raises(ValueError, match=r"`labels\[0\]\['boxes'\]` must lie in \[0, 1\], got .*size of the frame"):
        action_detection_loss(predictions, labels, style_config("keyframes"))
