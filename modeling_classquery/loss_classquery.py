"""Matching and criterion: one for key frames and tubes, multi-label and single-label classes.

Follows section 3.4 of the paper and the released criterion where the two data-set styles agree; what differed between
its three copies is a value of `ClassQueryConfig`. Unlike the release, several actors of a clip are paired by the
assignment, each clip has its own padding frames, and padding frames count nowhere.
"""

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_transforms import center_to_corners_format
from transformers.utils import is_scipy_available

from .configuration_classquery import ClassQueryConfig


if is_scipy_available():
    from scipy.optimize import linear_sum_assignment

# Channels of the actor logits; channel 0 is never a target.
ACTOR, BACKGROUND = 1, 2
LOSS_COUNTS = ("actors", "frames", "candidate_weight")


class NotFiniteError(ValueError):
    """Raised when predictions cannot be matched because they are not finite."""


def inverse_sigmoid(probabilities: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Logits of probabilities, which are clamped to [eps, 1 - eps] (both sides of the fraction, as in DETR)."""
    probabilities = probabilities.clamp(0, 1)
    return torch.log(probabilities.clamp(min=eps) / (1 - probabilities).clamp(min=eps))


def action_scores(predictions: dict[str, torch.Tensor], score_with_actor: bool) -> torch.Tensor:
    """Probability of each action, shaped as `logits`: with `score_with_actor` times the actor's confidence."""
    return action_logits(predictions, score_with_actor).sigmoid()


def action_logits(predictions: dict[str, torch.Tensor], score_with_actor: bool) -> torch.Tensor:
    """Logits that are scored and supervised."""
    if not score_with_actor:
        return predictions["logits"]
    actor = predictions["actor_logits"].softmax(-1)[..., ACTOR, None]
    return inverse_sigmoid(actor * predictions["logits"].sigmoid())


# What is matched depends on the data: under torch.compile, the loss runs as it is.
@torch.compiler.disable
def action_detection_loss(
    predictions: list[dict[str, torch.Tensor]],
    labels: list[dict[str, torch.Tensor]],
    config: ClassQueryConfig,
    divisors: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Match every decoder layer's candidates to the actors, frame by frame, and weigh up all loss terms.

    Args:
        predictions: Per decoder layer: `logits` (batch, num_output_frames, num_queries, num_labels), `pred_boxes`
            (..., 4) as (cx, cy, w, h) and `actor_logits` (..., 3).
        labels: Per clip: `boxes` (num_actors, num_output_frames, 4), (cx, cy, w, h) in [0, 1] of the frame without
            padding; `class_labels` (num_actors, num_output_frames, num_labels), 0 or 1; `valid` (num_actors,
            num_output_frames), whether the actor has a box in the frame; `frame_mask` (num_output_frames,), false on
            padding frames. `num_actors` may be 0 and differ between clips.
        config: Weights of costs and terms.
        divisors: What the terms are divided by; by default `loss_divisors` of the batch. A trainer gives those of all
            batches of an update as a part for each, so that the mean of their losses is the loss of all their clips.

    Returns:
        The weighted sum, and the unweighted terms by name: `loss_class`, `loss_actor`, `loss_bbox` and `loss_giou` of
        the last layer, those of layer i with the suffix `_i`.
    """
    targets = _stack_targets(labels, predictions[-1]["logits"])
    divisors = divisors or loss_divisors(loss_counts(labels, config))
    divisors = {name: divisor.to(targets["boxes"].device) for name, divisor in divisors.items()}
    coefficients = {
        "loss_class": config.class_loss_coefficient,
        "loss_actor": config.actor_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    supervised = range(len(predictions)) if config.auxiliary_loss else [len(predictions) - 1]
    total, loss_dict = 0, {}
    for layer in supervised:
        suffix = "" if layer == len(predictions) - 1 else f"_{layer}"
        terms = _layer_loss(predictions[layer], targets, divisors, config)
        total = total + sum(coefficients[name] * term for name, term in terms.items())
        loss_dict |= {name + suffix: term for name, term in terms.items()}
    return total, loss_dict


def loss_counts(labels: list[dict[str, torch.Tensor]], config: ClassQueryConfig) -> dict[str, torch.Tensor]:
    """Count what the losses of a batch are divided by; depends on the labels alone.

    Args:
        labels: As for `action_detection_loss`.
        config: Number of candidates and weight of the background.

    Returns:
        `actors`, boxes in real frames; `frames`, real frames; `candidate_weight`, candidates in real frames, of which
        those without an actor weigh `eos_coefficient`. Scalars, float32.
    """
    counts = []
    for label in labels:
        actors = (label["valid"] & label["frame_mask"]).sum(0)
        frames = label["frame_mask"].sum()
        matched = actors.clamp(max=config.num_queries).sum()
        background = frames * config.num_queries - matched
        counts.append(torch.stack((actors.sum(), frames, matched + config.eos_coefficient * background)))
    return dict(zip(LOSS_COUNTS, torch.stack(counts).float().sum(0), strict=True))


def loss_divisors(counts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the terms are divided by, from `loss_counts`: where there is nothing, so is the term, which stays 0."""
    smallest = {"actors": 1, "frames": 1, "candidate_weight": 1e-6}
    return {name: count.clamp(min=smallest[name]) for name, count in counts.items()}


def match_actors(
    predictions: dict[str, torch.Tensor], targets: dict[str, torch.Tensor], config: ClassQueryConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Assign actors to candidates in each frame at the lowest cost (Hungarian); class logits play no part.

    Args:
        predictions: One layer's, with batch and frames flattened: (num_clip_frames, num_queries, ...).
        targets: `boxes` (num_clip_frames, num_actors, 4) and `valid` (num_clip_frames, num_actors).
        config: Weights of the costs.

    Returns:
        Indices of frame, candidate and actor of each matched pair, int64; candidates ascend within a frame.
    """
    with torch.no_grad():
        cost = _matching_cost(predictions, targets["boxes"], config).cpu().numpy()
    if not np.isfinite(cost).all():
        raise NotFiniteError("boxes or actor logits are not finite: training has diverged, try a lower learning rate")
    frames, actors = targets["valid"].nonzero().cpu().numpy().T
    matches = [np.empty((3, 0), np.int64)]
    # Nothing but the assignment itself is done frame by frame.
    for frame, group in zip(*_groups(frames, actors), strict=True):
        candidates, columns = linear_sum_assignment(cost[frame][:, group])
        matches.append(np.stack((np.full_like(candidates, frame), candidates, group[columns])))
    return tuple(torch.from_numpy(np.concatenate(matches, axis=1)).to(targets["boxes"].device))


def _groups(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Split values where their ascending keys change: the different keys, and the values of each."""
    distinct, starts = np.unique(keys, return_index=True)
    return distinct, np.split(values, starts)[1:]


def _matching_cost(
    predictions: dict[str, torch.Tensor], boxes: torch.Tensor, config: ClassQueryConfig
) -> torch.Tensor:
    """Cost of each pair: (num_clip_frames, num_queries, num_actors), float32."""
    candidates = predictions["pred_boxes"].float()[:, :, None]
    boxes = boxes[:, None]
    confidence = predictions["actor_logits"].float().softmax(-1)[..., ACTOR, None]
    distance = (candidates - boxes).abs().sum(-1)
    overlap = generalized_box_iou(candidates, boxes)
    return config.bbox_cost * distance - config.giou_cost * overlap - config.class_cost * confidence


def generalized_box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Generalized IoU in [-1, 1] of boxes (..., 4), (cx, cy, w, h), with broadcasting."""
    boxes, others = center_to_corners_format(boxes), center_to_corners_format(others)
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0), (others[..., 2:] - others[..., :2]).clamp(min=0)
    intersection = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    intersection = intersection.clamp(min=0).prod(-1)
    union = sizes[0].prod(-1) + sizes[1].prod(-1) - intersection
    hull = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    hull = hull.clamp(min=0).prod(-1)
    # Two boxes without area at one place have neither union nor hull.
    tiny = torch.finfo(hull.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _layer_loss(
    predictions: dict[str, torch.Tensor],
    targets: dict[str, torch.Tensor],
    divisors: dict[str, torch.Tensor],
    config: ClassQueryConfig,
) -> dict[str, torch.Tensor]:
    """Unweighted loss terms of one decoder layer."""
    # (batch, frames, ...) -> (num_clip_frames, ...)
    predictions = {name: states.flatten(0, 1) for name, states in predictions.items()}
    frames, candidates, actors = match_actors(predictions, targets, config)
    matched_boxes = predictions["pred_boxes"][frames, candidates].float()
    boxes = targets["boxes"][frames, actors]
    matched = torch.zeros_like(predictions["actor_logits"][..., 0], dtype=torch.bool)
    matched[frames, candidates] = True
    class_targets = torch.zeros_like(predictions["logits"])
    class_targets[frames, candidates] = targets["class_labels"][frames, actors].to(class_targets.dtype)
    class_loss = _class_loss(predictions, class_targets, matched, targets["frame_mask"], config)
    return {
        "loss_class": class_loss / divisors.get(config.class_loss_normalization, 1),
        "loss_actor": _actor_loss(predictions["actor_logits"], matched, targets["frame_mask"], config)
        / divisors["candidate_weight"],
        "loss_bbox": (matched_boxes - boxes).abs().sum() / divisors["actors"],
        "loss_giou": (1 - generalized_box_iou(matched_boxes, boxes)).sum() / divisors["actors"],
    }


def _class_loss(
    predictions: dict[str, torch.Tensor],
    class_targets: torch.Tensor,
    matched: torch.Tensor,
    frame_mask: torch.Tensor,
    config: ClassQueryConfig,
) -> torch.Tensor:
    """Focal loss, mean over classes and sum over the candidates of real frames; matched ones weigh more."""
    logits = action_logits(predictions, config.score_with_actor).float()
    class_targets = _smooth(class_targets.float(), config)
    weights = 1 + (config.positive_weight - 1) * matched.float()
    weights = weights * frame_mask[:, None]
    # Written out for soft targets, for which the usual form with a hard choice of alpha does not hold.
    probabilities = logits.sigmoid()
    correct = probabilities * class_targets + (1 - probabilities) * (1 - class_targets)
    alpha = config.focal_alpha * class_targets + (1 - config.focal_alpha) * (1 - class_targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, class_targets, reduction="none")
    focal = alpha * cross_entropy * (1 - correct) ** config.focal_gamma
    return (focal.mean(-1) * weights).sum()


def _smooth(class_targets: torch.Tensor, config: ClassQueryConfig) -> torch.Tensor:
    """Mix the targets with 1/2 (several labels may be true at once) or 1/num_labels (one label is true)."""
    multi_label = config.problem_type == "multi_label_classification"
    uniform = 0.5 if multi_label else 1 / class_targets.shape[-1]
    return class_targets * (1 - config.label_smoothing) + config.label_smoothing * uniform


def _actor_loss(
    actor_logits: torch.Tensor, matched: torch.Tensor, frame_mask: torch.Tensor, config: ClassQueryConfig
) -> torch.Tensor:
    """Cross-entropy, summed, of actor against background in real frames; the background weighs `eos_coefficient`."""
    class_targets = torch.where(matched, ACTOR, BACKGROUND)
    weights = actor_logits.new_tensor([1, 1, config.eos_coefficient], dtype=torch.float32)
    real = actor_logits[frame_mask].flatten(0, 1).float(), class_targets[frame_mask].flatten()
    return F.cross_entropy(*real, weights, reduction="sum")


def _check_range(name: str, values: torch.Tensor) -> None:
    if values.numel() and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got {values.min():g} to {values.max():g}: boxes are divided by the size of "
            "the frame, labels are 0 or 1"
        )


def _stack_targets(labels: list[dict[str, torch.Tensor]], logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Check the labels and pad them to one number of actors: (num_clip_frames, num_actors, ...) on one device."""
    batch_size, num_frames, _, num_labels = logits.shape
    if len(labels) != batch_size:
        raise ValueError(f"`labels` must hold one dict per clip: got {len(labels)} for {batch_size} clips")
    most_actors = max(len(label["boxes"]) for label in labels)
    stacked = {"boxes": [], "class_labels": [], "valid": []}
    for index, label in enumerate(labels):
        num_actors = len(label["boxes"])
        for name, width in (("boxes", (4,)), ("class_labels", (num_labels,)), ("valid", ())):
            tensor, expected = label[name], (num_actors, num_frames, *width)
            if tuple(tensor.shape) != expected:
                raise ValueError(f"`labels[{index}][{name!r}]` must have shape {expected}, got {tuple(tensor.shape)}")
            _check_range(f"labels[{index}][{name!r}]", tensor[label["valid"].bool()] if width else tensor)
            padding = tensor.new_zeros(most_actors - num_actors, *expected[1:])
            # (actors, frames, ...) -> (frames, actors, ...)
            stacked[name].append(torch.cat((tensor, padding)).transpose(0, 1))
        if tuple(label["frame_mask"].shape) != (num_frames,):
            found = tuple(label["frame_mask"].shape)
            raise ValueError(f"`labels[{index}]['frame_mask']` must have shape ({num_frames},), got {found}")
    frame_mask = torch.cat([label["frame_mask"] for label in labels]).to(logits.device, torch.bool)
    targets = {name: torch.cat(tensors).to(logits.device) for name, tensors in stacked.items()}
    return {
        "boxes": targets["boxes"].float(),
        "class_labels": targets["class_labels"],
        "valid": targets["valid"].bool() & frame_mask[:, None],
        "frame_mask": frame_mask,
    }


__all__ = [
    "NotFiniteError",
    "action_detection_loss",
    "action_logits",
    "action_scores",
    "generalized_box_iou",
    "inverse_sigmoid",
    "loss_counts",
    "loss_divisors",
    "match_actors",
]
