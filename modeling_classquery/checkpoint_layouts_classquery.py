"""Layouts of published weights: what their tensors are called, and how ours are made of them.

There are those of published detectors, of ViT backbones (published, or VideoMAE of transformers), of ir-CSN backbones,
of VideoMAE and V-JEPA 2 as they are, and our own. For each, a function takes the tensors of a file and returns a
`WeightSource`.
"""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .checkpoint_files_classquery import MAX_QUOTED, CheckpointError
from .configuration_classquery import ClassQueryConfig


# Names in a file of the tensors that one of ours is joined of, along the first axis. None stands for zeros.
Origin = tuple[str | None, ...]
# Our prefix -> that of a layout, then the modules below it. "*" stands for a layer number; others keep their name.
Scopes = Mapping[str, tuple[str, Mapping[str, str]]]

_PUBLISHED: Scopes = {
    "model.decoder.box_head.": ("bbox_embed.", {}),
    "actor_head.": ("class_embed_b.", {}),
    "model.reference_boxes": ("refpoint_embed.weight", {}),
    "model.backbone.": (
        "backbone.0.body.",
        {"patch_embedding": "patch_embed.proj", "layers": "blocks", "layernorm": "norm"},
    ),
    "model.feature_pyramid.scales.": ("backbone.0.lateral_convs.", {}),
    "model.feature_pyramid.projections.": ("input_proj.", {}),
    "model.encoder.layers.*.": (
        "transformer.encoder.layers.*.",
        {
            "self_attn_layer_norm": "norm1",
            "feed_forward.fc1": "linear1",
            "feed_forward.fc2": "linear2",
            "feed_forward.layer_norm": "norm2",
        },
    ),
    "model.encoder.": ("transformer.", {}),
    "model.decoder.localizing_layers.*.": (
        "transformer.decoder.layers.*.",
        {
            "self_attn_q_content": "sa_qcontent_proj",
            "self_attn_q_position": "sa_qpos_proj",
            "self_attn_k_content": "sa_kcontent_proj",
            "self_attn_k_position": "sa_kpos_proj",
            "self_attn_v": "sa_v_proj",
            "self_attn_layer_norm": "norm1",
            "level_weights": "lvl_w_embed",
            "memory_layer_norm": "norm_",
            "cross_attn_q_content": "ca_qcontent_proj",
            "cross_attn_q_position": "ca_qpos_proj",
            "cross_attn_q_sine": "ca_qpos_sine_proj",
            "cross_attn_k_content": "ca_kcontent_proj",
            "cross_attn_k_position": "ca_kpos_proj",
            "cross_attn_v": "ca_v_proj",
            "cross_attn_layer_norm": "norm2",
            "feed_forward.fc1": "linear1",
            "feed_forward.fc2": "linear2",
            "feed_forward.layer_norm": "norm3",
        },
    ),
    "model.decoder.classifying_layers.*.": (
        "transformer.decoder.cls_layers.*.",
        {
            "actor_feed_forward.fc1": "cls_linear1",
            "actor_feed_forward.fc2": "cls_linear2",
            "actor_feed_forward.layer_norm": "cls_norm",
            "fusion_layer_norm": "conv_norm",
            "conv_blocks.0.conv": "conv_blocks.0.conv1",
            "conv_blocks.0.layer_norm": "conv_blocks.0.norm",
            "conv_blocks.0.fc1": "conv_blocks.0.conv2",
            "conv_blocks.0.fc2": "conv_blocks.0.conv3",
            "self_attn_layer_norm": "norm1",
            "cross_attn_q_sine": "cls_qpos_sine_proj",
            "cross_attn_k": "k_proj",
            "cross_attn_v": "v_proj",
            "feed_forward.fc1": "cls_linear1_",
            "feed_forward.fc2": "cls_linear2_",
            "feed_forward.layer_norm": "cls_norm_",
        },
    ),
    "model.decoder.": (
        "transformer.decoder.",
        {
            "actor_layer_norm": "norm",
            "class_layer_norm": "cls_norm2",
            "box_position_head": "ref_point_head",
            "box_size_head": "ref_anchor_head",
            "class_queries": "class_queries.weight",
        },
    ),
}

