"""Calls as users write them, for the type checker: `make types`; nothing of it is run."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainingArguments
from typing_extensions import assert_type

from classquery import (
    ActionDetectionTrainer,
    ClassQueryConfig,
    ClassQueryForVideoActionDetection,
    ClassQueryVideoProcessor,
    demo_checkpoint,
    detect,
    load_detector,
)
from classquery.configuration import Recipe, list_recipes, load_recipe
from classquery.data import load_action_dataset, load_action_labels, make_clips, write_shards
from classquery.engine.detection.results import ActorDetection, FrameDetections


def detect_people(path: str) -> list[tuple[float, str]]:
    assert_type(detect(path, "demo", keyframes_per_second=2.0), Iterator[FrameDetections])
    found = []
    for frame in detect(path, demo_checkpoint(), threshold=0.5):
        assert_type(frame.actors, list[ActorDetection])
        for actor in frame.actors:
            assert_type(actor.box, tuple[float, float, float, float])
            found += [(frame.seconds, label) for label, _ in actor.actions]
        frame.save("picture.png")
    return found


def run_the_network(video: list[Any]) -> list[dict[str, torch.Tensor]]:
    model, processor = load_detector("demo")
    assert_type(model, ClassQueryForVideoActionDetection)
    assert_type(processor, ClassQueryVideoProcessor)
    assert_type(model.config, ClassQueryConfig)
    assert_type(model.config.id2label, dict[int, str])
    outputs = model(**processor(video))
    return processor.post_process_object_detection(outputs, [0.5] * model.config.num_labels, [(480, 640)])


def train(data_dir: str) -> None:
    labels = load_action_labels("custom", data_dir)
    assert_type(labels, dict[int, str])
    model, processor = load_detector("demo")
    clips = make_clips(load_action_dataset("custom", data_dir, "train"), model.config)
    arguments = TrainingArguments("out", num_train_epochs=1)
    trainer = ActionDetectionTrainer(model, arguments, train_dataset=clips, processing_class=processor)
    trainer.train()
    assert_type(trainer.model, ClassQueryForVideoActionDetection)
    write_shards("custom", data_dir, "shards")


def from_a_recipe(path: str) -> ClassQueryForVideoActionDetection:
    assert_type(load_recipe(list_recipes()[0]), Recipe)
    return ClassQueryForVideoActionDetection(ClassQueryConfig(num_labels=3, output_frames="all"))
