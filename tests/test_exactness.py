"""Runs that must be equal: killed and resumed, on more processes, with more workers, with the same seed."""

import json

import pytest
import torch
from processes import run_forked
from safetensors.torch import load_file
from tiny_training import tiny_trainer, train_and_save
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from classquery.loss_classquery import ActionTargets


# Everything that draws or remembers is on. The 14 clips make 4 updates an epoch, the last of a single pass.
RUN = {
    "augment": True,
    "drop_path_rate": 0.2,
    "model": {"dropout": 0.1, "classifier_dropout": 0.5, "denoising_groups": 2},
    "optimization": {"ema_decay": 0.5, "warmup_epochs": 1, "backbone_learning_rate_factor": 0.1},
    "learning_rate": 1e-3,
    "gradient_accumulation_steps": 2,
    "max_steps": 10,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 5,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def train(data_dir, output_dir, resume=None, **arguments):
    """Train here, and return the trainer and what the model saw: clip ids, and the sum of the pixels."""
    trainer = tiny_trainer(data_dir, output_dir, **arguments)
    seen = []

    def note(model, args, inputs):
        if model.training:
            seen.append(([label["clip_id"] for label in inputs["labels"]], inputs["pixel_values"].sum().item()))

    trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, seen


def logged(history: list[dict]) -> list[dict]:
    """What was logged but for durations, and the mean over what was trained in this process."""
    skipped = ("runtime", "per_second", "train_loss")
    return [{name: value for name, value in entry.items() if not name.endswith(skipped)} for entry in history]


def assert_same_bits(state, other):
    """Compare nested states."""
    if isinstance(state, torch.Tensor):
        assert torch.equal(state, other)
    elif isinstance(state, dict):
        assert state.keys() == other.keys()
        for key in state:
            assert_same_bits(state[key], other[key])
    elif isinstance(state, list | tuple):
        assert len(state) == len(other)
        for ours, theirs in zip(state, other, strict=True):
            assert_same_bits(ours, theirs)
    else:
        assert state == other


@pytest.fixture(scope="module")
def uninterrupted(one_thread, demo_dir, tmp_path_factory):
    return train(demo_dir, tmp_path_factory.mktemp("uninterrupted"), **RUN)


def assert_same_run(resumed, expected):
    assert_same_bits(resumed.model.state_dict(), expected.model.state_dict())
    assert_same_bits(resumed.average.weights, expected.average.weights)
    assert_same_bits(resumed.optimizer.state_dict(), expected.optimizer.state_dict())
    assert_same_bits(resumed.lr_scheduler.state_dict(), expected.lr_scheduler.state_dict())
    assert logged(resumed.state.log_history) == logged(expected.state.log_history)


def test_killed_and_resumed_run_is_the_uninterrupted_one(demo_dir, tmp_path, uninterrupted):
    # In the middle of the second epoch.
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_forked(1, train_and_save, data_dir=demo_dir, output_dir=tmp_path, die_at=8, **RUN)
    assert (tmp_path / "checkpoint-8" / "model.safetensors").exists()

    resumed, seen = train(demo_dir, tmp_path, resume=True, **RUN)

    expected, expected_seen = uninterrupted
    assert 0 < len(seen) < len(expected_seen)
    assert seen == expected_seen[-len(seen) :]
    assert_same_run(resumed, expected)


def test_run_resumed_at_the_end_of_an_epoch_with_workers_is_the_same(demo_dir, tmp_path, uninterrupted):
    expected, expected_seen = uninterrupted
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}

    resumed, seen = train(demo_dir, tmp_path, resume=f"{expected.args.output_dir}/checkpoint-4", **RUN, **workers)

    assert seen == expected_seen[-len(seen) :]
    assert_same_run(resumed, expected)


def test_finished_run_that_is_resumed_stays_as_it_is(demo_dir, uninterrupted):
    expected, _ = uninterrupted

    resumed, seen = train(demo_dir, expected.args.output_dir, resume=True, **RUN)

    assert seen == []
    assert resumed.state.global_step == RUN["max_steps"]
    assert_same_bits(resumed.model.state_dict(), expected.model.state_dict())