_VIDEOMAE: Scopes = {
    "model.backbone.layers.*.": (
        "encoder.layer.*.",
        {
            "norm1": "layernorm_before",
            "attn.qkv": "attention.attention.qkv",
            "attn.proj": "attention.output.dense",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    "model.backbone.": ("", {"patch_embedding": "embeddings.patch_embeddings.projection"}),
}

# What pre-training and classification leave in a file beside the backbone.
_VIT_HEADS = re.compile(
    r"(\w+\.)?(fc_norm|head|cls_head\.\w+)\.(weight|bias)|decoder\..+|encoder_to_decoder\.weight|mask_token"
)
_VIDEOMAE_HEADS = re.compile(
    r"(fc_norm|classifier|decoder\.norm|decoder\.head)\.(weight|bias)"
    r"|decoder\.decoder_layers\.\d+\..+|encoder_to_decoder\.weight|mask_token"
)
_VJEPA2_HEADS = re.compile(r"(predictor|pooler|classifier)\..+")
_CSN_HEADS = re.compile(r"last_out_L\d+_[wb]")
# What a second stage does not take over from the first, by its published and by our names.
_PUBLISHED_REST = re.compile(r"(backbone|input_proj|class_embed_b)\..+")
_OWN_REST = re.compile(r"(model\.backbone|model\.feature_pyramid|actor_head)\..+|class_readout(_bias)?")


@dataclass
class WeightSource:
    """Tensors of a file and what becomes of them.

    Attributes:
        tensors: Tensors by their names in the file.
        shapes: Shapes of our tensors, by our names.
        origins: For each of ours, the names in the file that it is joined of, along the first axis; None is zeros.
        dropped: Names in the file that have no place in a model.
        problems: What is wrong apart from names and shapes.
        prefix: What was taken off the names in the file.
    """

    tensors: dict[str, torch.Tensor]
    shapes: Mapping[str, torch.Size]
    origins: dict[str, Origin]
    dropped: set[str]
    problems: list[str] = field(default_factory=list)
    prefix: str = ""

    def collect(self, message: str) -> dict[str, torch.Tensor]:
        """Make our tensors of those in the file.

        Args:
            message: How the error starts.

        Raises:
            CheckpointError: If tensors are missing, unexpected or of another shape, or there are other problems; lists
                all, unless the file has none of the names.
        """
        if not self.used & self.tensors.keys():
            example = next(iter(sorted(self.used)), "")
            found = ", ".join(sorted(self.tensors)[:3])[:MAX_QUOTED] or "nothing"
            raise CheckpointError(
                f"{message}: it has none of the {len(self.used)} names that are expected, such as {example}; it holds "
                f"{len(self.tensors)} tensors, as {found}"
            )
        problems = [*self._missing(), *self._unexpected(), *self._misshapen(), *self.problems]
        if problems:
            raise CheckpointError(f"{message}:\n  " + "\n  ".join(problems))
        return {name: self._join(origin) for name, origin in self.origins.items()}

    @property
    def used(self) -> set[str]:
        """Names in the file that ours are made of."""
        return {part for origin in self.origins.values() for part in origin if part}

    def _parts(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Our name, that in the file and the expected shape of every tensor that is needed."""
        for name, origin in sorted(self.origins.items()):
            rows, *rest = self.shapes[name]
            for part in filter(None, origin):
                yield name, part, (rows // len(origin), *rest)

    def _missing(self) -> Iterator[str]:
        for name, part, shape in self._parts():
            if part not in self.tensors:
                yield f"missing: {name} {shape}{_called(part, name)}"

    def _unexpected(self) -> Iterator[str]:
        for name in sorted(self.tensors.keys() - self.used - self.dropped):
            yield f"unexpected: {name[:MAX_QUOTED]} {tuple(self.tensors[name].shape)}"

    def _misshapen(self) -> Iterator[str]:
        for name, part, expected in self._parts():
            shape = tuple(self.tensors[part].shape) if part in self.tensors else expected
            if shape != expected:
                meaning = " (one row per class)" if name == "model.decoder.class_queries" else ""
                yield f"shape of {name}: got {shape}, expected {expected}{meaning}{_called(part, name)}"

    def _join(self, origin: Origin) -> torch.Tensor:
        first = self.tensors[next(filter(None, origin))]
        if len(origin) == 1:
            return first
        return torch.cat([torch.zeros_like(first) if part is None else self.tensors[part] for part in origin])


def _called(part: str, name: str) -> str:
    return "" if part == name else f", called {part} in the file"


def _rename(name: str, scopes: Scopes) -> str:
    """Name in a layout of one of our tensors; our own where the layout has none."""
    for prefix, (their_prefix, modules) in scopes.items():
        match = re.match(re.escape(prefix).replace(r"\*", r"(\d+)"), name)
        if match:
            rest = name[match.end() :]
            module = next((m for m in modules if rest == m or rest.startswith(f"{m}.")), "")
            layer = match.group(1) if match.groups() else ""
            return their_prefix.replace("*", layer) + modules.get(module, "") + rest.removeprefix(module)
    return name


def wrapping_prefix(names: Iterable[str], expected: Collection[str]) -> str:
    """Prefix that names carry where a model was saved as a part of another, such as `module.`; mostly none.

    Args:
        names: Names in a file.
        expected: Names without it: the prefix is that with which most names are one of them.
    """
    ends = ((name, [0, *(match.end() for match in re.finditer(r"\.", name))]) for name in names)
    prefixes = Counter(name[:end] for name, places in ends for end in places if name[end:] in expected)
    return max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default="")


def without_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take a prefix off all names, except where the rest is a name, too: that one stays, to be reported."""
    shorter = {name: name.removeprefix(prefix) for name in tensors}
    return {name if prefix and shorter[name] in tensors else shorter[name]: t for name, t in tensors.items()}


def _unwrapped(tensors: Mapping[str, torch.Tensor], expected: Iterable[str]) -> tuple[dict[str, torch.Tensor], str]:
    prefix = wrapping_prefix(tensors, set(expected))
    return without_prefix(prefix, tensors), prefix


# Detectors


def published_detector(
    original: Mapping[str, torch.Tensor],
    config: ClassQueryConfig,
    shapes: Mapping[str, torch.Size],
    tile_anchors: bool = False,
) -> WeightSource:
    """Read the layout of a published detector.

    Args:
        original: Tensors of the file, whose names may all carry one prefix.
        config: Configuration of the model that will take them.
        shapes: Shapes of our tensors that are wanted.
        tile_anchors: Whether anchors of a keyframe may serve all frames.
    """
    origins = {name: _published_origin(name) for name in shapes}
    tensors, prefix = _unwrapped(original, (part for origin in origins.values() for part in origin if part))
    tensors = {name: _reshape(name, tensor, config) for name, tensor in tensors.items()}
    tied = {name: repeated for name in tensors if (repeated := _repeated(name)) != name and repeated in tensors}
    source = WeightSource(
        tensors,
        shapes,
        origins=origins,
        prefix=prefix,
        dropped=_unused(tensors, config) | tied.keys(),
        problems=[
            f"{name} differs from {repeated}, which it should repeat"
            for name, repeated in tied.items()
            if not torch.equal(tensors[name], tensors[repeated])
        ],
    )
    _fit_anchors(source, config, tile_anchors)
    return source


def own_transformer(
    tensors: Mapping[str, torch.Tensor], config: ClassQueryConfig, shapes: Mapping[str, torch.Size]
) -> WeightSource:
    """Read the transformer of one of our detectors; anchors of a keyframe may serve all frames."""
    tensors, prefix = _unwrapped(tensors, shapes)
    dropped = {name for name in tensors if _OWN_REST.fullmatch(name)}
    source = WeightSource(tensors, shapes, {name: (name,) for name in shapes}, dropped, prefix=prefix)
    _fit_anchors(source, config, tile_anchors=True)
    return source


def published_transformer(
    original: Mapping[str, torch.Tensor], config: ClassQueryConfig, shapes: Mapping[str, torch.Size]
) -> WeightSource:
    """Read the transformer of a published detector, in half precision; anchors of a keyframe may serve all frames."""
    source = published_detector(original, config, shapes, tile_anchors=True)
    source.tensors = {name: tensor.half() for name, tensor in source.tensors.items()}
    source.dropped |= {name for name in source.tensors if _PUBLISHED_REST.fullmatch(name)}
    return source


def _published_origin(name: str) -> Origin:
    renamed = _rename(name, _PUBLISHED)
    stem, found, _ = renamed.partition("qkv.bias")
    # The published projection has no key bias, which is the same as one of zeros.
    return (f"{stem}q_bias", None, f"{stem}v_bias") if found else (renamed,)


def _reshape(name: str, tensor: torch.Tensor, config: ClassQueryConfig) -> torch.Tensor:
    """Give a published tensor the shape of ours; one of an unknown shape stays as it is, to be reported."""
    if re.fullmatch(r"transformer\.decoder\.cls_layers\.\d+\.[kv]_proj\.weight", name) and tensor.shape[2:] == (1, 1):
        # 1x1 convolutions become linear layers.
        return tensor.flatten(1)
    if name == "refpoint_embed.weight" and tensor.ndim == 2 and len(tensor) % config.num_queries == 0:
        # Published as (queries * frames, 4), frames fastest; ours is (frames, queries, 4).
        num_frames = len(tensor) // config.num_queries
        return tensor.unflatten(0, (config.num_queries, num_frames)).transpose(0, 1).contiguous()
    return tensor


def _repeated(name: str) -> str:
    """Published name of the tensor that a tied duplicate repeats; the same name if it is none."""
    name = re.sub(r"^transformer\.decoder\.bbox_embed\.", "bbox_embed.", name)
    return re.sub(r"^(transformer\.decoder\.cls_layers\.\d+\.conv_blocks)\.[12]\.", r"\1.0.", name)


def _unused(tensors: Mapping[str, torch.Tensor], config: ClassQueryConfig) -> set[str]:
    """Published names that nothing reads."""
    modules = ["cls_norm", *(f"cls_layers.{layer}.q_proj" for layer in range(config.decoder_layers))]
    unused = {f"transformer.decoder.{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}
    norms = [name.removesuffix("running_mean") for name in tensors if name.endswith(".running_mean")]
    return unused | {f"{norm}num_batches_tracked" for norm in norms}


def _fit_anchors(source: WeightSource, config: ClassQueryConfig, tile_anchors: bool) -> None:
    """Cut the anchors (frames, queries, 4) of all frames to the keyframe's, or repeat the latter for every frame."""
    (name,) = filter(None, source.origins["model.reference_boxes"])
    anchors = source.tensors.get(name)
    if anchors is None or anchors.ndim != 3:
        return
    # The decoder never looks from one frame to another, so a model of all frames serves as one of its keyframe.
    if config.output_frames == "keyframe" and len(anchors) == config.num_frames:
        source.tensors[name] = anchors[config.keyframe_index :][:1]
    elif tile_anchors and len(anchors) == 1:
        source.tensors[name] = anchors.expand(config.num_output_frames, -1, -1)


# Backbones


def vit_backbone(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> WeightSource:
    """Read the layout of a ViT: the published one, or that of VideoMAE in transformers.

    Args:
        tensors: Tensors of the file.
        shapes: Shapes of the tensors of our backbone.
    """
    published = (part for name in shapes for part in _vit_origin(name) if part)
    videomae = (part for name in shapes for part in _videomae_origin(name, tensors) if part)
    tensors, prefix = _unwrapped(tensors, itertools.chain(published, videomae))
    modules = {name.rpartition(".")[0] for name in tensors}
    is_videomae = "embeddings.patch_embeddings.projection" in modules
    if is_videomae:
        norm, heads, origins = "layernorm", _VIDEOMAE_HEADS, {name: _videomae_origin(name, tensors) for name in shapes}
    else:
        norm, heads, origins = "norm", _VIT_HEADS, {name: _vit_origin(name) for name in shapes}
    if norm not in modules:
        for leaf in ("weight", "bias"):
            if "fc_norm" in modules:
                origins[f"model.backbone.layernorm.{leaf}"] = (f"fc_norm.{leaf}",)
            elif is_videomae:
                del origins[f"model.backbone.layernorm.{leaf}"]
    dropped = {name for name in tensors if heads.fullmatch(name)}
    return WeightSource(tensors, shapes, origins, dropped, prefix=prefix)


def _vit_origin(name: str) -> Origin:
    return tuple(part and part.removeprefix("backbone.0.body.") for part in _published_origin(name))


def _videomae_origin(name: str, tensors: Mapping[str, torch.Tensor]) -> Origin:
    renamed = _rename(name, _VIDEOMAE)
    stem, _, leaf = renamed.partition("qkv.")
    if leaf == "weight":
        return tuple(f"{stem}{projection}.weight" for projection in ("query", "key", "value"))
    if leaf == "bias":
        # Spelled in two ways; usually without a key bias.
        query, value = ("q_bias", "v_bias") if f"{stem}q_bias" in tensors else ("query.bias", "value.bias")
        key = f"{stem}key.bias"
        return (f"{stem}{query}", key if key in tensors else None, f"{stem}{value}")
    return (renamed,)


def token_backbone(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> WeightSource:
    """Read a checkpoint of VideoMAE or V-JEPA 2 for a backbone that is one: by the names of transformers.

    Args:
        tensors: Tensors of the file.
        shapes: Shapes of the tensors of our backbone.
    """
    tensors, prefix = _unwrapped(tensors, (name.removeprefix("model.backbone.") for name in shapes))
    origins: dict[str, Origin] = {}
    for name in shapes:
        original = name.removeprefix("model.backbone.")
        # Spelled in two ways in checkpoints of VideoMAE.
        earlier = re.sub(r"\b(query|value)\.bias$", lambda match: f"{match[1][0]}_bias", original)
        origins[name] = (earlier if earlier in tensors else original,)
    heads = {name for name in tensors if _VIDEOMAE_HEADS.fullmatch(name) or _VJEPA2_HEADS.fullmatch(name)}
    return WeightSource(tensors, shapes, origins, dropped=heads, prefix=prefix)


def csn_backbone(
    tensors: Mapping[str, torch.Tensor], depths: Sequence[int], shapes: Mapping[str, torch.Size]
) -> WeightSource:
    """Read the layout of the MATLAB files of ir-CSN.

    Args:
        tensors: Tensors of the file. Axes of length one do not count, as MATLAB has no vectors.
        depths: Number of blocks of each stage.
        shapes: Shapes of the tensors of our backbone.
    """
    scopes = _csn_scopes(depths)
    names = {name: _csn_name(name, scopes) for name in shapes}
    tensors = dict(tensors)
    for name, part in names.items():
        if part in tensors and _without_ones(tensors[part].shape) == _without_ones(shapes[name]):
            tensors[part] = tensors[part].reshape(shapes[name])
    heads = {name for name in tensors if _CSN_HEADS.fullmatch(name)}
    return WeightSource(tensors, shapes, {name: (part,) for name, part in names.items()}, dropped=heads)


def _csn_scopes(depths: Sequence[int]) -> Scopes:
    blocks = [(stage, block) for stage, depth in enumerate(depths, start=1) for block in range(depth)]
    scopes = {}
    for index, (stage, block) in enumerate(blocks):
        modules = {
            "down_sample.0": f"shortcut_projection_{index}",
            "down_sample.1": f"shortcut_projection_{index}_spatbn",
        }
        for layer in (1, 3, 4):
            modules |= {f"conv{layer}": f"comp_{index}_conv_{layer}", f"bn{layer}": f"comp_{index}_spatbn_{layer}"}
        scopes[f"model.backbone.layer{stage}.{block}."] = ("", modules)
    return scopes | {"model.backbone.": ("", {"bn1": "conv1_spatbn_relu"})}


def _csn_name(name: str, scopes: Scopes) -> str:
    module, _, leaf = _rename(name, scopes).rpartition(".")
    leaves = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"} if "spatbn" in module else {}
    return f"{module}_{leaves.get(leaf, 'w')}"


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


__all__ = [
    "WeightSource",
    "csn_backbone",
    "own_transformer",
    "published_detector",
    "published_transformer",
    "vit_backbone",
    "without_prefix",
    "wrapping_prefix",
]
