"""Other classes for a trained detector: replaced, or added without a change to those it knows."""

from collections.abc import Sequence

import torch
from transformers import TrainerCallback
from transformers.utils import is_peft_available

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection


def replace_classes(
    model: ClassQueryForVideoActionDetection, labels: Sequence[str]
) -> ClassQueryForVideoActionDetection:
    """Make a detector of other classes: classes of a name that the model knows are kept, the others start anew.

    Args:
        model: A trained detector; stays as it is.
        labels: Names of the classes, in the order of their ids.

    Returns:
        A detector with all other weights of the model.
    """
    return _with_classes(model, list(labels), class_groups=None)


def add_classes(model: ClassQueryForVideoActionDetection, labels: Sequence[str]) -> ClassQueryForVideoActionDetection:
    """Add classes behind those of a detector, whose scores do not change: they do not see the new queries.

    Args:
        model: A trained detector; stays as it is.
        labels: Names of the new classes.

    Returns:
        A detector with all weights of the model, and `class_groups` in its configuration.

    Raises:
        ValueError: If the model knows one of the classes already.
    """
    old = list(model.config.id2label.values())
    known = sorted(set(old) & set(labels))
    if known:
        raise ValueError(f"the model knows {', '.join(map(repr, known))} already: add other classes, or replace them")
    groups = list(model.config.class_groups or [len(old)])
    return _with_classes(model, [*old, *labels], class_groups=[*groups, len(labels)])


def _with_classes(
    model: ClassQueryForVideoActionDetection, labels: list[str], class_groups: list[int] | None
) -> ClassQueryForVideoActionDetection:
    if len(set(labels)) < len(labels):
        raise ValueError(f"classes must have different names, got {labels}")
    values = model.config.to_dict() | {"id2label": dict(enumerate(labels)), "class_groups": class_groups}
    values.pop("label2id")
    other = ClassQueryForVideoActionDetection(ClassQueryConfig.from_dict(values)).to(model.device, model.dtype)
    state_dict, new = model.state_dict(), other.state_dict()
    kept = [(labels.index(label), old) for label, old in model.config.label2id.items() if label in labels]
    for name in class_parameters(model):
        rows = new[name].clone()
        for row, old in kept:
            rows[row] = state_dict[name][old]
        state_dict[name] = rows
    other.load_state_dict(state_dict)
    return other


def class_parameters(model: ClassQueryForVideoActionDetection) -> dict[str, torch.nn.Parameter]:
    """Parameters with one row per class, by name."""
    names = {"model.decoder.class_queries", "class_readout", "class_readout_bias"}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


class TrainNewClassesOnly(TrainerCallback):
    """Freeze a detector but for the rows of its last classes.

    Args:
        model: Gets its other parameters frozen.
        num_old: Number of classes, from the first, whose rows stay as they are, whatever the optimizer does to them.
    """

    def __init__(self, model: ClassQueryForVideoActionDetection, num_old: int):
        self.num_old = num_old
        self.parameters = class_parameters(model)
        model.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.rows = {name: p.detach()[:num_old].clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        """Put the rows of the old classes back, which momentum or weight decay may have moved."""
        for name, parameter in self.parameters.items():
            parameter[: self.num_old] = self.rows[name]


class TrainLowRankUpdates(TrainerCallback):
    """Freeze the backbone, the encoder and the decoder's layers, and train low-rank updates of their matrices (LoRA).

    The heads and the class queries are trained as they are. At the end of training the updates are merged, so that an
    ordinary detector is saved; checkpoints on the way hold the updates by themselves.

    Args:
        model: Is changed in place.
        rank: Rank of the updates.

    Raises:
        ImportError: If peft is not installed.
    """

    def __init__(self, model: ClassQueryForVideoActionDetection, rank: int):
        if not is_peft_available():
            raise ImportError("low-rank updates need peft: pip install peft")
        from peft import LoraConfig, inject_adapter_in_model

        self.model = model
        parts = ("model.backbone.", "model.encoder.layers.", "model.decoder.localizing", "model.decoder.classifying")
        matrices = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith(parts)
        ]
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=matrices), model)
        for name, parameter in model.named_parameters():
            if not name.startswith(parts):
                parameter.requires_grad_(True)

    def on_train_end(self, args, state, control, **kwargs):
        """Merge the updates into the matrices."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for parent in list(self.model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()
                    setattr(parent, name, layer.get_base_layer())
        del self.model.peft_config
