"""How parameters are updated: groups with their own rates, and the learning rate schedule of the published recipe."""

import bisect
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from classquery.engine.training.fine_tuning import class_parameters
from classquery.engine.training.matrices import BY_MUON


logger = logging.getLogger(__name__)


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    backbone_learning_rate_factor: float = 1.0,
    class_learning_rate_factor: float = 1.0,
    pyramid_scales_with_backbone: bool = False,
    decay_norms_and_biases: bool = False,
    matrix_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Group the trained parameters of a detector by learning rate and weight decay.

    Args:
        model: A detector; its backbone is `model.model.backbone`.
        learning_rate: Rate of everything else.
        weight_decay: Decay of matrices and convolution kernels.
        backbone_learning_rate_factor: Rate of the backbone as part of `learning_rate`.
        class_learning_rate_factor: Rate of the queries and readouts of classes as multiple of `learning_rate`.
        pyramid_scales_with_backbone: Whether the scales of a ViT's feature pyramid are part of the backbone, under
            whose name they are published.
        decay_norms_and_biases: Whether the decay applies to vectors as well.
        matrix_learning_rate: If given, the weights of linear layers have groups of their own with this rate, or as
            much of it in the backbone, for `MuonForMatrices`.

    Returns:
        Groups for a torch optimizer, with a `name` each; empty ones are left out.

    Raises:
        ValueError: If nothing is to be trained.
    """
    factors = {"backbone": backbone_learning_rate_factor, "classes": class_learning_rate_factor, "head": 1.0}
    of_backbone = ("model.backbone.", *(["model.feature_pyramid.scales."] if pyramid_scales_with_backbone else []))
    of_classes = set() if class_learning_rate_factor == 1 else set(class_parameters(model).values())
    matrices = linear_weights(model) if matrix_learning_rate is not None else set()
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_backbone = any(prefix in f".{name}" for prefix in of_backbone)
        part = "backbone" if is_backbone else "classes" if parameter in of_classes else "head"
        decays = decay_norms_and_biases or parameter.ndim > 1
        name_of_group = part if decays else f"{part} without decay"
        group = {"name": name_of_group, "params": [], "lr": learning_rate * factors[part]}
        group["weight_decay"] = weight_decay if decays else 0.0
        if matrix_learning_rate is not None:
            group[BY_MUON] = parameter in matrices
        if parameter in matrices:
            group |= {"name": f"{part} matrices", "lr": matrix_learning_rate * factors[part]}
        groups.setdefault(group["name"], group)["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter is to be trained: every one is frozen")
    # Logs show the rate of the first group, which is not to be that of the classes.
    return sorted(groups.values(), key=lambda group: group["name"].startswith("classes"))


def rate_at_width(learning_rate: float, of_width: int | None, width: int) -> float:
    """Learning rate of a network, from one that belongs to another width.

    In inverse proportion, as Adam's rates of matrices are in maximal update parametrization (arXiv 2203.03466).

    Args:
        learning_rate: A rate.
        of_width: The width it belongs to, or None where it belongs to any.
        width: That of the network.
    """
    if of_width in (None, width):
        return learning_rate
    scaled = learning_rate * of_width / width
    logger.info(
        "the learning rate is %.2g: %.2g belongs to a width of %d, and the model has %d",
        scaled,
        learning_rate,
        of_width,
        width,
    )
    return scaled


def linear_weights(model: nn.Module) -> set[nn.Parameter]:
    """Matrices that map features to features; tables with a row per class or level are none."""
    return {module.weight for module in model.modules() if isinstance(module, nn.Linear)}


def check_parameter_groups(model: nn.Module, groups: Sequence[dict[str, Any]]) -> None:
    """Make sure that an optimizer updates each parameter to be trained, and once.

    Raises:
        ValueError: If its groups miss or repeat one.
    """
    times = Counter(id(parameter) for group in groups for parameter in group["params"])
    trained = {name: times[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}
    for problem, names in (
        ("miss", [name for name, count in trained.items() if count == 0]),
        ("repeat", [name for name, count in trained.items() if count > 1]),
    ):
        if names:
            raise ValueError(
                f"the parameter groups of the optimizer {problem} {len(names)} of {len(trained)} parameters to be "
                f"trained, as {names[0]}: put each into one group, or freeze it with requires_grad_(False)"
            )


def warmup_multistep_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    updates_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_start_learning_rate: float = 0.0,
    decay_epochs: Sequence[float] = (),
    decay_factor: float = 0.1,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Let all rates rise linearly from one absolute rate to their own, then multiply them at given epochs.

    A group whose own rate is that of the start stays flat, as the published backbone does.

    Args:
        optimizer: Its groups' `lr` are the rates after the warm-up.
        updates_per_epoch: Updates in an epoch.
        warmup_epochs: Length of the rise.
        warmup_start_learning_rate: Rate of the first step.
        decay_epochs: Epochs after which the rates are multiplied with `decay_factor`.
        decay_factor: Factor of each decay.

    Returns:
        A scheduler to step after every update.
    """
    num_warmup_steps = round(warmup_epochs * updates_per_epoch)
    milestones = sorted(round(epoch * updates_per_epoch) for epoch in decay_epochs)

    def factor_of(group: dict[str, Any]) -> Callable[[int], float]:
        start = warmup_start_learning_rate / group["lr"]

        def factor(step: int) -> float:
            if step < num_warmup_steps:
                return start + (1 - start) * step / num_warmup_steps
            return decay_factor ** bisect.bisect_right(milestones, step)

        return factor

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor_of(group) for group in optimizer.param_groups])


def fitting_warmup(num_warmup_steps: int, num_training_steps: int) -> int:
    """Steps of a warm-up that ends before the run does: a tenth of the run, and said so, where it would not."""
    if num_warmup_steps < num_training_steps or num_warmup_steps == 0:
        return num_warmup_steps
    fitting = num_training_steps // 10
    logger.warning(
        "the warm-up would take %d updates of a run of %d: it takes %d instead; give --warmup_steps to choose",
        num_warmup_steps,
        num_training_steps,
        fitting,
    )
    return fitting


def accumulation_steps(total_batch_size: int, batch_size_of_a_pass: int) -> int:
    """How many passes over all processes make an update of `total_batch_size` clips.

    Raises:
        ValueError: If they cannot.
    """
    if total_batch_size % batch_size_of_a_pass:
        raise ValueError(
            f"--total_batch_size {total_batch_size} is no multiple of the {batch_size_of_a_pass} clips that all "
            "processes take at once: change --per_device_train_batch_size, the number of processes, or the total"
        )
    return total_batch_size // batch_size_of_a_pass