def test_same_seed_gives_the_same_run_with_any_number_of_workers(demo_dir, tmp_path, uninterrupted):
    # Into the second epoch, for which lasting workers draw anew.
    settings = RUN | {"max_steps": 6, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 1}
    runs = [
        train(demo_dir, tmp_path / name, **(settings | workers))
        for name, workers in {
            "none": {},
            "two": {"dataloader_num_workers": 2},
            "lasting": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        }.items()
    ]

    first, first_seen = runs[0]
    assert first_seen == uninterrupted[1][: len(first_seen)]
    for trainer, seen in runs[1:]:
        assert seen == first_seen
        assert_same_bits(trainer.model.state_dict(), first.model.state_dict())
        assert logged(trainer.state.log_history) == logged(first.state.log_history)


def test_other_seed_gives_another_run(demo_dir, tmp_path):
    settings = {"augment": True, "max_steps": 1}
    runs = [train(demo_dir, tmp_path / str(seed), seed=seed, **settings)[1] for seed in (1, 2)]

    assert runs[0] != runs[1]


def test_augmentation_differs_between_epochs(demo_dir, tmp_path):
    # In order, so that the batches of both epochs hold the same clips.
    _, seen = train(demo_dir, tmp_path, augment=True, num_train_epochs=2, train_sampling_strategy="sequential")

    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [clip_ids for clip_ids, _ in first] == [clip_ids for clip_ids, _ in second]
    assert all(one != other for (_, one), (_, other) in zip(first, second, strict=True))


def test_evaluation_leaves_no_trace_in_training(demo_dir, tmp_path):
    settings = {"max_steps": 2, "model": {"dropout": 0.1}, "dataloader_num_workers": 1}
    without, _ = train(demo_dir, tmp_path / "without", **settings)
    evaluated, _ = train(demo_dir, tmp_path / "with", eval_strategy="steps", eval_steps=1, **settings)

    assert_same_bits(evaluated.model.state_dict(), without.model.state_dict())


def displaced_boxes(targets, config, device):
    """Like `noised_boxes`, but the same on any number of processes; without noise, gradients of L1 flip their sign."""
    return targets.actors[..., :4].repeat(1, config.denoising_groups, 1) * 0.8 + 0.05


def test_two_processes_train_as_one(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(ActionTargets, "noised_boxes", displaced_boxes)
    nothing_random = {"dropout": 0.0, "classifier_dropout": 0.0}
    # Plain descent, because Adam makes a full step of every rounding error where a gradient is 0.
    settings = {
        "data_dir": demo_dir,
        "augment": True,
        "model": nothing_random | {"class_loss_normalization": "actors", "denoising_groups": 2},
        "optimization": {"ema_decay": 0.5},
        "optim": "sgd",
        "learning_rate": 1e-2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "dataloader_drop_last": True,
    }
    run_forked(2, train_and_save, output_dir=tmp_path / "two", per_device_train_batch_size=1, **settings)

    one, _ = train(output_dir=tmp_path / "one", per_device_train_batch_size=2, **settings)

    weights = load_file(tmp_path / "two" / "model.safetensors")
    for name, expected in one.model.state_dict().items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-5)
    history = json.loads((tmp_path / "two" / "trainer_state.json").read_text())["log_history"]
    ours, theirs = logged(history), logged(one.state.log_history)
    assert len(ours) == len(theirs) > 6
    for entry, expected in zip(ours, theirs, strict=True):
        entry.pop("total_flos", None), expected.pop("total_flos", None)
        assert entry == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_two_processes_that_are_killed_and_resumed_train_as_if_they_were_not(demo_dir, tmp_path):
    settings = {"data_dir": demo_dir, **RUN, "per_device_train_batch_size": 1}
    expected, resumed = tmp_path / "expected", tmp_path / "resumed"

    run_forked(2, train_and_save, output_dir=expected, **settings)
    with pytest.raises(ProcessException):
        run_forked(2, train_and_save, output_dir=resumed, die_at=8, **settings)
    run_forked(2, train_and_save, output_dir=resumed, resume=True, **settings)

    assert_same_bits(load_file(resumed / "model.safetensors"), load_file(expected / "model.safetensors"))
    histories = [
        json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (resumed, expected)
    ]
    assert logged(histories[0]) == logged(histories[1])
