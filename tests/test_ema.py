"""The average of the weights: its values, and where it stands in for the trained ones."""

import copy

import pytest
import torch
from accelerate.utils import DistributedType
from tiny_training import tiny_trainer
from transformers import TrainerCallback, TrainerControl, TrainerState

from classquery.engine.checkpoint import load_detector
from classquery.engine.training.ema import WeightAverage


pytestmark = pytest.mark.usefixtures("one_thread")


class KeepWeights(TrainerCallback):
    """Keep the trained weights after each update."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append(copy.deepcopy(model.state_dict()))


def states_equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def persistent(weights, model):
    """Those that are in a state dict."""
    return {name: weights[name] for name in model.state_dict()}


def start(model, decay):
    """An average at the start of a run, and a function that changes the model as an update does."""
    average, progress = WeightAverage(model, decay), TrainerState()
    average.on_train_begin(None, progress, TrainerControl(), model)

    def update(weight):
        with torch.no_grad():
            model.weight.fill_(weight)
        average.on_step_end(None, progress, TrainerControl(), model)

    return average, update


def test_average_begins_with_the_first_update_and_decays():
    average, update = start(torch.nn.Linear(1, 1, bias=False), decay=0.75)

    for weight in (8.0, 4.0, 0.0):
        update(weight)

    assert average.weights["weight"].item() == 0.75 * (0.75 * 8 + 0.25 * 4)


def test_statistics_are_averaged_and_counters_copied():
    norm = torch.nn.BatchNorm1d(1)
    average, update = start(norm, decay=0.5)

    for mean in (2.0, 4.0):
        norm.running_mean.fill_(mean)
        norm.num_batches_tracked += 1
        update(1.0)

    assert average.weights["running_mean"].item() == 3.0
    assert average.weights["num_batches_tracked"].item() == 2


def test_exchange_gives_the_weights_back_bit_by_bit():
    model = torch.nn.Linear(3, 3)
    average, update = start(model, decay=0.9)
    update(1.0)
    update(1 / 3)
    trained, averaged = copy.deepcopy(model.state_dict()), copy.deepcopy(average.weights)

    with average.put_into(model):
        assert states_equal(model.state_dict(), averaged)

    assert states_equal(model.state_dict(), trained)
    assert states_equal(average.weights, averaged)


def train(*arguments, **settings):
    """Train, and return the weights after each update, and the trainer."""
    trainer, kept = tiny_trainer(*arguments, **settings), KeepWeights()
    trainer.add_callback(kept)
    trainer.train()
    return kept.weights, trainer


def test_training_is_not_changed_and_ends_with_the_averaged_model(demo_dir, tmp_path):
    settings = {"max_steps": 3, "learning_rate": 1e-3}
    without, _ = train(demo_dir, tmp_path / "without", **settings)
    weights, averaging = train(demo_dir, tmp_path / "with", optimization={"ema_decay": 0.5}, **settings)

    for state, expected in zip(weights, without, strict=True):
        assert states_equal(state, expected)
    for name, averaged in averaging.model.state_dict().items():
        first, second, third = (state[name] for state in weights)
        torch.testing.assert_close(averaged, first / 4 + second / 4 + third / 2)
    averaging.save_model()
    saved, _ = load_detector(str(tmp_path / "with"))
    assert states_equal(saved.state_dict(), averaging.model.state_dict())


AT_EVERY_STEP = {
    "optimization": {"ema_decay": 0.5},
    "max_steps": 3,
    "learning_rate": 1e-3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
}


def test_averaged_model_is_evaluated_and_saved_in_every_checkpoint(demo_dir, tmp_path):
    evaluated = []
    trainer = tiny_trainer(demo_dir, tmp_path, **AT_EVERY_STEP)
    trainer.scorer = lambda records: evaluated.append(copy.deepcopy(trainer.model.state_dict())) or {}
    trainer.train()

    assert states_equal(evaluated[-1], trainer.model.state_dict())
    for step, weights in enumerate(evaluated, start=1):
        averaged, _ = load_detector(str(tmp_path / f"checkpoint-{step}" / "ema"))
        trained, _ = load_detector(str(tmp_path / f"checkpoint-{step}"))
        assert states_equal(averaged.state_dict(), weights)
        assert states_equal(trained.state_dict(), weights) == (step == 1)


def test_best_averaged_model_is_loaded_at_the_end(demo_dir, tmp_path):
    scores = iter((0.1, 0.3, 0.2))
    best = {"metric_for_best_model": "frame_map_50", "load_best_model_at_end": True}
    trainer = tiny_trainer(demo_dir, tmp_path, **AT_EVERY_STEP, **best)
    trainer.scorer = lambda records: {"frame_map_50": next(scores)}
    trainer.train()

    best, _ = load_detector(str(tmp_path / "checkpoint-2" / "ema"))
    assert states_equal(trainer.model.state_dict(), best.state_dict())


def test_second_training_starts_a_new_average(demo_dir, tmp_path):
    trainer = tiny_trainer(demo_dir, tmp_path, optimization={"ema_decay": 0.5}, max_steps=1, learning_rate=1e-3)
    trainer.train()
    trainer.train()

    # After a single update, the average is the trained model.
    assert states_equal(trainer.model.state_dict(), persistent(trainer.average.weights, trainer.model))


def test_checkpoint_without_an_average_is_refused(demo_dir, tmp_path):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    tiny_trainer(demo_dir, tmp_path, **settings).train()

    with pytest.raises(ValueError, match=r"checkpoint-1.ema"):
        tiny_trainer(demo_dir, tmp_path, optimization={"ema_decay": 0.5}, **settings).train(True)


@pytest.mark.parametrize("distributed_type", [DistributedType.MEGATRON_LM, DistributedType.DEEPSPEED])
def test_weights_that_are_divided_by_other_means_are_refused(demo_dir, tmp_path, monkeypatch, distributed_type):
    trainer = tiny_trainer(demo_dir, tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", distributed_type)

    with pytest.raises(ValueError, match=f"--ema_decay .* with {distributed_type.value}: use FSDP2"):
        trainer.average_weights(0.9)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="--ema_decay must be at least 0 and less than 1"):
        WeightAverage(torch.nn.Linear(1, 1), decay)
