"""The examples run: the cells of the notebook one after the other in an empty folder, then the scripts."""

import json
import runpy
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_notebook_and_scripts_run_from_check_to_attention(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads((EXAMPLES / "own_videos.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)

    assert names["report"].problems == []
    assert names["metrics"]["eval_frame_map_50"] > 0.5
    assert (tmp_path / "attention.png").stat().st_size > 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    video = str(next((tmp_path / "data" / "videos").glob("*")))
    runpy.run_path(str(EXAMPLES / "detect_people.py"))["main"](video)
    assert (tmp_path / "first_moment.png").stat().st_size > 0
    train = runpy.run_path(str(EXAMPLES / "train_on_folder.py"))["main"]
    assert train("data", "again", max_steps=2, per_device_train_batch_size=2, report_to="none") > 0.5
