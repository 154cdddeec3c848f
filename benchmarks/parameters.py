"""Count the parameters of a detector with each backbone, and print a table; nothing is allocated.

    python benchmarks/parameters.py

Encoder, decoder and classes are those of the recipe `ava22_vit_b`. The last column is what comes from a checkpoint of
the backbone: its heads, the decoder of VideoMAE and the predictor of V-JEPA 2 stay behind.
"""

import torch

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection
from classquery.configuration import load_recipe


# Sizes as published; every other value is the default of transformers.
BACKBONES = {
    "ClassQuery ViT-B": {"model_type": "classquery_vit"},
    "ir-CSN-50": {"model_type": "classquery_csn", "depths": [3, 4, 6, 3]},
    "ir-CSN-152": {"model_type": "classquery_csn"},
    "VideoMAE-S": {
        "model_type": "videomae",
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
    "VideoMAE-B": {"model_type": "videomae"},
    "VideoMAE-L": {
        "model_type": "videomae",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "VideoMAE-H": {
        "model_type": "videomae",
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
    },
    "V-JEPA 2 ViT-L": {"model_type": "vjepa2"},
    "V-JEPA 2 ViT-H": {"model_type": "vjepa2", "hidden_size": 1280, "num_hidden_layers": 32},
    "V-JEPA 2 ViT-g": {
        "model_type": "vjepa2",
        "hidden_size": 1408,
        "num_hidden_layers": 40,
        "num_attention_heads": 22,
        "mlp_ratio": 48 / 11,
    },
}


def main() -> None:
    """Print the table."""
    values = load_recipe("ava22_vit_b").model
    print(
        "| backbone | width | layers | parameters of the detector | of them in the backbone |\n|---|---|---|---|---|"
    )
    for name, backbone in BACKBONES.items():
        config = ClassQueryConfig(**values | {"backbone_config": backbone})
        with torch.device("meta"):
            model = ClassQueryForVideoActionDetection(config)
        total, own = (sum(p.numel() for p in part.parameters()) for part in (model, model.model.backbone))
        width = getattr(config.backbone_config, "hidden_size", "64 to 2048")
        layers = getattr(config.backbone_config, "num_hidden_layers", None) or sum(config.backbone_config.depths)
        print(f"| {name} | {width} | {layers} | {total:,} | {own:,} |")


if __name__ == "__main__":
    main()
