"""How often program and GPU wait for each other, counted without a GPU, and where.

    python benchmarks/transfers.py [RECIPE ...] [--padding released masked] [--places]

Counted are copies between host and device and reads of values (see tests/host_waits.py), from the second pass on clips
of a size on: of a forward pass, of a training step with its monitoring, and of the evaluation of a batch. Each is on
two clips of different sizes, whose pixels are on the device, and whose labels are as the trainer takes them. The
networks have all layers of their recipes, but narrow ones, and look at small frames: the number does not depend on
either.
"""

import argparse
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from host_waits import count_host_waits, describe, on_device, put_on_device

from classquery import ClassQueryConfig, ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration import load_recipe
from classquery.engine.training.collation import BatchLabels
from classquery.engine.training.evaluation import clip_records, read_outputs
from classquery.engine.training.monitoring import LossMonitor
from classquery.kernels import use_implementation
from classquery.loss_classquery import action_detection_loss


RECIPES = ("ava22_vit_b", "ava22_csn50", "ucf101_24_vit_b")
NARROW = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_n_points": 2}
NARROW_VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def main() -> None:
    """Count for all that was asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--padding", nargs="+", choices=("released", "masked"), default=("released", "masked"))
    parser.add_argument("--places", action="store_true", help="print the lines of code as well")
    arguments = parser.parse_args()
    print("| recipe | padding | forward | training step | evaluation of a batch |\n|---|---|---|---|---|")
    for recipe in arguments.recipes:
        for padding in arguments.padding:
            counted = count(recipe, padding)
            print(
                f"| {recipe} | {padding} | {' | '.join(str(len(waits)) for waits in counted.values())} |", flush=True
            )
            if arguments.places:
                for name, waits in counted.items():
                    print(f"{name}:\n{describe(waits)}")


def count(recipe: str, padding: str) -> dict[str, list]:
    """Waits of a forward pass, of a training step and of an evaluation."""
    torch.manual_seed(0)
    values = load_recipe(recipe).model
    backbone = values["backbone_config"]
    if backbone["model_type"] == "classquery_vit":
        backbone = backbone | NARROW_VIT
    config = ClassQueryConfig(**values | NARROW | {"backbone_config": backbone, "padding": padding})
    model = ClassQueryForVideoActionDetection(config)
    put_on_device(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    batch = make_batch(config)
    labels, inputs = BatchLabels(batch.pop("labels")), on_device(batch)
    monitor = LossMonitor()
    processor = ClassQueryVideoProcessor()

    def forward() -> None:
        with torch.no_grad():
            model.eval()(**inputs)

    def train() -> None:
        outputs = model.train()(**inputs, labels=labels)
        monitor.add(labels, outputs.loss, outputs.loss_dict)
        outputs.loss.backward()
        monitor.check_gradient(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))
        optimizer.step()
        optimizer.zero_grad()

    def evaluate() -> None:
        with torch.no_grad():
            outputs, layers = read_outputs(model.eval()(**inputs))
        action_detection_loss(layers, labels, config)
        clip_records(processor, outputs, labels)

    counted = {}
    with use_implementation("torch"):
        for function in (forward, train, evaluate):
            for _ in range(2):
                with count_host_waits() as counted[function.__name__]:
                    function()
    return counted


def make_batch(config: ClassQueryConfig) -> dict:
    """Two clips of different sizes with two actors each."""
    mask = torch.ones(2, 64, 96)
    mask[1, 48:] = mask[1, :, 80:] = 0
    frames = config.num_output_frames
    labels = [
        {
            "clip_id": f"clip {index}",
            "boxes": torch.tensor([[0.3, 0.5, 0.2, 0.6], [0.7, 0.5, 0.3, 0.8]])[:, None].repeat(1, frames, 1),
            "class_labels": torch.eye(config.num_labels)[:2, None].repeat(1, frames, 1),
            "valid": torch.ones(2, frames, dtype=torch.bool),
            "frame_mask": torch.ones(frames, dtype=torch.bool),
        }
        for index in range(2)
    ]
    pixel_values = torch.randn(2, config.num_frames, 3, 64, 96) * mask[:, None, None]
    return {"pixel_values": pixel_values, "pixel_mask": mask, "labels": labels}


if __name__ == "__main__":
    main()
