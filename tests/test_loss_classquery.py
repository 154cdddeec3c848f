"""Matcher and criterion against the goldens of the published criterion and against brute force."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from utils import load_golden

from classquery import ClassQueryConfig
from classquery.loss_classquery import action_detection_loss, generalized_box_iou, match_actors


NAMES = {"loss_class": "loss_ce", "loss_actor": "loss_ce_b", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


def golden_case(name: str):
    """Config, predictions per layer and labels of a golden of the key-frame criterion."""
    facts, tensors = load_golden(name)
    weights, costs = facts["weight_dict"], facts["matcher"]
    config = ClassQueryConfig(
        num_labels=facts["num_classes"],
        eos_coefficient=facts["eos_coef"],
        positive_weight=facts["positive_weight"],
        label_smoothing=facts["label_smoothing"],
        class_loss_coefficient=weights["loss_ce"],
        bbox_loss_coefficient=weights["loss_bbox"],
        giou_loss_coefficient=weights["loss_giou"],
        actor_loss_coefficient=weights["loss_ce_b"],
        class_cost=costs["cost_class"],
        bbox_cost=costs["cost_bbox"],
        giou_cost=costs["cost_giou"],
    )
    published = ("logits", "pred_logits"), ("pred_boxes", "pred_boxes"), ("actor_logits", "pred_logits_b")
    layers = [f"aux{i}." for i in range(len(facts["aux_indices"]))] + [""]
    predictions = [{ours: tensors[prefix + theirs][:, None] for ours, theirs in published} for prefix in layers]
    labels = []
    for index in range(len(tensors["pred_boxes"])):
        boxes = tensors[f"target{index}.boxes"][:, None, 1:]
        labels.append(
            {
                "boxes": boxes,
                "class_labels": tensors[f"target{index}.labels"][:, None],
                "valid": torch.ones(boxes.shape[:2], dtype=torch.bool),
                "frame_mask": torch.ones(1, dtype=torch.bool),
            }
        )
    return facts, tensors, config, predictions, labels


@pytest.mark.parametrize("name", ["crit_ava_bs1", "crit_ava_bs2"])
def test_losses_match_the_published_criterion_in_every_layer(name):
    facts, _, config, predictions, labels = golden_case(name)

    _, loss_dict = action_detection_loss(predictions, labels, config)

    assert len(loss_dict) == 4 * len(predictions)
    for ours, value in loss_dict.items():
        stem, _, layer = ours.partition("_")[2].partition("_")
        published = NAMES[f"loss_{stem}"] + (f"_{layer}" if layer else "")
        torch.testing.assert_close(
            value.item(),
            facts["losses_train"][published],
            rtol=facts["suggested"]["losses_rtol"],
            atol=facts["suggested"]["losses_atol"],
        )


@pytest.mark.parametrize("name", ["crit_ava_bs1", "crit_ava_bs2"])
def test_gradients_match_the_published_criterion(name):
    facts, tensors, config, predictions, labels = golden_case(name)
    for tensor in predictions[-1].values():
        tensor.requires_grad_()

    # The published total weighs the last layer only.
    config.auxiliary_loss = False
    loss, _ = action_detection_loss(predictions, labels, config)
    loss.backward()

    torch.testing.assert_close(loss.item(), facts["weighted_total_main_train"], rtol=2e-5, atol=1e-6)
    for ours, published in (
        ("logits", "pred_logits"),
        ("pred_boxes", "pred_boxes"),
        ("actor_logits", "pred_logits_b"),
    ):
        torch.testing.assert_close(
            predictions[-1][ours].grad[:, 0],
            tensors[f"grad_train.{published}"],
            rtol=facts["suggested"]["grads_rtol"],
            atol=facts["suggested"]["grads_atol"],
        )


@pytest.mark.parametrize("name", ["crit_ava_bs1", "crit_ava_bs2"])
def test_matched_pairs_match_the_published_matcher_in_every_layer(name):
    facts, _, config, predictions, labels = golden_case(name)
    most = max(len(label["boxes"]) for label in labels)
    boxes, valid = torch.zeros(len(labels), most, 4), torch.zeros(len(labels), most, dtype=torch.bool)
    for index, label in enumerate(labels):
        boxes[index, : len(label["boxes"])] = label["boxes"][:, 0]
        valid[index, : len(label["boxes"])] = True

    for layer, expected in zip(predictions, [*facts["aux_indices"], facts["indices"]], strict=True):
        frames, candidates, actors = match_actors(
            {key: tensor.flatten(0, 1) for key, tensor in layer.items()}, {"boxes": boxes, "valid": valid}, config
        )
        for clip, pairs in enumerate(expected):
            assert [candidates[frames == clip].tolist(), actors[frames == clip].tolist()] == pairs


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


def test_batch_loss_is_the_sum_over_clips_of_different_numbers_of_actors():
    config = ClassQueryConfig(num_labels=5, num_queries=4)
    predictions, labels = random_case(0, [2, 0, 3])

    _, joint = action_detection_loss(predictions, labels, config)
    singles = []
    for clip in range(3):
        alone = [{key: tensor[clip : clip + 1] for key, tensor in layer.items()} for layer in predictions]
        singles.append(action_detection_loss(alone, labels[clip : clip + 1], config)[1])

    # Sums over candidates add up; terms per actor are means over the actors of the batch.
    num_actors = [int((label["valid"] & label["frame_mask"]).sum()) for label in labels]
    torch.testing.assert_close(joint["loss_class"], sum(single["loss_class"] for single in singles))
    expected = sum(single["loss_bbox"] * n for single, n in zip(singles, num_actors, strict=True)) / sum(num_actors)
    torch.testing.assert_close(joint["loss_bbox"], expected)


def test_clip_without_actors_has_no_box_loss_but_trains_the_background():
    config = ClassQueryConfig(num_labels=5, num_queries=4)
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
    config = ClassQueryConfig(num_labels=5, num_queries=4, class_loss_normalization="frames")
    predictions, labels = random_case(2, [2])
    labels[0]["frame_mask"] = torch.tensor([True, True, False])
    shorter = [{key: tensor[:, :2] for key, tensor in layer.items()} for layer in predictions]
    cut = [{key: t[:2] if key == "frame_mask" else t[:, :2] for key, t in labels[0].items()}]

    padded, _ = action_detection_loss(predictions, labels, config)
    unpadded, _ = action_detection_loss(shorter, cut, config)

    torch.testing.assert_close(padded, unpadded)


def test_order_of_actors_does_not_matter():
    config = ClassQueryConfig(num_labels=5, num_queries=4)
    predictions, labels = random_case(3, [3])
    reordered = [{k: t if k == "frame_mask" else t[[2, 0, 1]] for k, t in labels[0].items()}]

    torch.testing.assert_close(
        action_detection_loss(predictions, labels, config)[0], action_detection_loss(predictions, reordered, config)[0]
    )


def test_matching_is_the_cheapest_of_all_assignments():
    config = ClassQueryConfig(num_labels=5, num_queries=4)
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


@pytest.mark.parametrize("auxiliary_loss", [True, False])
def test_total_weighs_all_terms_of_all_supervised_layers(auxiliary_loss):
    config = ClassQueryConfig(num_labels=5, num_queries=4, auxiliary_loss=auxiliary_loss)
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

    joint, _ = action_detection_loss(predictions, labels, ClassQueryConfig(num_labels=5, score_with_actor=True))
    plain, _ = action_detection_loss(product, labels, ClassQueryConfig(num_labels=5))

    torch.testing.assert_close(joint, plain, rtol=1e-4, atol=1e-4)


def test_class_loss_is_divided_by_real_frames_or_annotated_actors():
    predictions, labels = random_case(9, [2, 1])
    valid = sum(int((label["valid"] & label["frame_mask"]).sum()) for label in labels)
    frames = sum(int(label["frame_mask"].sum()) for label in labels)

    losses = {
        value: action_detection_loss(
            predictions, labels, ClassQueryConfig(num_labels=5, class_loss_normalization=value)
        )[1]["loss_class"]
        for value in ("none", "frames", "actors")
    }

    torch.testing.assert_close(losses["frames"] * frames, losses["none"])
    torch.testing.assert_close(losses["actors"] * valid, losses["none"])


def test_predictions_that_are_not_finite_raise():
    predictions, labels = random_case(10, [1])
    predictions[0]["pred_boxes"][0, 0, 0] = float("nan")

    with pytest.raises(ValueError, match="training has diverged"):
        action_detection_loss(predictions, labels, ClassQueryConfig(num_labels=5))


def test_generalized_box_iou_matches_torchvision():
    from torchvision.ops import box_convert
    from torchvision.ops import generalized_box_iou as reference

    boxes = torch.rand(2, 20, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.1
    corners = box_convert(boxes, "cxcywh", "xyxy")

    torch.testing.assert_close(generalized_box_iou(boxes[0][:, None], boxes[1]), reference(*corners))


def test_boxes_without_area_give_finite_losses_and_gradients():
    config = ClassQueryConfig(num_labels=5, num_queries=4)
    predictions, labels = random_case(5, [1])
    labels[0]["boxes"].zero_()
    labels[0]["valid"].fill_(True)
    boxes = torch.zeros_like(predictions[-1]["pred_boxes"], requires_grad=True)
    predictions[-1]["pred_boxes"] = boxes

    loss, _ = action_detection_loss(predictions, labels, config)
    loss.backward()

    assert loss.isfinite()
    assert boxes.grad.isfinite().all()


def test_single_label_smoothing_spreads_over_the_classes():
    from classquery.loss_classquery import _smooth

    config = SimpleNamespace(problem_type="single_label_classification", label_smoothing=0.2)

    torch.testing.assert_close(_smooth(torch.tensor([1.0, 0, 0, 0]), config), torch.tensor([0.85, 0.05, 0.05, 0.05]))


def test_wrong_label_shapes_raise():
    config = ClassQueryConfig(num_labels=5, num_queries=4)
    predictions, labels = random_case(6, [2])

    with pytest.raises(ValueError, match="one dict per clip: got 2 for 1"):
        action_detection_loss(predictions, labels * 2, config)
    with pytest.raises(ValueError, match=r"'frame_mask'\]` must have shape \(3,\), got \(2,\)"):
        action_detection_loss(predictions, [labels[0] | {"frame_mask": torch.ones(2)}], config)
    labels[0]["boxes"] = labels[0]["boxes"][:, 0]
    with pytest.raises(ValueError, match=r"labels\[0\]\['boxes'\].*must have shape \(2, 3, 4\), got \(2, 4\)"):
        action_detection_loss(predictions, labels, config)
