"""What several tests share: golden files, the weights they were computed with, and small models."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers.initialization import no_init_weights

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, convert_original_state_dict


GOLDEN_DIR = Path(__file__).parent / "golden"


def _load_fill():
    spec = importlib.util.spec_from_file_location("fill", GOLDEN_DIR / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = _load_fill()


# Our name of each output tensor and the published one.
OUTPUTS = {"logits": "pred_logits", "pred_boxes": "pred_boxes", "actor_logits": "pred_logits_b"}


def load_golden(name: str, folder: Path = GOLDEN_DIR / "model") -> tuple[dict, dict[str, torch.Tensor]]:
    """Facts and tensors of a golden of the network; full-size ones name their tensors in `manifest_CONFIG.json`."""
    facts = json.loads((folder / f"{name}.json").read_text())
    if name.startswith("full_"):
        manifest = json.loads((folder / f"manifest_{facts['reference_config']}.json").read_text())
        facts["state_dict"] = {key: tensor["shape"] for key, tensor in manifest["keys"].items()}
    return facts, load_file(folder / f"{name}.safetensors")


def largest_deviation(outputs, facts: dict, expected: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Largest deviation of any output of any decoder layer, and the largest as a share of the tolerance there."""
    atol, rtol = facts["suggested"]["atol"], facts["suggested"]["rtol"]
    deviation, share = torch.zeros(()), torch.zeros(())
    layers = {"": outputs} | {f"aux{i}.": layer for i, layer in enumerate(outputs.auxiliary_outputs)}
    for prefix, layer in layers.items():
        for ours, published in OUTPUTS.items():
            reference = expected[prefix + published]
            difference = (layer[ours].cpu().view_as(reference) - reference).abs()
            # Unlike max(), these keep a NaN.
            deviation = torch.maximum(deviation, difference.max())
            share = torch.maximum(share, (difference / (atol + rtol * reference.abs())).max())
    return deviation.item(), share.item()


def golden_config(facts: dict) -> ClassQueryConfig:
    """Our configuration of the model behind a golden."""
    resolved = facts["resolved"]
    return ClassQueryConfig(
        num_frames=resolved["temp_len"],
        # The published AVA model of all frames returns the keyframe only.
        output_frames="keyframe" if resolved["single_frame"] or resolved["dataset"] == "ava" else "all",
        num_labels=resolved["num_classes"],
        num_queries=resolved["num_queries"],
        d_model=resolved["d_model"],
        encoder_layers=resolved["enc_layers"],
        decoder_layers=resolved["dec_layers"],
        encoder_ffn_dim=resolved["dim_feedforward"],
        decoder_ffn_dim=resolved["dim_feedforward"],
        backbone_config=_golden_backbone(resolved),
    )


def _golden_backbone(resolved: dict) -> dict:
    if resolved["vit"] is None:
        depths = {"CSN-50": [3, 4, 6, 3], "CSN-152": [3, 8, 36, 3]}[resolved["backbone"]]
        return {"model_type": "classquery_csn", "depths": depths, "last_stride": resolved["last_stride"]}
    vit = resolved["vit"]
    return {
        "model_type": "classquery_vit",
        "hidden_size": vit["embed_dim"],
        "num_hidden_layers": vit["depth"],
        "num_attention_heads": vit["heads"],
        "intermediate_size": 4 * vit["embed_dim"],
        "tubelet_size": vit["tubelet"],
    }


def golden_state_dict(facts: dict) -> dict[str, torch.Tensor]:
    """The published names with the weights of the goldens."""
    return {name: torch.tensor(_filled(name, tuple(shape))) for name, shape in facts["state_dict"].items()}


@functools.cache
def _filled(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return fill.fill(name, shape)


def golden_model(facts: dict) -> ClassQueryForVideoActionDetection:
    """The model behind a golden, with its weights."""
    config = golden_config(facts)
    with no_init_weights():
        model = ClassQueryForVideoActionDetection(config)
    model.load_state_dict(convert_original_state_dict(golden_state_dict(facts), config))
    return model.eval()


def write_recipe(path, config: ClassQueryConfig) -> str:
    """A recipe file of a model, for frames of 64 pixels."""

    def fields(config) -> dict:
        values = config.to_dict()
        return {f.name: values[f.name] for f in dataclasses.fields(config) if f.name in values}

    backbone = fields(config.backbone_config) | {"model_type": config.backbone_config.model_type}
    recipe = {
        "model": fields(config) | {"backbone_config": backbone},
        "processor": {"size": {"shortest_edge": 64}},
    }
    path.write_text(json.dumps(recipe))
    return str(path)


def golden_inputs(facts: dict) -> dict[str, torch.Tensor]:
    """Pixel values (batch, frames, 3, height, width) and, where the golden has padding, the pixel mask."""
    facts = facts["input"]
    pixel_values = fill.make_input(facts["make_input_seed"], facts["shape"], facts["valid_hw"])
    inputs = {"pixel_values": torch.from_numpy(pixel_values).transpose(1, 2)}
    if facts["valid_hw"]:
        mask = torch.zeros(facts["shape"][0], *facts["shape"][-2:], dtype=torch.long)
        for index, (height, width) in enumerate(facts["valid_hw"]):
            mask[index, :height, :width] = 1
        inputs["pixel_mask"] = mask
    return inputs


def tiny_config(**overrides) -> ClassQueryConfig:
    """A network of some ten thousand parameters for 4 frames of 32 pixels or so."""
    values = {
        "num_frames": 4,
        "num_labels": 5,
        "num_queries": 3,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_n_points": 2,
        "backbone_config": {
            "model_type": "classquery_vit",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "patch_size": 8,
            "position_grid": [4, 4],
            "drop_path_rate": 0.0,
        },
    }
    return ClassQueryConfig(**(values | overrides))


# Tiny backbones of transformers for `tiny_config`: two times, four rows, four columns of tokens.
TOKEN_BACKBONES = {
    "videomae": {
        "model_type": "videomae",
        "image_size": 32,
        "patch_size": 8,
        "num_frames": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "decoder_num_attention_heads": 2,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 32,
    },
    "vjepa2": {
        "model_type": "vjepa2",
        "crop_size": 32,
        "patch_size": 8,
        "frames_per_clip": 4,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "pred_hidden_size": 36,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    },
}


def checkpoint_activations(model) -> None:
    """Compute activations again in the backward pass, under the name that the installed transformers has for it."""
    old_name = "gradient_checkpointing_enable"
    getattr(
        model, "activation_checkpointing_enable" if hasattr(model, "activation_checkpointing_enable") else old_name
    )()


def tiny_batch(config: ClassQueryConfig) -> dict:
    """Two clips of different sizes: one with two actors, one with none."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 32, 48, dtype=torch.long)
    mask[1, 24:] = mask[1, :, 40:] = 0
    pixel_values = torch.randn(2, config.num_frames, 3, 32, 48, generator=generator) * mask[:, None, None]
    frames = config.num_output_frames
    labels = []
    for num_actors in (2, 0):
        labels.append(
            {
                "boxes": torch.rand(num_actors, frames, 4, generator=generator) * 0.4 + 0.3,
                "class_labels": (torch.rand(num_actors, frames, config.num_labels, generator=generator) > 0.5).float(),
                "valid": torch.ones(num_actors, frames, dtype=torch.bool),
                "frame_mask": torch.ones(frames, dtype=torch.bool),
            }
        )
    return {"pixel_values": pixel_values, "pixel_mask": mask, "labels": labels}
