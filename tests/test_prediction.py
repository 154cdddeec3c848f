"""Many videos: files for each, going on after a stop, broken ones that do not stop the others, several processes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_detection import cut, make_model, write_video
from test_run_action_detection import SCRIPT

from classquery import ClassQueryVideoProcessor
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.engine.detection import prediction
from classquery.engine.detection.prediction import (
    PredictionArguments,
    collect_predictions,
    find_videos,
    predict_videos,
)


EVERYTHING = {"size": {"shortest_edge": 32}, "score_threshold": 0.0, "actor_threshold": 0.0}


@pytest.fixture(scope="module")
def detector() -> tuple:
    return make_model(), ClassQueryVideoProcessor(**EVERYTHING)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    """Two whole videos, one that ends early, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{name}.mp4", np.arange(60) / 20) for name in ("one", "two", "cut")]
    cut(paths[2])
    (folder / "none.mp4").write_bytes(b"no video")
    return [*paths, str(folder / "none.mp4")]


def predict(videos: list[str], folder: Path, detector: tuple, arguments: PredictionArguments, **options) -> None:
    predict_videos(videos, folder, *detector, arguments, show_progress=False, **options)


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_video_gets_its_files_and_broken_ones_are_listed(videos, detector, tmp_path, caplog):
    predict(videos, tmp_path, detector, PredictionArguments())
    table = collect_predictions(videos, tmp_path)

    for name in ("one", "two", "cut"):
        assert files_of(tmp_path / name) == {"detections.json", "detections.csv", "summary.json"}
    assert files_of(tmp_path / "none") == {"summary.json"}
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["one.mp4", "two.mp4", "cut.mp4", "none.mp4", "1"]
    assert "not a video" in table.splitlines()[4]
    assert "1 of 4 videos could not be read" in table
    assert "none.mp4" in caplog.text
    with (tmp_path / "detections.csv").open(newline="") as file:
        assert {row["video"] for row in csv.DictReader(file)} == {"one.mp4", "two.mp4", "cut.mp4"}


def test_single_video_is_drawn_and_tubes_are_written(videos, detector, tmp_path):
    predict(videos[:1], tmp_path, detector, PredictionArguments(tubes=True, attention="sit", attention_person=1))

    assert files_of(tmp_path / "one") == {
        *("detections.json", "detections.csv", "summary.json", "annotated.mp4", "preview.png", "attention.png"),
        *("timeline.csv", "timeline.png", "ava.csv", "ava_action_list.pbtxt", "cvat.xml", "cvat_labels.json"),
    }
    assert ClipReader().info(tmp_path / "one" / "annotated.mp4").num_frames == 60
    assert Image.open(tmp_path / "one" / "preview.png").size == (640, 480)
    content = json.loads((tmp_path / "one" / "detections.json").read_text())
    people = {person["person_id"] for person in content["people"]}
    assert people == {actor["person_id"] for keyframe in content["keyframes"] for actor in keyframe["actors"]}
    assert content["people"][0]["timeline"][0]["end_seconds"] <= 3


