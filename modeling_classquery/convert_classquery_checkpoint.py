"""Conversion of published ClassQuery checkpoints: the names of their tensors and ours."""

import re
from collections.abc import Mapping

import torch

from .configuration_classquery import ClassQueryConfig
from .modeling_classquery import ClassQueryForVideoActionDetection


# Published prefix -> ours, then the modules below it. "*" stands for a layer number; others keep their name.
_SCOPES = {
    "backbone.0.body.": (
        "model.backbone.",
        {"patch_embed.proj": "patch_embedding", "blocks": "layers", "norm": "layernorm"},
    ),
    "backbone.0.lateral_convs.": ("model.feature_pyramid.scales.", {}),
    "input_proj.": ("model.feature_pyramid.projections.", {}),
    "transformer.encoder.layers.*.": (
        "model.encoder.layers.*.",
        {
            "norm1": "self_attn_layer_norm",
            "linear1": "feed_forward.fc1",
            "linear2": "feed_forward.fc2",
            "norm2": "feed_forward.layer_norm",
        },
    ),
    "transformer.decoder.layers.*.": (
        "model.decoder.localizing_layers.*.",
        {
            "sa_qcontent_proj": "self_attn_q_content",
            "sa_qpos_proj": "self_attn_q_position",
            "sa_kcontent_proj": "self_attn_k_content",
            "sa_kpos_proj": "self_attn_k_position",
            "sa_v_proj": "self_attn_v",
            "norm1": "self_attn_layer_norm",
            "lvl_w_embed": "level_weights",
            "norm_": "memory_layer_norm",
            "ca_qcontent_proj": "cross_attn_q_content",
            "ca_qpos_proj": "cross_attn_q_position",
            "ca_qpos_sine_proj": "cross_attn_q_sine",
            "ca_kcontent_proj": "cross_attn_k_content",
            "ca_kpos_proj": "cross_attn_k_position",
            "ca_v_proj": "cross_attn_v",
            "norm2": "cross_attn_layer_norm",
            "linear1": "feed_forward.fc1",
            "linear2": "feed_forward.fc2",
            "norm3": "feed_forward.layer_norm",
        },
    ),
    "transformer.decoder.cls_layers.*.": (
        "model.decoder.classifying_layers.*.",
        {
            "cls_linear1": "actor_feed_forward.fc1",
            "cls_linear2": "actor_feed_forward.fc2",
            "cls_norm": "actor_feed_forward.layer_norm",
            "conv_norm": "fusion_layer_norm",
            "conv_blocks.0.conv1": "conv_blocks.0.conv",
            "conv_blocks.0.norm": "conv_blocks.0.layer_norm",
            "conv_blocks.0.conv2": "conv_blocks.0.fc1",
            "conv_blocks.0.conv3": "conv_blocks.0.fc2",
            "norm1": "self_attn_layer_norm",
            "cls_qpos_sine_proj": "cross_attn_q_sine",
            "k_proj": "cross_attn_k",
            "v_proj": "cross_attn_v",
            "cls_linear1_": "feed_forward.fc1",
            "cls_linear2_": "feed_forward.fc2",
            "cls_norm_": "feed_forward.layer_norm",
        },
    ),
    "transformer.decoder.": (
        "model.decoder.",
        {
            "norm": "actor_layer_norm",
            "cls_norm2": "class_layer_norm",
            "ref_point_head": "box_position_head",
            "ref_anchor_head": "box_size_head",
            "class_queries.weight": "class_queries",
        },
    ),
    "transformer.": ("model.encoder.", {}),
    "": (
        "",
        {
            "bbox_embed": "model.decoder.box_head",
            "class_embed_b": "actor_head",
            "refpoint_embed.weight": "model.reference_boxes",
        },
    ),
}

# Published tensors that repeat another one or that nothing reads.
_DROPPED = re.compile(
    r"transformer\.decoder\.bbox_embed\..+"
    r"|.+\.conv_blocks\.[12]\..+"
    r"|transformer\.decoder\.cls_norm\.(weight|bias)"
    r"|transformer\.decoder\.cls_layers\.\d+\.q_proj\.(weight|bias)"
    r"|.+\.num_batches_tracked"
)


