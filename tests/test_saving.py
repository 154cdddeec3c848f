"""A disk that is full while a run saves: what was saved before is still there, and the error says what it needs."""

import errno

import pytest
import torch
from safetensors import SafetensorError
from tiny_training import tiny_trainer

from classquery import ClassQueryForVideoActionDetection
from classquery.engine.training.resume import last_complete_checkpoint
from classquery.engine.training.saving import CheckpointWriteError, bytes_of


pytestmark = pytest.mark.usefixtures("one_thread")

# As the writers of Python, safetensors and PyTorch say it.
FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4160 vs 4058"),
]


def fill_disk(trainer, error, num_updates):
    """Let half of the checkpoint after so many updates be written."""
    save = trainer._save_optimizer_and_scheduler

    def save_or_fail(output_dir):
        save(output_dir)
        if trainer.state.global_step == num_updates:
            raise error

    trainer._save_optimizer_and_scheduler = save_or_fail


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_checkpoint_that_cannot_be_written_leaves_the_last_one(demo_dir, tmp_path, caplog, error):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = tiny_trainer(demo_dir, tmp_path, optimization={"ema_decay": 0.9}, **settings)
    fill_disk(trainer, error, num_updates=2)

    with pytest.raises(CheckpointWriteError) as raised:
        trainer.train()

    message = str(raised.value)
    assert f"{tmp_path / 'checkpoint-2'} cannot be written ({error}): it needs about 0.0" in message
    assert f"{tmp_path / 'checkpoint-1'} is complete: --resume_from_checkpoint true goes on from it" in message
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    del trainer._save_optimizer_and_scheduler
    resumed = tiny_trainer(demo_dir, tmp_path, optimization={"ema_decay": 0.9}, **settings)
    with caplog.at_level("INFO"):
        assert resumed.train(resume_from_checkpoint=True).global_step == 3
    assert f"resumed from {tmp_path / 'checkpoint-1'}" in caplog.messages
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_other_errors_are_no_full_disk(demo_dir, tmp_path):
    trainer = tiny_trainer(demo_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    fill_disk(trainer, RuntimeError("out of memory"), num_updates=1)

    with pytest.raises(RuntimeError, match="^out of memory$"):
        trainer.train()


def test_model_that_cannot_be_written_leaves_the_last_one(demo_dir, tmp_path, monkeypatch):
    trainer = tiny_trainer(demo_dir, tmp_path)
    trainer.save_model()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save = ClassQueryForVideoActionDetection.save_pretrained

    def save_half(self, folder, *args, **kwargs):
        save(self, folder, *args, **kwargs)
        raise FULL[0]

    monkeypatch.setattr(ClassQueryForVideoActionDetection, "save_pretrained", save_half)
    with torch.no_grad():
        trainer.model.actor_head.bias.fill_(7)
    with pytest.raises(
        CheckpointWriteError, match=f"{tmp_path}.*No space left on device.*There is no complete checkpoint"
    ):
        trainer.save_model()

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    trainer.save_model()
    assert (ClassQueryForVideoActionDetection.from_pretrained(tmp_path).actor_head.bias == 7).all()
    assert not list(tmp_path.glob(".*"))


def test_need_is_that_of_weights_average_and_optimizer():
    model = torch.nn.BatchNorm1d(5)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 5)).sum().backward()
    optimizer.step()

    # 20 numbers and a count of 8 bytes; the optimizer holds two numbers of each parameter, and their two steps.
    assert bytes_of(model, None, None) == 88
    assert bytes_of(model, optimizer, None) == 88 + 80 + 8
    assert bytes_of(model, optimizer, object()) == 2 * 88 + 80 + 8