def test_run_that_was_stopped_goes_on(videos, detector, tmp_path, monkeypatch):
    opened = []
    open_source = prediction.open_source

    def stop_at_the_second(source: str, **options):
        if opened:
            raise KeyboardInterrupt
        opened.append(source)
        return open_source(source, **options)

    monkeypatch.setattr(prediction, "open_source", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        predict(videos[:2], tmp_path, detector, PredictionArguments())
    monkeypatch.setattr(
        prediction, "open_source", lambda source, **options: opened.append(source) or open_source(source)
    )
    predict(videos[:2], tmp_path, detector, PredictionArguments())
    predict(videos[:2], tmp_path, detector, PredictionArguments())

    assert opened == videos[:2]
    assert collect_predictions(videos[:2], tmp_path).count("3.0 s") == 2


@pytest.mark.parametrize("change", ["threshold", "arguments", "video", "rate"])
def test_other_options_or_files_are_done_anew(change, detector, tmp_path):
    path = write_video(tmp_path / "video.mp4", np.arange(20) / 20)
    model, processor = detector
    predict([path], tmp_path, detector, PredictionArguments())
    before = (tmp_path / "video" / "summary.json").stat().st_mtime_ns

    if change == "threshold":
        processor = ClassQueryVideoProcessor(**EVERYTHING | {"score_threshold": 0.1})
    if change == "video":
        write_video(tmp_path / "video.mp4", np.arange(25) / 20)
    arguments = PredictionArguments(top_k=1 if change == "arguments" else None)
    rate = 2.0 if change == "rate" else None
    predict([path], tmp_path, (model, processor), arguments, keyframes_per_second=rate)

    assert (tmp_path / "video" / "summary.json").stat().st_mtime_ns > before


def test_broken_video_is_tried_again(videos, detector, tmp_path):
    path = tmp_path / "late.mp4"
    path.write_bytes(b"still being copied")
    predict([videos[0], str(path)], tmp_path / "out", detector, PredictionArguments())
    path.write_bytes(Path(videos[0]).read_bytes())

    predict([videos[0], str(path)], tmp_path / "out", detector, PredictionArguments())

    assert "could not be read" not in collect_predictions([videos[0], str(path)], tmp_path / "out")


def test_processes_share_the_videos(videos, detector, tmp_path):
    for process in (1, 0):
        predict(
            videos[:3], tmp_path / "shared", detector, PredictionArguments(), process_index=process, num_processes=2
        )
    predict(videos[:3], tmp_path / "alone", detector, PredictionArguments())

    for folder in ("shared", "alone"):
        collect_predictions(videos[:3], tmp_path / folder)
    tables = [(tmp_path / folder / "detections.csv").read_text() for folder in ("shared", "alone")]
    assert tables[0] == tables[1]


def test_videos_of_one_name_get_folders_of_their_own(videos, detector, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.mp4").write_bytes(Path(videos[0]).read_bytes())
    paths = [str(tmp_path / folder / "one.mp4") for folder in ("a", "b")]

    predict(paths, tmp_path / "out", detector, PredictionArguments())

    assert len(files_of(tmp_path / "out")) == 2


def test_same_video_twice_raises(videos, detector, tmp_path):
    with pytest.raises(ValueError, match="overwrite each other"):
        predict([videos[0], videos[0]], tmp_path, detector, PredictionArguments())


def test_videos_are_found(videos, tmp_path):
    assert find_videos([str(Path(videos[0]).parent / "*.mp4")]) == sorted(videos)
    with pytest.raises(VideoReadError, match=r"none\.mp4"):
        find_videos(videos[3:])
    with pytest.raises(VideoReadError, match=r"missing\.mp4"):
        find_videos(["missing.mp4"])


def test_video_without_any_detection(videos, tmp_path):
    processor = ClassQueryVideoProcessor(**EVERYTHING | {"score_threshold": 1.1})

    predict(videos[:1], tmp_path, (make_model(), processor), PredictionArguments(tubes=True, attention="sit"))

    assert "nothing found" in collect_predictions(videos[:1], tmp_path)
    assert (tmp_path / "one" / "annotated.mp4").is_file()


def test_person_without_tubes_raises():
    with pytest.raises(ValueError, match="--tubes"):
        PredictionArguments(attention="sit", attention_person=2)


@pytest.mark.slow
def test_two_processes_of_the_script_do_each_video_once(videos, tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", SCRIPT, "--use_cpu", "--do_predict"]
    result = subprocess.run(
        [sys.executable, *command, "--output_dir", tmp_path, "--videos", *videos, "--disable_tqdm", "True"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "1 of 4 videos could not be read" in result.stdout + result.stderr
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == {
        *("one", "two", "cut", "none", "summary.json", "detections.csv")
    }
