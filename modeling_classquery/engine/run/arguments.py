"""Which model to run, as options of the command line; importable at once."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelArguments:
    """Which model, and what to run it on."""

    _argument_group_name = "model"

    recipe: str = field(
        default="demo",
        metadata={
            "help": "Name of a recipe, or a JSON file. By default that of a demo set, and `finetune` for a trained "
            "model that is trained on other data."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of a trained model, `demo` for the one in the package, or published:NAME for "
            "one of `classquery weights`.",
            "aliases": ["--model"],
        },
    )
    allow_pickle: bool = field(
        default=False, metadata={"help": "Read pytorch_model.bin where there is no safetensors, without its code."}
    )
    accept_license: bool = field(
        default=False,
        metadata={"help": "Accept the licence of published weights, CC BY-NC 4.0; asked for once otherwise."},
    )
    backbone_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Pre-trained backbone for a new model: .mat of CSN, .pth of a ViT, or file, folder or Hub name of "
            "VideoMAE or V-JEPA 2; or published:NAME, see `classquery weights`."
        },
    )
    transformer_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Detector of stage one, or published:NAME, whose encoder and decoder a new model of stage two "
            "starts from."
        },
    )
    classes: Literal["same", "replace", "add"] = field(
        default="same",
        metadata={
            "help": "For data with other classes than the trained model: refuse; replace them, keeping those of the "
            "same name; or add those that are new, without a change to the others."
        },
    )
    freeze: Literal["nothing", "backbone", "old_classes"] = field(
        default="nothing",
        metadata={"help": "What is not trained. `old_classes`: all but the queries of the classes added."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train low-rank updates of the matrices of a trained model. Needs peft."}
    )
    class_descriptions: str | None = field(
        default=None,
        metadata={
            "help": "JSON or csv with one or several sentences for each class: a new model reads its classes from "
            "them, a trained one with such classes takes others."
        },
    )
    text_encoder: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of what encodes the sentences, as CLIP; a trained model knows its own."},
    )
    classes_text: list[str] | None = field(
        default=None,
        metadata={
            "help": "Detect these classes instead: names that a model with classes in words knows, or sentences."
        },
    )
    class_chunk: int | None = field(
        default=None,
        metadata={"help": "So many classes attend at a time, which bounds memory; nothing else changes."},
    )
    report: bool = field(
        default=False, metadata={"help": "Write a page about the errors of --do_eval, `report` in the output folder."}
    )
    fit_thresholds: bool = field(
        default=False,
        metadata={
            "help": "Save with the model, after --do_eval, the lowest score to report of each class: that of best F1 "
            "on the validation split."
        },
    )
