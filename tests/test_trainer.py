"""Training on small batches equals training on large ones, says what is wrong, and logs and keeps what it should."""

import re

import numpy as np
import pytest
import torch
from tiny_training import tiny_trainer
from transformers import Trainer, TrainingArguments
from transformers.training_args import ParallelMode
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor
from classquery.configuration.arguments import OptimizationArguments
from classquery.data import load_action_dataset, make_clips
from classquery.data.clips import ClipCollator
from classquery.engine.training.evaluation import FrameScorer
from classquery.engine.training.monitoring import DivergenceError
from classquery.engine.training.resume import last_complete_checkpoint
from classquery.engine.training.trainer import ActionDetectionTrainer


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trainer(demo_dir, tmp_path):
    return tiny_trainer(demo_dir, tmp_path / "out", max_steps=2)


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

    # 14 clips make 7 batches of 2, so 2 updates an epoch.
    assert trainer.state.max_steps == 6
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for part, rate in (("head", 1e-3), ("backbone", 1e-4)):
        expected = [1e-6, (1e-6 + rate) / 2, rate, rate, rate / 10, rate / 10]
        assert [entry[f"learning_rate/{part}"] for entry in logs] == pytest.approx(expected)


def test_total_batch_size_sets_the_accumulation(trainer):
    optimization = OptimizationArguments(total_batch_size=8)

    total = ActionDetectionTrainer(
        trainer.model, trainer.args, optimization=optimization, processing_class=trainer.processing_class
    )

    assert total.args.gradient_accumulation_steps == 4


def test_evaluation_gives_one_record_per_clip_in_order(trainer):
    records, _, metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")

    assert [record["clip_id"] for record in records] == trainer.eval_dataset.clip_ids
    assert 0 <= metrics["eval_frame_map_50"] <= 1
    assert metrics["eval_loss"] > 0
    config = trainer.model.config
    assert records[0]["scores"].shape == (1, config.num_queries, config.num_labels)


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


@pytest.mark.parametrize("concatenated", [False, True])
def test_plain_trainer_evaluates_with_metrics_of_its_own(trainer, concatenated):
    trainer.args.eval_do_concat_batches = concatenated
    seen = []
    plain = Trainer(
        trainer.model,
        trainer.args,
        eval_dataset=trainer.eval_dataset,
        data_collator=ClipCollator(trainer.processing_class),
        compute_metrics=lambda prediction: seen.append(prediction) or {"clips": len(trainer.eval_dataset)},
    )

    assert plain.evaluate()["eval_clips"] == 4
    first = seen[0].label_ids[0] if concatenated else seen[0].label_ids[0][0]
    assert {"boxes", "class_labels", "valid"} <= first.keys()
    assert all(isinstance(array, np.ndarray) for array in first.values())


def test_plain_trainer_trains(trainer):
    trainer.args.max_steps = 2
    before = [parameter.clone() for parameter in trainer.model.model.encoder.parameters()]
    collator = ClipCollator(trainer.processing_class)

    plain = Trainer(trainer.model, trainer.args, train_dataset=trainer.train_dataset, data_collator=collator)

    assert np.isfinite(plain.train().metrics["train_loss"])
    assert not any(map(torch.equal, before, plain.model.model.encoder.parameters()))


def test_only_the_given_labels_are_scored(trainer):
    trainer.scorer = FrameScorer(trainer.model.config.id2label, label_ids=[1, 3])

    metrics = trainer.evaluate()

    assert {name for name in metrics if "/" in name} <= {"eval_frame_ap_50/stand", "eval_frame_ap_50/jump"}


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("normalization", "batch_size", "accumulation"),
    [
        ("frames", 1, 4),
        ("actors", 2, 2),
        pytest.param("frames", 2, 2, marks=pytest.mark.slow),
        pytest.param("actors", 1, 4, marks=pytest.mark.slow),
    ],
)
def test_accumulated_passes_equal_the_large_batch(demo_dir, tmp_path, normalization, batch_size, accumulation):
    # 14 clips: the last of 4 updates has 2 clips, two passes of one or one pass of two.
    settings = {
        "model": {"dropout": 0.0, "classifier_dropout": 0.0, "class_loss_normalization": normalization},
        "num_train_epochs": 1,
        "optim": "sgd",
        "learning_rate": 1e-2,
    }
    large = tiny_trainer(demo_dir, tmp_path, per_device_train_batch_size=4, **settings)
    large.train()
    sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    small = tiny_trainer(demo_dir, tmp_path, **sizes, **settings)
    small.train()

    assert len(logs_of(large)) == len(logs_of(small)) == 4
    for entry, expected in zip(logs_of(small), logs_of(large), strict=True):
        # Passes make up other parts of an epoch, of different length.
        del entry["epoch"], expected["epoch"]
        assert entry == pytest.approx(expected, rel=1e-6)
    for parameter, expected in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


def test_published_class_loss_is_the_sum_over_the_batch_at_hand(demo_dir, tmp_path):
    settings = {"model": {"dropout": 0.0, "classifier_dropout": 0.0, "class_loss_normalization": "none"}}
    settings |= {"max_steps": 1}
    large = tiny_trainer(demo_dir, tmp_path, per_device_train_batch_size=4, **settings)
    large.train()
    small = tiny_trainer(demo_dir, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings)
    small.train()

    (entry,), (expected,) = logs_of(small), logs_of(large)
    assert 4 * entry["loss_class"] == pytest.approx(expected["loss_class"], rel=1e-5)
    assert entry["loss_bbox"] == pytest.approx(expected["loss_bbox"], rel=1e-5)