def convert_original_state_dict(
    original: Mapping[str, torch.Tensor], config: ClassQueryConfig
) -> dict[str, torch.Tensor]:
    """Rename and reshape the tensors of a published detector checkpoint.

    Args:
        original: State dict of the published model, keys with or without the prefix `module.`.
        config: Configuration of the model that will load the result.

    Returns:
        State dict for [`ClassQueryForVideoActionDetection`]. Tied duplicates and unused tensors are dropped.

    Raises:
        ValueError: If, after renaming, tensors are missing, unexpected or of another shape; lists all of them.
    """
    original = {name.removeprefix("module."): tensor for name, tensor in original.items()}
    renamed = {_rename(name): tensor for name, tensor in original.items() if not _DROPPED.fullmatch(name)}
    converted = _count_batches_anew(_split_qkv_bias(renamed))
    converted = {name: _reshape(name, tensor, config) for name, tensor in converted.items()}
    _check(converted, config)
    return converted


def _rename(name: str) -> str:
    """Our name of a published tensor."""
    for prefix, (our_prefix, modules) in _SCOPES.items():
        match = re.match(re.escape(prefix).replace(r"\*", r"(\d+)"), name)
        if match:
            rest = name[match.end() :]
            module = next((m for m in modules if rest == m or rest.startswith(f"{m}.")), "")
            layer = match.group(1) if match.groups() else ""
            return our_prefix.replace("*", layer) + modules.get(module, "") + rest.removeprefix(module)
    return name


def _split_qkv_bias(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join `q_bias` and `v_bias` with a zero key bias: the published projection has none, which is the same."""
    joined = {}
    for name, tensor in state_dict.items():
        if name.endswith(".q_bias"):
            stem = name.removesuffix("q_bias")
            joined[f"{stem}qkv.bias"] = torch.cat((tensor, torch.zeros_like(tensor), state_dict[f"{stem}v_bias"]))
        elif not name.endswith(".v_bias"):
            joined[name] = tensor
    return joined


def _count_batches_anew(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give each batch norm the counter that torch expects; with a fixed momentum, nothing reads it."""
    norms = [name.removesuffix("running_mean") for name in state_dict if name.endswith(".running_mean")]
    return state_dict | {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}


def _reshape(name: str, tensor: torch.Tensor, config: ClassQueryConfig) -> torch.Tensor:
    if re.search(r"classifying_layers\.\d+\.cross_attn_[kv]\.weight$", name):
        # 1x1 convolutions become linear layers.
        return tensor.flatten(1)
    if name == "model.reference_boxes" and tensor.ndim == 2:
        # Published as (queries * frames, 4), frames fastest. A model of all frames serves as one of its keyframe:
        # the decoder never looks from one frame to another.
        anchors = tensor.unflatten(0, (config.num_queries, -1)).transpose(0, 1)
        if config.output_frames == "keyframe" and len(anchors) == config.num_frames:
            anchors = anchors[config.keyframe_index :][:1]
        return anchors.contiguous()
    return tensor


def _check(state_dict: dict[str, torch.Tensor], config: ClassQueryConfig) -> None:
    with torch.device("meta"):
        expected = {name: t.shape for name, t in ClassQueryForVideoActionDetection(config).state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    problems = [f"missing: {name} {tuple(expected[name])}" for name in sorted(expected.keys() - shapes.keys())]
    problems += [f"unexpected: {name} {tuple(shapes[name])}" for name in sorted(shapes.keys() - expected.keys())]
    problems += [
        f"shape of {name}: got {tuple(shapes[name])}, expected {tuple(expected[name])}"
        for name in sorted(expected.keys() & shapes.keys())
        if expected[name] != shapes[name]
    ]
    if problems:
        raise ValueError("the checkpoint does not fit the configuration:\n  " + "\n  ".join(problems))


__all__ = ["convert_original_state_dict"]
