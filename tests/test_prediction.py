"""Many videos: files for each, going on after a stop, broken ones that do not stop the others, several processes."""

import contextlib
import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_detection import cut, make_model, write_video
from test_run_action_detection import SCRIPT

from classquery import ClassQueryVideoProcessor, detect
from classquery.data.annotations.custom import load_custom
from classquery.data.annotations.schema import and_others
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.engine.checkpoint import load_detector
from classquery.engine.detection import prediction
from classquery.engine.detection.corrections import CORRECTION_FILES
from classquery.engine.detection.prediction import (
    PredictionArguments,
    collect_predictions,
    find_videos,
    not_done,
    predict_videos,
)
from classquery.engine.detection.uncertain import UNCERTAIN_FILES


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
    predict_videos(videos, folder, *detector, arguments, **({"show_progress": False} | options))


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_damage_is_told_once_where_the_video_is_drawn_as_well(videos, detector, tmp_path, caplog):
    predict([videos[2]], tmp_path, detector, PredictionArguments())

    assert (tmp_path / "cut" / "annotated.mp4").is_file()
    assert [record.getMessage() for record in caplog.records if "cannot read" in record.getMessage()] == [
        record.getMessage() for record in caplog.records if "nothing is detected from" in record.getMessage()
    ]


def test_every_video_gets_its_files_and_broken_ones_are_listed(videos, detector, tmp_path, caplog):
    predict(videos, tmp_path, detector, PredictionArguments())
    table = collect_predictions(videos, tmp_path)

    assert not_done(videos, tmp_path) == ["none.mp4"]
    for name in ("one", "two", "cut"):
        assert files_of(tmp_path / name) == {"detections.json", "detections.csv", "summary.json"}
    assert files_of(tmp_path / "none") == {"summary.json"}
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["one.mp4", "two.mp4", "cut.mp4", "none.mp4", "1"]
    assert "; the video is damaged, nothing from " in table.splitlines()[3]
    assert "damaged" not in table.splitlines()[2]
    assert "not a video" in table.splitlines()[4]
    assert "1 of 4 videos could not be read" in table
    assert "none.mp4" in caplog.text
    with (tmp_path / "detections.csv").open(newline="") as file:
        assert {row["video"] for row in csv.DictReader(file)} == {"one.mp4", "two.mp4", "cut.mp4"}


def test_single_video_is_drawn_and_tubes_are_written(videos, detector, tmp_path, capsys):
    arguments = PredictionArguments(tubes=True, attention="sit", attention_person=1)
    predict(videos[:1], tmp_path, detector, arguments, show_progress=True)

    assert files_of(tmp_path / "one") == {
        *("detections.json", "detections.csv", "summary.json", "annotated.mp4", "preview.png", "attention.png"),
        *("timeline.csv", "timeline.png", "ava.csv", "ava_action_list.pbtxt", *CORRECTION_FILES),
        *UNCERTAIN_FILES,
    }
    assert ClipReader().info(tmp_path / "one" / "annotated.mp4").num_frames == 60
    assert Image.open(tmp_path / "one" / "preview.png").size == (640, 480)
    content = json.loads((tmp_path / "one" / "detections.json").read_text())
    people = {person["person_id"] for person in content["people"]}
    assert people == {actor["person_id"] for keyframe in content["keyframes"] for actor in keyframe["actors"]}
    assert content["people"][0]["timeline"][0]["end_seconds"] <= 3
    assert "100% |" in capsys.readouterr().err


def test_person_who_is_not_there_is_told_of(videos, detector, tmp_path):
    arguments = PredictionArguments(tubes=True, attention="sit", attention_person=777)
    predict(videos[:1], tmp_path, detector, arguments)

    assert "there is no person 777, of" in summary_of(tmp_path / "one")["left_out"]
    assert not_done(videos[:1], tmp_path) == ["one.mp4"]


