"""Matching and criterion: one for key frames and tubes, multi-label and single-label classes.

Follows section 3.4 of the paper and the released criterion where the two data-set styles agree; what differed between
its three copies is a value of `ClassQueryConfig`. Unlike the release, several actors of a clip are paired by the
assignment, each clip has its own padding frames, and padding frames count nowhere.

Actors are matched on the CPU. Of the device, the costs of all decoder layers are read once, and the matches are sent
back once; nothing else waits for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert
from transformers.utils import is_scipy_available

from .configuration_classquery import ClassQueryConfig


if is_scipy_available():
    from scipy.optimize import linear_sum_assignment

# Channels of the actor logits; channel 0 is never a target.
ACTOR, BACKGROUND = 1, 2
# What cross-entropy leaves out.
_NO_TARGET = -100
# Places and sizes of noised boxes keep away from 0 and 1, where logits have no bounds.
_SMALLEST_NOISED = 1e-3
# Part of a box that has to lie in an ignored region for the box to be ignored.
MOSTLY = 0.5
LOSS_COUNTS = ("actors", "frames", "candidate_weight")


class NotFiniteError(ValueError):
    """Raised when predictions cannot be matched, or weights not be used, because they are not finite."""


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
    labels: "list[dict[str, torch.Tensor]] | ActionTargets",
    config: ClassQueryConfig,
    divisors: dict[str, torch.Tensor] | None = None,
    denoised_boxes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Match every decoder layer's candidates to the actors, frame by frame, and weigh up all loss terms.

    Args:
        predictions: Per decoder layer: `logits` (batch, num_output_frames, num_queries, num_labels), `pred_boxes`
            (..., 4) as (cx, cy, w, h) and `actor_logits` (..., 3).
        labels: Per clip: `boxes` (num_actors, num_output_frames, 4), (cx, cy, w, h) in [0, 1] of the frame without
            padding; `class_labels` (num_actors, num_output_frames, num_labels), 0 or 1; `valid` (num_actors,
            num_output_frames), whether the actor has a box in the frame; `frame_mask` (num_output_frames,), false on
            padding frames. `num_actors` may be 0 and differ between clips. Where annotations are partial, also
            `labelled` (num_actors, num_output_frames), false where it is unknown what an actor does;
            `annotated_labels` (num_labels,), false for classes that nobody looked for; `ignored_boxes` (num_regions,
            num_output_frames, 4), regions where nobody looked for actors, of no size in frames without. With
            `supervised_frames` (num_supervised_frames,), the frames that the predictions are of, all of that is of
            these alone. Or all of it as `ActionTargets`.
        config: Weights of costs and terms.
        divisors: What the terms are divided by; by default `loss_divisors` of the batch. A trainer gives those of all
            batches of an update as a part for each, so that the mean of their losses is the loss of all their clips.
        denoised_boxes: What the decoder layers made of `ActionTargets.noised_boxes`, (decoder_layers, num_clip_frames,
            denoising_groups * num_actors, 4).

    Returns:
        The weighted sum, and the unweighted terms by name: `loss_class`, `loss_actor`, `loss_bbox` and `loss_giou` of
        the last layer, those of layer i with the suffix `_i`. With `denoised_boxes` also `loss_denoising_bbox` and
        `loss_denoising_giou`, weighted as those of the candidates.

    Raises:
        ValueError: If the labels are no such labels, or those of other clips.
        NotFiniteError: If the predictions cannot be matched.
    """
    batch_size, num_frames, _, num_labels = predictions[-1]["logits"].shape
    targets = targets_of(labels, batch_size, num_frames, num_labels)
    divisors = divisors or loss_divisors(loss_counts(targets, config))
    coefficients = {
        "loss_class": config.class_loss_coefficient,
        "loss_actor": config.actor_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
        "loss_denoising_bbox": config.bbox_loss_coefficient,
        "loss_denoising_giou": config.giou_loss_coefficient,
    }
    supervised = range(len(predictions)) if config.auxiliary_loss else [len(predictions) - 1]
    # (batch, frames, ...) -> (num_clip_frames, ...)
    layers = [{name: states.flatten(0, 1) for name, states in predictions[layer].items()} for layer in supervised]
    targets = targets.on(layers[-1]["logits"].device)
    total: Any = 0
    loss_dict: dict[str, torch.Tensor] = {}
    for layer, flat, pairs in zip(supervised, layers, match_layers(layers, targets, config), strict=True):
        suffix = "" if layer == len(predictions) - 1 else f"_{layer}"
        terms = _layer_loss(flat, pairs, targets, divisors, config)
        if denoised_boxes is not None:
            terms |= _denoising_loss(denoised_boxes[layer].float(), targets, divisors, config)
        total = total + sum(coefficients[name] * term for name, term in terms.items())
        loss_dict |= {name + suffix: term for name, term in terms.items()}
    return total, loss_dict


