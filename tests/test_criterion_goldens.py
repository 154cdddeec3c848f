"""Matcher, criterion and scores against the goldens of the published ones.

Where the published criterion differs from ours on purpose, `QUIRKS` names why, and with these quirks emulated every
term and every gradient is the published one.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss
from utils import OUTPUTS, load_golden

from classquery import ClassQueryConfig, ClassQueryVideoProcessor
from classquery.loss_classquery import action_detection_loss, action_logits, action_scores, match_actors


TERMS = {"loss_class": "loss_ce", "loss_actor": "loss_ce_b", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


class Golden(NamedTuple):
    facts: dict
    tensors: dict[str, torch.Tensor]
    config: ClassQueryConfig
    # Per decoder layer, the last one last.
    predictions: list[dict[str, torch.Tensor]]
    labels: list[dict[str, torch.Tensor]]


def read_golden(name: str) -> Golden:
    facts, tensors = load_golden(name)
    is_keyframe = name.startswith("crit_ava")
    layers = [f"aux{i}." for i in range(len(facts["aux_indices"]))] + [""]
    predictions = [{ours: by_frame(tensors[layer + theirs]) for ours, theirs in OUTPUTS.items()} for layer in layers]
    labels = keyframe_labels(tensors) if is_keyframe else [tube_labels(tensors, facts["num_classes"])]
    config = golden_config(facts, is_keyframe, num_queries=tensors["pred_boxes"].shape[-2])
    return Golden(facts, tensors, config, predictions, labels)


def by_frame(tensor: torch.Tensor) -> torch.Tensor:
    """Give predictions for key frames their axis of frames: (batch, num_output_frames, num_queries, channels)."""
    return tensor if tensor.ndim == 4 else tensor[:, None]


def golden_config(facts: dict, is_keyframe: bool, num_queries: int) -> ClassQueryConfig:
    weights, costs = facts["weight_dict"], facts["matcher"]
    return ClassQueryConfig(
        num_labels=facts["num_classes"],
        num_queries=num_queries,
        problem_type="multi_label_classification" if is_keyframe else "single_label_classification",
        score_with_actor=not is_keyframe,
        class_loss_normalization="none" if is_keyframe else "frames",
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


def keyframe_labels(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    labels = []
    for clip in range(len(tensors["pred_boxes"])):
        # Published boxes begin with the index of their frame.
        boxes = tensors[f"target{clip}.boxes"][:, None, 1:]
        labels.append(
            {
                "boxes": boxes,
                "class_labels": tensors[f"target{clip}.labels"][:, None],
                "valid": torch.ones(boxes.shape[:2], dtype=torch.bool),
                "frame_mask": torch.ones(1, dtype=torch.bool),
            }
        )
    return labels


def tube_labels(tensors: dict[str, torch.Tensor], num_labels: int) -> dict[str, torch.Tensor]:
    num_frames = tensors["pred_boxes"].shape[1]
    front_pad, end_pad = tensors["target0.front_pad"], tensors["target0.end_pad"]
    frames = torch.arange(num_frames)
    boxes = tensors["target0.boxes"][:, 1:].view(-1, num_frames, 4)
    # The class after the last one stands for no box.
    class_labels = F.one_hot(tensors["target0.labels"].view(-1, num_frames), num_labels + 1)[..., :-1]
    return {
        "boxes": boxes,
        "class_labels": class_labels,
        "valid": boxes[..., 1:].any(-1),
        "frame_mask": (front_pad <= frames) & (frames < num_frames - end_pad),
        # For the quirks: the criterion reads `frame_mask`.
        "front_pad": front_pad,
    }


def match_clip(layer: dict, clip: int, label: dict, config: ClassQueryConfig) -> tuple[torch.Tensor, ...]:
    """Frames, candidates and actors of the matched pairs of one clip."""
    predictions = {name: states[clip] for name, states in layer.items()}
    # (actors, frames, ...) -> (frames, actors, ...)
    targets = {"boxes": label["boxes"].transpose(0, 1), "valid": (label["valid"] & label["frame_mask"]).T}
    return match_actors(predictions, targets, config)


# From one decoder layer's predictions, the labels and the configuration to the unweighted terms.
Criterion = Callable[[dict, list[dict], ClassQueryConfig], dict[str, torch.Tensor]]


def our_criterion(layer, labels, config):
    return action_detection_loss([layer], labels, config)[1]


# A quirk turns a criterion into one that has it. The criterion of tubes is published for batches of one clip.


def padding_is_background(term: str) -> Callable[[Criterion], Criterion]:
    """Padding frames count as frames without actors, in the sum and in what it is divided by."""

    def quirk(criterion: Criterion) -> Criterion:
        def released(layer, labels, config):
            (label,) = labels
            all_frames = torch.ones_like(label["frame_mask"])
            without_padding = label | {"valid": label["valid"] & label["frame_mask"], "frame_mask": all_frames}
            padded = criterion(layer, [without_padding], config)
            return criterion(layer, labels, config) | {term: padded[term]}

        return released

    return quirk


def positive_weight_is_early(criterion: Criterion) -> Criterion:
    """The weight of a matched candidate falls on the same candidate `front_pad` frames earlier."""

    def released(layer, labels, config):
        (label,) = labels
        frames, candidates, actors = match_clip(layer, 0, label, config)
        logits = action_logits(layer, config.score_with_actor)[0]
        class_targets = torch.zeros_like(logits)
        class_targets[frames, candidates] = label["class_labels"][actors, frames].float()
        focal = sigmoid_focal_loss(logits, class_targets, config.focal_alpha, config.focal_gamma).mean(-1)
        focal = focal * label["frame_mask"][:, None]
        moved = focal[frames - label["front_pad"], candidates].sum() - focal[frames, candidates].sum()
        moved = (config.positive_weight - 1) * moved / label["frame_mask"].sum()
        terms = criterion(layer, labels, config)
        return terms | {"loss_class": terms["loss_class"] + moved}

    return released


def assigned_order_is_ignored(criterion: Criterion) -> Criterion:
    """Matched candidates, ascending, are paired with the actors of their frame as these are listed."""

    def released(layer, labels, config):
        (label,) = labels
        frames, candidates, _ = match_clip(layer, 0, label, config)
        boxes = layer["pred_boxes"][0, frames, candidates]
        targets = label["boxes"].transpose(0, 1)[(label["valid"] & label["frame_mask"]).T]
        corners = (box_convert(each, "cxcywh", "xyxy") for each in (boxes, targets))
        distance = F.l1_loss(boxes, targets, reduction="sum") / len(targets)
        overlap = generalized_box_iou_loss(*corners, reduction="mean")
        return criterion(layer, labels, config) | {"loss_bbox": distance, "loss_giou": overlap}

    return released


def evaluation_is_unweighted(criterion: Criterion) -> Criterion:
    """In evaluation mode the class loss is the mean cross-entropy, neither focal nor weighted."""

    def released(layer, labels, config):
        class_targets = torch.full_like(layer["logits"], config.label_smoothing / 2)
        for clip, label in enumerate(labels):
            frames, candidates, actors = match_clip(layer, clip, label, config)
            matched = label["class_labels"][actors, frames]
            class_targets[clip, frames, candidates] += (1 - config.label_smoothing) * matched
        loss = F.binary_cross_entropy(layer["logits"].sigmoid(), class_targets)
        return criterion(layer, labels, config) | {"loss_class": loss}

    return released


actor_padding, class_padding = padding_is_background("loss_actor"), padding_is_background("loss_class")

# The last quirk of a list is the outermost: the others see its labels.
QUIRKS = {
    "crit_ava_bs1": [],
    "crit_ava_bs2": [],
    "crit_jhmdb_nopad": [],
    "crit_jhmdb_endpad": [actor_padding],
    "crit_jhmdb_pad": [positive_weight_is_early, actor_padding],
    "crit_ucf_1actor": [],
    "crit_ucf_nobox": [],
    "crit_ucf_smooth": [assigned_order_is_ignored],
    "crit_ucf_multi_gaps": [assigned_order_is_ignored],
    "crit_ucf_frontpad": [positive_weight_is_early, actor_padding, class_padding],
    "crit_ucf_endpad_gap": [assigned_order_is_ignored, actor_padding, class_padding],
}
EVALUATION_QUIRKS = {"crit_ava_bs1": [evaluation_is_unweighted], "crit_ava_bs2": [evaluation_is_unweighted]}


def with_quirks(quirks: list) -> Criterion:
    return reduce(lambda criterion, quirk: quirk(criterion), quirks, our_criterion)


def all_terms(criterion: Criterion, golden: Golden) -> dict[str, float]:
    """Terms of all decoder layers by their published names."""
    suffixes = [f"_{i}" for i in range(len(golden.predictions) - 1)] + [""]
    return {
        TERMS[name] + suffix: term.item()
        for layer, suffix in zip(golden.predictions, suffixes, strict=True)
        for name, term in criterion(layer, golden.labels, golden.config).items()
    }


def published_terms(facts: dict, mode: str) -> dict[str, float]:
    # The error of the classification is logged, not trained.
    return {name: value for name, value in facts[f"losses_{mode}"].items() if name != "class_error"}


@pytest.mark.parametrize("name", QUIRKS)
def test_pairs_match_the_published_matcher_in_every_layer(name):
    golden = read_golden(name)
    published = [*golden.facts["aux_indices"], golden.facts["indices"]]

    for layer, expected in zip(golden.predictions, published, strict=True):
        pairs = []
        for clip, label in enumerate(golden.labels):
            frames, candidates, actors = match_clip(layer, clip, label, golden.config)
            # Published actors are numbered among those of their frame.
            actors = (label["valid"].cumsum(0) - 1)[actors, frames]
            for frame in label["frame_mask"].nonzero():
                pairs.append([candidates[frames == frame].tolist(), actors[frames == frame].tolist()])
        # Nothing is published for a clip without boxes.
        assert pairs == (expected or [[[], []]] * len(pairs))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", QUIRKS)
def test_terms_match_the_published_criterion_in_every_layer(name, mode):
    golden = read_golden(name)
    quirks = QUIRKS[name] + (EVALUATION_QUIRKS.get(name, []) if mode == "eval" else [])

    terms = all_terms(with_quirks(quirks), golden)

    # Deviations are below 5e-7.
    assert terms == pytest.approx(published_terms(golden.facts, mode), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [name for name, quirks in QUIRKS.items() if quirks])
def test_each_quirk_explains_a_difference(name):
    golden = read_golden(name)
    published = published_terms(golden.facts, "train")

    for left_out in QUIRKS[name]:
        terms = all_terms(with_quirks([quirk for quirk in QUIRKS[name] if quirk is not left_out]), golden)
        assert terms != pytest.approx(published, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", QUIRKS)
def test_gradients_match_the_published_criterion(name):
    golden = read_golden(name)
    layer = {key: states.requires_grad_() for key, states in golden.predictions[-1].items()}

    terms = with_quirks(QUIRKS[name])(layer, golden.labels, golden.config)
    # The published total weighs the last layer only.
    total = sum(golden.facts["weight_dict"][TERMS[key]] * term for key, term in terms.items())
    total.backward()

    assert total.item() == pytest.approx(golden.facts["weighted_total_main_train"], rel=1e-5)
    for ours, published in OUTPUTS.items():
        # Deviations are at most a third of this, from another order of the operations.
        expected = by_frame(golden.tensors[f"grad_train.{published}"])
        torch.testing.assert_close(layer[ours].grad, expected, rtol=1e-5, atol=1e-6)


# The other goldens of a data set say the same about scores, and their copies do without.
@pytest.mark.parametrize("name", ["crit_ava_bs1", "crit_ava_bs2", "crit_jhmdb_pad", "crit_ucf_1actor"])
def test_boxes_and_scores_match_the_published_ones(name):
    golden = read_golden(name)
    outputs = golden.predictions[-1]
    outputs["scores"] = action_scores(outputs, golden.config.score_with_actor)
    sizes = [golden.tensors[f"target{clip}.size"].tolist() for clip in range(len(golden.labels))]

    results = ClassQueryVideoProcessor().post_process_action_detection(outputs, target_sizes=sizes)

    tolerance = {"rtol": golden.facts["suggested"]["post_rtol"], "atol": golden.facts["suggested"]["post_atol"]}
    for key, published in (("boxes", "boxes"), ("scores", "scores"), ("actor_scores", "actor")):
        ours = torch.stack([torch.stack([frame[key] for frame in clip]) for clip in results])
        torch.testing.assert_close(ours, by_frame(golden.tensors[f"post.{published}"]).view_as(ours), **tolerance)
