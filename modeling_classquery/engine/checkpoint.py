"""Loading a trained detector with its processor, or saying why it cannot be loaded."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, demo_checkpoint
from classquery.checkpoint_files_classquery import DAMAGED, MAX_QUOTED, CheckpointError, read_tensors, reading
from classquery.checkpoint_layouts_classquery import without_prefix, wrapping_prefix
from classquery.loss_classquery import NotFiniteError
from classquery.published_classquery import local_detector


logger = logging.getLogger(__name__)

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
# Of weights in four bits; and of tables that are computed, not stored.
_VALUES_PER_BYTE, _VALUES_NOT_STORED = 2, 2**26
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def load_detector(
    name_or_path: str, *, allow_pickle: bool = False
) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    """Load a detector, in single precision, and the processor saved with it.

    Unlike `from_pretrained` alone, which fills what is missing with random weights and passes over values that it does
    not know, this refuses a checkpoint that does not hold exactly the weights of the model.

    Args:
        name_or_path: A folder, a name on the Hub, `demo` for the small model in the package, or the name of published
            weights, as `published:ava22_vit_b_v2`.
        allow_pickle: Whether to read the weights from `pytorch_model.bin` if they are not in safetensors. It is read
            without running code from it.

    Raises:
        CheckpointError: If there is no such model, it is none of ours or of a newer version, a file is damaged or
            weights are missing, left over, of another shape or not finite, or there is no processor that could work.
    """
    path = demo_checkpoint() if name_or_path == "demo" else local_detector(name_or_path)
    config = _load_config(path, name_or_path)
    files = _weight_files(path, allow_pickle)
    with torch.device("meta"):
        empty = ClassQueryForVideoActionDetection(config)
    _check_size(path, empty, files)
    with reading(f"the weights in {path}", "damaged or not complete"):
        try:
            model, report = _load_weights(path, empty, files, allow_pickle)
        except NotFiniteError as error:
            raise CheckpointError(f"the weights in {path} are of no use: {error}") from error
    problems = {kind: sorted(map(str, report[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}, as {keys[0][:MAX_QUOTED]}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"the weights in {path} do not fit its config.json: {found}")
    return model, _load_processor(path)


def _load_weights(
    path: str | os.PathLike[str], empty: ClassQueryForVideoActionDetection, files: list[Path], allow_pickle: bool
) -> tuple[ClassQueryForVideoActionDetection, dict]:
    """Load the weights, and what did not fit; a prefix that all names carry is taken off."""
    options = {
        "config": empty.config,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    is_floating = _are_floating_point(files)
    prefix = wrapping_prefix(list(is_floating), empty.state_dict().keys())
    _refuse_whole_numbers(path, empty, {name.removeprefix(prefix): found for name, found in is_floating.items()})
    if not prefix:
        use_safetensors = None if allow_pickle else True
        return ClassQueryForVideoActionDetection.from_pretrained(path, use_safetensors=use_safetensors, **options)
    logger.warning("the names of the weights in %s begin with %r, which was taken off", path, prefix)
    tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    return ClassQueryForVideoActionDetection.from_pretrained(
        None, state_dict=without_prefix(prefix, tensors), **options
    )


def _are_floating_point(files: list[Path]) -> dict[str, bool]:
    """Whether the tensors in files of weights are of floating point, by name."""
    found: dict[str, bool] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                names = content.keys()
                # F32, BF16, F8_E4M3, I64, BOOL, C64, ...
                found |= {name: "F" in content.get_slice(name).get_dtype() for name in names}
        else:
            found |= {name: tensor.is_floating_point() for name, tensor in read_tensors(file).items()}
    return found


def _refuse_whole_numbers(
    path: str | os.PathLike[str], empty: ClassQueryForVideoActionDetection, is_floating: dict[str, bool]
) -> None:
    """Refuse what would be rounded weights; those that a quantizer has packed are its own matter."""
    if getattr(empty.config, "quantization_config", None):
        return
    ours = [name for name, tensor in empty.state_dict().items() if tensor.is_floating_point()]
    wrong = [name for name in ours if not is_floating.get(name, True)]
    if wrong:
        raise CheckpointError(
            f"the weights in {path} are of no use: {len(wrong)} tensors are no floating-point numbers, as {wrong[0]}"
        )


def _check_size(path: str | os.PathLike[str], empty: ClassQueryForVideoActionDetection, files: list[Path]) -> None:
    """Refuse a model that its files cannot hold, before there is memory for it."""
    num_values = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    num_bytes = sum(file.stat().st_size for file in files)
    if num_values > _VALUES_PER_BYTE * num_bytes + _VALUES_NOT_STORED:
        raise CheckpointError(
            f"config.json of {path} describes a model of {num_values:,} numbers, but its weights have {num_bytes:,} "
            "bytes: one of both is of another model, or damaged"
        )


def _load_processor(path: str | os.PathLike[str]) -> ClassQueryVideoProcessor:
    try:
        return ClassQueryVideoProcessor.from_pretrained(path)
    except DAMAGED as error:
        message = str(error)[:MAX_QUOTED]
        raise CheckpointError(
            f"the processor of {path} (video_preprocessor_config.json) cannot be: {message}; copy it from where the "
            "model comes from"
        ) from error


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


def _load_config(path: str | os.PathLike[str], name: str | os.PathLike[str]) -> ClassQueryConfig:
    try:
        values, _ = PreTrainedConfig.get_config_dict(path)
    except DAMAGED as error:
        message = f"no model {name!r}: it is no folder with a config.json and was not found on the Hub: {error}"
        raise CheckpointError(message) from error
    if not values or not isinstance(values, dict):
        raise CheckpointError(f"no model {name!r}: there is no config.json")
    model_type = values.get("model_type")
    if model_type != ClassQueryConfig.model_type:
        raise CheckpointError(f"{path} holds a model of type {model_type!r}, not {ClassQueryConfig.model_type!r}")
    try:
        config = AutoConfig.from_pretrained(path)
    except (StrictDataclassError, *DAMAGED) as error:
        reason = str(error.__cause__ or error)[:MAX_QUOTED]
        raise CheckpointError(f"config.json of {path} cannot be: {reason}{_age(values)}") from error
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


def _weight_files(path: str | os.PathLike[str], allow_pickle: bool) -> list[Path]:
    """Files with the weights, in a format that may be read; those on the Hub are downloaded."""
    find = _finder(path)
    file = next(filter(None, map(find, _WEIGHTS)), None)
    if file is None:
        file = next(filter(None, map(find, _PICKLES)), None)
        if file is None:
            raise CheckpointError(f"{path} holds a configuration, but no weights: model.safetensors is missing")
        if not allow_pickle:
            raise CheckpointError(
                f"the weights in {path} are a pickle, which may be made to do harm, and not safetensors; if you trust "
                "their origin, pass allow_pickle=True (--allow_pickle): they are read without running code from them"
            )
    if not file.endswith(".json"):
        return [Path(file)]
    with reading(file, "no index of files of weights"):
        names = sorted(set(map(os.fspath, json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"].values())))
    files = [find(name) for name in names]
    missing = [name for name, found in zip(names, files, strict=True) if found is None]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(names)} files of weights, as {missing[0][:MAX_QUOTED]}"
        )
    return [Path(found) for found in files if found is not None]


def _finder(path: str | os.PathLike[str]) -> Callable[[str], str | None]:
    """A function that looks for a file of a model, in its folder or on the Hub."""

    def find(name: str) -> str | None:
        try:
            return cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        except (OSError, httpx.HTTPError) as error:
            raise CheckpointError(
                f"{name} of {path} could not be downloaded completely, and what came was not kept: {error}"
            ) from error

    return find
