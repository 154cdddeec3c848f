"""Loading a trained detector with its processor, or saying why it cannot be loaded."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, demo_checkpoint


# What transformers, its Trainer and its quantizers put into a config.json beside the fields of its class.
_BESIDE_FIELDS = {
    "auto_map",
    "custom_pipelines",
    "num_labels",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class CheckpointError(ValueError):
    """Raised when a model cannot be loaded, or not completely."""


def load_detector(
    name_or_path: str, *, allow_pickle: bool = False
) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    """Load a detector, in single precision, and the processor saved with it.

    Unlike `from_pretrained` alone, which fills what is missing with random weights and passes over values that it does
    not know, this refuses a checkpoint that does not hold exactly the weights of the model.

    Args:
        name_or_path: A folder, a name on the Hub, or `demo` for the small model in the package.
        allow_pickle: Whether to read the weights from `pytorch_model.bin` if they are not in safetensors. It is read
            without running code from it.

    Raises:
        CheckpointError: If there is no such model, it is none of ours or of a newer version, the file is damaged or
            weights are missing, left over or of another shape.
        OSError: If the configuration of the processor is missing.
    """
    path = demo_checkpoint() if name_or_path == "demo" else name_or_path
    config = _load_config(path, name_or_path)
    _check_weights(path, allow_pickle)
    try:
        model, report = ClassQueryForVideoActionDetection.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=None if allow_pickle else True,
        )
    except (EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the weights in {path} are damaged or not complete: {error}") from error
    problems = {kind: sorted(map(str, report[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}, as {keys[0]}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"the weights in {path} do not fit its config.json: {found}")
    return model, ClassQueryVideoProcessor.from_pretrained(path)


def demo_notice(model: ClassQueryForVideoActionDetection) -> str | None:
    """What to know before using the demo model; None for any other, also for one that was fine-tuned from it."""
    weights = model.state_dict()
    stored = load_file(Path(demo_checkpoint()) / "model.safetensors")
    if not stored.keys() <= weights.keys():
        return None
    if not all(torch.equal(weights[name].cpu(), stored[name].to(weights[name].dtype)) for name in stored):
        return None
    classes = ", ".join(model.config.id2label.values())
    return (
        f"The demo model knows nothing but the people, balls and kites of the demo movies ({classes}): train or load "
        "another."
    )


def _load_config(path: str, name: str) -> ClassQueryConfig:
    try:
        values, _ = PreTrainedConfig.get_config_dict(path)
    except OSError as error:
        message = f"no model {name!r}: it is no folder with a config.json and was not found on the Hub: {error}"
        raise CheckpointError(message) from error
    if not values:
        raise CheckpointError(f"no model {name!r}: there is no config.json")
    model_type = values.get("model_type")
    if model_type != ClassQueryConfig.model_type:
        raise CheckpointError(f"{path} holds a model of type {model_type!r}, not {ClassQueryConfig.model_type!r}")
    try:
        config = AutoConfig.from_pretrained(path)
    except (StrictDataclassError, ValueError) as error:
        raise CheckpointError(f"config.json of {path} cannot be: {error.__cause__ or error}{_age(values)}") from error
    unknown = _unknown_keys(config, values)
    if unknown:
        raise CheckpointError(f"config.json of {path} has values that are not known here: {unknown}{_age(values)}")
    return config


def _age(values: dict) -> str:
    written_by = values.get("transformers_version", "an unknown version")
    return f"; if it was written by a newer version (its transformers is {written_by}), update classquery"


def _unknown_keys(config: PreTrainedConfig, values: dict) -> list[str]:
    """Keys of a config.json that its class would pass over."""
    fields = {field.name for field in dataclasses.fields(config)}
    unknown = sorted(values.keys() - fields - PreTrainedConfig().to_dict().keys() - _BESIDE_FIELDS)
    backbone = values.get("backbone_config")
    nested = _unknown_keys(config.backbone_config, backbone) if isinstance(backbone, dict) else []
    return unknown + [f"backbone_config.{key}" for key in nested]


def _check_weights(path: str, allow_pickle: bool) -> None:
    """Make sure that there are weights, in a format that may be read; those on the Hub are downloaded."""
    find = _finder(path)
    if any(map(find, _WEIGHTS)):
        return
    if not any(map(find, _PICKLES)):
        raise CheckpointError(f"{path} holds a configuration, but no weights: model.safetensors is missing")
    if not allow_pickle:
        raise CheckpointError(
            f"the weights in {path} are a pickle, which may be made to do harm, and not safetensors; if you trust "
            "their origin, pass allow_pickle=True (--allow_pickle): they are read without running code from them"
        )


def _finder(path: str) -> Callable[[str], str | None]:
    """A function that looks for a file of a model, in its folder or on the Hub."""

    def find(name: str) -> str | None:
        try:
            return cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        except (OSError, httpx.HTTPError) as error:
            raise CheckpointError(
                f"{name} of {path} could not be downloaded completely, and what came was not kept: {error}"
            ) from error

    return find