def test_checkpoints_keep_the_best_and_the_last_with_their_averages(demo_dir, tmp_path):
    trainer = tiny_trainer(
        demo_dir,
        tmp_path,
        optimization={"ema_decay": 0.9},
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        metric_for_best_model="frame_map_50",
        greater_is_better=True,
    )
    scores = iter((0.1, 0.4, 0.2, 0.3))
    trainer.scorer = lambda records: {"frame_map_50": next(scores)}
    trainer.train()

    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert len(list(tmp_path.glob("checkpoint-*/ema/model.safetensors"))) == 2
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_tensorboard_shows_loss_terms_and_learning_rates(demo_dir, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = tiny_trainer(
        demo_dir,
        tmp_path,
        optimization={"backbone_learning_rate_factor": 0.1, "decay_norms_and_biases": True},
        max_steps=2,
        lr_scheduler_type="constant",
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=2,
        report_to="tensorboard",
    )
    trainer.train()

    events = accumulator.EventAccumulator(str(tmp_path / "logs")).Reload()
    curves = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert curves["train/learning_rate/head"] == pytest.approx([1e-3, 1e-3])
    assert curves["train/learning_rate/backbone"] == pytest.approx([1e-4, 1e-4])
    assert len(curves["eval/frame_map_50"]) == 1
    total = sum(
        getattr(trainer.model.config, f"{term}_loss_coefficient")
        * (np.array(curves[f"train/loss_{term}"]) + curves[f"train/loss_{term}_auxiliary"])
        for term in ("class", "actor", "bbox", "giou")
    )
    np.testing.assert_allclose(total, curves["train/loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.model.reference_boxes.fill_(torch.nan), "boxes or actor logits are not finite"),
        (
            lambda model: model.class_readout_bias.fill_(torch.nan),
            "the loss is nan .*loss_class nan, loss_actor [0-9]",
        ),
    ],
    ids=["boxes", "loss"],
)
def test_loss_that_is_not_finite_stops_and_names_the_clips(demo_dir, tmp_path, spoil, message):
    model = {"class_readout": "per_class"}
    trainer = tiny_trainer(demo_dir, tmp_path, model=model, max_steps=1, train_sampling_strategy="sequential")
    clips = ", ".join(trainer.train_dataset.clip_ids[:2])
    with torch.no_grad():
        spoil(trainer.model)

    with pytest.raises(DivergenceError, match=f"{message}.*clips: {re.escape(clips)}$"):
        trainer.train()


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(demo_dir, tmp_path, max_grad_norm):
    trainer = tiny_trainer(demo_dir, tmp_path, max_steps=1, max_grad_norm=max_grad_norm)
    trainer.model.actor_head.bias.register_hook(lambda gradient: gradient * torch.inf)

    with pytest.raises(DivergenceError, match="the norm of the gradient is .*clips: demo"):
        trainer.train()
    assert torch.isfinite(trainer.model.actor_head.bias).all()


def test_optimizer_that_misses_a_parameter_is_refused(trainer):
    parameters = [p for name, p in trainer.model.named_parameters() if name != "actor_head.bias"]
    trainer.optimizer = torch.optim.SGD(parameters, lr=1e-3)

    with pytest.raises(ValueError, match="of the optimizer miss 1 of .*, as actor_head.bias"):
        trainer.train()


def test_optimizer_without_names_of_groups_is_logged_by_number(trainer):
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3)
    trainer.train()

    assert "learning_rate/0" in logs_of(trainer)[0]


def test_batch_norm_is_not_synchronised_on_cpu(tmp_path, monkeypatch):
    backbone = {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=backbone))
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)

    ActionDetectionTrainer(
        model,
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        optimization=OptimizationArguments(sync_batch_norm=True),
        processing_class=ClassQueryVideoProcessor(),
    )

    kinds = {type(module) for module in model.modules()}
    assert torch.nn.BatchNorm3d in kinds
    assert torch.nn.SyncBatchNorm not in kinds


def test_trainer_brings_its_collator_and_keeps_the_frames(demo_dir, tmp_path):
    """With the TrainingArguments of somebody who has read nothing, which leave frames out."""
    given = tiny_trainer(demo_dir, tmp_path)
    arguments = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    clips = make_clips(load_action_dataset("ava", demo_dir, "train"), given.model.config)

    trainer = ActionDetectionTrainer(
        given.model,
        TrainingArguments(output_dir=str(tmp_path), save_strategy="no", **arguments),
        train_dataset=clips,
        processing_class=given.processing_class,
    )

    assert len(clips) == len(given.train_dataset)
    assert np.isfinite(trainer.train().metrics["train_loss"])


def test_annotations_instead_of_clips_are_refused(demo_dir, tmp_path):
    given = tiny_trainer(demo_dir, tmp_path)
    rows = load_action_dataset("ava", demo_dir, "train")

    with pytest.raises(ValueError, match=r"`train_dataset` holds annotations.*make_clips\(rows, model.config\)"):
        ActionDetectionTrainer(given.model, given.args, train_dataset=rows, processing_class=given.processing_class)
    with pytest.raises(ValueError, match="must be the video processor.*got NoneType"):
        ActionDetectionTrainer(given.model, given.args, train_dataset=given.train_dataset)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        ClipCollator(given.processing_class)([{"labels": 1}])
    with pytest.raises(TypeError, match="needs num_labels, num_frames, frame_stride, frames_per_second"):
        make_clips(rows)


def test_half_precision_is_refused_on_a_cpu(demo_dir, tmp_path):
    with pytest.raises(ValueError, match="need a GPU"):
        tiny_trainer(demo_dir, tmp_path, bf16=True)