def loss_counts(
    labels: "list[dict[str, torch.Tensor]] | ActionTargets", config: ClassQueryConfig
) -> dict[str, torch.Tensor]:
    """Count what the losses of a batch are divided by; depends on the labels alone.

    Args:
        labels: As for `action_detection_loss`.
        config: Number of candidates and weight of the background.

    Returns:
        `actors`, boxes in real frames; `frames`, real frames; `candidate_weight`, candidates in real frames, of which
        those without an actor weigh `eos_coefficient`. Scalars, float32, on the CPU.
    """
    targets = labels if isinstance(labels, ActionTargets) else ActionTargets(labels)
    actors = targets.valid.sum(1).view(len(targets), -1)
    frames = targets.frame_mask.view(len(targets), -1).sum(1)
    matched = actors.clamp(max=config.num_queries).sum(1)
    background = frames * config.num_queries - matched
    counts = torch.stack((actors.sum(1), frames, matched + config.eos_coefficient * background), dim=1)
    return dict(zip(LOSS_COUNTS, counts.float().sum(0), strict=True))


def loss_divisors(counts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the terms are divided by, from `loss_counts`: where there is nothing, so is the term, which stays 0."""
    smallest = {"actors": 1, "frames": 1, "candidate_weight": 1e-6}
    return {name: count.clamp(min=smallest[name]) for name, count in counts.items()}


def match_actors(
    predictions: dict[str, torch.Tensor], targets: Mapping[str, torch.Tensor], config: ClassQueryConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Assign actors to candidates in each frame at the lowest cost (Hungarian); class logits play no part.

    Args:
        predictions: One layer's, with batch and frames flattened: (num_clip_frames, num_queries, ...).
        targets: `boxes` (num_clip_frames, num_actors, 4) and `valid` (num_clip_frames, num_actors).
        config: Weights of the costs.

    Returns:
        Indices of frame, candidate and actor of each matched pair, int64; candidates ascend within a frame.

    Raises:
        NotFiniteError: If the predictions are not finite.
    """
    return match_layers([predictions], targets, config)[0]


def match_layers(
    layers: Sequence[dict[str, torch.Tensor]], targets: Mapping[str, torch.Tensor], config: ClassQueryConfig
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Match each layer as `match_actors` does, with one read of the device and one copy to it for all of them."""
    names = ("pred_boxes", "actor_logits")
    with torch.no_grad():
        stacked = {name: torch.stack([layer[name] for layer in layers]) for name in names}
        costs = _matching_cost(stacked, targets["boxes"], config).cpu().numpy()
    if not np.isfinite(costs).all():
        raise NotFiniteError("boxes or actor logits are not finite: training has diverged, try a lower learning rate")
    frames, actors = targets["valid"].nonzero().cpu().numpy().T
    groups = list(zip(*_groups(frames, actors), strict=True))
    pairs = torch.from_numpy(np.stack([_assign(cost, groups) for cost in costs]))
    return [tuple(layer) for layer in pairs.to(targets["boxes"].device)]


def _assign(cost: np.ndarray, groups: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Pairs of one layer: cost (num_clip_frames, num_queries, num_actors), frames with actors -> (3, num_pairs)."""
    pairs = [np.empty((3, 0), np.int64)]
    # Nothing but the assignment itself is done frame by frame.
    for frame, group in groups:
        candidates, columns = linear_sum_assignment(cost[frame][:, group])
        pairs.append(np.stack((np.full_like(candidates, frame), candidates, group[columns])))
    return np.concatenate(pairs, axis=1)


def _groups(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Split values where their ascending keys change: the different keys, and the values of each."""
    distinct, starts = np.unique(keys, return_index=True)
    return distinct, np.split(values, starts)[1:]


def _matching_cost(
    predictions: dict[str, torch.Tensor], boxes: torch.Tensor, config: ClassQueryConfig
) -> torch.Tensor:
    """Cost of each pair: (num_layers, num_clip_frames, num_queries, num_actors), float32."""
    candidates = predictions["pred_boxes"].float()[..., None, :]
    boxes = boxes[:, None]
    confidence = predictions["actor_logits"].float().softmax(-1)[..., ACTOR, None]
    distance = (candidates - boxes).abs().sum(-1)
    overlap = generalized_box_iou(candidates, boxes)
    return config.bbox_cost * distance - config.giou_cost * overlap - config.class_cost * confidence


def generalized_box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Generalized IoU in [-1, 1] of boxes (..., 4), (cx, cy, w, h), with broadcasting."""
    boxes, others = (box_convert(tensor, "cxcywh", "xyxy") for tensor in (boxes, others))
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
    pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    targets: dict[str, torch.Tensor],
    divisors: dict[str, torch.Tensor],
    config: ClassQueryConfig,
) -> dict[str, torch.Tensor]:
    """Unweighted loss terms of one decoder layer."""
    frames, candidates, actors = pairs
    matched_boxes = predictions["pred_boxes"][frames, candidates].float()
    boxes = targets["boxes"][frames, actors]
    matched = torch.zeros_like(predictions["actor_logits"][..., 0], dtype=torch.bool)
    matched[frames, candidates] = True
    class_targets = torch.zeros_like(predictions["logits"])
    class_targets[frames, candidates] = targets["class_labels"][frames, actors].to(class_targets.dtype)
    ignored = _ignored_candidates(predictions["pred_boxes"], matched, targets)
    known = _known_classes(class_targets, pairs, ignored, targets)
    class_loss = _class_loss(predictions, class_targets, matched, known, targets["real_frames"], config)
    actor_loss = _actor_loss(predictions["actor_logits"], matched, ignored, targets["real_frames"], config)
    return {
        "loss_class": class_loss / divisors.get(config.class_loss_normalization, 1),
        "loss_actor": actor_loss / divisors["candidate_weight"],
        "loss_bbox": (matched_boxes - boxes).abs().sum() / divisors["actors"],
        "loss_giou": (1 - generalized_box_iou(matched_boxes, boxes)).sum() / divisors["actors"],
    }


def _denoising_loss(
    denoised_boxes: torch.Tensor,
    targets: dict[str, torch.Tensor],
    divisors: dict[str, torch.Tensor],
    config: ClassQueryConfig,
) -> dict[str, torch.Tensor]:
    """Unweighted terms of what one decoder layer made of noised boxes: the mean over their groups."""
    boxes = targets["boxes"].repeat(1, config.denoising_groups, 1)
    weights = targets["is_actor"].repeat(1, config.denoising_groups) / config.denoising_groups
    distances = (denoised_boxes - boxes).abs().sum(-1)
    overlaps = generalized_box_iou(denoised_boxes, boxes)
    return {
        "loss_denoising_bbox": (distances * weights).sum() / divisors["actors"],
        "loss_denoising_giou": ((1 - overlaps) * weights).sum() / divisors["actors"],
    }


def _ignored_candidates(
    boxes: torch.Tensor, matched: torch.Tensor, targets: dict[str, torch.Tensor]
) -> torch.Tensor | None:
    """Candidates without an actor that mostly lie in one ignored region: (num_clip_frames, num_queries), or None."""
    if "ignored_boxes" not in targets:
        return None
    boxes = box_convert(boxes.detach().float(), "cxcywh", "xyxy")[:, :, None]
    regions = box_convert(targets["ignored_boxes"], "cxcywh", "xyxy")[:, None]
    corners = torch.maximum(boxes[..., :2], regions[..., :2]), torch.minimum(boxes[..., 2:], regions[..., 2:])
    inside = (corners[1] - corners[0]).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    return (inside > MOSTLY * area).any(-1) & ~matched


def _known_classes(
    class_targets: torch.Tensor,
    pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ignored: torch.Tensor | None,
    targets: dict[str, torch.Tensor],
) -> torch.Tensor | None:
    """1 where it is known if a candidate has a class: (num_clip_frames, num_queries, num_labels); None for all."""
    if not targets.keys() & {"labelled", "annotated_labels"} and ignored is None:
        return None
    frames, candidates, actors = pairs
    known = torch.ones_like(class_targets, dtype=torch.float32)
    if "labelled" in targets:
        known[frames, candidates] = targets["labelled"][frames, actors][:, None].expand(-1, known.shape[-1])
    if "annotated_labels" in targets:
        known = known * targets["annotated_labels"][:, None]
    return known if ignored is None else known * ~ignored[..., None]


def _class_loss(
    predictions: dict[str, torch.Tensor],
    class_targets: torch.Tensor,
    matched: torch.Tensor,
    known: torch.Tensor | None,
    real_frames: torch.Tensor | slice,
    config: ClassQueryConfig,
) -> torch.Tensor:
    """Focal loss, mean over classes and sum over the candidates of real frames; matched ones weigh more."""
    logits = action_logits(predictions, config.score_with_actor).float()
    class_targets = _smooth(class_targets.float(), config)
    weights = 1 + (config.positive_weight - 1) * matched.float()
    is_real = torch.zeros_like(weights[:, :1])
    is_real[real_frames] = 1
    weights = weights * is_real
    # Written out for soft targets, for which the usual form with a hard choice of alpha does not hold.
    probabilities = logits.sigmoid()
    correct = probabilities * class_targets + (1 - probabilities) * (1 - class_targets)
    alpha = config.focal_alpha * class_targets + (1 - config.focal_alpha) * (1 - class_targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, class_targets, reduction="none")
    focal = alpha * cross_entropy * (1 - correct) ** config.focal_gamma
    if known is not None:
        focal = focal * known
    return (focal.mean(-1) * weights).sum()


def _smooth(class_targets: torch.Tensor, config: ClassQueryConfig) -> torch.Tensor:
    """Mix the targets with 1/2 (several labels may be true at once) or 1/num_labels (one label is true)."""
    multi_label = config.problem_type == "multi_label_classification"
    uniform = 0.5 if multi_label else 1 / class_targets.shape[-1]
    return class_targets * (1 - config.label_smoothing) + config.label_smoothing * uniform


def _actor_loss(
    actor_logits: torch.Tensor,
    matched: torch.Tensor,
    ignored: torch.Tensor | None,
    real_frames: torch.Tensor | slice,
    config: ClassQueryConfig,
) -> torch.Tensor:
    """Cross-entropy, summed, of actor against background in real frames; the background weighs `eos_coefficient`."""
    class_targets = torch.full_like(matched, BACKGROUND, dtype=torch.long).masked_fill(matched, ACTOR)
    if ignored is not None:
        class_targets = class_targets.masked_fill(ignored, _NO_TARGET)
    class_targets = class_targets[real_frames].flatten()
    weights = torch.ones(3, device=actor_logits.device)
    weights[BACKGROUND] = config.eos_coefficient
    return F.cross_entropy(actor_logits[real_frames].flatten(0, 1).float(), class_targets, weights, reduction="sum")


class ActionTargets:
    """Labels of a batch as the loss reads them: checked, flattened, and on the CPU, where actors are matched.

    The frames of all clips stand side by side (`num_clip_frames`), and all have the same number of actors. A collator
    can make them, so that no step of training waits for it; `pin_memory` is for the data loader.

    Args:
        labels: As for `action_detection_loss`, on any device.
        num_frames, num_labels: What the model detects; by default what the first clip says.

    Raises:
        ValueError: If a tensor has another shape, or values out of range.
    """

    def __init__(
        self, labels: list[dict[str, torch.Tensor]], num_frames: int | None = None, num_labels: int | None = None
    ):
        labels = _on_cpu(labels)
        num_frames = len(labels[0]["frame_mask"]) if num_frames is None else num_frames
        num_labels = labels[0]["class_labels"].shape[-1] if num_labels is None else num_labels
        widths = {"boxes": (4,), "class_labels": (num_labels,), "valid": ()}
        for index, label in enumerate(labels):
            _check_label(f"labels[{index}]", label, num_frames, widths)
        self.shape = (len(labels), num_frames, num_labels)
        self.frame_mask = torch.cat([label["frame_mask"] for label in labels]).bool()
        self.real_frames = self.frame_mask.nonzero()[:, 0]
        self.valid = _stack_actors([label["valid"].bool() for label in labels]) & self.frame_mask[:, None]
        boxes_and_classes = _stack_actors(
            [torch.cat((label["boxes"].float(), label["class_labels"].float()), dim=-1) for label in labels]
        )
        # Together, so that they are sent to a device at once: boxes, classes, and whether there is an actor.
        self.actors = torch.cat((boxes_and_classes, self.valid[..., None].float()), dim=-1)
        self.partial = _stack_partial(labels, *self.shape[1:])
        # (batch, num_frames), where these are not all output frames.
        self.supervised_frames = _stack_supervised(labels)

    def __len__(self) -> int:
        return self.shape[0]

    # Between processes, arrays go in one piece; the memory of each tensor would be shared by a file of its own.
    def __getstate__(self) -> dict:
        return {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        vars(self).update({name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in state.items()})

    def pin_memory(self) -> "ActionTargets":
        """Let copies to a GPU run beside it."""
        self.actors, self.real_frames = self.actors.pin_memory(), self.real_frames.pin_memory()
        self.partial = {name: tensor.pin_memory() for name, tensor in self.partial.items()}
        if self.supervised_frames is not None:
            self.supervised_frames = self.supervised_frames.pin_memory()
        return self

    def on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What the loss terms need on a device.

        Returns:
            `boxes` (num_clip_frames, num_actors, 4), `class_labels` (num_clip_frames, num_actors, num_labels) and
            `is_actor` (num_clip_frames, num_actors), 1 where there is one and 0 elsewhere; `real_frames`, the numbers
            of those that are no padding; on the CPU still `valid` (num_clip_frames, num_actors). Of partial
            annotations, `labelled` (num_clip_frames, num_actors), `annotated_labels` (num_clip_frames, num_labels) and
            `ignored_boxes` (num_clip_frames, num_regions, 4), float32.
        """
        values = self.actors.to(device, non_blocking=True)
        boxes, class_labels, is_actor = values.split((4, self.shape[2], 1), dim=-1)
        real_frames = slice(None) if self.frame_mask.all() else self.real_frames.to(device, non_blocking=True)
        partial = {name: tensor.to(device, non_blocking=True) for name, tensor in self.partial.items()}
        return partial | {
            "boxes": boxes,
            "class_labels": class_labels,
            "is_actor": is_actor[..., 0],
            "valid": self.valid,
            "real_frames": real_frames,
        }

    @torch.compiler.disable
    def noised_boxes(self, config: ClassQueryConfig, device: torch.device) -> torch.Tensor:
        """Draw the boxes that denoising starts from: those of the actors, moved and scaled at random.

        Returns:
            Shape (num_clip_frames, denoising_groups * num_actors, 4), (cx, cy, w, h) within the frame.
        """
        boxes = self.actors[..., :4].to(device, non_blocking=True).repeat(1, config.denoising_groups, 1)
        noise = config.denoising_noise * (2 * torch.rand_like(boxes) - 1)
        centers, sizes = boxes.split(2, dim=-1)
        noised = torch.cat((centers + noise[..., :2] * sizes, sizes * (1 + noise[..., 2:])), dim=-1)
        return noised.clamp(_SMALLEST_NOISED, 1 - _SMALLEST_NOISED)


@torch.compiler.disable
def targets_of(
    labels: list[dict[str, torch.Tensor]] | ActionTargets,
    batch_size: int,
    num_frames: int,
    num_labels: int,
) -> ActionTargets:
    """Labels as targets of a batch of clips with so many decoded frames.

    Raises:
        ValueError: If they are those of other clips.
    """
    if len(labels) != batch_size:
        raise ValueError(f"`labels` must hold one dict per clip: got {len(labels)} for {batch_size} clips")
    if not isinstance(labels, ActionTargets):
        return ActionTargets(labels, num_frames, num_labels)
    if labels.shape[1:] != (num_frames, num_labels):
        found = "{} frames and {} classes".format(*labels.shape[1:])
        raise ValueError(f"`labels` must be of {num_frames} frames and {num_labels} classes, got {found}")
    return labels


def read_together(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors of one device to the CPU with a single read; integers up to 2^24 stay exact."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    flat = torch.cat([tensor.flatten().float() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


_PARTIAL_TENSORS = ("labelled", "annotated_labels", "ignored_boxes")
_LABEL_TENSORS = ("boxes", "class_labels", "valid", "frame_mask", "supervised_frames", *_PARTIAL_TENSORS)


def _on_cpu(labels: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    labels = [{name: label[name] for name in _LABEL_TENSORS if name in label} for label in labels]
    tensors = iter(read_together([tensor for label in labels for tensor in label.values()]))
    return [{name: next(tensors) for name in label} for label in labels]


def _stack_partial(labels: list[dict[str, torch.Tensor]], num_frames: int, num_labels: int) -> dict[str, torch.Tensor]:
    """What some clips do not know, flattened as the rest; other clips know all of it."""
    complete = {
        "labelled": lambda label: torch.ones(len(label["boxes"]), num_frames),
        "annotated_labels": lambda label: torch.ones(num_labels),
        "ignored_boxes": lambda label: torch.zeros(0, num_frames, 4),
    }
    tensors = {
        name: [label[name].float() if name in label else complete[name](label) for label in labels]
        for name in _PARTIAL_TENSORS
        if any(name in label for label in labels)
    }
    return {
        name: torch.stack(clips).repeat_interleave(num_frames, dim=0)
        if name == "annotated_labels"
        else _stack_actors(clips)
        for name, clips in tensors.items()
    }


def supervised_frames_of(labels: list[dict[str, torch.Tensor]] | ActionTargets) -> torch.Tensor | None:
    """Frames that labels are of, (batch, num_supervised_frames); None for all output frames.

    Raises:
        ValueError: If only some clips say so, or they say how many differently.
    """
    return labels.supervised_frames if isinstance(labels, ActionTargets) else _stack_supervised(labels)


def _stack_supervised(labels: list[dict[str, torch.Tensor]]) -> torch.Tensor | None:
    supervised = [label["supervised_frames"] for label in labels if "supervised_frames" in label]
    if not supervised:
        return None
    if len(supervised) < len(labels):
        raise ValueError("all clips of a batch must have `supervised_frames`, or none")
    shapes = sorted({tuple(frames.shape) for frames in supervised})
    if len(shapes) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"all clips of a batch must have as many `supervised_frames`, got shapes {str(shapes)[:100]}")
    return torch.stack(supervised)


def _check_label(
    place: str, label: dict[str, torch.Tensor], num_frames: int, widths: dict[str, tuple[int, ...]]
) -> None:
    """Check one clip; `widths` are the last sizes of what actors have."""
    num_labels = widths["class_labels"]
    for name, width in widths.items():
        tensor, expected = label[name], (len(label["boxes"]), num_frames, *width)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"`{place}[{name!r}]` must have shape {expected}, got {tuple(tensor.shape)}")
        _check_range(f"{place}[{name!r}]", tensor[label["valid"].bool()] if width else tensor)
    others = {"frame_mask": (num_frames,), "labelled": tuple(label["valid"].shape), "annotated_labels": num_labels}
    others["supervised_frames"] = (num_frames,)
    if "ignored_boxes" in label:
        others["ignored_boxes"] = (len(label["ignored_boxes"]), num_frames, 4)
        _check_range(f"{place}['ignored_boxes']", label["ignored_boxes"])
    for name in others.keys() & label.keys():
        if tuple(label[name].shape) != others[name]:
            raise ValueError(f"`{place}[{name!r}]` must have shape {others[name]}, got {tuple(label[name].shape)}")


def _check_range(name: str, values: torch.Tensor) -> None:
    if values.numel() and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got {values.min():g} to {values.max():g}: boxes are divided by the size of "
            "the frame, labels are 0 or 1"
        )


def _stack_actors(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Pad clips to one number of actors: (num_actors, num_frames, ...) each -> (num_clip_frames, num_actors, ...)."""
    # (actors, batch, frames, ...) -> (batch, frames, actors, ...)
    return torch.nn.utils.rnn.pad_sequence(tensors).movedim(0, 2).flatten(0, 1)


__all__ = [
    "ActionTargets",
    "NotFiniteError",
    "action_detection_loss",
    "action_logits",
    "action_scores",
    "generalized_box_iou",
    "inverse_sigmoid",
    "loss_counts",
    "loss_divisors",
    "match_actors",
    "match_layers",
    "read_together",
    "supervised_frames_of",
    "targets_of",
]