def test_people_alone_are_everybody_whatever_they_do(videos, detector, tmp_path):
    """Also somebody for whom no class reaches its threshold."""
    model, processor = detector[0], copy.deepcopy(detector[1])
    processor.score_threshold, processor.class_thresholds = 1.0, {}
    predict(videos[:1], tmp_path / "all", (model, processor), PredictionArguments(tubes=True))
    predict(videos[:1], tmp_path / "people", (model, processor), PredictionArguments(tubes=True, people_only=True))

    assert "<track" not in (tmp_path / "all" / "one" / "cvat.xml").read_text()
    text = (tmp_path / "people" / "one" / "cvat.xml").read_text()
    assert "<track" in text
    assert "checkbox" not in text
    assert "nobody there" in (tmp_path / "people" / "one" / "uncertain.csv").read_text()


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


def test_what_is_the_same_is_kept_and_what_is_not_is_done_again(tmp_path, caplog):
    paths = [write_video(tmp_path / f"{name}.mp4", np.arange(20) / 20, (32, 32)) for name in ("video", "other")]
    model, processor, out = make_model(), ClassQueryVideoProcessor(**EVERYTHING), tmp_path / "out"

    def again(arguments=PredictionArguments(), rate=None, of=None) -> str:  # noqa: B008
        """Why the first video is done again; empty if it is kept."""
        caplog.clear()
        predict(paths, out, of or (model, processor), arguments, keyframes_per_second=rate)
        return caplog.text.partition("done again: video.mp4 (other ")[2].partition(")")[0]

    assert again() == ""
    assert "kept" not in caplog.text
    assert again() == ""
    assert "2 of 2 videos were done before in the same way, kept: video.mp4, other.mp4" in caplog.text
    # Saved and loaded, touched, or copied: the same still.
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    os.utime(paths[0], (1, 1))
    assert again(of=load_detector(str(tmp_path / "model"))) == ""
    assert "kept: video.mp4" in caplog.text

    with torch.no_grad():
        model.actor_head.bias[1] += 0.5
    assert again() == "weights"
    assert again() == ""
    model.config.id2label = {index: f"other {name}" for index, name in model.config.id2label.items()}
    assert again() == "config"
    processor.class_thresholds = {"other sit": 0.1}
    assert again() == "processor"
    processor.class_thresholds = None
    assert again(PredictionArguments(top_k=1)) == "processor, options"
    assert again(rate=2.0) == "options"
    again()
    # Another video of the same size and time.
    status, content = os.stat(paths[0]), Path(paths[0]).read_bytes()
    Path(paths[0]).write_bytes(content.replace(b"x264", b"X264"))
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(paths[0]).st_size == status.st_size
    assert again() == "source"
    assert "kept: other.mp4" in caplog.text


def test_replaced_image_of_a_frame_folder_is_noticed(detector, tmp_path, caplog):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 9):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number:05d}.png")
    predict([str(folder)], tmp_path / "out", detector, PredictionArguments())

    image = folder / "00005.png"
    status = image.stat()
    Image.new("RGB", (32, 32), (9, 0, 0)).save(image)
    assert image.stat().st_size == status.st_size
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    predict([str(folder)], tmp_path / "out", detector, PredictionArguments())

    assert "frames (other source)" in caplog.text


def test_earlier_results_stay_until_the_new_ones_are_complete(videos, detector, tmp_path, monkeypatch, caplog):
    arguments = PredictionArguments(tubes=True)
    predict(videos[:1], tmp_path, detector, arguments)
    folder = tmp_path / "one"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    for error in (KeyboardInterrupt(), OSError(28, "No space left on device"), VideoReadError("gone")):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt, OSError):
            patch.setattr(prediction, "write_annotated_video", Mock(side_effect=error))
            predict(videos[:1], tmp_path, detector, PredictionArguments())
        assert {path.name for path in folder.iterdir()} == set(before)
        assert all(
            (folder / name).read_bytes() == content for name, content in before.items() if name != "summary.json"
        )

    assert summary_of(folder)["error"] == "gone"
    assert "gone" in collect_predictions(videos[:1], tmp_path)
    assert (tmp_path / "detections.csv").read_text() == ""
    # As it was then: the results are good again. Without tubes, nothing of them is left.
    predict(videos[:1], tmp_path, detector, arguments)
    assert "kept: one.mp4" in caplog.text
    assert summary_of(folder) == json.loads(before["summary.json"])
    predict(videos[:1], tmp_path, detector, PredictionArguments())
    assert files_of(folder) == {*("detections.json", "detections.csv", "summary.json", "annotated.mp4", "preview.png")}


