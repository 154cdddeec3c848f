"""Evaluation counts every clip once, and the trainer logs what it should."""

import numpy as np
import pytest
import torch
from transformers import TrainingArguments
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.data.ava import load_ava, load_ava_labels
from classquery.data.clips import ClipCollator, KeyframeClips
from classquery.engine.evaluation import once_per_clip, save_records, score_records
from classquery.engine.optimization import OptimizationArguments
from classquery.engine.trainer import ActionDetectionTrainer


@pytest.fixture
def trainer(demo_dir, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(num_labels=8, id2label=load_ava_labels(demo_dir))
    clips = [
        KeyframeClips(load_ava(demo_dir, split), num_labels=8, num_frames=config.num_frames, frame_stride=2)
        for split in ("train", "validation")
    ]
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 32})
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        logging_steps=1,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    return ActionDetectionTrainer(
        ClassQueryForVideoActionDetection(config),
        arguments,
        train_dataset=clips[0],
        eval_dataset=clips[1],
        data_collator=ClipCollator(processor),
        processing_class=processor,
    )


def test_training_changes_the_weights_and_logs_every_loss_term(trainer):
    before = trainer.model.actor_head.weight.clone()

    trainer.train()

    assert not torch.equal(trainer.model.actor_head.weight, before)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert {"loss_class", "loss_actor", "loss_bbox", "loss_giou"} < entry.keys()
        assert np.isfinite(list(entry.values())).all()


def test_groups_and_schedule_of_the_recipe_are_used(trainer):
    trainer.optimization = OptimizationArguments(
        backbone_learning_rate_factor=0.1, warmup_epochs=1, warmup_start_learning_rate=1e-6, decay_epochs=[2]
    )
    trainer.args.max_steps, trainer.args.num_train_epochs = -1, 3
    trainer.args.learning_rate, trainer.args.gradient_accumulation_steps = 1e-3, 4
    trainer.train()

    # 15 clips make 8 batches of 2, so 2 updates an epoch.
    assert trainer.state.max_steps == 6
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for part, rate in (("head", 1e-3), ("backbone", 1e-4)):
        expected = [1e-6, (1e-6 + rate) / 2, rate, rate, rate / 10, rate / 10]
        assert [entry[f"learning_rate/{part}"] for entry in logs] == pytest.approx(expected)


def test_total_batch_size_sets_the_accumulation(trainer):
    arguments = [trainer.model, trainer.args]

    total = ActionDetectionTrainer(*arguments, optimization=OptimizationArguments(total_batch_size=8))

    assert total.args.gradient_accumulation_steps == 4


def test_evaluation_gives_one_record_per_clip_in_order(trainer):
    records, _, metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")

    assert [record["clip_id"] for record in records] == trainer.eval_dataset.rows["clip_id"][:]
    assert 0 <= metrics["eval_frame_map_50"] <= 1
    assert metrics["eval_loss"] > 0
    config = trainer.model.config
    assert records[0]["scores"].shape == (config.num_queries, config.num_labels)


def test_batch_size_of_the_evaluation_and_dropping_of_last_batches_do_not_matter(trainer):
    trainer.args.dataloader_drop_last = True
    first, _, _ = trainer.predict(trainer.eval_dataset)
    trainer.args.per_device_eval_batch_size = 1
    second, _, _ = trainer.predict(trainer.eval_dataset)

    assert len(first) == len(trainer.eval_dataset)
    for one, other in zip(first, second, strict=True):
        assert one["clip_id"] == other["clip_id"]
        for name in ("boxes", "scores", "actor_scores", "true_boxes", "true_labels"):
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-5)


def test_only_the_given_labels_are_scored(trainer):
    trainer.label_ids = [1, 3]

    metrics = trainer.evaluate()

    assert {name for name in metrics if "/" in name} <= {"eval_frame_ap_50/stand", "eval_frame_ap_50/jump"}


def record(clip_id: str, box=(0.1, 0.1, 0.5, 0.5)) -> dict:
    return {
        "clip_id": clip_id,
        "boxes": np.array([box, (0.6, 0.6, 0.9, 0.9)], np.float32),
        "scores": np.array([[0.9, 0.1], [0.2, 0.8]], np.float32),
        "actor_scores": np.array([0.9, 0.9], np.float32),
        "true_boxes": np.array([box], np.float32),
        "true_labels": np.array([[1.0, 0.0]], np.float32),
    }


def test_clips_repeated_by_a_sampler_count_once():
    records = once_per_clip([record("b"), record("a"), record("b")], ["a", "b"])

    assert [r["clip_id"] for r in records] == ["a", "b"]


def test_missing_and_foreign_clips_raise():
    with pytest.raises(RuntimeError, match=r"1 were not predicted \(\['c'\]\) and 1 are unknown \(\['b'\]\)"):
        once_per_clip([record("a"), record("b")], ["a", "c"])


def test_perfect_detections_score_one_and_labels_without_ground_truth_are_left_out():
    metrics = score_records([record("a"), record("b")], {0: "stand", 1: "walk"})

    assert metrics == {"frame_map_50": 1.0, "frame_ap_50/stand": 1.0}


def test_clip_without_detections_or_actors_is_scored(tmp_path):
    empty = record("b")
    for name in ("boxes", "scores", "actor_scores", "true_boxes", "true_labels"):
        empty[name] = empty[name][:0]

    assert score_records([record("a"), empty], {0: "stand", 1: "walk"})["frame_map_50"] == 1.0


def test_records_are_written_whole(tmp_path):
    from datasets import Dataset

    path = tmp_path / "predictions.parquet"

    save_records([record("a"), record("b")], path)

    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert rows["clip_id"][:] == ["a", "b"]
    np.testing.assert_allclose(rows[0]["scores"], record("a")["scores"], rtol=1e-6)
