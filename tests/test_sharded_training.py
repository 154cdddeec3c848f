"""Training with weights that are divided among processes by FSDP2, on CPUs: the same as in one process."""

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.state import DistributedType, PartialState
from processes import run_forked
from test_accelerate_files import environment
from tiny_training import tiny_trainer
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from classquery.engine.checkpoint import load_detector


WRAPPINGS = {
    "layers": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    "decoder": {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["ClassQueryDecoder"],
    },
    "large modules": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 500},
    "the smallest modules": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 1},
    "nothing but the whole": {"auto_wrap_policy": "NO_WRAP"},
}
# Sums in another order, over three updates.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

pytestmark = pytest.mark.usefixtures("one_thread")


def use_fsdp_on_cpus() -> None:
    """Let Accelerate, which divides models among GPUs only, take processes with CPUs for such."""
    create = Trainer.create_accelerator_and_postprocess

    def create_as_on_gpus(trainer: Trainer) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        create(trainer)

    Trainer.create_accelerator_and_postprocess = create_as_on_gpus


def train(data_dir: Path, folder: Path, wrapping: dict | None = None, resume: bool | None = None, **arguments) -> None:
    """Train for three updates of two clips, alone or as one of two processes, and save losses and weights."""
    if wrapping is not None:
        use_fsdp_on_cpus()
    if wrapping:
        arguments |= {"fsdp": True, "fsdp_config": {"version": 2, **wrapping}}
    trainer = tiny_trainer(
        data_dir,
        folder,
        # Not divided by the clips of a batch, a loss would depend on how many processes take part.
        model={"dropout": 0.0, "classifier_dropout": 0.0, "class_loss_normalization": "actors"},
        **{"max_steps": 3, "learning_rate": 1e-3, "optim": "sgd", **arguments},
        per_device_train_batch_size=2 if wrapping is None else 1,
    )
    trainer.train(resume_from_checkpoint=resume)
    assert wrapping is None or isinstance(trainer.model, FSDPModule)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        torch.save({"losses": losses, "metrics": metrics, "weights": weights}, folder / "result.pt")


def result(folder: Path) -> dict:
    return torch.load(folder / "result.pt")


@pytest.fixture(scope="module")
def alone(one_thread, demo_dir, tmp_path_factory):
    """What one process finds, with an average and evaluations."""
    folder = tmp_path_factory.mktemp("alone")
    train(demo_dir, folder, optimization={"ema_decay": 0.5}, eval_strategy="steps", eval_steps=1)
    return result(folder)


@pytest.mark.parametrize(
    "wrapping",
    [pytest.param(name, marks=pytest.mark.slow if name != "large modules" else ()) for name in WRAPPINGS],
)
def test_two_processes_train_average_and_evaluate_as_one(wrapping, demo_dir, tmp_path, alone):
    more = {"optimization": {"ema_decay": 0.5}, "eval_strategy": "steps", "eval_steps": 1}

    run_forked(2, train, demo_dir, tmp_path, WRAPPINGS[wrapping], **more)

    torch.testing.assert_close(result(tmp_path), alone, **TOLERANCE)


def train_as_told(told: dict[str, str], *arguments, **options) -> None:
    """Train as the environment says that `accelerate launch` makes."""
    os.environ.update({name: value for name, value in told.items() if name.startswith(("ACCELERATE", "FSDP"))})
    train(*arguments, {}, **options)


@pytest.mark.slow
def test_example_file_of_accelerate_trains_as_one_process(demo_dir, tmp_path, alone):
    with mock.patch.dict(os.environ):
        told = environment("fsdp2.yaml")

    run_forked(2, train_as_told, told, demo_dir, tmp_path)

    torch.testing.assert_close(result(tmp_path)["losses"], alone["losses"], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("state_dict_type", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_sharded_run_is_resumed_to_the_same_result(state_dict_type, demo_dir, tmp_path):
    wrapping = WRAPPINGS["layers"] | {"state_dict_type": state_dict_type}
    more = {"optimization": {"ema_decay": 0.5}, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
    run_forked(2, train, demo_dir, tmp_path / "whole", wrapping, **more)
    run_forked(2, train, demo_dir, tmp_path / "resumed", wrapping, **more)
    for checkpoint in ("checkpoint-2", "checkpoint-3"):
        (tmp_path / "resumed" / checkpoint / "trainer_state.json").unlink()

    run_forked(2, train, demo_dir, tmp_path / "resumed", wrapping, resume=True, **more)

    torch.testing.assert_close(result(tmp_path / "resumed"), result(tmp_path / "whole"), rtol=0, atol=0)
    if state_dict_type == "FULL_STATE_DICT":
        averaged, _ = load_detector(str(tmp_path / "whole" / "checkpoint-3" / "ema"))
        torch.testing.assert_close(averaged.state_dict(), result(tmp_path / "whole")["weights"], rtol=0, atol=0)
