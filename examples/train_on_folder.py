"""Fine-tune a detector on a folder with `videos/`, `train.csv` and `validation.csv`.

python examples/train_on_folder.py DATA_DIR OUTPUT_DIR [MODEL]
"""

import sys

from transformers import TrainingArguments

from classquery import ActionDetectionTrainer, load_detector
from classquery.configuration import OptimizationArguments, load_recipe
from classquery.data import load_action_dataset, load_action_labels, make_clips
from classquery.engine.training.fine_tuning import change_classes


def main(data_dir: str, output_dir: str, model_name: str = "demo", **arguments) -> float:
    """Train as the recipe `finetune` says, save, and return frame mAP; `arguments` are those of TrainingArguments."""
    recipe = load_recipe("finetune")
    model, processor = load_detector(model_name)
    model = change_classes(model, list(load_action_labels("custom", data_dir).values()), "replace")
    clips = {
        split: make_clips(load_action_dataset("custom", data_dir, split), model.config)
        for split in ("train", "validation")
    }
    trainer = ActionDetectionTrainer(
        model,
        TrainingArguments(output_dir, **recipe.training | arguments),
        optimization=OptimizationArguments(**recipe.optimization),
        train_dataset=clips["train"],
        eval_dataset=clips["validation"],
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    return trainer.evaluate()["eval_frame_map_50"]


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
