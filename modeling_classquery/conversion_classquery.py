"""Published weights for our models: whole detectors, pre-trained backbones and transformers of a first stage.

Every tensor of a file is used, or known to be of no use, or reported: none is dropped silently. A file that does not
fit changes nothing.
"""

import importlib
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint_files_classquery import CheckpointError, read_matlab, read_tensors, reading
from .checkpoint_layouts_classquery import (
    WeightSource,
    csn_backbone,
    own_transformer,
    published_detector,
    published_transformer,
    token_backbone,
    vit_backbone,
)
from .configuration_classquery import ClassQueryConfig
from .modeling_classquery import ClassQueryForVideoActionDetection
from .modeling_classquery_tokens import TOKEN_BACKBONES
from .published_classquery import local_weights
from .video_processing_classquery import ClassQueryVideoProcessor


_LICENCE_ID = "cc-by-nc-4.0"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadingReport:
    """What a model took from a file.

    Attributes:
        loaded: For each of our tensors that was set, the names in the file of what it was made of.
        dropped: Names in the file that have no place in the model.
        initial: Our tensors that kept the values they had.
        prefix: What was taken off the names in the file.
    """

    loaded: dict[str, tuple[str, ...]]
    dropped: list[str]
    initial: list[str]
    prefix: str = ""


def convert_original_state_dict(
    original: Mapping[str, torch.Tensor], config: ClassQueryConfig
) -> dict[str, torch.Tensor]:
    """Rename and reshape the tensors of a published detector checkpoint.

    Args:
        original: State dict of the published model, whose keys may all carry one prefix, such as `module.`.
        config: Configuration of the model that will load the result.

    Returns:
        State dict for [`ClassQueryForVideoActionDetection`]. Tied duplicates and unused tensors are dropped.

    Raises:
        CheckpointError: If, after renaming, tensors are missing, unexpected or of another shape, or a tied duplicate
            differs from what it repeats, or values are no finite floating-point numbers; lists all of it.
    """
    with torch.device("meta"):
        shapes = _shapes(ClassQueryForVideoActionDetection(config))
    source = published_detector(original, config, shapes)
    converted = _collect(source, "the checkpoint does not fit the configuration")
    # Nothing reads the counters of batch norms with a fixed momentum, but torch expects them.
    norms = [name.removesuffix("running_mean") for name in shapes if name.endswith(".running_mean")]
    return converted | {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}


def load_checkpoint(model: ClassQueryForVideoActionDetection, path: str | Path) -> LoadingReport:
    """Set a model to the weights of a published detector, and note their licence in its configuration.

    Args:
        model: Changed in place, or not at all if there is an error.
        path: File with the state dict, or with a dict that has it under `model` or `state_dict`; its names may all
            carry one prefix, which is taken off with a warning, here and below.

    Raises:
        CheckpointError: If the file cannot be read or is one of ours, or as from [`convert_original_state_dict`].
    """
    tensors = read_tensors(path)
    if _is_ours(tensors):
        raise CheckpointError(
            f"{path} holds the weights of one of our models, so there is nothing to convert: load its folder with "
            "from_pretrained, or pass it as --transformer to start a second stage from it"
        )
    return _load(model, published_detector(tensors, model.config, _shapes(model)), path, _LICENCE_ID)


def load_backbone(model: ClassQueryForVideoActionDetection, path: str | Path) -> LoadingReport:
    """Set the backbone of a model to pre-trained weights; the feature pyramid behind it is not part of them.

    Heads of pre-training and classification are dropped, with one exception. A VideoMAE that was trained to classify
    has no final layer norm: it normalises the mean of the tokens, by `fc_norm`. Ours starts from that one then. In the
    layout of transformers both may be absent, and ours keeps its values: see the report's `initial`.

    Args:
        model: Changed in place, or not at all if there is an error.
        path: For CSN, a MATLAB file. For ViT, a file in the published layout, possibly under `module`, or a file or
            folder of one of transformers' VideoMAE models, or its name on the Hub. For a VideoMAE or V-JEPA 2 of
            transformers, a file, folder or name of one. Or the name of a published one, as `published:csn152`.

    Raises:
        CheckpointError: If the file cannot be read, or tensors are missing, unexpected or of another shape; lists all
            of them.
    """
    path = local_weights(path, ("backbone",))
    shapes = _shapes(model, "model.backbone.")
    backbone_config = model.config.backbone_config
    if backbone_config.model_type == "classquery_csn":
        source = csn_backbone(read_matlab(path), backbone_config.depths, shapes)
    elif backbone_config.model_type in TOKEN_BACKBONES:
        source = token_backbone(read_tensors(path), shapes)
    else:
        source = vit_backbone(read_tensors(path), shapes)
    return _load(model, source, path, _LICENCE_ID)


# Class queries, learned or read from words, by our names and the published one.
_CLASSES = re.compile(r"(.+\.)?(class_queries(\.weight)?|class_words\..+|text_(queries|readout)\..+)")


