"""Other classes for a trained detector: replaced, or added without a change to those it knows."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from transformers import TrainerCallback
from transformers.utils import is_peft_available

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection
from classquery.text_classquery import Encode, Words


def change_classes(
    model: ClassQueryForVideoActionDetection,
    labels: Sequence[str],
    how: Literal["same", "replace", "add"],
    descriptions: Mapping[str, Words] | None = None,
    text_encoder: str | Encode | None = None,
) -> ClassQueryForVideoActionDetection:
    """Fit a detector to the classes of a data set, which are others than its own.

    Where names differ in capitals, punctuation and spaces only ("Hand clap" and "hand_clap"), the model takes those of
    the data.

    Args:
        model: A trained detector; stays as it is but for such names.
        labels: Names of the classes of the data, in the order of their ids.
        how: Refuse to, replace the classes, or add those that are new.
        descriptions: Of a model with classes in words: sentences for those that are new.
        text_encoder: What encodes them; by default that of the model.

    Raises:
        TextError: If a class of such a model has no words.
        ValueError: If other classes are refused, or the data does not begin with the classes of the model.
    """
    old = list(model.config.id2label.values())
    if how == "same" and [_plain(label) for label in old] == [_plain(label) for label in labels]:
        _rename_classes(model.config, dict(zip(old, labels, strict=True)))
        return model
    begins_with_old = list(labels[: len(old)]) == old
    if model.config.class_queries == "text" and (how == "replace" or (how == "add" and begins_with_old)):
        words = {label: (descriptions or {}).get(label) for label in labels}
        return copy.deepcopy(model).set_classes(words, text_encoder)
    if how == "replace":
        return replace_classes(model, labels)
    if how == "add" and begins_with_old:
        return add_classes(model, labels[len(old) :])
    if how == "add":
        raise ValueError(
            "to add classes, those of the data must begin with those of the model, in their order: the model has "
            f"{_first(old)}, the data {_first(labels)}"
        )
    raise ValueError(
        f"the classes of the model are not those of the data: {_first(old)} and {_first(labels)}; give the data of "
        "this model, or train it on them with --classes replace or add"
    )


def _rename_classes(config: ClassQueryConfig, names: Mapping[str, str]) -> None:
    """Give classes other names, wherever they are named."""
    if config.class_descriptions:
        config.class_descriptions = {name: config.class_descriptions[label] for label, name in names.items()}
    if config.untrained_classes:
        config.untrained_classes = [names[label] for label in config.untrained_classes]
    config.id2label = dict(enumerate(names.values()))
    config.label2id = {label: index for index, label in config.id2label.items()}


def _plain(label: str) -> str:
    return "".join(character for character in label.casefold() if character.isalnum())


def _first(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")


def replace_classes(
    model: ClassQueryForVideoActionDetection, labels: Sequence[str]
) -> ClassQueryForVideoActionDetection:
    """Make a detector of other classes: classes of a name that the model knows are kept, the others start amid them.

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
    state_dict = model.state_dict()
    kept = [(labels.index(label), old) for label, old in model.config.label2id.items() if label in labels]
    for name in class_parameters(model):
        rows = _amid(state_dict[name], len(labels))
        for row, old in kept:
            rows[row] = state_dict[name][old]
        state_dict[name] = rows
    other.load_state_dict(state_dict)
    return other


def _amid(known: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Rows of new classes: amid the known ones, which the network can read, and a tenth as far apart as these."""
    noise = torch.randn(num_rows, *known.shape[1:], dtype=known.dtype, device=known.device)
    return known.mean(0) + 0.1 * known.std(0, correction=0) * noise


def class_parameters(model: ClassQueryForVideoActionDetection) -> dict[str, torch.nn.Parameter]:
    """Parameters with one row per class, by name."""
    if model.config.class_queries == "text":
        names = {"model.decoder.text_queries.residual", "text_readout.residual"}
    else:
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
        if not self.parameters:
            raise ValueError(
                "a model with classes in words has nothing for each class to be trained: --freeze old_classes needs "
                "one with class_residual=True, or with learned queries"
            )
        self.rows = {name: p.detach()[:num_old].clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        """Put the rows of the old classes back, which momentum or weight decay may have moved."""
        for name, parameter in self.parameters.items():
            parameter[: self.num_old] = self.rows[name]


class TrainLowRankUpdates(TrainerCallback):
    """Freeze the backbone, the encoder and the decoder's layers, and train low-rank updates of their matrices (LoRA).

    The heads and the class queries are trained as they are. At the end of training the updates are merged, so that an
    ordinary detector is saved. Checkpoints on the way hold matrices and updates apart: they serve to resume a run with
    the same rank, not as detectors.

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
