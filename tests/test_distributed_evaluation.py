"""An evaluation on several processes: the same numbers and the same file bit for bit, each clip once, never half."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from accelerate.data_loader import BatchSamplerShard
from processes import run_forked
from tiny_evaluation import evaluate, evaluate_and_save
from tiny_training import tiny_trainer
from torch.multiprocessing.spawn import ProcessException

from classquery.engine.training import evaluation
from classquery.engine.training.evaluation import save_records


SCRIPT = Path(__file__).parent.parent / "run_action_detection.py"

pytestmark = pytest.mark.usefixtures("one_thread")


def start(num_processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """Start the run script by `torchrun`."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}")
    command = [sys.executable, *launcher, str(SCRIPT), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def results(folder: Path) -> tuple[bytes, dict[str, float]]:
    """The bytes of the predictions, and the metrics but for durations."""
    metrics = json.loads((folder / "eval_results.json").read_text())
    kept = {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second", "_time"))}
    return (folder / "eval_predictions.parquet").read_bytes(), kept


@pytest.fixture(scope="module")
def alone(one_thread, demo_dir, tmp_path_factory):
    """The folder of an evaluation in this process."""
    folder = tmp_path_factory.mktemp("alone")
    evaluate(tiny_trainer(demo_dir, folder))
    return folder


# The 14 clips make four batches of three and one of two: neither two nor three processes get equally many.
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_any_number_of_processes_evaluates_as_one(num_processes, demo_dir, tmp_path, alone):
    run_forked(num_processes, evaluate_and_save, data_dir=demo_dir, output_dir=tmp_path)

    predictions, metrics = results(tmp_path)
    expected_predictions, expected_metrics = results(alone)
    assert predictions == expected_predictions
    assert metrics == expected_metrics
    clip_ids = pq.read_table(tmp_path / "eval_predictions.parquet")["clip_id"].to_pylist()
    assert len(clip_ids) == len(set(clip_ids)) == 14


@pytest.mark.slow
def test_run_script_gives_the_same_on_one_two_and_three_processes(demo_dir, tmp_path):
    model = ("--recipe", "demo", "--model_name_or_path", "demo", "--do_eval", "--use_cpu")
    shared = (*model, "--dataset", "ava", "--data_dir", demo_dir)  # The layout of the demo, of another size.
    runs = []
    for num_processes in (1, 2, 3):
        folder = tmp_path / str(num_processes)
        options = ("--output_dir", folder, "--per_device_eval_batch_size", 2, "--disable_tqdm", True)
        run = start(num_processes, *map(str, shared + options))
        assert run.returncode == 0, run.stderr[-3000:]
        runs.append(results(folder))

    assert runs[0] == runs[1] == runs[2]
    assert runs[0][1]["eval_frame_map_50"] > 0.5  # The demo model has learnt the demo data.


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_evaluation_leaves_the_files_of_the_last_one(num_processes, kind, demo_dir, tmp_path, alone):
    for path in alone.glob("*_results.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "eval_predictions.parquet").write_bytes((alone / "eval_predictions.parquet").read_bytes())
    before = sorted(path.name for path in tmp_path.iterdir())

    die = {"num_batches": 2, "kind": kind}
    with pytest.raises(ProcessException):
        run_forked(num_processes, evaluate_and_save, data_dir=demo_dir, output_dir=tmp_path, die=die)

    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert results(tmp_path) == results(alone)


def test_predictions_that_cannot_be_written_leave_those_that_are_there(tmp_path, monkeypatch, alone):
    path = tmp_path / "eval_predictions.parquet"
    path.write_text("earlier")

    def fill_the_disk(table, target):
        target.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(evaluation.pq, "write_table", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        save_records([{"clip_id": "a"}], path)

    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "earlier"


@pytest.mark.parametrize("num_processes", range(1, 8))
def test_processes_divide_the_batches_of_a_single_one(num_processes, demo_dir, tmp_path, monkeypatch):
    trainer = tiny_trainer(demo_dir, tmp_path)
    whole = list(trainer.get_test_dataloader(trainer.train_dataset).batch_sampler)
    shards = []
    for process in range(num_processes):
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", num_processes)
        monkeypatch.setattr(type(trainer.accelerator), "process_index", process)
        sampler = trainer.get_test_dataloader(trainer.train_dataset).batch_sampler
        assert isinstance(sampler, BatchSamplerShard) == (num_processes > 1)
        shards.append(list(sampler))

    assert len({len(shard) for shard in shards}) == 1  # Networks divided among processes wait for each other.
    batches = [batch for of_round in zip(*shards, strict=True) for batch in of_round]
    assert batches[: len(whole)] == whole
    assert all(batch in whole for batch in batches)