def load_transformer(model: ClassQueryForVideoActionDetection, path: str | Path) -> LoadingReport:
    """Set encoder, decoder (with the box head) and anchors of a model to those of a detector trained in a first stage.

    Backbone, feature pyramid and actor head are not taken over, nor are the queries of classes by a model that reads
    them from words. Anchors of all frames serve a keyframe model with
    those of its keyframe; anchors of a keyframe serve every frame. As in the release, values of a published file are
    rounded to half precision. Unlike there, anchors of all frames are always read as (queries, frames): the release
    trains them so, but reads them as (frames, queries) here.

    Args:
        model: Changed in place, or not at all if there is an error.
        path: File or name (as `published:ava22_stage1`) of a published detector, or a folder that `save_pretrained`
            wrote, whose values are kept exactly.

    Raises:
        CheckpointError: If the file cannot be read, or tensors are missing, unexpected or of another shape, as with
            another number of layers or classes; lists all of them.
    """
    path = local_weights(path, ("transformer", "detector"))
    tensors = read_tensors(path)
    shapes = _shapes(model, "model.encoder.", "model.decoder.", "model.reference_boxes")
    if model.config.class_queries == "text":
        shapes = {name: shape for name, shape in shapes.items() if not _CLASSES.fullmatch(name)}
    if _is_ours(tensors):
        source, licence = own_transformer(tensors, model.config, shapes), _own_licence(path)
    else:
        source, licence = published_transformer(tensors, model.config, shapes), _LICENCE_ID
    if model.config.class_queries == "text":
        source.dropped |= {name for name in source.tensors if _CLASSES.fullmatch(name)}
    return _load(model, source, path, licence)


def _own_licence(path: str | Path) -> str | None:
    """What the configuration beside weights of ours says about their licence."""
    path = Path(path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file():
        return None
    with reading(config, "no configuration"):
        return json.loads(config.read_text(encoding="utf-8")).get("weights_license")


def _is_ours(tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(re.search(r"(^|\.)model\.encoder\.layers\.", name) for name in tensors)


def _shapes(model: torch.nn.Module, *prefixes: str) -> dict[str, torch.Size]:
    """Shapes of the weights under some prefixes, or of all; counters of batch norms are no weights."""
    return {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name.startswith(prefixes or "") and not name.endswith(".num_batches_tracked")
    }


def _load(
    model: ClassQueryForVideoActionDetection, source: WeightSource, path: str | Path, licence: str | None
) -> LoadingReport:
    values = _collect(source, f"{path} does not fit the model")
    if source.prefix:
        logger.warning("%s: all names begin with %r, which was taken off", path, source.prefix)
    model.load_state_dict(values, strict=False)
    model.config.weights_license = model.config.weights_license or licence
    used = source.used
    return LoadingReport(
        loaded={name: tuple(filter(None, origin)) for name, origin in source.origins.items()},
        dropped=[name for name in source.tensors if name not in used],
        initial=[name for name in _shapes(model) if name not in values],
        prefix=source.prefix,
    )


def _collect(source: WeightSource, message: str) -> dict[str, torch.Tensor]:
    values = source.collect(message)
    used = {name: source.tensors[name] for name in sorted(source.used)}
    broken = [f"  {name} ({tensor.dtype})" for name, tensor in used.items() if not _is_finite(tensor)]
    if broken:
        raise CheckpointError("\n".join([f"{message}: no finite floating-point numbers are in", *broken]))
    return values


def _is_finite(tensor: torch.Tensor) -> bool:
    # The extremes are NaN if any value is.
    return tensor.is_floating_point() and all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


# A folder with a model


def convert(
    recipe: str,
    output: Path,
    *,
    checkpoint: str | Path | None = None,
    backbone: str | Path | None = None,
    transformer: str | Path | None = None,
    seed: int = 0,
) -> None:
    """Make the model of a recipe from files of weights, print what was taken from each, and save it.

    Args:
        recipe: Name of a recipe, or a JSON file.
        output: A new or empty folder.
        checkpoint, backbone, transformer: Files as for [`load_checkpoint`], [`load_backbone`], [`load_transformer`].
        seed: Of what is in none of the files.

    Raises:
        ValueError: If the recipe or a file does not fit, or the output folder is not empty.
    """
    output = output.resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output must be a new or an empty folder, got {output}")
    # Not among the flat modules, which import each other only.
    values = importlib.import_module("classquery.configuration").load_recipe(recipe)
    torch.manual_seed(seed)
    model = ClassQueryForVideoActionDetection(ClassQueryConfig(**values.model))
    initial = set(_shapes(model))
    for path, load in (
        (checkpoint, load_checkpoint),
        (backbone, load_backbone),
        (transformer, load_transformer),
    ):
        if path is not None:
            report = load(model, path)
            initial &= set(report.initial)
            _print_names(f"{path}: loaded", report.loaded)
            _print_names(f"{path}: dropped", report.dropped)
    _print_names(f"initialised with seed {seed}:", sorted(initial))
    save_detector(model, ClassQueryVideoProcessor(**values.processor), output)
    print(f"saved {output}")


def _print_names(title: str, names: Collection[str]) -> None:
    """Print how many tensors there are, and their names with * for numbers."""
    print(f"{title} {len(names)} tensors")
    for name, count in Counter(re.sub(r"\d+", "*", name) for name in names).items():
        print(f"  {name} ({count})")


def save_detector(model: ClassQueryForVideoActionDetection, processor: ClassQueryVideoProcessor, output: Path) -> None:
    """Save a model and its processor in a new or empty folder, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as parent:
        folder = Path(parent) / output.name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if output.exists():
            output.rmdir()
        folder.rename(output)


__all__ = [
    "LoadingReport",
    "convert",
    "convert_original_state_dict",
    "load_backbone",
    "load_checkpoint",
    "load_transformer",
    "save_detector",
]