def test_full_disk_names_path_and_need(videos, detector, tmp_path, monkeypatch):
    predict(videos[:1], tmp_path, detector, PredictionArguments())
    write = prediction.write_csv

    def write_as_if_full(path, *arguments):
        if "two" in str(path):
            raise OSError(28, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(prediction, "write_csv", write_as_if_full)
    size = Path(videos[1]).stat().st_size / 1e6
    with pytest.raises(OSError, match=rf"disk of .*two.* is full: about {size:.1f} MB are needed.*same command again"):
        predict(videos[:2], tmp_path, detector, PredictionArguments())

    assert "error" not in summary_of(tmp_path / "one")
    assert list((tmp_path / "two").iterdir()) == []


def test_files_that_a_killed_run_left_are_removed(videos, detector, tmp_path):
    left = ["one/.annotated-0a1b2c3d.mp4", "one/.summary-01234567.json", "one/.unfinished/preview.png"]
    left += [".detections-0a1b2c3d.csv"]
    own = ["one/.annotated-mine.mp4", "one/.holiday-0a1b2c3d.mp4", "one/notes.txt"]
    for _ in range(2):
        for name in (*left, *own):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        predict(videos[:2], tmp_path, detector, PredictionArguments())
        collect_predictions(videos[:2], tmp_path)

        assert not [name for name in left if (tmp_path / name).exists()]
        assert all((tmp_path / name).exists() for name in own)


def test_damaged_summary_is_done_again(videos, detector, tmp_path):
    predict(videos[:2], tmp_path, detector, PredictionArguments())
    (tmp_path / "one" / "summary.json").write_text('{"video": "o')
    (tmp_path / "two" / "detections.csv").unlink()

    predict(videos[:2], tmp_path, detector, PredictionArguments())

    assert not_done(videos[:2], tmp_path) == []
    assert (tmp_path / "two" / "detections.csv").is_file()


@pytest.mark.parametrize("name", ["summary.json.mp4", "detections.csv.mp4", "x .mp4", "caf\udce9.mp4", "c:m.mp4"])
def test_results_of_videos_of_any_name_are_written(name, videos, detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (name, "x.mp4"):
        shutil.copy(videos[0], path)

    predict([name, "x.mp4"], tmp_path / "out", detector, PredictionArguments(tubes=True))

    collect_predictions([name, "x.mp4"], tmp_path / "out")
    assert not_done([name, "x.mp4"], tmp_path / "out") == []
    assert len(files_of(tmp_path / "out")) == 4
    summaries = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [summary["video"] for summary in summaries] == [name, "x.mp4"]
    with (tmp_path / "out" / "detections.csv").open(newline="", encoding="utf-8") as file:
        assert len({row["video"] for row in csv.DictReader(file)}) == 2


@pytest.mark.parametrize("given", [".", ".."])
def test_frames_of_the_current_folder_get_a_folder_of_results(given, detector, tmp_path, monkeypatch):
    (tmp_path / "frames" / "inside").mkdir(parents=True)
    for number in range(1, 9):
        Image.new("RGB", (32, 32)).save(tmp_path / "frames" / f"{number:05d}.png")
    monkeypatch.chdir(tmp_path / "frames" if given == "." else tmp_path / "frames" / "inside")

    predict(find_videos([given]), tmp_path / "out" / "predictions", detector, PredictionArguments())

    assert files_of(tmp_path / "out") == {"predictions"}
    assert files_of(tmp_path / "out" / "predictions") == {"frames"}


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

    assert files_of(tmp_path / "out") == {"a_one", "b_one"}
    table = collect_predictions(paths, tmp_path / "out")
    assert [line.split()[0] for line in table.splitlines()] == ["video", "a/one.mp4", "b/one.mp4"]
    # Both have the same actors, which are not those of one video.
    shutil.copy(tmp_path / "out" / "detections.csv", tmp_path / "train.csv")
    rows = load_custom(tmp_path, "train")
    assert [row["video"] for row in rows] == [path for path in paths for _ in range(3)]
    assert rows["tubes"][:3] == rows["tubes"][3:]
    content = json.loads((tmp_path / "out" / "a_one" / "detections.json").read_text())
    assert [len(tubes) for tubes in rows["tubes"][:3]] == [len(frame["actors"]) for frame in content["keyframes"]]


def test_same_video_twice_is_taken_once(videos, detector, tmp_path, monkeypatch, caplog):
    (tmp_path / "link.mp4").symlink_to(videos[0])
    monkeypatch.chdir(Path(videos[0]).parent)
    given = [videos[0], "one.mp4", str(tmp_path / "link.mp4"), "../" + str(Path(*Path(videos[0]).parts[-2:]))]

    assert find_videos(given) == [videos[0]]
    assert f"link.mp4 is the same file as {videos[0]}: taken once" in caplog.text
    predict(given, tmp_path / "out", detector, PredictionArguments())

    assert len(collect_predictions(given, tmp_path / "out").splitlines()) == 2


def test_videos_are_found(videos, tmp_path, caplog):
    assert find_videos([str(Path(videos[0]).parent / "*.mp4")]) == sorted(videos)
    assert find_videos([videos[0], "missing.mp4", "nothing/*.mp4"]) == [videos[0], "missing.mp4", "nothing/*.mp4"]
    assert "2 of 3 videos are missing: missing.mp4, nothing/*.mp4" in caplog.text
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_videos(["nothing/*.mp4"])
    with pytest.raises(VideoReadError, match=r"none\.mp4"):
        find_videos(videos[3:])
    with pytest.raises(VideoReadError, match=r"missing\.mp4"):
        find_videos(["missing.mp4"])


def test_video_without_any_detection(videos, tmp_path):
    processor = ClassQueryVideoProcessor(**EVERYTHING | {"score_threshold": 1.0})

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
        check=False,
    )

    assert result.returncode != 0
    assert "1 of 4 videos could not be read" in result.stdout + result.stderr
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == {
        *("one", "two", "cut", "none", "summary.json", "detections.csv")
    }


def test_attention_is_shown_where_its_class_scores_highest(videos, tmp_path, monkeypatch):
    model, processor = make_model(), ClassQueryVideoProcessor(**EVERYTHING)
    shown = []
    monkeypatch.setattr(
        prediction, "draw_keyframe", lambda image, frame, **options: shown.append((frame, options)) or image
    )
    frames = list(detect(videos[0], model, processor, attention="sit", keyframes_per_second=4))
    scores = {(frame.frame_index, actor.box): dict(actor.actions)["sit"] for frame in frames for actor in frame.actors}
    best, highest = max(scores.items(), key=lambda item: item[1])
    actors = []
    monkeypatch.setattr(
        prediction,
        "draw_attention_grid",
        lambda image, actor, labels, note: actors.append((actor.box, note)) or image,
    )

    above = (highest + 1) / 2
    for threshold in (highest / 2, above):
        processor = ClassQueryVideoProcessor(**EVERYTHING | {"class_thresholds": {"sit": threshold}})
        folder = tmp_path / str(threshold)
        predict(videos[:1], folder, (model, processor), PredictionArguments(attention="sit"), keyframes_per_second=4)

    note = f", nowhere above its threshold of {above:.2f}"
    assert [(frame.frame_index, options["attention_note"]) for frame, options in shown] == [
        (best[0], ""),
        (best[0], note),
    ]
    assert actors == [(best[1], ""), (best[1], note)]


def test_lists_end_in_the_singular_too():
    assert [and_others(count) for count in (-1, 0, 1, 2)] == ["", "", ", and 1 other", ", and 2 others"]
