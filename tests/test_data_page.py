"""The examples of docs/data.md do what the page says."""

import re
import shutil
from pathlib import Path

import pytest

from classquery.data import load_action_dataset, load_action_labels


PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, two_movies, monkeypatch):
    """The folder `data` of the page."""
    (tmp_path / "data" / "videos").mkdir(parents=True)
    shutil.copy(two_movies / "demo_val_000.mp4", tmp_path / "data" / "videos" / "kitchen.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_csv_and_json_lines_say_the_same(folder):
    loaded = []
    for suffix, texts in (("csv", examples("csv")), ("jsonl", examples("json"))):
        for text in texts:
            path = folder / f"train.{suffix}"
            path.write_text(text)
            rows = load_action_dataset("custom", folder, "train")
            loaded.append([[(t["labels"], t["frames"], t["boxes"]) for t in row["tubes"]] for row in rows])
            path.unlink()

    keyframes, tubes = loaded[:2]
    assert loaded[2:] == [keyframes, tubes]
    assert [labels for ((labels, _, _),) in keyframes] == [[0, 2], [1]]
    assert [frames for ((_, frames, _),) in tubes] == [[0, 1]]


def test_cvat_example_is_a_walk_and_a_sit(folder):
    (text,) = examples("xml")
    (folder / "train.xml").write_text(text)

    (row,) = load_action_dataset("custom", folder, "train")

    labels = load_action_labels("custom", folder)
    frames = {labels[tube["labels"][0]]: tube["frames"] for tube in row["tubes"]}
    assert frames == {"walk": list(range(10)), "sit": list(range(10, 20))}


def test_python_examples_run(folder):
    (folder / "train.csv").write_text(examples("csv")[0])
    names = {}
    for text in examples("python"):
        exec(text, names)

    assert names["clips"][0]["frames"].shape == (8, 3, 96, 128)
    assert list(names["same_rows"])[0]["tubes"] == list(names["rows"])[0]["tubes"]
    assert sorted(clip["clip_id"] for clip in names["streamed_clips"]) == names["clips"].clip_ids
