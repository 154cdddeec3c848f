"""Which checkpoint a run is resumed from."""

import json

import pytest
from tiny_training import tiny_trainer

from classquery.engine.training.resume import last_complete_checkpoint


pytestmark = pytest.mark.usefixtures("one_thread")


def write_state(folder, text=None):
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1}) if text is None else text)


def test_last_complete_checkpoint_is_that_with_most_updates(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2"):
        write_state(tmp_path / name)

    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_half_written_checkpoints_are_passed_over(tmp_path):
    write_state(tmp_path / "checkpoint-1")
    write_state(tmp_path / "checkpoint-2", '{"global_step": 2, "log_history": [')
    write_state(tmp_path / "checkpoint-3", "")
    (tmp_path / "checkpoint-4").mkdir()
    write_state(tmp_path / "checkpoint-5-copy")

    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")


def test_no_complete_checkpoint(demo_dir, tmp_path):
    (tmp_path / "checkpoint-4").mkdir()

    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="is complete: there is nothing to resume"):
        tiny_trainer(demo_dir, tmp_path).train(resume_from_checkpoint=True)


def test_checkpoint_of_an_earlier_run_is_not_mixed_with_a_new_one(demo_dir, tmp_path):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    tiny_trainer(demo_dir, tmp_path, **settings).train()
    trainer = tiny_trainer(demo_dir, tmp_path, **settings)

    class KilledError(Exception):
        pass

    def be_killed(output_dir):
        raise KilledError

    trainer._save_scaler = be_killed
    with pytest.raises(KilledError):
        trainer.train()

    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()
    assert last_complete_checkpoint(tmp_path) is None
